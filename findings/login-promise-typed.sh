#!/bin/sh
# miniprogram-api-typings 5.2.3 (TypeScript 5.9.3, 7.0.2) and miniprogram-simulate 1.6.2; seen 2026-11-27.
# Expected: WeChat's types and WeChat's test tool agree on what wx.login() returns.
# Seen: const { code } = await wx.login() passes tsc --strict, since the types give a promise
# of { code }. Under miniprogram-simulate wx.login() returns undefined and the line throws;
# wx.checkSession() next to it does return a promise, and wx.login({ success }) works.
# The document of wx.login says that it returns no promise: the callback form suits all three.
set -u
dir=$(mktemp -d) || exit 2
trap 'rm -rf "$dir"' EXIT
trap 'exit 2' INT TERM
cd "$dir" || exit 2
echo '{"private":true}' >package.json
timeout 300 npm install --silent --no-audit --no-fund --ignore-scripts \
	miniprogram-api-typings@5.2.3 miniprogram-simulate@1.6.2 \
	old@npm:typescript@5.9.3 new@npm:typescript@7.0.2 >/dev/null 2>&1 || {
	echo 'the packages cannot be had'
	exit 2
}

cat >login.ts <<'TS'
async function login(): Promise<string> {
  const { code } = await wx.login()
  return code
}
async function session(): Promise<string> {
  const { errMsg } = await wx.checkSession()
  return errMsg
}
function loginByCallback(done: (code: string) => void) {
  wx.login({ success: (res) => done(res.code) })
}
TS
so=0
for tsc in old new; do
	echo "TypeScript $(timeout 60 node node_modules/$tsc/bin/tsc --version)"
	if timeout 120 node node_modules/$tsc/bin/tsc --strict --target es2020 --lib es2020 --module commonjs \
		--types miniprogram-api-typings --outDir out login.ts; then echo '  no error'; else so=1; fi
done

cat >try.js <<'JS'
require('miniprogram-simulate')
require('vm').runInThisContext(require('fs').readFileSync('out/login.js', 'utf8'))
const tell = (name, promise) => promise
  .then((v) => `resolved ${v}`, (e) => e.name + ': ' + e.message.split(' as it')[0])
  .then((s) => { console.log(`${name}: ${s}`); return s })
;(async () => {
  const a = await tell('await wx.login()', login())
  const b = await tell('await wx.checkSession()', session())
  const c = await tell('wx.login({ success })', new Promise((done) => loginByCallback(done)))
  process.exit(a.startsWith('TypeError') && b === 'resolved checkSession:ok' && c.startsWith('resolved ') ? 0 : 1)
})()
JS
timeout 30 node try.js || so=1
[ $so -eq 0 ] && echo 'still so' || echo 'no longer so'
exit $so
