// openid.js asks wxopenid for the openid of whoever is using this mini program.
// This file and config.js are all that an app of your own needs.

const { baseURL } = require('./config')

// In milliseconds. The service gives WeChat 5 s, so its answer can take a little longer.
const LOGIN_TIMEOUT = 10000
const REQUEST_TIMEOUT = 10000

/**
 * getOpenID resolves with the user's openid, and with their unionid where WeChat gives
 * one ('' where it does not).
 *
 * It rejects with an Error: `message` is a Chinese sentence for the user, `error` a word
 * for the program (the service's own, or one of those in sentence below), `status` the HTTP
 * status (0 if no answer came), and `detail` a line for the console, not for the screen.
 *
 * A code from wx.login works once and for 5 minutes, so every call gets a new one: to try
 * again, call getOpenID again.
 *
 * @returns {Promise<{openid: string, unionid: string}>}
 */
function getOpenID() {
  return login().then(exchange)
}

// wx.login at times never calls back, hence the timer. A promise settles only once, so what
// comes after the timer is ignored.
function login() {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(failure('login_timeout')), LOGIN_TIMEOUT)
    wx.login({
      success: ({ code, errMsg }) => code ? resolve(code) : reject(failure('login_failed', 0, errMsg)),
      fail: ({ errMsg }) => reject(failure('login_failed', 0, errMsg)),
      complete: () => clearTimeout(timer)
    })
  })
}

// wx.request never returns a promise, and it calls success for every HTTP status. An
// answer that is not JSON, a gateway's error page say, arrives as a string; Object makes
// of it, and of null, something that can be taken apart.
function exchange(code) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(failure('timeout')), REQUEST_TIMEOUT)
    wx.request({
      url: `${baseURL}/openid`,
      method: 'POST',
      data: { code },
      timeout: REQUEST_TIMEOUT,
      success: ({ statusCode, data }) => {
        const { openid, unionid = '', error, message } = Object(data)
        if (statusCode === 200 && openid && typeof openid === 'string') {
          resolve({ openid, unionid })
        } else {
          reject(failure(typeof error === 'string' ? error : 'bad_answer', statusCode, message))
        }
      },
      fail: ({ errno, errMsg }) => reject(failure(noAnswer(errno, errMsg), 0, errMsg)),
      complete: () => clearTimeout(timer)
    })
  })
}

// Base libraries before 2.24.0 give no errno.
function noAnswer(errno, errMsg) {
  if (errno === 600002 || /domain list/.test(errMsg)) return 'domain_not_listed'
  if (/time(d.)?out/i.test(errMsg)) return 'timeout'
  return 'no_network'
}

function failure(error, status = 0, detail = '') {
  return Object.assign(new Error(sentence(error, status)), { error, status, detail })
}

// sentence says what went wrong and what to do, to somebody who has never heard of codes.
function sentence(error, status) {
  switch (error) {
    // this file's own
    case 'login_failed':
      return '微信登录没有成功，请稍后再点一次'
    case 'login_timeout':
      return '微信登录没有回应，请再点一次，还不行请重启微信'
    case 'no_network':
      return '连不上服务器，请检查网络后再点一次'
    case 'timeout':
      return '等了很久没有回应，请检查网络后再点一次'
    case 'domain_not_listed':
      return '服务器的域名不在合法域名列表里，请开发者到小程序后台添加'
    case 'bad_answer':
      return '服务器的回应不对，请稍后再点一次，总是这样请联系开发者'

    // the service's
    case 'code_used':
      return '登录凭证已经用过，请再点一次'
    case 'invalid_code':
      return '登录凭证无效，请再点一次，总是这样请联系开发者'
    case 'appid_mismatch':
      return '小程序和服务器的 AppID 不一致，请联系开发者'
    case 'user_blocked':
      return '微信认为这个账号有风险，暂时不能登录，请联系微信客服'
    case 'rate_limited':
      return '点得太频繁了，请过一分钟再点'
    case 'quota_exceeded':
      return '今天的登录次数已经用完，请明天再来'
    case 'misconfigured':
      return '服务器的设置有误，请联系开发者'
    case 'overloaded':
      return '现在人太多了，请过几秒再点一次'
    case 'wechat_busy':
      return '微信正忙，请过几秒再点一次'
    case 'wechat_timeout':
      return '微信太久没有回应，请稍后再点一次'
    case 'wechat_unreachable':
      return '服务器连不上微信，请稍后再点一次'
    case 'wechat_error':
      return '微信的登录服务出错了，请稍后再点一次'
    case 'not_found':
      return '服务器的地址不对，请开发者检查 config.js'
    default:
      return status >= 500 ? '服务器出错了，请稍后再点一次' : '请求没有成功，请联系开发者'
  }
}

module.exports = { getOpenID }
