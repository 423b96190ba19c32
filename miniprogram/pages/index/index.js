const { getOpenID } = require('../../openid')

Page({
  data: {
    loading: false,
    openid: '',
    unionid: '',
    problem: ''
  },

  asking: false,
  unloaded: false,

  // The guard is a plain field, not data: it holds from one tap to the next, however
  // soon that comes, and does not wait for the screen.
  ask() {
    if (this.asking) return
    this.asking = true
    this.setData({ loading: true, openid: '', unionid: '', problem: '' })
    getOpenID().then(
      ids => this.show(ids),
      err => {
        console.warn('getOpenID', err.error, err.status, err.detail)
        this.show({ problem: err.message })
      }
    )
  },

  show(outcome) {
    this.asking = false
    if (this.unloaded) return
    this.setData(Object.assign({ loading: false }, outcome))
  },

  // When it succeeds, WeChat itself says 内容已复制.
  copy(event) {
    wx.setClipboardData({
      data: event.currentTarget.dataset.text,
      fail: () => wx.showToast({ title: '没有复制成功，请长按文字来复制', icon: 'none' })
    })
  },

  onUnload() {
    this.unloaded = true
  }
})
