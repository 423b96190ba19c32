#!/bin/bash
# fasthttp 1.78.0 and the client of Fiber 3.1.0, which is built on it; seen 2026-11-27.
# The peer takes a GET and closes the connection before it answers, as users report of WeChat's side.
# Expected: an error, or at most one more attempt on a connection that was kept, as with net/http.
# Seen: five attempts in a row, each on a new connection, without a pause. A GET counts as safe to repeat, but
# code2Session is a GET whose code works once: had the first attempt used it, the rest can only fail with 40163.
# The documentation of MaxIdemponentCallAttempts says so. A POST is sent once.
set -u
t=$(mktemp -d) || exit 2
trap 'rm -rf "$t"' EXIT
cd "$t" || exit 2

cat >go.mod <<'MOD'
module attempts

go 1.26.0

require (
	github.com/gofiber/fiber/v3 v3.1.0
	github.com/valyala/fasthttp v1.78.0
)
MOD
cat >main.go <<'GO'
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"

	"github.com/gofiber/fiber/v3/client"
	"github.com/valyala/fasthttp"
)

func main() {
	var attempts atomic.Int32
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				io.Copy(io.Discard, r.Body)
				attempts.Add(1)
			}
			c.Close()
		}
	}()
	u := "http://" + l.Addr().String() + "/sns/jscode2session"
	var seen []string
	for _, try := range []struct {
		name string
		do   func() error
	}{
		{"net/http GET", func() error { _, err := http.Get(u); return err }},
		{"fasthttp GET", func() error { _, _, err := fasthttp.Get(nil, u); return err }},
		{"fiber GET", func() error { _, err := client.Get(u); return err }},
		{"fiber POST", func() error { _, err := client.Post(u, client.Config{Body: "x"}); return err }},
	} {
		attempts.Store(0)
		err := try.do()
		fmt.Printf("%-13s %d attempts, error: %v\n", try.name, attempts.Load(), err != nil)
		seen = append(seen, fmt.Sprint(attempts.Load(), err != nil))
	}
	if strings.Join(seen, ",") != "1 true,5 true,5 true,1 true" {
		os.Exit(1)
	}
}
GO
export GOPATH=$t/go GOFLAGS='-modcacherw -mod=mod' GOWORK=off
timeout 300 go build -trimpath -o attempts . 2>log || { echo "a module cannot be had:"; tail -3 log; exit 2; }
timeout 60 ./attempts
