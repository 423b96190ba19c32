#!/bin/bash
# encoding/json of Go 1.27.3 against 1.26.8, one program, one go.mod; seen 2026-11-27.
# A type of one's own refuses a value in UnmarshalJSON, say an errcode that came as a string.
# Expected: no difference. The release notes say that unmarshaling is preserved and that only error texts differ.
# Seen: 1.26 stops there: what comes later in the reply is left empty, a slice ends at that element. 1.27 returns
# the same error, and fills in everything after it. A program that looks at errmsg or openid beside the error takes
# another turn. The toolchain decides, not the go line in go.mod; GOEXPERIMENT=nojsonv2 brings the old way back.
set -u
t=$(mktemp -d) || exit 2
trap 'rm -rf "$t"' EXIT
cd "$t" || exit 2

cat >go.mod <<'MOD'
module reply

go 1.24.0
MOD
cat >main.go <<'GO'
package main

import (
	"encoding/json"
	"errors"
	"fmt"
)

type errCode int

func (c *errCode) UnmarshalJSON(b []byte) error {
	if b[0] == '"' {
		return errors.New("errcode is a string")
	}
	return json.Unmarshal(b, (*int)(c))
}

type reply struct {
	OpenID  string  `json:"openid"`
	ErrCode errCode `json:"errcode"`
	ErrMsg  string  `json:"errmsg"`
}

func main() {
	var one reply
	err := json.Unmarshal([]byte(`{"openid":"o1","errcode":"40029","errmsg":"invalid code"}`), &one)
	fmt.Printf("%+v, %v\n", one, err)
	var list []reply
	err = json.Unmarshal([]byte(`[{"openid":"o1"},{"errcode":"40029"},{"openid":"o3"}]`), &list)
	fmt.Printf("%d of 3, %v\n", len(list), err)
}
GO
export GOPATH=$t/go GOFLAGS=-modcacherw GOWORK=off
run() {
  GOTOOLCHAIN=$1 GOEXPERIMENT=$2 timeout 300 go run . >"$1$2" 2>log ||
    { echo "$1 cannot be had:"; tail -3 log; exit 2; }
  echo "$1 $2"; cat "$1$2"
}
run go1.26.8 ''
run go1.27.3 ''
run go1.27.3 nojsonv2
[ "$(cat go1.26.8)" = '{OpenID:o1 ErrCode:0 ErrMsg:}, errcode is a string
2 of 3, errcode is a string' ] &&
  [ "$(cat go1.27.3)" = '{OpenID:o1 ErrCode:0 ErrMsg:invalid code}, errcode is a string
3 of 3, errcode is a string' ] &&
  cmp -s go1.26.8 go1.27.3nojsonv2
