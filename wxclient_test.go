package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// What must not get out. Each has a core of letters, which no escaping changes.
const (
	leakSecret = `TopSecret+/&=%"'#?`
	leakCode   = `OneTimeCode &=+%#"'`
	leakKey    = `KeyOfSession+/==`
	leakOpenID = "oPersonalData_-0123456789abc"
)

var (
	leaks   = leakSecret + leakCode + leakKey + url.QueryEscape(leakSecret+leakCode+leakKey)
	openID  = `"openid":"` + leakOpenID + `"`
	success = `200 {` + openID + `}`
	whole   = httpReply(`{"session_key":"` + leakKey + `",` + openID + `}`)
)

// checkNoLeak wants none of them in text. The openid may be in an answer.
func checkNoLeak(t testing.TB, where, text string) {
	t.Helper()
	for _, core := range []string{"topsecret", "onetimecode", "keyofsession", "opersonaldata"} {
		if strings.Contains(strings.ToLower(text), core) && (core != "opersonaldata" || where != "answer") {
			t.Errorf("%s: got %q in it, want it nowhere:\n%s", where, core, text)
		}
	}
}

// A service is the handler over a client of its own.
type service struct {
	*handler
	*client
	log *output
	t   testing.TB
}

func newService(t testing.TB, timeout time.Duration, baseURLs ...string) *service {
	t.Helper()
	c := config{appIDs: []string{testAppID}, appSecrets: []string{leakSecret}, timeout: timeout, maxInflight: 1024}
	for _, base := range baseURLs {
		c.baseURLs = append(c.baseURLs, must(url.Parse(base)))
	}
	log := &output{}
	logger := slog.New(slog.NewJSONHandler(log, nil))
	wx := newClient(c, c.baseURLs, logger)
	return &service{handler: &handler{wechat: wx, appIDs: c.appIDs, log: logger}, client: wx, log: log, t: t}
}

// post sends code and returns the answer.
func (s *service) post(code string) result {
	s.t.Helper()
	return answer(s.t, s, asJSON(code))
}

func asJSON(code string) string { return string(must(json.Marshal(map[string]string{"code": code}))) }

// leads has connections to a base URL fail with err, or be served: there is no need to close them.
func (s *service) leads(i int, err error, serve func(net.Conn)) {
	s.bases[i].dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		if err == context.DeadlineExceeded {
			<-ctx.Done()
		}
		if err != nil {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Source: &net.TCPAddr{Port: 1}, Err: err}
		}
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			serve(theirs)
		}()
		return wire{ours}, nil
	}
}

// A wire is an end of a pipe. TLS sets this deadline for its last words, which would wait for a reader in a pipe.
type wire struct{ net.Conn }

func (w wire) SetWriteDeadline(time.Time) error { return w.Conn.SetWriteDeadline(time.Now()) }

// brief is the answer in short: 200 and its body, or status, error and errcode.
func (got result) brief() string {
	if got.status == http.StatusOK {
		return "200 " + strings.TrimSpace(got.body)
	}
	return strings.TrimSuffix(fmt.Sprint(got.status, " ", got.Error, " ", got.ErrCode), " 0")
}

func httpReply(body string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

func writes(raw string) func(net.Conn) { return func(conn net.Conn) { io.WriteString(conn, raw) } }

func replies(body string) func(net.Conn) { return writes(httpReply(body)) }

func untilClosed(conn net.Conn) { io.Copy(io.Discard, conn) }

// says reads something before each of the texts.
func says(texts ...string) func(net.Conn) {
	return func(conn net.Conn) {
		for _, text := range texts {
			if conn.Read(make([]byte, 8192)); text != "" {
				io.WriteString(conn, text)
			}
		}
	}
}

// answersEach reads requests, and answers each.
func answersEach(answer func(net.Conn)) func(net.Conn) {
	return func(conn net.Conn) {
		for in := bufio.NewReader(conn); ; answer(conn) {
			if _, err := http.ReadRequest(in); err != nil {
				return
			}
		}
	}
}

func reset(conn net.Conn) {
	conn.(*net.TCPConn).SetLinger(0)
	conn.Close()
}

// repeats says first once and then again over and over, until the client has closed.
func repeats(first, again string) func(net.Conn) {
	return func(conn net.Conn) {
		for _, err := io.WriteString(conn, first); err == nil; _, err = io.WriteString(conn, again) {
		}
	}
}

// padded is a reply of so many bytes.
func padded(size int) func(net.Conn) { return replies(fmt.Sprintf("%-*s", size, `{`+openID+`}`)) }

// coded replaces the status of a whole reply with an openid, and may add header fields.
func coded(status string) func(net.Conn) { return writes(strings.Replace(whole, "200 OK", status, 1)) }

// A failing is what a WeChat does after it has read a request, and what comes of it.
type failing struct {
	name   string
	answer func(net.Conn)
	want   string
	cause  string // or any
}

const (
	ok, end  = "HTTP/1.1 200 OK\r\n", "\r\n\r\n"
	breaks   = "502 wechat_unreachable"
	before   = "one: the connection broke before a reply: call wx.login again"
	middle   = "one: the connection broke in the middle of the reply: call wx.login again"
	timedOut = "504 wechat_timeout"
	late     = "one: no whole reply within WX_TIMEOUT: WeChat is slow: raise WX_TIMEOUT"
	useless  = "502 wechat_error"
	check200 = ", not 200: check what WX_BASE_URL, or a proxy, leads to"
)

var breaking = []failing{
	{name: "no reply", answer: writes(""), want: breaks, cause: before},
	{name: "half a header", answer: writes(ok + "X: " + leaks), want: breaks, cause: before},
	{name: "header without end", answer: repeats(ok, "X: "+leaks+"\r\n"), want: breaks, cause: before},
	{name: "header over 64 KiB", answer: writes(ok + "X: " + strings.Repeat("x", 65<<10) + end), want: breaks,
		cause: before},
	{name: "SSH instead of HTTP", answer: writes("SSH-2.0-" + leaks + "\r\n"), want: breaks, cause: before},
	{name: "bad status", answer: writes("HTTP/1.1 " + leaks + end), want: breaks, cause: before},
	{name: "bad header line", answer: writes(ok + leaks + end), want: breaks, cause: before},
	{name: "half a body", answer: writes(whole[:len(whole)-1]), want: breaks, cause: middle},
	{name: "bad chunk", answer: writes(ok + "Transfer-Encoding: chunked" + end + leaks + "\r\n"), want: breaks,
		cause: middle},
}

var hanging = []failing{
	{name: "silence", answer: untilClosed, want: timedOut, cause: late},
	{name: "body that does not end",
		answer: func(conn net.Conn) { io.WriteString(conn, whole[:len(whole)-1]); untilClosed(conn) },
		want:   timedOut, cause: late},
}

// behindProxy has a proxy, which may be the culprit, too.
var behindProxy = []failing{
	{name: "proxy breaks", answer: writes(""), want: breaks, cause: "one through the proxy proxy:1" + before[len("one"):]},
	{name: "proxy is silent", answer: untilClosed, want: timedOut,
		cause: strings.Replace(late, "WeChat", "WeChat through the proxy proxy:1", 1)},
	{name: "proxy says 502", answer: coded("502 X"), want: useless,
		cause: "one through the proxy proxy:1 gave HTTP status 502" + check200},
}

var nonsense = []failing{
	{name: "101", answer: writes("HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: " + leaks + end + leaks), want: useless,
		cause: "one gave HTTP status 101" + check200},
	{name: "201 with an openid", answer: coded("201 Created"), want: useless,
		cause: "one gave HTTP status 201" + check200},
	{name: "307 elsewhere", answer: coded("307 X\r\nLocation: http://two/"), want: useless,
		cause: "one gave HTTP status 307" + check200},
	{name: "302 to nowhere", answer: coded("302 X\r\nLocation: http://[" + leaks), want: useless,
		cause: "one gave HTTP status 302" + check200},
	{name: "400 with an errcode", answer: writes(strings.Replace(httpReply(`{"errcode":40029}`), "200 OK", "400 X", 1)),
		want: useless},
	{name: "502 and HTML", answer: writes("HTTP/1.1 502 " + leaks + "\r\nContent-Type: text/html" + end + "<html>" + leaks), want: useless},
	{name: "body without end", answer: repeats(ok+"\r\n", leaks), want: useless,
		cause: "one gave a reply of over 64 KiB: check what WX_BASE_URL, or a proxy, leads to"},
	{name: "64 KiB", answer: padded(64 << 10), want: success},
	{name: "64 KiB and a byte", answer: padded(64<<10 + 1), want: useless},
	{name: "empty object", answer: replies(`{}`), want: useless,
		cause: "one gave a reply without an openid: check what WX_BASE_URL, or a proxy, leads to"},
	{name: "empty openid", answer: replies(`{"openid":""}`), want: useless},
	{name: "array", answer: replies(`[{` + openID + `}]`), want: useless,
		cause: "one gave a reply that is not the JSON object that WeChat sends: check what WX_BASE_URL, or a proxy, leads to"},
	{name: "something after the object", answer: replies(`{` + openID + `} ` + leakKey), want: useless},
	{name: "white space around", answer: replies("\r\n\t {" + openID + "} \n"), want: success},
	{name: "session_key of another kind", answer: replies(`{"session_key":{"a":["` + leakKey + `"]},` + openID + `}`),
		want: success},
	{name: "empty unionid", answer: replies(`{"unionid":"",` + openID + `}`), want: success},
	{name: "unionid", answer: replies(`{"unionid":"u",` + openID + `}`),
		want: strings.TrimSuffix(success, "}") + `,"unionid":"u"}`},
	{name: "errcode in a string", answer: replies(`{"errcode":"40163"}`), want: "400 code_used 40163"},
	{name: "errcode as a whole float", answer: replies(`{"errcode":4.5011e4}`), want: "429 rate_limited 45011"},
	{name: "errcode as a broken float", answer: replies(`{"errcode":40029.5,` + openID + `}`), want: useless},
	{name: "errcode beyond all bounds", answer: replies(`{"errcode":1e999,` + openID + `}`), want: useless},
	{name: "errcode 0", answer: replies(`{"errcode":0,"errmsg":"ok",` + openID + `}`), want: success},
	{name: "errcode null", answer: replies(`{"errcode":null,"errmsg":null,"unionid":null,` + openID + `}`),
		want: success},
	{name: "errcode true", answer: replies(`{"errcode":true,` + openID + `}`), want: useless},
	{name: "errcode empty", answer: replies(`{"errcode":"",` + openID + `}`), want: useless},
	{name: "errcode and an openid", answer: replies(`{` + openID + `,"errcode":40226}`),
		want: "403 user_blocked 40226"},
	{name: "errcode and a bad openid", answer: replies(`{"openid":1,"errcode":40029}`), want: "400 invalid_code 40029"},
	{name: "errcode further in", answer: replies(`{"data":{"errcode":40029},` + openID + `}`), want: success},
}

// TestReplies has two base URLs. The second is never asked, since the first may have seen the code.
func TestReplies(t *testing.T) {
	t.Parallel()
	for _, test := range slices.Concat(breaking, hanging, nonsense, behindProxy) {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, asked := newService(t, 5*time.Second, "http://one", "http://two"), 0
				s.leads(0, nil, answersEach(func(conn net.Conn) {
					asked++
					test.answer(conn)
					conn.Close()
				}))
				s.leads(1, nil, func(net.Conn) { t.Error("the second base URL was asked") })
				if strings.Contains(test.cause, "proxy:1") {
					s.bases[0].proxy = &url.URL{Scheme: "http", Host: "proxy:1", User: url.UserPassword("u", "TopSecret")}
				}
				got := s.post(leakCode)
				if got.brief() != test.want || asked != 1 {
					t.Errorf("got %s after %d requests, want %s after one", got.brief(), asked, test.want)
				}
				if cause := s.log.next(t, "request")["cause"]; test.cause != "" && cause != test.cause {
					t.Errorf("got cause\n%v, want\n%s", cause, test.cause)
				}
				checkNoLeak(t, "answer", fmt.Sprint(got.header, got.body))
				checkNoLeak(t, "log", s.log.String())
			})
		})
	}
}

func TestErrMsg(t *testing.T) {
	t.Parallel()
	const seen = "; WeChat saw the address "
	tests := []struct {
		name, errmsg string
		errcode      int64
		rid          string
		cause        string // its end
	}{
		{name: "rid", errcode: 1, errmsg: "invalid code, rid: " + testRid, rid: testRid},
		{name: "rid without a comma", errcode: 1, errmsg: "invalid ip 203.0.113.7 rid: " + testRid + " (x)", rid: testRid},
		{name: "rid too long", errcode: 1, errmsg: "rid: " + testRid + "0"},
		{name: "rid in capitals", errcode: 1, errmsg: "rid: " + strings.ToUpper(testRid)},
		{name: "IPv4", errcode: 40164, errmsg: "invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist rid: " + testRid,
			rid: testRid, cause: seen + "203.0.113.7"},
		{name: "IPv6", errcode: 40164, errmsg: "invalid ip 2001:db8::1, not in whitelist", cause: seen + "2001:db8::1"},
		{name: "IPv6 with a zone", errcode: 40164, errmsg: "invalid ip fe80::1%" + leakKey + ", not in whitelist"},
		{name: "no address", errcode: 40164, errmsg: "invalid ip " + leakKey + ", not in whitelist"},
	}
	for _, test := range tests {
		plain := refusal(test.errcode, "").cause
		if f := refusal(test.errcode, test.errmsg); f.rid != test.rid || f.cause != plain+test.cause {
			t.Errorf("%s: got rid %q and cause %q, want %q and %q", test.name, f.rid, f.cause, test.rid, plain+test.cause)
		}
	}
}

// TestNothingLeaksFromTheProgram looks at the whole of what the program writes, in a process of its own: net/http logs
// past slog, and reads the proxy from the environment.
func TestNothingLeaksFromTheProgram(t *testing.T) {
	t.Parallel()
	proxy := newWeChat(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(403) })
	bases := []string{"https://one.invalid", "https://two.invalid"} // by the proxy, unlike loopback addresses
	does := map[string]func(net.Conn){
		leakCode + "out of turn": writes(whole + leaks),
		leakCode + "and HTTP":    writes(whole + whole),
	}
	for _, f := range slices.Concat(breaking, nonsense) {
		does[leakCode+f.name] = f.answer
	}
	wechat := newWeChat(t, hijacked(func(conn net.Conn, r *http.Request) { does[r.FormValue("js_code")](conn) }))
	p := startProcess(t, credentials("WX_APPSECRET", leakSecret, "WX_BASE_URL", strings.Join(append(bases, wechat), ","),
		"HTTPS_PROXY", "http://u:"+leakKey[:12]+"@"+strings.TrimPrefix(proxy, "http://")), "")
	for code := range does {
		referer := "https://servicewechat.com/wx1/1/page-frame.html?" + url.QueryEscape(code)
		got := post(t, p.url+"/openid", string(must(json.Marshal(map[string]string{"code": code}))), "Referer", referer)
		checkNoLeak(t, "answer", fmt.Sprint(got.header, got.body))
	}
	if code := p.stop(); code != 0 {
		t.Errorf("got exit code %d, want 0", code)
	}
	log := p.log.String()
	checkNoLeak(t, "output", log+p.out.String())
	if got := strings.Count(log, `"msg":"request"`); got != len(does) || strings.Count(log, "out of reach") != len(bases) {
		t.Errorf("got %d requests in the log, want %d, and each base URL out of reach once:\n%s", got, len(does), log)
	}
}

// hijacked hands serve the connection of each request.
func hijacked(serve func(net.Conn, *http.Request)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		conn, _, _ := w.(http.Hijacker).Hijack()
		defer conn.Close()
		serve(conn, r)
	}
}

// TestKeptConnectionDies has net/http send the GET once more, on a new connection to the same base URL, and no more
// than once more. What dies later, or in time, is never sent again.
func TestKeptConnectionDies(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		die      func(net.Conn)
		freshToo bool // a new connection dies as well
		want     string
		asked    int64 // requests that WeChat sees, the first login's included
	}{
		{name: "closed", die: writes(""), want: success, asked: 3},
		{name: "reset", die: reset, want: success, asked: 3},
		{name: "closed again", die: writes(""), freshToo: true, want: breaks, asked: 3},
		{name: "after a byte", die: writes("H"), want: breaks, asked: 2},
		{name: "half a reply", die: writes(whole[:len(whole)-1]), want: breaks, asked: 2},
		{name: "silent", die: untilClosed, want: timedOut, asked: 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var one, two atomic.Int64
			var seen sync.Map // connections, by their address
			s := newService(t, time.Second, newWeChat(t, func(w http.ResponseWriter, r *http.Request) {
				if _, kept := seen.LoadOrStore(r.RemoteAddr, true); one.Add(1) > 1 && (kept || test.freshToo) {
					hijacked(func(conn net.Conn, _ *http.Request) { test.die(conn) })(w, r)
				}
				io.WriteString(w, `{`+openID+`}`)
			}), newWeChat(t, func(http.ResponseWriter, *http.Request) { two.Add(1) }))
			for _, want := range []string{success, test.want} {
				if got := s.post(leakCode).brief(); got != want {
					t.Errorf("got %s, want %s; the log is:\n%s", got, want, s.log)
				}
			}
			if one.Load() != test.asked || two.Load() != 0 {
				t.Errorf("got %d and %d requests, want %d and none", one.Load(), two.Load(), test.asked)
			}
		})
	}
}

// TestConnectionIsKept has a connection used again, whatever the status was, until nobody has used it for 50 s.
func TestConnectionIsKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, dials := newService(t, 5*time.Second, "http://one"), 0
		s.leads(0, nil, func(conn net.Conn) { dials++; answersEach(coded("502 X"))(conn) })
		for i, want := range []int{1, 1, 2} {
			time.Sleep([]time.Duration{0, 49 * time.Second, 51 * time.Second}[i])
			if got := s.post("x").brief(); got != useless || dials != want {
				t.Errorf("got %s after %d dials, want %s after %d", got, dials, useless, want)
			}
		}
		time.Sleep(idleTimeout)
	})
}

// TestTurns has all turns taken, for no fault of a base URL.
func TestTurns(t *testing.T) {
	t.Parallel()
	for maxInflight, want := range map[int]int{1: 256, 1024: 256, 2000: 500} {
		wx := newClient(config{maxInflight: maxInflight}, []*url.URL{{Scheme: "http", Host: "one"}}, nil)
		if turns, places := cap(wx.turns), wx.bases[0].transport.MaxConnsPerHost; turns != want || places != want {
			t.Errorf("got %d turns and %d places with MAX_INFLIGHT=%d, want %d", turns, places, maxInflight, want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		s, start := newService(t, 5*time.Second, "http://one"), time.Now()
		s.turns = make(chan struct{})
		if got := s.post("x").brief(); got != "503 overloaded" || time.Since(start) != 2500*time.Millisecond {
			t.Errorf("got %s after %v, want 503 overloaded after half of WX_TIMEOUT", got, time.Since(start))
		}
		const want = "all turns were taken for half of WX_TIMEOUT: WeChat is slow, this machine has too little CPU, or MAX_INFLIGHT " +
			"has to be raised"
		if cause := s.log.next(t, "request")["cause"]; cause != want {
			t.Errorf("got cause\n%v, want\n%s", cause, want)
		}
	})
}

// TestNoConnection has no connection to a base URL, with all of its time and with less.
func TestNoConnection(t *testing.T) {
	t.Parallel()
	const (
		plain    = "http://u:TopSecret@proxy:1"
		socks    = "socks5://u:TopSecret@proxy:1"
		secure   = "https://proxy:1"
		direct   = ": check the firewall, what WX_BASE_URL leads to, and whether this network needs HTTPS_PROXY"
		dns      = ": check DNS, and the name in WX_BASE_URL"
		slowDNS  = "the name lookup failed or took too long"
		machine  = "this machine has no file descriptor left: raise LimitNOFILE (ulimit -n), or lower MAX_CONNS"
		start    = "): start it, or fix HTTPS_PROXY"
		noConn   = "gives no connection to wechat:443 ("
		rules    = "): check its rules and its node, and the scheme in HTTPS_PROXY: http://, or socks5:// for a SOCKS port"
		password = "): check user and password in HTTPS_PROXY"
		http200  = "HTTP/1.1 200 OK\r\n\r\n"
	)
	status := func(line string) func(net.Conn) { return says("HTTP/1.1 " + line + "\r\nX: TopSecret\r\n\r\n") }
	reply := func(code string) func(net.Conn) { // RFC 1928: no password wanted, then a reply code
		return says("\x05\x00", "\x05"+code+"\x00\x01\x00\x00\x00\x00\x00\x00")
	}
	silent := context.DeadlineExceeded
	tests := []struct {
		name  string
		proxy string
		err   error // of the dial, or nil
		serve func(net.Conn)
		cause string // behind "the proxy proxy:1 " where there is one and it begins with a verb
	}{
		{name: "no descriptor", err: os.NewSyscallError("socket", syscall.EMFILE), cause: machine},
		{name: "no descriptor for DNS", err: &net.DNSError{Name: "wechat", Err: "dial udp 10.0.0.1:53: socket: too many open files"},
			cause: machine},
		{name: "no descriptor for a proxy", proxy: plain, err: os.NewSyscallError("socket", syscall.EMFILE), cause: machine},

		{name: "no such host", err: &net.DNSError{Name: "wechat", Err: "no such host", IsNotFound: true},
			cause: "wechat: no such host" + dns},
		{name: "DNS refuses", err: &net.DNSError{Name: "wechat", Err: "read udp 10.0.0.2:40000->10.0.0.1:53: connection refused"},
			cause: "wechat: " + slowDNS + dns},
		{name: "DNS does not answer", err: &net.DNSError{Name: "wechat", Err: "i/o timeout", IsTimeout: true},
			cause: "wechat: " + slowDNS + dns},

		{name: "proxy gone", proxy: plain, err: os.NewSyscallError("connect", syscall.ECONNREFUSED),
			cause: "cannot be reached (connection refused" + start},
		{name: "proxy swallows packets", proxy: plain, err: silent, cause: "cannot be reached (no answer in time" + start},
		{name: "SOCKS proxy swallows packets", proxy: socks, err: silent, cause: "cannot be reached (no answer in time" + start},
		{name: "proxy without address", proxy: plain, err: &net.DNSError{Name: "proxy", Err: "no such host", IsNotFound: true},
			cause: "cannot be reached (no such host" + start},

		{name: "407", proxy: plain, serve: status("407 X"), cause: noConn + "status 407" + password},
		{name: "401", proxy: plain, serve: status("401 X"), cause: noConn + "status 401" + password},
		{name: "403", proxy: plain, serve: status("403 Access violation"), cause: noConn + "status 403" + rules},
		{name: "silent to CONNECT", proxy: plain, serve: untilClosed, cause: noConn + "no answer in time" + rules},
		{name: "closed", proxy: plain, serve: says(""), cause: noConn + "connection closed" + rules},
		{name: "200 and closed", proxy: plain, serve: says(http200, ""), cause: noConn + "connection closed" + rules},
		{name: "200 and silent", proxy: plain, serve: func(conn net.Conn) { says(http200)(conn); untilClosed(conn) },
			cause: noConn + "no answer in time" + rules},
		{name: "200 and no TLS", proxy: plain, serve: says(http200, "HTTP/1.1 400 Bad\r\n\r\n"),
			cause: noConn + "tls: first record does not look like a TLS handshake" + rules},
		{name: "no HTTP", proxy: plain, serve: says("SSH-2.0-TopSecret\r\n"), cause: noConn + "no HTTP" + rules},
		{name: "no header", proxy: plain, serve: says("HTTP/1.1 200 OK\r\nTopSecret\r\n\r\n"), cause: noConn + "no HTTP" + rules},

		{name: "SOCKS without a password", proxy: socks, serve: says("\x05\xff"),
			cause: noConn + "no acceptable authentication methods" + password},
		{name: "SOCKS with a wrong one", proxy: socks, serve: says("\x05\x02", "\x01\x01"),
			cause: noConn + "username/password authentication failed" + password},
		{name: "SOCKS not allowed", proxy: socks, serve: reply("\x02"),
			cause: noConn + "connection not allowed by ruleset" + rules},
		{name: "SOCKS refused", proxy: socks, serve: reply("\x05"), cause: noConn + "connection refused" + rules},
		{name: "SOCKS asked of an HTTP proxy", proxy: socks, serve: says("HTTP/1.1 400 Bad\r\n\r\n"),
			cause: noConn + "unexpected protocol version 72" + rules},
		{name: "SOCKS closed", proxy: socks, serve: says(""), cause: noConn + "connection closed" + rules},
		{name: "SOCKS silent", proxy: socks, serve: untilClosed, cause: noConn + "no answer in time" + rules},

		{name: "TLS asked of an HTTP proxy", proxy: secure, serve: says("HTTP/1.1 400 Bad\r\n\r\n"),
			cause: noConn + "tls: first record does not look like a TLS handshake" + rules},
		{name: "TLS asked of a silent proxy", proxy: secure, serve: untilClosed, cause: noConn + "no answer in time" + rules},

		{name: "refused", err: os.NewSyscallError("connect", syscall.ECONNREFUSED), cause: "wechat:443: connection refused" + direct},
		{name: "unreachable", err: syscall.ENETUNREACH, cause: "wechat:443: network is unreachable" + direct},
		{name: "no answer", err: silent, cause: "wechat:443: no answer in time" + direct},
		{name: "no answer, by the system", err: syscall.ETIMEDOUT, cause: "wechat:443: no answer in time" + direct},
		{name: "handshake without an answer", serve: untilClosed, cause: "wechat:443: no answer in time" + direct},
		{name: "handshake that is broken off", serve: says(""), cause: "wechat:443: connection closed" + direct},
		{name: "no TLS", serve: says("HTTP/1.1 400 Bad\r\n\r\n"),
			cause: "wechat:443: tls: first record does not look like a TLS handshake" + direct},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newService(t, 20*time.Second, "https://wechat")
				s.leads(0, test.err, test.serve)
				if test.proxy != "" && test.cause != machine {
					test.cause = "the proxy proxy:1 " + test.cause
				}
				if test.proxy != "" {
					s.bases[0].proxy = must(url.Parse(test.proxy))
				}
				if got := s.post(leakCode).brief(); got != breaks {
					t.Errorf("got %s, want %s", got, breaks)
				}
				if got := strings.Contains(s.log.String(), `"WeChat is out of reach","host":"wechat"`); got != (test.cause != machine) {
					t.Errorf("got log\n%s\nwant a line that it is out of reach: %t", s.log, !got)
				}
				if got := s.log.next(t, "request")["cause"]; got != test.cause {
					t.Errorf("got cause\n%s, want\n%s", got, test.cause)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				if _, f := s.exchange(ctx, leakCode); f.cause != test.cause {
					t.Errorf("got cause\n%s with less time, want\n%s", f.cause, test.cause)
				}
				checkNoLeak(t, "log", s.log.String())
			})
		})
	}
}

// TestSeveralCauses has no connection to two base URLs, which are said to be out of reach once.
func TestSeveralCauses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newService(t, 5*time.Second, "http://two", "http://one")
		s.leads(0, context.DeadlineExceeded, nil)
		s.leads(1, syscall.ECONNREFUSED, nil)
		const remedy = ": check the firewall, what WX_BASE_URL leads to, and whether this network needs HTTP_PROXY"
		const both = "one:80: connection refused" + remedy + "; two:80: no answer in time" + remedy
		const proxy = "the proxy proxy:1 cannot be reached (connection refused): start it, or fix HTTP_PROXY"
		for _, want := range []string{both, both, proxy} {
			if want == proxy {
				for i, b := range s.bases {
					s.leads(i, syscall.ECONNREFUSED, nil)
					b.proxy = &url.URL{Scheme: "http", Host: "proxy:1"}
				}
			}
			if s.post("x"); !strings.HasSuffix(s.log.String(), `"cause":"`+want+`"}`+"\n") {
				t.Errorf("got log\n%s\nwant cause %s", s.log, want)
			}
		}
		if got := strings.Count(s.log.String(), "out of reach"); got != 2 {
			t.Errorf("got %d lines of that in the log, want 2:\n%s", got, s.log)
		}
	})
}

// TestCertificateOfWeChat has certificates that are and are not good, directly and behind a proxy.
func TestCertificateOfWeChat(t *testing.T) {
	t.Parallel()
	const hour, remedy = time.Hour, ": check this machine's clock and CA certificates, and what WX_BASE_URL leads to"
	const dated = "wechat: the certificate has expired or is not yet valid" + remedy
	tests := []struct {
		name, host string // of the certificate
		unknown    bool   // its authority
		proxy      *url.URL
		from, to   time.Duration
		cause      string
	}{
		{name: "good", host: "wechat", from: -hour, to: hour},
		{name: "unknown authority", host: "wechat", unknown: true, from: -hour, to: hour,
			cause: "wechat: x509: certificate signed by unknown authority" + remedy},
		{name: "expired", host: "wechat", from: -hour, to: -time.Second, cause: dated},
		{name: "of tomorrow", host: "wechat", from: hour, to: 2 * hour, cause: dated},
		{name: "for another host, behind a proxy", host: "proxy", proxy: &url.URL{Scheme: "http", Host: "proxy"}, from: -hour, to: hour,
			cause: "wechat: x509: certificate is valid for proxy, not wechat" + remedy + "; a proxy that intercepts TLS needs its CA here"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, ca, roots, now := newService(t, 20*time.Second, "https://wechat"), newAuthority(t), x509.NewCertPool(), time.Now()
				leaf := ca.sign(t, &x509.Certificate{DNSNames: []string{test.host}, NotBefore: now.Add(test.from),
					NotAfter: now.Add(test.to)})
				pair := tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: ca.key}
				if !test.unknown {
					roots.AddCert(ca.cert)
				}
				s.bases[0].transport.TLSClientConfig, s.bases[0].proxy = &tls.Config{RootCAs: roots}, test.proxy
				s.leads(0, nil, func(conn net.Conn) {
					if test.proxy != nil {
						says("HTTP/1.1 200 OK\r\n\r\n")(conn)
					}
					says(whole)(tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{pair}}))
				})
				got, cause := s.post("x").brief(), s.log.String()
				if (got == success) != (test.cause == "") || !strings.Contains(cause, `"cause":"`+test.cause+`"}`) && got != success {
					t.Errorf("got %s and log\n%s\nwant cause %s", got, cause, test.cause)
				}
			})
		})
	}
}

func TestRequestToWeChat(t *testing.T) {
	t.Parallel()
	const strange, otherAppID = `&=+%#?/\;:@!$'()*,[]{}|^~<>"` + "`", "wxfedcba9876543210"
	tests := []struct{ name, prefix, appSecret, code, path string }{
		{name: "plain", appSecret: "0123456789abcdef", code: "0a1B2c", path: "/sns/jscode2session"},
		{name: "slash", prefix: "/", appSecret: "b", code: "c", path: "/sns/jscode2session"},
		{name: "prefix", prefix: "/a/b", appSecret: "b", code: "c", path: "/a/b/sns/jscode2session"},
		{name: "prefix and slash", prefix: "/a/b/", appSecret: "b", code: "c", path: "/a/b/sns/jscode2session"},
		{name: "prefix with escapes", prefix: "/a%20b%2F", appSecret: "b", code: "c",
			path: "/a%20b%2F/sns/jscode2session"},
		{name: "strange AppSecret", appSecret: strange, code: "c", path: "/sns/jscode2session"},
		{name: "strange code", appSecret: "b", code: strange, path: "/sns/jscode2session"},
		{name: "code that adds values", appSecret: "b", code: "c&appid=x&secret=x&js_code=x#",
			path: "/sns/jscode2session"},
	}
	requests := make(chan *http.Request, 1)
	wechat := newWeChat(t, func(w http.ResponseWriter, r *http.Request) { requests <- r; echo(w, r) })
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			appSecrets := map[string]string{testAppID: test.appSecret, otherAppID: testSecret}
			wx := newClient(config{appIDs: []string{testAppID, otherAppID}, appSecrets: []string{test.appSecret, testSecret},
				timeout: 10 * time.Second, maxInflight: 1}, []*url.URL{must(url.Parse(wechat + test.prefix))}, nil)
			for appID, appSecret := range appSecrets {
				if got, f := wx.openID(t.Context(), appID, test.code); got.OpenID != test.code {
					t.Fatalf("got %v and %v, want the openid", got, f)
				}
				r := <-requests
				path, query, _ := strings.Cut(r.RequestURI, "?")
				want := url.Values{"appid": {appID}, "secret": {appSecret}, "js_code": {test.code}, "grant_type": {"authorization_code"}}
				values, err := url.ParseQuery(query)
				if r.Method != "GET" || path != test.path || err != nil || !reflect.DeepEqual(values, want) {
					t.Errorf("got %s %s, want GET %s with %v", r.Method, r.RequestURI, test.path, want)
				}
				if !regexp.MustCompile(`^[\w.~%+&=-]*$`).MatchString(query) {
					t.Errorf("got query %s, want all else escaped", query)
				}
				header := http.Header{"User-Agent": {"Go-http-client/1.1"}} // and so no length of a body
				if !reflect.DeepEqual(r.Header, header) || r.TransferEncoding != nil || r.Host != strings.TrimPrefix(wechat, "http://") {
					t.Errorf("got header %v, Host %s and Transfer-Encoding %v, want %v alone", r.Header, r.Host, r.TransferEncoding, header)
				}
			}
		})
	}
}

// FuzzReply has WeChat send any bytes. The answer is a user, or a failure in words of the program's own.
func FuzzReply(f *testing.F) {
	for _, reply := range []string{whole, whole[:len(whole)-1], whole + whole, "", "SSH-2.0-" + leaks + "\r\n", httpReply(`[{}]`),
		httpReply(`{"errcode":40029,"errmsg":"invalid code, rid: ` + testRid + `"}`), httpReply(`{"errcode":"40163"}`),
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\n{}\r\n0\r\nX: " + leaks + "\r\n\r\n",
		"HTTP/1.1 302 Found\r\nLocation: " + leaks + "\r\n\r\n"} {
		f.Add([]byte(reply))
	}
	f.Fuzz(func(t *testing.T, reply []byte) {
		s, asked := newService(t, 10*time.Second, "http://wechat"), 0
		s.leads(0, nil, answersEach(func(conn net.Conn) {
			asked++
			conn.Write(reply)
			conn.Close()
		}))
		got := s.post(leakCode)
		checkNoLeak(t, "log", s.log.String())
		if asked != 1 || (got.OpenID == "") != (got.status != 200) {
			t.Errorf("got %d %s after %d requests, want an openid or a failure after one", got.status, got.body, asked)
		}
		if row := answers[got.Error]; got.status != 200 && (row.status != got.status || row.message != got.Message) {
			t.Errorf("got %d %s, want a row of the table", got.status, got.body)
		}
	})
}
