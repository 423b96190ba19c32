package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
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
	log   *output
	fakes []*fake
	t     testing.TB
}

func newService(t testing.TB, timeout time.Duration, baseURLs ...string) *service {
	t.Helper()
	c := config{appID: testAppID, appSecret: leakSecret, timeout: timeout, maxInflight: 1024}
	for _, base := range baseURLs {
		c.baseURLs = append(c.baseURLs, must(url.Parse(base)))
	}
	log := &output{}
	logger := slog.New(slog.NewJSONHandler(log, nil))
	wx := newClient(c, c.baseURLs, logger)
	return &service{handler: &handler{wechat: wx, appID: c.appID, log: logger}, client: wx, log: log, t: t}
}

// post sends code and returns the answer.
func (s *service) post(code string) result {
	s.t.Helper()
	return answer(s.t, s, string(must(json.Marshal(map[string]string{"code": code}))))
}

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
	{name: "no reply", answer: untilClosed, want: timedOut, cause: late},
	{name: "body that does not end",
		answer: func(conn net.Conn) { io.WriteString(conn, whole[:len(whole)-1]); untilClosed(conn) },
		want:   timedOut, cause: late},
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
	for _, test := range slices.Concat(breaking, hanging, nonsense) {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			one, two := newFake(up, nil).once(test.answer), named("two", up)
			inBubble(t, 5*time.Second, "http://one http://two", func(t *testing.T, s *service) {
				got := s.post(leakCode)
				if got := got.brief(); got != test.want || one.asked.Load() != 1 || two.asked.Load() != 0 {
					t.Errorf("got %s, want %s; requests: %d and %d, want one and none", got, test.want, one.asked.Load(), two.asked.Load())
				}
				if cause := s.log.next(t, "request")["cause"]; test.cause != "" && cause != test.cause {
					t.Errorf("got cause\n%v, want\n%s", cause, test.cause)
				}
				_, f := s.client.openID(t.Context(), leakCode)
				checkNoLeak(t, "answer", fmt.Sprint(got.header, got.body))
				checkNoLeak(t, "log", s.log.String())
				checkNoLeak(t, "failure", fmt.Sprintf("%+v", f))
			}, one, two)
		})
	}
}

// TestProxyIsNamed has a connection through a proxy, after which that may be the culprit, too.
func TestProxyIsNamed(t *testing.T) {
	t.Parallel()
	const through = " through the proxy proxy:1"
	for _, test := range []failing{
		{name: "breaks", answer: writes(""), cause: "one" + through + before[len("one"):]},
		{name: "hangs", answer: untilClosed, cause: strings.Replace(late, "WeChat", "WeChat"+through, 1)},
		{name: "status", answer: coded("502 X"), cause: "one" + through + " gave HTTP status 502" + check200},
	} {
		one := newFake(up, nil).once(test.answer)
		inBubble(t, 5*time.Second, "http://one", func(t *testing.T, s *service) {
			s.bases[0].proxy = &url.URL{Scheme: "http", Host: "proxy:1", User: url.UserPassword("u", "TopSecret")}
			s.post(leakCode)
			if cause := s.log.next(t, "request")["cause"]; cause != test.cause {
				t.Errorf("got cause\n%v, want\n%s", cause, test.cause)
			}
			checkNoLeak(t, "log", s.log.String())
		}, one)
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
		{name: "rid without a comma", errcode: 1, errmsg: "invalid ip 203.0.113.7 rid: " + testRid + " (x)",
			rid: testRid},
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
	does := map[string]func(net.Conn){leakCode + "out of turn": writes(whole + leaks), leakCode + "and HTTP": writes(whole + whole)}
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

// check posts code, and wants an outcome after a time, and numbers of dials to the two fakes.
func (s *service) check(code, want string, took time.Duration, one, two int64) {
	s.t.Helper()
	start := time.Now()
	got := strings.NewReplacer(`200 {"openid":"`, "", `"}`, "").Replace(s.post(code).brief())
	if passed := time.Since(start); got != want || passed != took {
		s.t.Errorf("got %s after %v, want %s after %v; the log is:\n%s", got, passed, want, took, s.log)
	}
	if gotOne, gotTwo := s.fakes[0].dials.Swap(0), s.fakes[1].dials.Swap(0); gotOne != one || gotTwo != two {
		s.t.Errorf("got %d and %d dials, want %d and %d", gotOne, gotTwo, one, two)
	}
}

const oneTwo = "http://one http://two"

func TestPassedOver(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		connect func(context.Context) error
		wait    time.Duration
	}{{name: "refuses", connect: refuses}, {name: "silent", connect: silent, wait: 2 * time.Second}} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, 5*time.Second, oneTwo, func(t *testing.T, s *service) {
				s.check("x", "two", test.wait, 1, 1)
				s.check("x", "two", 0, 0, 0)
				time.Sleep(30*time.Second - time.Millisecond)
				s.check("x", "two", 0, 0, 0)
				time.Sleep(time.Second)
				var retry sync.WaitGroup
				retry.Go(func() { s.post("x") })
				time.Sleep(time.Second)
				if test.wait > 0 {
					s.check("x", "two", 0, 1, 0) // while another exchange tries the first again
				}
				retry.Wait()
				s.fakes[0].dials.Store(0)
				s.check("x", "two", 0, 0, 0)
				time.Sleep(31 * time.Second)
				s.fakes[0].connect.Store(up)
				s.check("x", "one", 0, 1, 0)
				s.check("x", "one", 0, 0, 0)
				if got := strings.Count(s.log.String(), "out of reach"); got != 1 {
					t.Errorf("got %d lines of that in the log, want 1:\n%s", got, s.log)
				}
			}, named("one", test.connect), named("two", up))
		})
	}
}

func TestAllPassedOver(t *testing.T) {
	t.Parallel()
	inBubble(t, 5*time.Second, oneTwo, func(t *testing.T, s *service) {
		for range 2 {
			s.check("x", "502 wechat_unreachable", 2*time.Second, 1, 1)
		}
		const remedy = ": check the firewall, or set HTTP_PROXY if this network needs a proxy"
		if cause := s.log.next(t, "request")["cause"]; cause != "one:80: connection refused"+remedy+"; two:80: no answer in time"+remedy {
			t.Errorf("got cause %q, want both base URLs in it", cause)
		}
		s.fakes[1].connect.Store(up)
		s.check("x", "two", 0, 1, 1)
		s.check("x", "two", 0, 0, 0)
		for _, b := range s.bases { // a proxy fails for all alike
			b.proxy = &url.URL{Scheme: "http", Host: "proxy:1"}
			b.transport.CloseIdleConnections()
		}
		s.fakes[1].connect.Store(refuses)
		s.check("x", "502 wechat_unreachable", 0, 1, 1)
		const want = `"cause":"the proxy proxy:1 cannot be reached (connection refused): start it, or fix HTTP_PROXY"}` + "\n"
		if got := s.log.String(); !strings.HasSuffix(got, want) {
			t.Errorf("got log\n%s\nwant %s at its end", got, want)
		}
	}, named("one", refuses), named("two", silent))
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	inBubble(t, time.Second, oneTwo, func(t *testing.T, s *service) { // over before the first has failed
		s.check("x", "504 wechat_timeout", time.Second, 1, 0)
		s.check("x", "two", 0, 0, 1)
	}, named("one", silent), named("two", up))
	inBubble(t, 30*time.Second, oneTwo, func(t *testing.T, s *service) { // slow DNS, say: it is the only limit
		s.check("x", "one", 12*time.Second, 1, 0)
	}, named("one", takes(12*time.Second)), named("two", up))
	inBubble(t, 5*time.Second, oneTwo, func(t *testing.T, s *service) { // for both
		s.check("wait", "504 wechat_timeout", 5*time.Second, 1, 1)
	}, named("one", silent), named("two", up))
}

func TestNotPassedOver(t *testing.T) {
	t.Parallel()
	inBubble(t, 5*time.Second, oneTwo, func(t *testing.T, s *service) { // the caller hung up
		ctx, hangUp := context.WithCancel(t.Context())
		time.AfterFunc(500*time.Millisecond, hangUp)
		if _, f := s.client.openID(ctx, "x"); f == nil || f.word != "client_closed_request" {
			t.Errorf("got %v, want client_closed_request", f)
		}
		s.fakes[0].connect.Store(up)
		s.check("x", "one", 0, 2, 0)
	}, named("one", silent), named("two", up))
	inBubble(t, 5*time.Second, oneTwo, func(t *testing.T, s *service) { // there was a connection
		s.check("wait", "504 wechat_timeout", 5*time.Second, 1, 0)
		s.check("x", "one", time.Second, 1, 0)
	}, named("one", takes(time.Second)), named("two", up))
}

// TestTurns has many exchanges at a time, and again: connections are bounded, used again, and given up in time.
func TestTurns(t *testing.T) {
	t.Parallel()
	for maxInflight, want := range map[int]int{1: 256, 1024: 256, 2000: 500} {
		if got := cap(newClient(config{maxInflight: maxInflight}, nil, nil).turns); got != want {
			t.Errorf("got %d turns with MAX_INFLIGHT=%d, want %d", got, maxInflight, want)
		}
	}
	inBubble(t, 10*time.Second, oneTwo, func(t *testing.T, s *service) {
		all := func(n int, code string) {
			var callers sync.WaitGroup
			for range n {
				callers.Go(func() { s.post(code) })
			}
			callers.Wait()
		}
		for _, want := range []int64{256, 0} {
			all(300, "slow")
			if got := s.fakes[0].dials.Swap(0); got != want {
				t.Errorf("got %d dials for 300 exchanges at a time, want %d", got, want)
			}
		}
		time.Sleep(49 * time.Second)
		s.check("x", "one", 0, 0, 0)
		time.Sleep(51 * time.Second)
		s.check("x", "one", 0, 1, 0)
		go all(256, "wait")
		time.Sleep(time.Second)
		s.fakes[0].dials.Store(0)
		s.check("x", "503 overloaded", 5*time.Second, 0, 0)
		if cause := s.log.String(); !strings.Contains(cause, "all turns were taken for half of WX_TIMEOUT: WeChat is slow") {
			t.Errorf("got log\n%s\nwant the turns in it", cause)
		}
		ctx, hangUp := context.WithTimeout(t.Context(), time.Second)
		defer hangUp()
		if _, f := s.client.openID(ctx, "x"); f == nil || f.word != "client_closed_request" {
			t.Errorf("got %v for a caller who hangs up in line, want client_closed_request", f)
		}
		time.Sleep(10 * time.Second)
		s.check("x", "one", 0, 1, 0) // and no base URL is passed over
	}, named("one", up), named("two", up))
}

func TestRequestToWeChat(t *testing.T) {
	t.Parallel()
	const strange = `&=+%#?/\;:@!$'()*,[]{}|^~<>"` + "`"
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
			s := newService(t, 10*time.Second, wechat+test.prefix)
			s.query = newClient(config{appID: testAppID, appSecret: test.appSecret}, nil, nil).query
			if got := s.post(test.code); got.OpenID != test.code {
				t.Fatalf("got %d %s, want the openid", got.status, got.body)
			}
			r := <-requests
			path, query, _ := strings.Cut(r.RequestURI, "?")
			want := url.Values{"appid": {testAppID}, "secret": {test.appSecret}, "js_code": {test.code}, "grant_type": {"authorization_code"}}
			if values, err := url.ParseQuery(query); r.Method != "GET" || path != test.path || err != nil || !reflect.DeepEqual(values, want) {
				t.Errorf("got %s %s, want GET %s with %v", r.Method, r.RequestURI, test.path, want)
			}
			if !regexp.MustCompile(`^[\w.~%+&=-]*$`).MatchString(query) {
				t.Errorf("got query %s, want all else escaped", query)
			}
			header := http.Header{"User-Agent": {"Go-http-client/1.1"}} // and so no length of a body
			if !reflect.DeepEqual(r.Header, header) || r.TransferEncoding != nil || r.Host != strings.TrimPrefix(wechat, "http://") {
				t.Errorf("got header %v, Host %s and Transfer-Encoding %v, want %v alone", r.Header, r.Host, r.TransferEncoding, header)
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
		s, wechat := newService(t, 10*time.Second, "http://wechat"), newFake(up, nil).once(writes(string(reply)))
		s.bases[0].transport.DialContext = wechat.dial
		got, asked := s.post(leakCode), wechat.asked.Load()
		checkNoLeak(t, "log", s.log.String())
		if asked != 1 || (got.OpenID == "") != (got.status != 200) {
			t.Errorf("got %d %s after %d requests, want an openid or a failure after one", got.status, got.body, asked)
		}
		if row := answers[got.Error]; got.status != 200 && (row.status != got.status || row.message != got.Message) {
			t.Errorf("got %d %s, want a row of the table", got.status, got.body)
		}
	})
}
