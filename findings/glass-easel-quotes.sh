#!/bin/sh
# glass-easel-template-compiler 1.1.0 and miniprogram-compiler 0.2.3 (wcc), both WeChat's; seen 2026-11-27.
# Expected: what stringifyTmpl of the one writes is WXML that the other compiles.
# Seen: class="{{ ok ? 'in' : 'out' }}", the usual way to write it, comes back with double quotes inside
# double quotes, class="{{ok?"in":"out"}}". glass-easel reads that again; wcc ends with "unexpected
# character". In text, {{ a ?? "x" }} and {{ a || "x" }} compile in glass-easel; wcc knows the latter only.
set -u
[ "$(uname -sm)" = 'Linux x86_64' ] || { echo 'wcc is there for Linux on x86-64 only'; exit 2; }
dir=$(mktemp -d) || exit 2
trap 'rm -rf "$dir"' EXIT
trap 'exit 2' INT TERM
cd "$dir" || exit 2
echo '{"private":true}' >package.json
timeout 300 npm install --silent --no-audit --no-fund --ignore-scripts \
	glass-easel-template-compiler@1.1.0 miniprogram-compiler@0.2.3 >/dev/null 2>&1 || {
	echo 'the packages cannot be had'
	exit 2
}

cat >try.js <<'JS'
const fs = require('fs')
const { TmplGroup } = require('glass-easel-template-compiler')
const { wxmlToJs } = require('miniprogram-compiler')

function glassEasel(source) {
  const group = new TmplGroup()
  const notes = group.addTmpl('page', source)
  const text = group.stringifyTmpl('page')
  group.free()
  return { errors: notes.filter((n) => n.isError).length, text }
}
function wcc(source) {
  fs.mkdirSync('page', { recursive: true })
  fs.writeFileSync('page/page.wxml', source)
  try {
    wxmlToJs('page')
    return 'compiles'
  } catch (e) {
    return 'refused: ' + e.message.trim().split('page.wxml:').pop()
  }
}
const lines = [
  '<view class="{{ ok ? \'in\' : \'out\' }}">x</view>',
  '<view>{{ a ?? "x" }}</view>',
  '<view>{{ a || "x" }}</view>',
]
const seen = lines.map((source) => {
  const once = glassEasel(source)
  const twice = glassEasel(once.text)
  const r = { errors: once.errors + twice.errors, same: once.text === twice.text,
    before: wcc(source), after: wcc(once.text) }
  console.log(`in   ${source}\n     wcc ${r.before}`)
  console.log(`out  ${once.text}\n     wcc ${r.after}; errors of glass-easel in both: ${r.errors}`)
  return r
})
const refused = (s) => s.startsWith('refused')
const [quotes, nullish, or] = seen
const so = seen.every((r) => r.errors === 0 && r.same) && quotes.before === 'compiles' && refused(quotes.after) &&
  refused(nullish.before) && or.before === 'compiles' && or.after === 'compiles'
process.exit(so ? 0 : 1)
JS
timeout 60 node try.js
rc=$?
[ $rc -eq 0 ] && echo 'still so' || echo 'no longer so'
[ $rc -eq 0 ]
