#!/bin/sh
# miniprogram-ci 2.1.42, packNpmManually (构建 npm); seen 2026-11-27.
# Expected: WeChat's current tool packs npm packages whose JavaScript is of 2020: its own list of
# dependencies has a Babel that reads it, and node has run it for years.
# Seen: ?. and ?? and even a catch without a name (2019) stop the whole packing with "parse js file
# … failed: Unexpected token"; object spread (2018) passes. The same ?. in a package's miniprogram_dist
# is copied unread: the error comes from the parser of the npm step alone.
# The packages packed are made here. About 275 MB are installed for it and removed.
set -u
dir=$(mktemp -d) || exit 2
trap 'rm -rf "$dir"' EXIT
trap 'exit 2' INT TERM
cd "$dir" || exit 2
echo '{"private":true}' >package.json
timeout 500 npm install --silent --no-audit --no-fund --ignore-scripts \
	miniprogram-ci@2.1.42 >/dev/null 2>&1 || {
	echo 'the package cannot be had'
	exit 2
}

cat >pack.js <<'JS'
const ci = require('miniprogram-ci')
const project = process.argv[2]
ci.packNpmManually({ packageJsonPath: project + '/package.json', miniprogramNpmDistDir: project + '/out/' }).then(
  () => process.exit(0),
  (e) => { console.log(e.message.replace(/\(.*[\\/]node_modules/, '(…/node_modules')); process.exit(3) })
JS

# pack NAME FOLDER SOURCE: a project with one package, whose index.js (in FOLDER) is SOURCE
pack() {
	mkdir -p "$1/out" "$1/node_modules/tiny/$2"
	echo '{"dependencies":{"tiny":"1.0.0"}}' >"$1/package.json"
	echo '{"name":"tiny","version":"1.0.0","main":"index.js"}' >"$1/node_modules/tiny/package.json"
	echo "exports.a = 1" >"$1/node_modules/tiny/index.js"
	echo "$3" >"$1/node_modules/tiny/$2/index.js"
	said=$(timeout 60 node pack.js "$1" 2>/dev/null)
	result=$?
	if [ $result -eq 0 ] && [ -f "$1/out/miniprogram_npm/tiny/index.js" ]; then state=packed
	elif echo "$said" | grep -q 'parse js file'; then state=refused
	else state=other; fi
	echo "$1: $3"
	echo "    $state $(echo "$said" | grep 'parse js file' | head -n 1)"
}
so=0
expect() { [ "$state" = "$1" ] || so=1; }
pack spread . 'exports.a = { ...{ b: 1 } }'
expect packed
pack catch . 'try { exports.a = 1 } catch { exports.a = 2 }'
expect refused
pack chain . 'exports.a = exports?.b'
expect refused
pack nullish . 'exports.a = exports.b ?? 1'
expect refused
pack dist miniprogram_dist 'exports.a = exports?.b'
expect packed
[ $so -eq 0 ] && echo 'still so' || echo 'no longer so'
exit $so
