// A stand-in for WeChat: it opens a mini program on a phone without a screen, and does what
// WeChat documents of the few functions that the sample calls.

const fs = require('node:fs')
const http = require('node:http')
const path = require('node:path')
const vm = require('node:vm')
const { EventEmitter } = require('node:events')
const { parse, draw, texts, elements } = require('./wxml')

const RAW = /request:fail|login:fail|undefined|\[object|</

class Phone {
  constructor(root, options) {
    this.root = root
    this.options = options // baseURL, appid, and login, request, clipboard in place of the defaults below
    this.clock = new Clock()
    this.logins = 0
    this.requests = [] // the body of each
    this.outcomes = [] // the promise of each getOpenID
    this.clipboard = ''
    this.toast = ''
    this.complaints = [] // what WeChat would complain about in its console, and raw words on the screen
    this.changes = new EventEmitter()
    this.modules = {}
  }

  open() {
    const [route] = this.json('app.json').pages
    this.load('app.js')
    this.load(`${route}.js`)
    this.template = parse(fs.readFileSync(path.join(this.root, `${route}.wxml`), 'utf8'))
    return this
  }

  json(file) {
    return JSON.parse(fs.readFileSync(path.join(this.root, file), 'utf8'))
  }

  // load runs a file of the mini program once, with what WeChat gives it and nothing else.
  load(file) {
    if (this.modules[file]) return this.modules[file].exports
    const module = this.modules[file] = { exports: {} }
    const scope = {
      module,
      exports: module.exports,
      require: name => this.load(path.join(path.dirname(file), name) + '.js'),
      wx: this.wx(),
      App: () => {},
      Page: options => { this.page = this.instance(options) },
      setTimeout: (...args) => this.clock.setTimeout(...args),
      clearTimeout: id => this.clock.clearTimeout(id),
      console: { warn() {} }
    }
    const source = fs.readFileSync(path.join(this.root, file), 'utf8')
    vm.compileFunction(source, Object.keys(scope), { filename: file })(...Object.values(scope))
    if (file === 'config.js') this.configure(module.exports)
    if (file === 'openid.js') this.record(module.exports)
    return module.exports
  }

  configure(exports) {
    this.configured = { ...exports }
    exports.baseURL = this.options.baseURL
  }

  record(exports) {
    const { getOpenID } = exports
    exports.getOpenID = () => {
      const outcome = getOpenID()
      this.outcomes.push(outcome.then(ids => ids, ({ error, status, message }) => ({ error, status, message })))
      return outcome
    }
  }

  // The view has data of its own, a copy that only setData changes, as JSON.
  instance(options) {
    const page = { ...options, data: structuredClone(options.data) }
    this.view = structuredClone(options.data)
    page.setData = changed => {
      if (this.closed) this.complaints.push('setData after onUnload')
      for (const [key, value] of Object.entries(changed)) {
        if (!(key in this.view)) this.complaints.push(`setData of ${key}, which data does not have`)
        if (value === undefined) this.complaints.push(`setData of ${key} to undefined`)
        page.data[key] = value
        this.view[key] = JSON.parse(JSON.stringify(value ?? null))
      }
      this.changed()
    }
    return page
  }

  changed() {
    const raw = RAW.exec(this.screen().join('\n') + this.toast)
    if (raw) this.complaints.push(`${raw[0]} is on the screen`)
    this.changes.emit('change')
  }

  // until returns when what it asks for has become true.
  async until(condition) {
    while (!condition()) await new Promise(resolve => this.changes.once('change', resolve))
  }

  screen() {
    return texts(draw(this.template, this.view))
  }

  find(text) {
    const found = elements(draw(this.template, this.view)).find(({ attrs, children }) => attrs.bindtap && texts(children).join() === text)
    if (!found) throw new Error(`there is no ${text} to tap; on the screen: ${this.screen().join(' | ')}`)
    return found
  }

  tap(text) {
    this.press(this.find(text))
  }

  press({ attrs }) {
    if (attrs.disabled) return
    const dataset = {}
    for (const name of Object.keys(attrs)) if (name.startsWith('data-')) dataset[name.slice(5)] = attrs[name]
    this.page[attrs.bindtap]({ type: 'tap', currentTarget: { dataset } })
  }

  close() {
    this.page.onUnload?.()
    this.closed = true
  }

  wx() {
    return {
      login: options => {
        this.logins++
        this.options.login(callbacks(options), this.logins)
        this.changes.emit('change')
      },
      request: options => {
        const { url, method = 'GET', data, timeout = 60000 } = options
        const body = JSON.stringify(data)
        this.requests.push(body)
        const calling = callbacks(options)
        const send = this.options.request ?? (() => this.send({ url, method, body, timeout }, calling))
        const task = send(calling)
        this.changes.emit('change')
        return { abort: () => task?.abort(), onHeadersReceived() {}, offHeadersReceived() {} } // no promise
      },
      setClipboardData: options => {
        const calling = callbacks(options)
        if (this.options.clipboard) return this.options.clipboard(calling)
        this.clipboard = options.data
        this.showToast('内容已复制')
        calling.success({ errMsg: 'setClipboardData:ok' })
      },
      showToast: ({ title }) => this.showToast(title)
    }
  }

  showToast(title) {
    this.toast = title
    this.changed()
  }

  // send succeeds for every answer, whatever its status, and reads JSON whatever its type.
  send({ url, method, body, timeout }, calling) {
    const headers = {
      'Content-Type': 'application/json',
      Referer: `https://servicewechat.com/${this.options.appid}/devtools/page-frame.html`
    }
    const request = http.request(url, { method, headers, agent: false })
    const timer = this.clock.setTimeout(() => abort('timeout', 5), timeout)
    const abort = (why, errno) => {
      this.clock.clearTimeout(timer)
      request.destroy()
      calling.fail({ errMsg: `request:fail ${why}`, errno })
    }
    request.on('error', ({ message }) => abort(message, 600001))
    request.on('response', async response => {
      let data = ''
      try {
        for await (const chunk of response.setEncoding('utf8')) data += chunk
      } catch ({ message }) {
        return abort(message, 600001)
      }
      this.clock.clearTimeout(timer)
      try { data = JSON.parse(data) } catch {}
      calling.success({ statusCode: response.statusCode, header: response.headers, data, errMsg: 'request:ok' })
    })
    request.end(body)
    return { abort: () => abort('abort', 600003) }
  }
}

// callbacks are called in a later tick: one of success and fail, once, and then complete.
function callbacks({ success, fail, complete }) {
  let done = false
  const settle = callback => result => {
    if (done) return
    done = true
    setImmediate(() => {
      callback?.(result)
      complete?.(result)
    })
  }
  return { success: settle(success), fail: settle(fail) }
}

// Clock stands still until it is told that time has passed.
class Clock {
  constructor() {
    this.now = 0
    this.timers = new Map()
    this.last = 0
  }

  setTimeout(callback, delay) {
    this.timers.set(++this.last, { due: this.now + delay, callback })
    return this.last
  }

  clearTimeout(id) {
    this.timers.delete(id)
  }

  pass(milliseconds) {
    this.now += milliseconds
    for (const [id, { due, callback }] of this.timers) {
      if (due > this.now) continue
      this.timers.delete(id)
      callback()
    }
  }
}

module.exports = { Phone }
