#!/bin/sh
# @vivaxy/wxml 2.1.0 and himalaya-wxml 1.1.0, parsers that write WXML back; seen 2026-11-27.
# Expected: parse and write back without a change gives the same page.
# Seen: @vivaxy/wxml takes the script in <wxs> for markup: the comparison a < 3 && b > 1 comes back
# as the tag <3 && b> with an end tag </3>, no script any more, and nothing is said.
# himalaya-wxml keeps the script, but writes <input/> as HTML does, without the slash or an end tag:
# in WXML it now holds all that follows, and the page does not compile.
set -u
dir=$(mktemp -d) || exit 2
trap 'rm -rf "$dir"' EXIT
trap 'exit 2' INT TERM
cd "$dir" || exit 2
echo '{"private":true}' >package.json
timeout 300 npm install --silent --no-audit --no-fund --ignore-scripts \
	@vivaxy/wxml@2.1.0 himalaya-wxml@1.1.0 >/dev/null 2>&1 || {
	echo 'the packages cannot be had'
	exit 2
}

cat >try.js <<'JS'
const vivaxy = require('@vivaxy/wxml')
const himalaya = require('himalaya-wxml')
const script = '<wxs module="m">module.exports = function (a, b) { return a < 3 && b > 1 }</wxs>'
const input = '<view><input value="{{v}}"/><text>t</text></view>'
const trip = {
  '@vivaxy/wxml': (s) => vivaxy.serialize(vivaxy.parse(s)),
  'himalaya-wxml': (s) => himalaya.stringify(himalaya.parse(s)),
}
const out = {}
for (const name of Object.keys(trip)) {
  out[name] = [script, input].map(trip[name])
  console.log(name)
  out[name].forEach((s, i) => console.log('  in ', [script, input][i], '\n  out', s))
}
const [vs, vi] = out['@vivaxy/wxml']
const [hs, hi] = out['himalaya-wxml']
const so = vs.includes('</3>') && /<input[^>]*\/>/.test(vi) &&
  hs.includes('a < 3 && b > 1') && /<input[^/]*><text>/.test(hi) && !hi.includes('</input>')
process.exit(so ? 0 : 1)
JS
timeout 30 node try.js
rc=$?
[ $rc -eq 0 ] && echo 'still so' || echo 'no longer so'
[ $rc -eq 0 ]
