const { baseURL } = require('../../config')
const { getOpenID } = require('../../openid')

// What only developers need, the address and the error code, is not shown in a released mini program.
const isDevelop = !!wx.getAccountInfoSync && wx.getAccountInfoSync().miniProgram.envVersion === 'develop'

const nothing = { openid: '', unionid: '', problem: '', error: '', detail: '' }

Page({
  data: Object.assign({ baseURL, isDevelop, loading: false }, nothing),

  asking: false,
  unloaded: false,

  // The guard is a plain field, not data: it works from one tap to the next, however soon
  // that comes, and does not wait for the screen.
  ask() {
    if (this.asking) return
    this.asking = true
    this.setData({ loading: true })
    getOpenID(baseURL).then(
      ids => this.show(ids),
      err => {
        // detail may be English, or HTML: it goes to the console and the clipboard, not on the screen.
        console.warn('getOpenID', err.error, err.status, err.detail)
        this.show({ problem: err.message, error: err.error, detail: `${err.error} ${err.status} ${err.detail}` })
      }
    )
  },

  /** @param {object} outcome what to set in data */
  show(outcome) {
    this.asking = false
    if (this.unloaded) return
    this.setData(Object.assign({ loading: false }, nothing, outcome))
  },

  // When it succeeds, WeChat itself says 内容已复制.
  /** @param {WechatMiniprogram.TouchEvent} event */
  copy(event) {
    wx.setClipboardData({
      data: event.currentTarget.dataset.text,
      fail: () => wx.showToast({ title: '复制失败，请长按文字复制', icon: 'none' })
    })
  },

  onUnload() {
    this.unloaded = true
  }
})
