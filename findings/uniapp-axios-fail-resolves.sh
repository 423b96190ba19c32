#!/bin/sh
# axios-adapter-uniapp 0.1.4 with the axios 0.27.2 that it asks for; seen 2026-11-27.
# Expected: a request that never got an answer rejects, as with axios anywhere else.
# Seen: where uni.request calls fail (refused, timed out), axios resolves: status and data are
# undefined, the cause is in statusText. A 400 rejects. So a login that checks nothing but
# "did it throw" takes an unreachable back end for a success.
# uni.request is played by a few lines over node's http, called back as its documentation says.
set -u
dir=$(mktemp -d) || exit 2
trap 'rm -rf "$dir"' EXIT
trap 'exit 2' INT TERM
cd "$dir" || exit 2
echo '{"private":true}' >package.json
timeout 300 npm install --silent --no-audit --no-fund --ignore-scripts \
	axios-adapter-uniapp@0.1.4 axios@0.27.2 >/dev/null 2>&1 || {
	echo 'the packages cannot be had'
	exit 2
}

cat >try.js <<'JS'
const http = require('http')
const axios = require('axios')
const adapter = require('axios-adapter-uniapp')

globalThis.uni = {
  request(o) {
    const call = (name, result) => { o[name]?.(result); o.complete?.(result) }
    const req = http.request(o.url, { method: o.method.toUpperCase(), timeout: o.timeout }, (res) => {
      let text = ''
      res.on('data', (part) => { text += part })
      const { statusCode, headers: header } = res
      res.on('end', () => call('success', { statusCode, header, data: JSON.parse(text), errMsg: 'request:ok' }))
    })
    req.on('timeout', () => req.destroy(new Error('timeout')))
    req.on('error', (e) => call('fail', { errMsg: 'request:fail ' + (e.code || e.message) }))
    req.end(o.data)
    return { abort() { req.destroy() } }
  },
}

const seen = {}
const ask = (name, url) => axios.post(url, { code: 'abc' }, { adapter, timeout: 300 }).then(
  (r) => {
    seen[name] = 'resolved'
    console.log(`${name}: resolved, status ${r.status}, data ${r.data}, statusText ${r.statusText}`)
  },
  (e) => {
    seen[name] = 'rejected'
    console.log(`${name}: rejected, ${e.message}`)
  })

const server = http.createServer((req, res) => {
  if (req.url === '/slow') return setTimeout(() => res.end('{}'), 1000)
  res.writeHead(400, { 'Content-Type': 'application/json' })
  res.end('{"error":"code_used"}')
})
server.listen(0, '127.0.0.1', async () => {
  const base = `http://127.0.0.1:${server.address().port}`
  await ask('400', base + '/')
  await ask('timed out', base + '/slow')
  await new Promise((done) => { server.close(done); server.closeAllConnections() })
  await ask('refused', base + '/')
  const so = seen['400'] === 'rejected' && seen['timed out'] === 'resolved' && seen.refused === 'resolved'
  process.exit(so ? 0 : 1)
})
JS
timeout 30 node try.js
rc=$?
[ $rc -eq 0 ] && echo 'still so' || echo 'no longer so'
[ $rc -eq 0 ]
