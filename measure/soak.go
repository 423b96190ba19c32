//go:build linux

package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// soak makes logins of every outcome in bursts, with rests between them, at which the service
// must not have more and more in use.
func soak(args []string) bool {
	length := 10 * time.Minute
	if len(args) > 0 {
		var err error
		length, err = time.ParseDuration(args[0])
		check(err)
	}
	p := start([]string{service, "-sandbox"}, "WX_TIMEOUT=1s")
	var fds, rss []float64 // at each rest
	for end, made := time.Now().Add(length), 0; time.Now().Before(end); {
		var running sync.WaitGroup
		over := time.Now().Add(20 * time.Second)
		for ; time.Now().Before(over); time.Sleep(3 * time.Millisecond) {
			made++
			turn := made
			running.Go(func() { soakCall(p, turn, over) })
		}
		running.Wait()
		time.Sleep(2 * time.Second)
		fds, rss = append(fds, float64(p.fds())), append(rss, p.rss()/1024)
		saw("%d requests until now, %v to go: %.0f descriptors, %.1f MiB", made, time.Until(end).Round(time.Second),
			fds[len(fds)-1], rss[len(rss)-1])
	}
	steady("descriptors", fds, 40)
	steady("MiB", rss, 8)
	p.end()
	return failures.Load() == 0
}

// steady wants the least of the later half to be no more than the most of the first quarter and
// a margin.
func steady(name string, rests []float64, margin float64) {
	first, later := slices.Max(rests[:(len(rests)+3)/4]), slices.Min(rests[len(rests)/2:])
	saw("%s: %.1f at most in the first quarter, %.1f at least in the later half", name, first, later)
	want(later <= first+margin, "no more than %v above that", margin)
}

// soakLogins are what is sent to /openid, and what comes of it.
var soakLogins = []struct{ body, want string }{
	{`{"code":"new-TURN"}`, "200"}, // which the sandbox has to remember
	{`{"code":"the code is a mock one"}`, "200"},
	{`{"code":"sandbox:user=a&unionid=1"}`, "200"},
	{`{"code":"sandbox:delay=50ms"}`, "200"},
	{`{"code":"sandbox:delay=3s"}`, "504 wechat_timeout"},
	{`{"code":"sandbox:status=502"}`, "502 wechat_error"},
	{`{"code":"sandbox:errcode=61451"}`, "502 wechat_error"},
	{`{"code":"sandbox:errcode=40029"}`, "400 invalid_code"},
	{`{"code":"sandbox:errcode=40163"}`, "400 code_used"},
	{`{"code":"sandbox:errcode=40226"}`, "403 user_blocked"},
	{`{"code":"sandbox:errcode=45011"}`, "429 rate_limited"},
	{`{"code":"sandbox:errcode=40125"}`, "500 misconfigured"},
	{`{"code":"sandbox:errcode=-1"}`, "503 wechat_busy"},
	{`{"code":"sandbox:errcode=45009"}`, "503 quota_exceeded"},
	{`{"code":1}`, "400 invalid_request"},
	{`{"code":"`, "400 invalid_request"},
	{strings.Repeat(" ", 5000), "413 body_too_large"},
}

// soakTexts are what is sent by callers who then hang up, or wait, or send no more.
var soakTexts = []string{
	login("sandbox:delay=3s"), strings.TrimSuffix(login("half a body"), `body"}`),
	"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", "GET /openid HTTP/1.1\r\n", "garbage\r\n\r\n", "",
}

// soakCall makes the call whose turn it is. One that hangs on does so until the burst is over.
func soakCall(p *process, turn int, over time.Time) {
	c := newCaller(p.addr, turn, nil)
	check(c.dial())
	defer c.close()
	if i := turn % (len(soakLogins) + len(soakTexts)); i < len(soakLogins) {
		body := strings.ReplaceAll(soakLogins[i].body, "TURN", fmt.Sprint(turn))
		request := fmt.Sprintf("POST /openid HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		came := c.ask(request).outcome
		want(came == soakLogins[i].want, "%s, not %s, for %.50s", soakLogins[i].want, came, body)
		return
	}
	io.WriteString(c.conn, soakTexts[turn%len(soakTexts)])
	switch rand.IntN(3) {
	case 0: // hang up at once
	case 1:
		time.Sleep(time.Until(over))
	case 2:
		c.conn.(*net.TCPConn).CloseWrite()
		c.conn.SetDeadline(time.Now().Add(25 * time.Second))
		_, err := io.Copy(io.Discard, c.conn)
		want(err == nil, "the connection closed, not %v", err)
	}
}
