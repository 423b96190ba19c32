//go:build linux

package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
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
	p, client := start([]string{service, "-sandbox"}, "WX_TIMEOUT=1s"), newClient()
	var fds, rss []float64 // at each rest
	for end, made := time.Now().Add(length), 0; time.Now().Before(end); {
		burst := time.After(20 * time.Second)
		over := make(chan struct{})
		stop := flow(300, func(i int) string { return soakCall(p, client, made+i, over) })
		<-burst
		close(over)
		all := stop()
		want(len(all.bad(time.Minute, "as wanted")) == 0, "other outcomes: %v", all)
		made += len(all)
		client.CloseIdleConnections()
		time.Sleep(2 * time.Second)
		fds, rss = append(fds, float64(p.fds())), append(rss, p.rss()/1024)
		saw("%d requests until now, %v to go: %.0f descriptors, %.1f MiB", made, time.Until(end).Round(time.Second),
			fds[len(fds)-1], rss[len(rss)-1])
	}
	steady("descriptors", fds, 40)
	steady("MiB", rss, 8)
	p.end()
	return failures == 0
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
	request("sandbox:delay=3s"), strings.TrimSuffix(request("half a body"), `body"}`), "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", "GET /openid HTTP/1.1\r\n", "garbage\r\n\r\n", "",
}

// soakCall makes the call whose turn it is. What hangs on it hangs until the burst is over.
func soakCall(p *process, client *http.Client, i int, over <-chan struct{}) string {
	turn := i % (1 + len(soakLogins) + len(soakTexts))
	if turn == 0 { // a code that the sandbox has not seen, and has to remember
		if came := post(client, "http://"+p.addr, fmt.Sprint("new-", i)); came != "200" {
			return came
		}
		return "as wanted"
	}
	if turn <= len(soakLogins) {
		login := soakLogins[turn-1]
		came := outcome(client.Post("http://"+p.addr+"/openid", "", strings.NewReader(login.body)))
		if came != login.want {
			return fmt.Sprintf("%s, not %s, for %.50s", came, login.want, login.body)
		}
		return "as wanted"
	}
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	io.WriteString(conn, soakTexts[turn-1-len(soakLogins)])
	switch rand.IntN(3) {
	case 0: // hang up at once
	case 1:
		<-over
	case 2:
		conn.(*net.TCPConn).CloseWrite()
		conn.SetDeadline(time.Now().Add(25 * time.Second))
		if _, err := io.ReadAll(conn); err != nil {
			return outcome(nil, err)
		}
	}
	return "as wanted"
}
