// openid.js sends a new code of wx.login to your own back end (login), or to wxopenid (getOpenID).
//
// To login every 2xx answer is a success. If your back end answers 200 for failures too ({"code":500,"msg":"…"}),
// look at what login resolves with.
//
// It serves mini programs, mini games (小游戏) and 多端应用 (a released app has to call wx.getMiniProgramCode
// instead of wx.login). It does not serve plug-ins (插件), whose codes belong to another API, nor H5 pages.
//
// Copy this file alone, into any folder. Call it with
//
//	const { getOpenID } = require('./openid')
//
// In a project whose code says import, or whose package.json says "type": "module", change the last line of this
// file to the first of these, and call it with the second:
//
//	export { login, getOpenID }
//	import { getOpenID } from './openid.js'

// In milliseconds. Keep REQUEST_TIMEOUT above the service's WX_TIMEOUT (5 s), and above your back end's own limit.
const LOGIN_TIMEOUT = 10000
const REQUEST_TIMEOUT = 10000

/**
 * OpenIDError is what login and getOpenID reject with: `message` is a Chinese sentence for the user,
 * `error` a word for the program (all are in sentence below), `status` the HTTP status (0 if no answer
 * came), and `detail` what WeChat or the server said, for the developer's console.
 *
 * @typedef {Error & {error: string, status: number, detail: string}} OpenIDError
 */

/**
 * login sends {"code": "…"} to url, an address of your own back end, with the members of data beside the code
 * if there are any. It resolves with the JSON object of a 2xx answer, a session token for example, and rejects
 * with an OpenIDError.
 *
 * A code of wx.login works once and for 5 minutes, so every call gets a new one: to try again, call login
 * again.
 *
 * @param {string} url
 * @param {object} [data]
 * @returns {Promise<Record<string, any>>}
 */
function login(url, data) {
  return newCode().then(code => send(url, Object.assign({}, data, { code })))
}

/**
 * getOpenID asks wxopenid itself. It resolves with the user's openid, and with their unionid where WeChat
 * gives one ('' where it does not). It rejects with an OpenIDError.
 *
 * @param {string} baseURL scheme, host and port, with no slash at the end
 * @returns {Promise<{openid: string, unionid: string}>}
 */
function getOpenID(baseURL) {
  return login(`${baseURL}/openid`).then(answer => {
    const { openid, unionid = '' } = answer
    if (!openid || typeof openid !== 'string') throw badAnswer(200, answer)
    return { openid, unionid }
  })
}

/**
 * wx.login sometimes never calls back, hence the timer. A promise settles only once, so whatever comes
 * after the timer is ignored.
 *
 * @returns {Promise<string>}
 */
function newCode() {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(failure(noCode('login_timeout'))), LOGIN_TIMEOUT)
    wx.login({
      success: ({ code, errMsg }) => code ? resolve(code) : reject(failure('login_failed', 0, errMsg)),
      fail: ({ errMsg }) => reject(failure(noCode('login_failed', errMsg), 0, errMsg)),
      complete: () => clearTimeout(timer)
    })
  })
}

/**
 * wx.request never returns a promise, and it calls success for every HTTP status. An answer that is not
 * JSON (a gateway's error page, for example) arrives as a string.
 *
 * @param {string} url
 * @param {object} data
 * @returns {Promise<Record<string, any>>}
 */
function send(url, data) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(failure('timeout')), REQUEST_TIMEOUT)
    wx.request({
      url,
      method: 'POST',
      data,
      timeout: REQUEST_TIMEOUT,
      success: ({ statusCode, data: answer }) => {
        const { error, message } = Object(answer)
        const isObject = answer && typeof answer === 'object' && !Array.isArray(answer)
        if (isObject && statusCode >= 200 && statusCode < 300) {
          resolve(answer)
        } else if (typeof error === 'string' && /^[a-z_]+$/.test(error)) {
          reject(failure(error, statusCode, message))
        } else {
          reject(badAnswer(statusCode, answer))
        }
      },
      fail: ({ errno, errMsg }) => reject(failure(noAnswer(url, errno, errMsg), 0, errMsg)),
      complete: () => clearTimeout(timer)
    })
  })
}

// errMsg differs from phone to phone and with the phone's language, and is not always there.

function noCode(error = '', errMsg = '') {
  // wx.login always fails in 单页模式, a page opened from Moments (朋友圈).
  if (wx.getLaunchOptionsSync && wx.getLaunchOptionsSync().scene === 1154) return 'single_page'
  return /不是该小程序的开发者/.test(errMsg) ? 'not_developer' : error
}

// Base libraries before 2.24.0 give no errno.
function noAnswer(url = '', errno = 0, errMsg = '') {
  if (errno === 600002 || /domain list/.test(errMsg)) {
    return /^http:/i.test(url) ? 'http_forbidden' : 'domain_not_listed'
  }
  if (errno === 600005 || errno === 600009) return 'invalid_url'
  if (/invalid url|protocol must be|url is null/.test(errMsg)) return 'invalid_url'
  if (/time(d.)?out|超时/i.test(errMsg)) return 'timeout'
  if (/ssl|tls|cert|证书|trust anchor/i.test(errMsg)) return 'tls_failed'
  return 'no_network'
}

/** @param {any} data */
function badAnswer(status = 0, data) {
  const text = String(typeof data === 'string' ? data : JSON.stringify(data))
  return failure('bad_answer', status, text.slice(0, 200))
}

/** @returns {OpenIDError} */
function failure(error = '', status = 0, detail = '') {
  return Object.assign(new Error(sentence(error, status)), { error, status, detail })
}

// sentence says what went wrong and what to do, to somebody who has never heard of codes.
function sentence(error = '', status = 0) {
  switch (error) {
    // this file's own
    case 'login_failed':
      return '微信登录失败，请稍后再试'
    case 'login_timeout':
      return '微信登录没有响应，请重试；如仍失败，请重启微信'
    case 'not_developer':
      return '当前微信号不是该小程序的开发者，请联系小程序管理员添加'
    case 'single_page':
      return '当前是单页模式，请点「前往小程序」后再登录'
    case 'no_network':
      return '无法连接服务器，请检查网络后重试'
    case 'timeout':
      return '请求超时，请检查网络后重试'
    case 'tls_failed':
      return '服务器的 HTTPS 证书有问题，重试无效，请联系开发者修复'
    case 'domain_not_listed':
      return '服务器域名不在合法域名列表中，请开发者到小程序后台添加'
    case 'http_forbidden': // in the developer tools: tick 不校验合法域名
      return '访问 http 地址，需要在这台手机上「打开调试」；鸿蒙手机只能用 https 地址'
    case 'invalid_url':
      return '服务器地址的格式不正确，请联系开发者'
    case 'bad_answer':
      return '服务器返回异常，请稍后再试；如仍失败，请联系开发者'

    // the service's
    case 'invalid_request':
      return '请求内容有误，请联系开发者'
    case 'invalid_code':
      return '登录凭证无效，请重试；如仍失败，请联系开发者'
    case 'appid_mismatch':
      return '小程序与服务器的 AppID 不一致，请联系开发者'
    case 'code_used':
      return '登录凭证已被使用，请重试'
    case 'user_blocked':
      return '微信认为该账号存在风险，暂时无法登录，请联系微信客服'
    case 'not_found':
      return '服务器地址不正确，请联系开发者'
    case 'method_not_allowed': // a redirect from http to https turns POST into GET
      return '请求被重定向，请开发者检查服务器地址'
    case 'body_too_large':
      return '请求内容过长，请联系开发者'
    case 'rate_limited':
      return '操作过于频繁，请一分钟后再试'
    case 'misconfigured':
      return '服务器配置有误，请联系开发者'
    case 'wechat_error':
      return '微信登录服务异常，请稍后再试'
    case 'wechat_unreachable':
      return '服务器无法连接微信，请稍后再试'
    case 'wechat_busy':
      return '微信系统繁忙，请稍后再试'
    case 'quota_exceeded':
      return '小程序今天的登录次数已用完，请明天再试'
    case 'overloaded':
      return '当前访问人数较多，请稍后再试'
    case 'wechat_timeout':
      return '微信响应超时，请稍后再试'
    default:
      return status >= 500 ? '服务器出错，请稍后再试' : '请求失败，请联系开发者'
  }
}

module.exports = { login, getOpenID }
