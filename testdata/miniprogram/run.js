// Runs the sample mini program against the real service and prints a line of JSON for each
// scenario: its name, and its problem where it has one.
//
//	node run.js '{"appid": …, "sandbox": URL, "hasty": URL, "cutoff": URL}'
//
// sandbox is the service with -sandbox, hasty the same with no patience for WeChat, cutoff
// one that cannot reach WeChat.

const assert = require('node:assert/strict')
const http = require('node:http')
const path = require('node:path')
const { inspect } = require('node:util')
const { Phone } = require('./wx')

const service = JSON.parse(process.argv[2])
const root = path.join(__dirname, '../../miniprogram')

const TITLE = '获取 openid'
const ABOUT = 'openid 是你在这个小程序里的唯一标识'
const ASK = '点击获取openid'
const ASKING = '正在获取'

const fresh = () => [TITLE, ABOUT, ASK]
const waiting = () => [TITLE, ABOUT, ASKING]
const problem = sentence => [TITLE, ABOUT, sentence, ASK]
const ids = ({ openid, unionid }) => [
  TITLE, ABOUT, 'openid', openid, '复制', ...unionid ? ['unionid', unionid, '复制'] : [], ASK
]

// A login is what wx.login does when it is called the nth time.
const code = (...codes) => (wx, n) => wx.success({ code: codes[Math.min(n, codes.length) - 1], errMsg: 'login:ok' })
const mock = code('the code is a mock one') // what the developer tools give to tourists
const silent = () => {}

const CRASHES = ['uncaughtException', 'unhandledRejection']

// failures are the ways to fail. Each ends in its own sentence.
const failures = [
  { name: 'wx.login fails', login: wx => wx.fail({ errMsg: 'login:fail interrupted', errno: 600003 }), requests: 0, error: 'login_failed', status: 0, sentence: '微信登录没有成功，请稍后再点一次' },
  { name: 'wx.login gives no code', login: wx => wx.success({ errMsg: 'login:ok' }), requests: 0, error: 'login_failed', status: 0, sentence: '微信登录没有成功，请稍后再点一次' },
  { name: 'wx.login never calls back', login: silent, requests: 0, passes: 10000, error: 'login_timeout', status: 0, sentence: '微信登录没有回应，请再点一次，还不行请重启微信' },

  { name: 'nobody answers at the address', url: 'http://127.0.0.1:1', error: 'no_network', status: 0, sentence: '连不上服务器，请检查网络后再点一次' },
  { name: 'no network', request: wx => wx.fail({ errMsg: 'request:fail errcode:-106 cronet_error_code:-106 error_msg:net::ERR_INTERNET_DISCONNECTED', errno: 600001 }), error: 'no_network', status: 0, sentence: '连不上服务器，请检查网络后再点一次' },
  { name: 'interrupted', request: wx => wx.fail({ errMsg: 'request:fail interrupted', errno: 600003 }), error: 'no_network', status: 0, sentence: '连不上服务器，请检查网络后再点一次' },
  { name: 'no errno', request: wx => wx.fail({ errMsg: 'request:fail ' }), error: 'no_network', status: 0, sentence: '连不上服务器，请检查网络后再点一次' },
  { name: 'answer later than the timeout', code: 'sandbox:delay=1m', passes: 10000, error: 'timeout', status: 0, sentence: '等了很久没有回应，请检查网络后再点一次' },
  { name: 'wx.request times out', request: wx => wx.fail({ errMsg: 'request:fail timeout', errno: 5 }), error: 'timeout', status: 0, sentence: '等了很久没有回应，请检查网络后再点一次' },
  { name: 'connection times out', request: wx => wx.fail({ errMsg: 'request:fail errcode:-118 cronet_error_code:-118 error_msg:net::ERR_CONNECTION_TIMED_OUT', errno: 600001 }), error: 'timeout', status: 0, sentence: '等了很久没有回应，请检查网络后再点一次' },
  { name: 'wx.request never calls back', request: silent, passes: 10000, error: 'timeout', status: 0, sentence: '等了很久没有回应，请检查网络后再点一次' },
  { name: 'domain not on the list', request: wx => wx.fail({ errMsg: 'request:fail', errno: 600002 }), error: 'domain_not_listed', status: 0, sentence: '服务器的域名不在合法域名列表里，请开发者到小程序后台添加' },
  { name: 'domain not on the list, no errno', request: wx => wx.fail({ errMsg: 'request:fail url not in domain list' }), error: 'domain_not_listed', status: 0, sentence: '服务器的域名不在合法域名列表里，请开发者到小程序后台添加' },

  { name: 'invalid_code', code: 'sandbox:errcode=40029', error: 'invalid_code', status: 400, sentence: '登录凭证无效，请再点一次，总是这样请联系开发者' },
  { name: 'appid_mismatch', appid: 'wx89abcdef01234567', code: 'sandbox:errcode=40029', error: 'appid_mismatch', status: 400, sentence: '小程序和服务器的 AppID 不一致，请联系开发者' },
  { name: 'code_used', code: 'sandbox:errcode=40163', error: 'code_used', status: 400, sentence: '登录凭证已经用过，请再点一次' },
  { name: 'user_blocked', code: 'sandbox:errcode=40226', error: 'user_blocked', status: 403, sentence: '微信认为这个账号有风险，暂时不能登录，请联系微信客服' },
  { name: 'rate_limited', code: 'sandbox:errcode=45011', error: 'rate_limited', status: 429, sentence: '点得太频繁了，请过一分钟再点' },
  { name: 'quota_exceeded', code: 'sandbox:errcode=45009', error: 'quota_exceeded', status: 503, sentence: '今天的登录次数已经用完，请明天再来' },
  { name: 'misconfigured', code: 'sandbox:errcode=40013', error: 'misconfigured', status: 500, sentence: '服务器的设置有误，请联系开发者' },
  { name: 'wechat_busy', code: 'sandbox:errcode=-1', error: 'wechat_busy', status: 503, sentence: '微信正忙，请过几秒再点一次' },
  { name: 'wechat_error, an errcode nobody knows', code: 'sandbox:errcode=99999', error: 'wechat_error', status: 502, sentence: '微信的登录服务出错了，请稍后再点一次' },
  { name: 'wechat_error, a page of HTML', code: 'sandbox:status=502', error: 'wechat_error', status: 502, sentence: '微信的登录服务出错了，请稍后再点一次' },
  { name: 'wechat_timeout', url: service.hasty, code: 'sandbox:delay=1m', error: 'wechat_timeout', status: 504, sentence: '微信太久没有回应，请稍后再点一次' },
  { name: 'wechat_unreachable', url: service.cutoff, error: 'wechat_unreachable', status: 502, sentence: '服务器连不上微信，请稍后再点一次' },
  { name: 'overloaded', answer: [503, '{"error":"overloaded","message":"try again in a second"}'], error: 'overloaded', status: 503, sentence: '现在人太多了，请过几秒再点一次' },
  { name: 'not_found', url: `${service.sandbox}/elsewhere`, error: 'not_found', status: 404, sentence: '服务器的地址不对，请开发者检查 config.js' },
  { name: 'invalid_request', code: '密', error: 'invalid_request', status: 400, sentence: '请求没有成功，请联系开发者' },

  { name: 'unknown 4xx', answer: [418, '{"error":"teapot","message":"short and stout"}'], error: 'teapot', status: 418, sentence: '请求没有成功，请联系开发者' },
  { name: 'unknown 5xx', answer: [500, '{"error":"constructor"}'], error: 'constructor', status: 500, sentence: '服务器出错了，请稍后再点一次' },
  { name: 'page of a gateway', answer: [502, '<html><h1>502 Bad Gateway</h1></html>'], error: 'bad_answer', status: 502, sentence: '服务器的回应不对，请稍后再点一次，总是这样请联系开发者' },
  { name: 'page of another site', answer: [200, '<html>undefined</html>'], error: 'bad_answer', status: 200, sentence: '服务器的回应不对，请稍后再点一次，总是这样请联系开发者' },
  { name: '200 without an openid', answer: [200, '{"unionid":"u"}'], error: 'bad_answer', status: 200, sentence: '服务器的回应不对，请稍后再点一次，总是这样请联系开发者' },
  { name: '200 with an empty openid', answer: [200, '{"openid":""}'], error: 'bad_answer', status: 200, sentence: '服务器的回应不对，请稍后再点一次，总是这样请联系开发者' },
  { name: '200 with an openid that is no string', answer: [200, '{"openid":{}}'], error: 'bad_answer', status: 200, sentence: '服务器的回应不对，请稍后再点一次，总是这样请联系开发者' },
  { name: 'openid with a status that is not 200', answer: [500, '{"openid":"o"}'], error: 'bad_answer', status: 500, sentence: '服务器的回应不对，请稍后再点一次，总是这样请联系开发者' },
  { name: 'error that is no string', answer: [500, '{"error":{"code":1},"message":{}}'], error: 'bad_answer', status: 500, sentence: '服务器的回应不对，请稍后再点一次，总是这样请联系开发者' },
  { name: 'null', answer: [200, 'null'], error: 'bad_answer', status: 200, sentence: '服务器的回应不对，请稍后再点一次，总是这样请联系开发者' },
  { name: 'nothing', answer: [204, ''], error: 'bad_answer', status: 204, sentence: '服务器的回应不对，请稍后再点一次，总是这样请联系开发者' }
]

async function fails({ url, answer, appid, code: sent, login, request, passes, requests = 1, error, status, sentence }, open) {
  const phone = open({
    baseURL: answer ? await gateway(...answer) : url,
    appid,
    login: login ?? (sent ? code(sent) : mock),
    request
  })
  phone.tap(ASK)
  if (passes) {
    await phone.until(() => phone.requests.length === requests)
    phone.clock.pass(passes - 1)
    await ticks()
    assert.deepEqual(phone.screen(), waiting())
    phone.clock.pass(1)
  }
  await answered(phone)
  assert.deepEqual(phone.screen(), problem(sentence))
  assert.deepEqual(await phone.outcomes[0], { error, status, message: sentence })
  assert.equal(phone.requests.length, requests)
}

// stories are all the rest.
const stories = {
  'a fresh page': async open => {
    const phone = open({ login: mock })
    assert.deepEqual(phone.screen(), fresh())
    assert.equal(phone.logins, 0)
  },

  'works as it comes': async open => {
    const phone = open({ login: mock })
    assert.deepEqual(phone.configured, { baseURL: 'http://localhost:2020' })
    const { appid, setting } = phone.json('project.config.json')
    assert.deepEqual({ appid, setting }, { appid: 'touristappid', setting: { urlCheck: false } })
  },

  'the openid arrives': async open => {
    const phone = open({ login: mock })
    phone.tap(ASK)
    assert.deepEqual(phone.screen(), waiting())
    assert.equal(phone.find(ASKING).attrs.loading, true)
    await answered(phone)
    const got = await phone.outcomes[0]
    assert.match(got.openid, /^o[\w-]{27}$/)
    assert.equal(got.unionid, '')
    assert.deepEqual(phone.screen(), ids(got))
    assert.equal(phone.find(ASK).attrs.loading, false)
    assert.deepEqual(phone.requests, ['{"code":"the code is a mock one"}'])
  },

  'so does the unionid': async open => {
    const phone = open({ login: code('sandbox:unionid=1') })
    phone.tap(ASK)
    await answered(phone)
    const got = await phone.outcomes[0]
    assert.ok(got.unionid)
    assert.deepEqual(phone.screen(), ids(got))
  },

  'a double tap asks once': async open => {
    const phone = open({ login: mock })
    const button = phone.find(ASK)
    phone.press(button)
    phone.press(button)
    await phone.until(() => phone.requests.length === 1)
    phone.tap(ASKING)
    await answered(phone)
    assert.deepEqual([phone.logins, phone.requests.length], [1, 1])
  },

  'a second attempt clears the openid': async open => {
    const phone = open({ login: code('sandbox:user=alice', 'sandbox:user=bob', 'sandbox:errcode=-1') })
    phone.tap(ASK)
    await answered(phone)
    const alice = await phone.outcomes[0]
    phone.tap(ASK)
    assert.deepEqual(phone.screen(), waiting())
    await answered(phone)
    const bob = await phone.outcomes[1]
    assert.notEqual(alice.openid, bob.openid)
    assert.deepEqual(phone.screen(), ids(bob))
    phone.tap(ASK)
    await answered(phone)
    assert.deepEqual(phone.screen(), problem('微信正忙，请过几秒再点一次'))
  },

  'a second attempt clears the unionid': async open => {
    const phone = open({ login: code('sandbox:unionid=1', 'sandbox:user=alice') })
    phone.tap(ASK)
    await answered(phone)
    phone.tap(ASK)
    await answered(phone)
    assert.deepEqual(phone.screen(), ids(await phone.outcomes[1]))
  },

  'a second attempt clears the sentence': async open => {
    const phone = open({ login: code('sandbox:errcode=-1', 'sandbox:user=alice') })
    phone.tap(ASK)
    await answered(phone)
    phone.tap(ASK)
    assert.deepEqual(phone.screen(), waiting())
    await answered(phone)
    assert.deepEqual(phone.screen(), ids(await phone.outcomes[1]))
  },

  'a second attempt has a code of its own': async open => {
    const phone = open({ login: code('0once', '0twice') })
    phone.tap(ASK)
    await answered(phone)
    phone.tap(ASK)
    await answered(phone)
    assert.deepEqual(phone.requests, ['{"code":"0once"}', '{"code":"0twice"}'])
    assert.deepEqual(phone.screen(), ids(await phone.outcomes[1]))
  },

  'a late wx.login is ignored': async open => {
    const logins = []
    const phone = open({ login: wx => logins.push(wx) })
    phone.tap(ASK)
    phone.clock.pass(10000)
    await answered(phone)
    phone.tap(ASK)
    logins[0].success({ code: 'sandbox:user=alice' })
    await ticks()
    assert.deepEqual(phone.screen(), waiting())
    logins[1].success({ code: 'sandbox:user=bob' })
    await answered(phone)
    assert.deepEqual(phone.requests, ['{"code":"sandbox:user=bob"}'])
    assert.deepEqual(phone.screen(), ids(await phone.outcomes[1]))
  },

  'a late wx.request is ignored': async open => {
    const requests = []
    const phone = open({ login: mock, request: wx => { requests.push(wx) } })
    phone.tap(ASK)
    await phone.until(() => requests.length === 1)
    phone.clock.pass(10000)
    await answered(phone)
    phone.tap(ASK)
    await phone.until(() => requests.length === 2)
    requests[0].success({ statusCode: 200, data: { openid: 'o-late' } })
    await ticks()
    assert.deepEqual(phone.screen(), waiting())
    requests[1].success({ statusCode: 200, data: { openid: 'o-in-time' } })
    await answered(phone)
    requests[1].fail({ errMsg: 'request:fail abort' })
    await ticks()
    assert.deepEqual(phone.screen(), ids({ openid: 'o-in-time' }))
  },

  'nothing runs on after an answer': async open => {
    const phone = open({ login: mock })
    phone.tap(ASK)
    await answered(phone)
    await ticks()
    assert.equal(phone.clock.timers.size, 0)
  },

  'the page is left before the answer': async open => {
    const phone = open({ login: mock })
    phone.tap(ASK)
    await phone.until(() => phone.requests.length === 1)
    phone.close()
    await phone.outcomes[0]
    await ticks()
    assert.deepEqual(phone.screen(), waiting())
  },

  'copy the openid': async open => {
    const phone = open({ login: mock })
    phone.tap(ASK)
    await answered(phone)
    phone.tap('复制')
    const { openid } = await phone.outcomes[0]
    assert.deepEqual([phone.clipboard, phone.toast], [openid, '内容已复制'])
  },

  'copy where it is not allowed': async open => {
    const phone = open({
      login: mock,
      clipboard: wx => wx.fail({ errMsg: 'setClipboardData:fail api scope is not declared in the privacy agreement', errno: 112 })
    })
    phone.tap(ASK)
    await answered(phone)
    phone.tap('复制')
    await phone.until(() => phone.toast)
    assert.equal(phone.toast, '没有复制成功，请长按文字来复制')
  }
}

// answered waits until the page is not waiting any more.
function answered(phone) {
  return phone.until(() => !phone.screen().includes(ASKING))
}

// ticks gives callbacks and promises the time to run that they need.
async function ticks() {
  for (let i = 0; i < 5; i++) await new Promise(resolve => setImmediate(resolve))
}

// gateway answers everything with one answer.
function gateway(status, body) {
  const server = http.createServer((_, response) => {
    response.writeHead(status, { 'Content-Type': 'text/html' }).end(body)
    server.close()
  })
  return new Promise(resolve => {
    server.listen(0, '127.0.0.1', () => resolve(`http://127.0.0.1:${server.address().port}`))
  })
}

// play plays a scenario, for 5 s at most.
async function play(name, scenario) {
  let phone, timer
  const open = options => {
    phone = new Phone(root, { ...options, baseURL: options.baseURL ?? service.sandbox, appid: options.appid ?? service.appid })
    return phone.open()
  }
  const crash = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`still waiting, with ${phone?.screen().join(' | ')} on the screen`)), 5000)
    for (const event of CRASHES) process.once(event, reject)
  })
  try {
    await Promise.race([scenario(open), crash])
    assert.deepEqual(phone.complaints, [])
    return { name }
  } catch (err) {
    if (err.code !== 'ERR_ASSERTION') return { name, problem: err.stack }
    return { name, problem: `got ${inspect(err.actual)}, want ${inspect(err.expected)}` }
  } finally {
    clearTimeout(timer)
    for (const event of CRASHES) process.removeAllListeners(event)
  }
}

async function main() {
  for (const failure of failures) console.log(JSON.stringify(await play(failure.name, open => fails(failure, open))))
  for (const name of Object.keys(stories)) console.log(JSON.stringify(await play(name, stories[name])))
  process.exit()
}

main()
