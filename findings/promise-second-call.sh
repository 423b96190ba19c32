#!/bin/sh
# miniprogram-api-promise 1.0.4, WeChat's own promises for wx.*; seen 2026-11-27.
# Expected: wxp.request(options) gives a promise each time, with the same options object too
# (kept in a constant, or used again to try once more).
# Seen: the first call writes its success and fail into the caller's object. The second call takes
# them for the caller's callbacks and returns undefined: await goes on at once, without an answer,
# while the request is under way, and res.statusCode throws a TypeError.
# wx.request is played by node's http over loopback; esbuild 0.27.7 bundles, as a mini program does.
set -u
dir=$(mktemp -d) || exit 2
trap 'rm -rf "$dir"' EXIT
trap 'exit 2' INT TERM
cd "$dir" || exit 2
echo '{"private":true}' >package.json
timeout 300 npm install --silent --no-audit --no-fund --ignore-scripts \
	miniprogram-api-promise@1.0.4 esbuild@0.27.7 >/dev/null 2>&1 || {
	echo 'the packages cannot be had'
	exit 2
}

cat >try.mjs <<'JS'
import http from 'node:http'
import { promisifyAll } from 'miniprogram-api-promise'

const wx = {
  request(o) {
    http.get(o.url, (res) => {
      res.resume()
      res.on('end', () => o.success({ statusCode: res.statusCode }))
    })
  },
}
const wxp = {}
promisifyAll(wx, wxp)

let asked = 0
const server = http.createServer((req, res) => { asked++; res.end('{}') })
server.listen(0, '127.0.0.1', async () => {
  const options = { url: `http://127.0.0.1:${server.address().port}/` }
  console.log('keys of the options before:', Object.keys(options).join(' '))
  const first = await wxp.request(options)
  console.log('first call:', first)
  console.log('keys of the options after:', Object.keys(options).join(' '))
  const second = await wxp.request(options)
  console.log('second call:', second)
  await new Promise((done) => setTimeout(done, 300))
  console.log('requests that the server got:', asked)
  process.exit(first.statusCode === 200 && second === undefined && asked === 2 ? 0 : 1)
})
JS
timeout 60 node_modules/.bin/esbuild try.mjs --bundle --platform=node --format=cjs \
	--outfile=try.cjs --log-level=error || exit 2
timeout 30 node try.cjs
rc=$?
[ $rc -eq 0 ] && echo 'still so' || echo 'no longer so'
[ $rc -eq 0 ]
