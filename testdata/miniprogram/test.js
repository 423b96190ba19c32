// Tests the sample mini program against the real service:
//
//	node test.js '{"appid": …, "sandbox": URL, "hasty": URL, "cutoff": URL}'
//
// sandbox is the service with -sandbox, hasty the same with a very short WX_TIMEOUT, and cutoff
// a service that cannot reach WeChat.

const assert = require('node:assert/strict')
const fs = require('node:fs')
const path = require('node:path')
const test = require('node:test')
const wx = require('./wx')

const { appid, sandbox, hasty, cutoff } = JSON.parse(process.argv[2])
const open = ({ baseURL = sandbox, ...options } = {}) => wx.open({ baseURL, appid, ...options })
const read = file => fs.readFileSync(path.join(wx.root, file), 'utf8')

// Ways to fail: wx.login or wx.request calls fail; the service refuses a code; somebody answers with
// a status and a body.
const loginFails = (errMsg, scene) => ({ login: { fail: { errMsg } }, detail: errMsg, scene })
const requestFails = (errMsg = '', errno, baseURL) => ({ request: { fail: { errMsg, errno } }, detail: errMsg, baseURL })
const refused = (code, status, more) => ({ codes: [code], status, detail: /\w+ \w+/, ...more })
const answer = (status, data, detail = data.message) => ({ request: { success: { statusCode: status, data } }, status, detail })

const html = `<html>${'502 Bad Gateway '.repeat(20)}</html>`

// Each row is an error, its sentence, and the ways to get there.
const failures = [
  ['login_failed', '微信登录失败，请稍后再试', loginFails('login:fail interrupted', 1001), { login: { fail: {} } },
    { login: { success: { errMsg: 'login:ok' } }, detail: 'login:ok' }],
  ['login_timeout', '微信登录没有响应，请重试；如仍失败，请重启微信', { login: {}, timer: 10000 }],
  ['not_developer', '当前微信号不是该小程序的开发者，请联系小程序管理员添加', loginFails('login:fail Error: 登录用户不是该小程序的开发者')],
  ['single_page', '当前是单页模式，请点「前往小程序」后再登录', loginFails('login:fail', 1154), { login: {}, timer: 10000, scene: 1154 }],
  ['no_network', '无法连接服务器，请检查网络后重试', { baseURL: 'http://127.0.0.1:1', detail: /^request:fail/ }, requestFails(),
    { request: { fail: {} } }, requestFails('request:fail interrupted', 600003),
    requestFails('request:fail 似乎已断开与互联网的连接。'),
    requestFails('request:fail errcode:-106 cronet_error_code:-106 error_msg:net::ERR_INTERNET_DISCONNECTED', 600001)],
  ['timeout', '请求超时，请检查网络后重试', { request: {}, timer: 10000 }, requestFails('request:fail timeout', 5),
    requestFails('request:fail 请求超时。'), requestFails('request:fail The request timed out.'),
    requestFails('request:fail errcode:-118 cronet_error_code:-118 error_msg:net::ERR_CONNECTION_TIMED_OUT', 600001)],
  ['tls_failed', '服务器的 HTTPS 证书有问题，重试无效，请联系开发者修复', requestFails('request:fail ssl hand shake error'),
    requestFails('request:fail errcode:-202 cronet_error_code:-202 error_msg:net::ERR_CERT_AUTHORITY_INVALID', 600001),
    requestFails('request:fail -201:net::ERR_CERT_DATE_INVALID'),
    requestFails('request:fail -107:net::ERR_SSL_PROTOCOL_ERROR'),
    requestFails('request:fail 发生了 SSL 错误，无法建立与该服务器的安全连接。'), requestFails('request:fail TLS 错误导致安全连接失败。'),
    requestFails('request:fail 此服务器的证书无效。'), requestFails('request:fail Trust anchor … not found.')],
  ['domain_not_listed', '服务器域名不在合法域名列表中，请开发者到小程序后台添加', requestFails('request:fail', 600002, 'https://example.com'),
    requestFails('request:fail url not in domain list', undefined, 'https://example.com')],
  ['http_forbidden', '访问 http 地址，需要在这台手机上「打开调试」；鸿蒙手机只能用 https 地址',
    requestFails('request:fail', 600002, 'http://192.168.1.5:2020'),
    requestFails('request:fail url not in domain list', undefined, 'HTTP://192.168.1.5:2020')],
  ['invalid_url', '服务器地址的格式不正确，请联系开发者', requestFails('request:fail invalid url "ssl.example.com/openid"'),
    requestFails('request:fail', 600009), requestFails('request:fail', 600005), requestFails('request:fail url is null'),
    requestFails('request:fail request protocol must be http or https')],
  ['bad_answer', '服务器返回异常，请稍后再试；如仍失败，请联系开发者', answer(502, html, html.slice(0, 200)),
    answer(404, 'Cannot POST /openid', 'Cannot POST /openid'), answer(204, '', ''),
    answer(400, 'Client sent an HTTP request to an HTTPS server.\n', 'Client sent an HTTP request to an HTTPS server.\n'),
    answer(404, { status: 404, error: 'Not Found' }, '{"status":404,"error":"Not Found"}'),
    answer(500, { error: { id: 1 }, text: html }, `{"error":{"id":1},"text":"${html}`.slice(0, 200)),
    answer(200, null, 'null'), answer(200, undefined, 'undefined'), answer(200, ['o'], '["o"]'), answer(200, 'o', 'o'),
    answer(200, { unionid: 'u' }, '{"unionid":"u"}'),
    answer(200, { openid: '' }, '{"openid":""}'), answer(200, { openid: {} }, '{"openid":{}}'),
    answer(500, { openid: 'o' }, '{"openid":"o"}')],

  ['invalid_request', '请求内容有误，请联系开发者', refused('密', 400)],
  ['invalid_code', '登录凭证无效，请重试；如仍失败，请联系开发者', refused('sandbox:errcode=40029', 400)],
  ['appid_mismatch', '小程序与服务器的 AppID 不一致，请联系开发者', refused('sandbox:errcode=40029', 400, { appid: 'wx89abcdef01234567' })],
  ['code_used', '登录凭证已被使用，请重试', refused('sandbox:errcode=40163', 400)],
  ['user_blocked', '微信认为该账号存在风险，暂时无法登录，请联系微信客服', refused('sandbox:errcode=40226', 403)],
  ['not_found', '服务器地址不正确，请联系开发者', refused('-', 404, { baseURL: `${sandbox}/elsewhere` })],
  ['method_not_allowed', '请求被重定向，请开发者检查服务器地址', answer(405, { error: 'method_not_allowed', message: 'POST only.' })],
  ['body_too_large', '请求内容过长，请联系开发者', refused('0'.repeat(5000), 413)],
  ['rate_limited', '操作过于频繁，请一分钟后再试', refused('sandbox:errcode=45011', 429)],
  ['misconfigured', '服务器配置有误，请联系开发者', refused('sandbox:errcode=40013', 500)],
  ['wechat_error', '微信登录服务异常，请稍后再试', refused('sandbox:errcode=99999', 502), refused('sandbox:status=502', 502)],
  ['wechat_unreachable', '服务器无法连接微信，请稍后再试', refused('-', 502, { baseURL: cutoff })],
  ['wechat_busy', '微信系统繁忙，请稍后再试', refused('sandbox:errcode=-1', 503)],
  ['quota_exceeded', '小程序今天的登录次数已用完，请明天再试', refused('sandbox:errcode=45009', 503)],
  ['overloaded', '当前访问人数较多，请稍后再试', answer(503, { error: 'overloaded', message: 'Try again in a second.' })],
  ['wechat_timeout', '微信响应超时，请稍后再试', refused('sandbox:delay=1m', 504, { baseURL: hasty })],

  // Words that openid.js does not know.
  ['teapot', '请求失败，请联系开发者', answer(418, { error: 'teapot', message: 'Short and stout.' })],
  ['constructor', '服务器出错，请稍后再试', answer(500, { error: 'constructor' }, '')]
]

for (const [error, message, ...ways] of failures) {
  for (const { timer, status = 0, detail = '', ...way } of ways) {
    test(`${error} ${detail}`, async () => {
      const phone = open(way)
      const failed = assert.rejects(phone.getOpenID(way.baseURL ?? sandbox), { error, message, status, detail })
      if (timer) {
        await callbacks()
        assert.deepEqual(phone.timers.map(({ delay }) => delay), [timer])
        phone.timers.pop().callback()
        phone.logins[0].success({ code: 'too late' })
        await callbacks()
      }
      await failed
      assert.equal(phone.requests.length, way.login ? 0 : 1)
      assert.deepEqual(phone.timers, [])
    })
  }
}

test('every word of openid.js is above', () => {
  const words = [...read('openid.js').matchAll(/case '(\w+)':/g)].map(([, word]) => word)
  assert.deepEqual(words, failures.map(([error]) => error).slice(0, -2))
})

test('works as it comes', () => {
  assert.equal(wx.open({}).page.data.baseURL, 'http://localhost:2020')
  const { appid, setting } = JSON.parse(read('project.config.json'))
  assert.deepEqual([appid, setting.urlCheck], ['touristappid', false])
})

test('the page has what its WXML names', () => {
  const { page } = open()
  const wxml = read('pages/index/index.wxml')
  for (const [, name] of wxml.matchAll(/bind\w+="(\w+)"/g)) assert.equal(typeof page[name], 'function', name)
  for (const [, name] of wxml.matchAll(/{{(\w+)/g)) assert.ok(name in page.data, name)
  assert.deepEqual(wxml.match(/aria-label="[^"]*"/g), ['aria-label="复制 openid"', 'aria-label="复制 unionid"'])
})

test('the openid arrives', async () => {
  const phone = open()
  const arrived = tap(phone)
  assert.equal(phone.page.data.loading, true)
  await arrived
  assert.match(phone.page.data.openid, /^o[\w-]{27}$/)
  shows(phone, { openid: phone.page.data.openid })
  assert.deepEqual(phone.requests[0].data, { code: 'the code is a mock one' })
  assert.equal(phone.requests[0].timeout, 10000)
  assert.deepEqual(phone.timers, [])
})

test('each attempt has a code of its own and shows its own outcome', async () => {
  const codes = ['sandbox:unionid=1', 'sandbox:errcode=-1', 'sandbox:user=alice']
  const phone = open({ codes })
  await tap(phone)
  const { openid, unionid } = phone.page.data
  assert.ok(openid && unionid)
  shows(phone, { openid, unionid })
  await tap(phone)
  shows(phone, { problem: '微信系统繁忙，请稍后再试' })
  assert.equal(phone.page.data.error, 'wechat_busy')
  assert.match(phone.page.data.detail, /^wechat_busy 503 \w+ \w+/)
  const arrived = tap(phone)
  shows(phone, { loading: true, problem: '微信系统繁忙，请稍后再试' })
  await arrived
  assert.notEqual(phone.page.data.openid, openid)
  shows(phone, { openid: phone.page.data.openid })
  assert.deepEqual(phone.requests.map(({ data }) => data.code), codes)
})

test('login resolves with the object of any 2xx answer', async () => {
  for (const statusCode of [200, 201, 299]) {
    const phone = open({ request: { success: { statusCode, data: { token: 't' } } } })
    assert.deepEqual(await phone.login('https://example.com/login'), { token: 't' })
    const [{ url, method, data }] = phone.requests
    assert.deepEqual([url, method, data], ['https://example.com/login', 'POST', { code: 'the code is a mock one' }])
  }
  for (const [statusCode, data, detail] of [[200, ['t'], '["t"]'], [302, { token: 't' }, '{"token":"t"}']]) {
    const rejects = open({ request: { success: { statusCode, data } } }).login('https://example.com/login')
    await assert.rejects(rejects, { error: 'bad_answer', status: statusCode, detail })
  }
})

test('login sends data beside a new code', async () => {
  const phone = open({ request: { success: { statusCode: 200, data: {} } }, codes: ['new'] })
  const data = { code: 'old', tenant: 7 }
  await phone.login('https://example.com/login', data)
  assert.deepEqual([phone.requests[0].data, data], [{ code: 'new', tenant: 7 }, { code: 'old', tenant: 7 }])
})

test('openid.js works alone', () => {
  assert.doesNotMatch(read('openid.js'), /^(?!\/\/).*(require\(|import )/m)
})

test('a released mini program does not show what is for developers', () => {
  const develop = version => open({ version }).page.data.isDevelop
  assert.deepEqual([develop('develop'), develop('trial'), develop('release'), develop()], [true, false, false, false])
})

test('a double tap asks once', async () => {
  const phone = open()
  phone.page.ask()
  await tap(phone)
  assert.deepEqual([phone.logins.length, phone.requests.length], [1, 1])
})

test('the page is left before the answer', async () => {
  const phone = open({ request: { success: { statusCode: 200, data: { openid: 'o' } } } })
  phone.page.ask()
  phone.page.onUnload()
  await callbacks()
  assert.equal(phone.requests.length, 1)
  shows(phone, { loading: true })
})

test('copy', async () => {
  const tapped = { currentTarget: { dataset: { text: 'o' } } }
  const phone = open()
  phone.page.copy(tapped)
  await callbacks()
  assert.deepEqual([phone.clipboard, phone.toast], ['o', ''])
  const forbidden = open({ copy: { fail: { errMsg: 'setClipboardData:fail', errno: 112 } } })
  forbidden.page.copy(tapped)
  await callbacks()
  assert.equal(forbidden.toast, '复制失败，请长按文字复制')
})

// tap taps the button and waits until the page has stopped loading.
function tap(phone) {
  return new Promise(resolve => {
    phone.loaded = resolve
    phone.page.ask()
  })
}

// shows wants the page to show this and nothing else.
function shows(phone, { loading = false, openid = '', unionid = '', problem = '' }) {
  const { data } = phone.page
  assert.deepEqual([data.loading, data.openid, data.unionid, data.problem], [loading, openid, unionid, problem])
}

// callbacks waits for the callbacks that are under way, but not for the service.
async function callbacks() {
  for (let i = 0; i < 5; i++) await new Promise(setImmediate)
}
