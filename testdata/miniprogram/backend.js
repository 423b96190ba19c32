// Tests the back end that README.md shows, with the mini program before it and the service behind it:
//
//	node backend.js '{"appid": …, "sandbox": URL}'
//
// It prints what the back end logs.

const assert = require('node:assert/strict')
const fs = require('node:fs')
const http = require('node:http')
const path = require('node:path')
const wx = require('./wx')

const { appid, sandbox } = JSON.parse(process.argv[2])

const [code, chinese] = ['README.md', 'README.zh-CN.md'].map(file => {
  const blocks = fs.readFileSync(path.join(wx.root, '..', file), 'utf8').matchAll(/^```js\n(.*?)^```$/gms)
  return [...blocks].map(([, code]) => code).find(code => code.includes('createServer'))
})
assert.equal(chinese, code)

const log = []

// start runs the back end on a free port, with the service at another address, and returns its own.
async function start(service) {
  const [address, port] = ['http://127.0.0.1:2020/openid', '.listen(3000)']
  assert.ok(code.includes(address) && code.includes(port))
  let server
  const createServer = handler => server = http.createServer(handler)
  const modules = name => name === 'node:http' ? { createServer } : require(name)
  const run = new Function('require', 'console', code.replace(address, service + '/openid').replace(port, '.listen(0)'))
  run(modules, { log: (...words) => log.push(words.join(' ')) })
  await new Promise(resolve => server.once('listening', resolve))
  return `http://127.0.0.1:${server.address().port}`
}

async function main() {
  const backEnd = await start(sandbox)
  const { login } = wx.open({ appid, codes: ['sandbox:user=alice', 'sandbox:user=alice'] })
  const answers = [await login(backEnd), await login(backEnd)]
  for (const answer of answers) {
    assert.deepEqual(Object.keys(answer), ['token'])
    assert.match(answer.token, /^[\w-]{36}$/)
  }
  assert.notEqual(answers[0].token, answers[1].token)

  const other = 'wx89abcdef01234567'
  const mismatch = wx.open({ appid: other, codes: ['sandbox:errcode=40029'] }).login(backEnd)
  await assert.rejects(mismatch, err => {
    assert.deepEqual([err.error, err.status], ['appid_mismatch', 400])
    assert.ok(err.detail.includes(appid) && err.detail.includes(other), err.detail)
    return true
  })

  const headers = { 'X-Request-Id': 'the-gateway-s' }
  const body = '{"code":"sandbox:errcode=-1"}'
  const busy = await fetch(backEnd, { method: 'POST', headers, body })
  const { error, errcode, message } = await busy.json()
  assert.deepEqual([busy.status, error, errcode, !!message], [503, 'wechat_busy', -1, true])
  assert.match(log.at(-1), /^the-gateway-s 503 wechat_busy$/)
  console.log(log.join('\n'))

  const unreachable = wx.open({ appid }).login(await start('http://127.0.0.1:1'))
  await assert.rejects(unreachable, { error: 'wxopenid_unreachable', status: 502, message: '服务器出错，请稍后再试' })
}

main().then(() => process.exit(0), err => {
  console.error(err)
  process.exit(1)
})
