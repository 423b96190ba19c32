const { baseURL } = require('../../config')
const { getOpenID } = require('../../openid')

Page({
  data: {
    baseURL,
    loading: false,
    openid: '',
    unionid: '',
    problem: '',
    error: '',
    detail: ''
  },

  asking: false,
  unloaded: false,

  // The guard is a plain field, not data: it works from one tap to the next, however soon
  // that comes, and does not wait for the screen.
  ask() {
    if (this.asking) return
    this.asking = true
    this.setData({ loading: true, openid: '', unionid: '', problem: '' })
    getOpenID().then(
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
    this.setData(Object.assign({ loading: false }, outcome))
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
