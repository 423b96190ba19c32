// A stand-in for WeChat, without a screen: it loads the sample and does what WeChat documents
// of the functions that the sample calls.

const fs = require('node:fs')
const path = require('node:path')
const vm = require('node:vm')

const root = path.join(__dirname, '../../miniprogram')

// open loads the page. login, request and copy say how such a call ends: with {success: …} or
// {fail: …}, or, if it never calls back, {}. codes are what wx.login gives, call by call, if
// login does not say something else. Without request, the call really goes to baseURL. Without
// version (develop, trial or release) or scene, WeChat is too old to know them.
function open({ baseURL, appid, version, scene, codes = ['the code is a mock one'], login, request, copy = { success: {} } }) {
  // timers are those that run. loaded is called when the page has stopped loading.
  const phone = { logins: [], requests: [], timers: [], clipboard: '', toast: '', loaded() {} }
  const globals = {
    wx: {
      login(options) {
        end(options, login ?? { success: { code: codes[phone.logins.length], errMsg: 'login:ok' } })
        phone.logins.push(options)
      },
      request(options) { // it returns no promise
        phone.requests.push(options)
        if (request) end(options, request)
        else send(options, appid).then(result => end(options, result))
      },
      getAccountInfoSync: version && (() => ({ miniProgram: { envVersion: version } })),
      getLaunchOptionsSync: scene && (() => ({ scene })),
      setClipboardData(options) {
        phone.clipboard = options.data
        end(options, copy)
      },
      showToast({ title }) { phone.toast = title }
    },
    Page(page) {
      phone.page = page
      page.setData = changed => {
        Object.assign(page.data, changed)
        if (!page.data.loading) phone.loaded()
      }
    },
    setTimeout(callback, delay) {
      const timer = { callback, delay }
      phone.timers.push(timer)
      return timer
    },
    clearTimeout(timer) { phone.timers = phone.timers.filter(other => other !== timer) },
    console: { warn() {} }
  }

  const modules = {}
  const load = file => {
    if (modules[file]) return modules[file].exports
    const module = modules[file] = { exports: {} }
    const require = name => load(path.join(path.dirname(file), name) + '.js')
    const scope = { ...globals, module, require }
    const source = fs.readFileSync(path.join(root, file), 'utf8')
    vm.compileFunction(source, Object.keys(scope), { filename: file })(...Object.values(scope))
    return module.exports
  }
  if (baseURL) load('config.js').baseURL = baseURL
  load('pages/index/index.js')
  return Object.assign(phone, load('openid.js'))
}

// end calls back later: success or fail, then complete.
function end(options, { success, fail }) {
  setImmediate(() => {
    if (success) options.success?.(success)
    if (fail) options.fail?.(fail)
    if (success || fail) options.complete?.(success || fail)
  })
}

// send sends what wx.request was given. Every status is a success, and JSON is parsed whatever
// its Content-Type.
async function send({ url, method, data }, appid) {
  const headers = {
    'Content-Type': 'application/json',
    Referer: `https://servicewechat.com/${appid}/devtools/page-frame.html`
  }
  try {
    const response = await fetch(url, { method, headers, body: JSON.stringify(data) })
    let answer = await response.text()
    try { answer = JSON.parse(answer) } catch {}
    return { success: { statusCode: response.status, data: answer } }
  } catch ({ message }) {
    return { fail: { errMsg: `request:fail ${message}`, errno: 600001 } }
  }
}

module.exports = { root, open }
