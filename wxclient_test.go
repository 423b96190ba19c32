package main

import (
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
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// What must not get out. Each has a core of letters, which no escaping changes.
var (
	leakSecret = `TopSecret+/&=%"'#?`
	leakCode   = `OneTimeCode &=+%#"'`
	leakKey    = `KeyOfSession+/==`
	leakOpenID = "oPersonalData_-0123456789abc"
	leaks      = leakSecret + leakCode + leakKey + url.QueryEscape(leakSecret+leakCode+leakKey)

	openID  = `"openid":"` + leakOpenID + `"`
	object  = "{" + openID + "}"
	success = "200 " + object
	whole   = reply(`{"session_key":"` + leakKey + `",` + openID + `}`)
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
	c := config{appIDs: []string{testAppID}, appSecrets: []string{leakSecret}, timeout: timeout, maxInflight: 1024}
	for _, base := range baseURLs {
		c.baseURLs = append(c.baseURLs, must(url.Parse(base)))
	}
	log := &output{}
	logger := slog.New(slog.NewJSONHandler(log, nil))
	wx := newClient(c, c.baseURLs, logger)
	return &service{handler: &handler{wechat: wx, appIDs: c.appIDs, log: logger}, client: wx, log: log, t: t}
}

func (s *service) post(code string) result { return answer(s.t, s, asJSON(code)) }
func asJSON(code string) string            { return string(must(json.Marshal(map[string]string{"code": code}))) }

// brief is the answer in short: 200 and its body, or status, error and errcode.
func (got result) brief() string {
	if got.status == http.StatusOK {
		return "200 " + strings.TrimSpace(got.body)
	}
	return strings.TrimSuffix(fmt.Sprint(got.status, " ", got.Error, " ", got.ErrCode), " 0")
}

// leads has a base URL lead to an error of the dial; or to a script, or a function, for each connection.
func (s *service) leads(i int, to any) {
	s.bases[i].dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		if to == context.DeadlineExceeded {
			<-ctx.Done()
		}
		if err, failed := to.(error); failed {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Source: &net.TCPAddr{Port: 1}, Err: err}
		}
		ours, theirs := net.Pipe()
		serve, isFunc := to.(func(net.Conn))
		if !isFunc {
			serve = func(conn net.Conn) { play(conn, to.(string)) }
		}
		go func() { serve(theirs); theirs.Close() }()
		return wire{ours}, nil
	}
}

// A wire is an end of a pipe. TLS sets this deadline for its last words, which would wait for a reader in a pipe.
type wire struct{ net.Conn }

func (w wire) SetWriteDeadline(time.Time) error { return w.Conn.SetWriteDeadline(time.Now()) }

// play reads something before each part of a script, and writes the part.
func play(conn net.Conn, script string) {
	for part := range strings.SplitSeq(script, next) {
		conn.Read(make([]byte, 8192))
		write(conn, part)
	}
}

func write(conn net.Conn, part string) error {
	part, held := strings.CutSuffix(part, hold)
	_, err := io.WriteString(conn, part)
	if held {
		io.Copy(io.Discard, conn)
	}
	return err
}

func reply(body string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

// A failing is what a WeChat answers, and what comes of it. An empty cause stands for any.
type failing struct{ name, answer, want, cause string }

const (
	next     = "<next>" // in a script: read something
	hold     = "<hold>" // at the end of a part: wait until the client closes
	ok, end  = "HTTP/1.1 200 OK\r\n", "\r\n\r\n"
	breaks   = "502 wechat_unreachable"
	before   = ": the connection broke before a reply: call wx.login again"
	middle   = "one: the connection broke in the middle of the reply: call wx.login again"
	timedOut = "504 wechat_timeout"
	noReply  = "WeChat is slow: no whole reply from one"
	within   = " within WX_TIMEOUT: raise it"
	useless  = "502 wechat_error"
	leadsTo  = ": check what WX_BASE_URL, or a proxy, leads to"
	proxied  = " through the proxy proxy:1"
	badIP    = `{"errcode":40164,"errmsg":"invalid ip `
)

var failings = []failing{
	{name: "closed", answer: "", want: breaks, cause: "one" + before},
	{name: "long header", answer: ok + "X: " + strings.Repeat(leaks, 500) + end, want: breaks, cause: "one" + before},
	{name: "SSH instead of HTTP", answer: "SSH-2.0-" + leaks + "\r\n", want: breaks, cause: "one" + before},
	{name: "bad status", answer: "HTTP/1.1 " + leaks + end, want: breaks, cause: "one" + before},
	{name: "bad header line", answer: ok + leaks + end, want: breaks, cause: "one" + before},
	{name: "half a body", answer: whole[:len(whole)-1], want: breaks, cause: middle},
	{name: "bad chunk", answer: ok + "Transfer-Encoding: chunked" + end + leaks, want: breaks, cause: middle},
	{name: "silence", answer: hold, want: timedOut, cause: noReply + within},
	{name: "half a body, held", answer: whole[:len(whole)-1] + hold, want: timedOut, cause: noReply + within},
	{name: "silence, proxy", answer: hold, want: timedOut, cause: noReply + proxied + within},
	{name: "502 and HTML, proxy", answer: "HTTP/1.1 502 " + leaks + end + "<html>" + leaks, want: useless,
		cause: "one" + proxied + " gave HTTP status 502, not 200" + leadsTo},
	{name: "101", answer: "HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: " + leaks + end + hold, want: useless,
		cause: "one gave HTTP status 101, not 200" + leadsTo},
	{name: "201", answer: "HTTP/1.1 201 X" + end + object, want: useless},
	{name: "302", answer: "HTTP/1.1 302 X\r\nLocation: http://[" + leaks + end, want: useless},
	{name: "400", answer: "HTTP/1.1 400 X" + end + `{"errcode":40029}`, want: useless},
	{name: "64 KiB", answer: reply(fmt.Sprintf("%-65536s", object)), want: success},
	{name: "64 KiB and a byte", answer: reply(fmt.Sprintf("%-65537s", object)), want: useless,
		cause: "one gave a reply of over 64 KiB" + leadsTo},
	{name: "empty object", answer: reply(`{}`), want: useless, cause: "one gave a reply without an openid" + leadsTo},
	{name: "array", answer: reply("[" + object + "]"), want: useless,
		cause: "one gave a reply that is not the JSON object that WeChat sends" + leadsTo},
	{name: "something after", answer: reply(object + leakKey), want: useless},
	{name: "white space", answer: reply("\r\n\t " + object + " \n"), want: success},
	{name: "odd session_key", answer: reply(`{"session_key":["` + leakKey + `"],` + openID + `}`), want: success},
	{name: "empty unionid", answer: reply(`{"unionid":"",` + openID + `}`), want: success},
	{name: "unionid", answer: reply(`{"unionid":"u",` + openID + `}`), want: `200 {` + openID + `,"unionid":"u"}`},
	{name: "string", answer: reply(`{"errcode":"40163","errmsg":"` + leakKey + `"}`), want: "400 code_used 40163"},
	{name: "broken float", answer: reply(`{"errcode":40029.5,` + openID + `}`), want: useless},
	{name: "0", answer: reply(`{"errcode":0,"errmsg":"ok",` + openID + `}`), want: success},
	{name: "null", answer: reply(`{"errcode":null,"errmsg":null,"unionid":null,` + openID + `}`), want: success},
	{name: "true", answer: reply(`{"errcode":true,` + openID + `}`), want: useless},
	{name: "beside an openid", answer: reply(`{` + openID + `,"errcode":40226}`), want: "403 user_blocked 40226"},
	{name: "bad openid", answer: reply(`{"openid":1,"errcode":40029}`), want: "400 invalid_code 40029"},
	{name: "further in", answer: reply(`{"data":{"errcode":40029},` + openID + `}`), want: success},
	{name: "bad rid", answer: reply(`{"errcode":-1,"errmsg":"rid: ` + testRid + `0"}`), want: "503 wechat_busy -1"},
	{name: "IPv6", answer: reply(badIP + `2001:db8::1, not in"}`), want: "500 misconfigured 40164",
		cause: "errcode 40164: " + errcodes[40164].remedy + "; WeChat saw the address 2001:db8::1"},
	{name: "zone", answer: reply(badIP + `fe80::1%` + leakKey + `, not in"}`), want: "500 misconfigured 40164"},
	{name: "no address", answer: reply(badIP + leakKey + `, not in"}`), want: "500 misconfigured 40164"},
}

// TestReplies holds what a WeChat answers against the service's answer and cause. No rid is one.
func TestReplies(t *testing.T) {
	for _, test := range failings {
		synctest.Test(t, func(t *testing.T) {
			s := newService(t, 5*time.Second, "http://one")
			s.leads(0, test.answer)
			if strings.Contains(test.name, "proxy") {
				s.bases[0].proxy = must(url.Parse("http://u:TopSecret@proxy:1"))
			}
			got, record := s.post(leakCode), s.log.next(t, "request")
			if got.brief() != test.want || test.cause != "" && record["cause"] != test.cause || record["rid"] != nil {
				t.Errorf("%s: got %s, %v; want %s, %s", test.name, got.brief(), record, test.want, test.cause)
			}
			checkNoLeak(t, "answer", fmt.Sprint(got.header, got.body))
			checkNoLeak(t, "log", s.log.String())
		})
	}
}

// TestNothingLeaksFromTheProgram looks at the whole of what the program writes, in a process of its own: net/http logs
// past slog, and reads the proxy from the environment.
func TestNothingLeaksFromTheProgram(t *testing.T) {
	t.Parallel()
	does := map[string]string{"twice": whole + whole, "more": whole + leaks}
	for _, f := range failings {
		does[f.name] = strings.TrimSuffix(f.answer, hold)
	}
	wechat := newWeChat(t, func(w http.ResponseWriter, r *http.Request) {
		conn, _, _ := w.(http.Hijacker).Hijack()
		write(conn, does[strings.TrimPrefix(r.FormValue("js_code"), leakCode)])
		conn.Close()
	})
	proxy := strings.TrimPrefix(newWeChat(t, http.NotFound), "http://") // not for loopback addresses
	p := startProcess(t, credentials("WX_APPSECRET", leakSecret, "HTTPS_PROXY", "http://u:"+leakKey[:12]+"@"+proxy,
		"WX_BASE_URL", "https://one.invalid,https://two.invalid,"+wechat), "")
	for name := range does {
		referer := "https://servicewechat.com/wx1/1/page-frame.html?" + url.QueryEscape(leakCode)
		got := post(t, p.url+"/openid", asJSON(leakCode+name), "Referer", referer)
		checkNoLeak(t, "answer", fmt.Sprint(got.header, got.body))
	}
	p.stop()
	log := p.log.String()
	checkNoLeak(t, "output", log+p.out.String())
	if got := strings.Count(log, `"msg":"request"`); got != len(does) || strings.Count(log, "out of reach") != 2 {
		t.Errorf("got %d requests in the log, want %d, and each base URL out of reach once:\n%s", got, len(does), log)
	}
}

// TestConnectionIsKept has a connection used again, whatever the status was, until nobody has used it for 50 s.
func TestConnectionIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, dials := newService(t, 5*time.Second, "http://one"), 0
		badGateway := strings.Replace(whole, "200 OK", "502 X", 1)
		s.leads(0, func(conn net.Conn) { dials++; play(conn, badGateway+next+badGateway+next) })
		for i, wait := range []time.Duration{0, 49 * time.Second, 51 * time.Second} {
			time.Sleep(wait)
			if got := s.post("x").brief(); got != useless || dials != max(1, i) {
				t.Errorf("got %s after %v and %d dials, want %s after %d", got, wait, dials, useless, max(1, i))
			}
		}
		time.Sleep(time.Minute)
	})
}

// TestTurns has as many connections as turns, and then no turn.
func TestTurns(t *testing.T) {
	for maxInflight, want := range map[int]int{1: 256, 1024: 256, 2000: 500} {
		wx := newClient(config{maxInflight: maxInflight}, []*url.URL{{Scheme: "http", Host: "one"}}, nil)
		got := []int{cap(wx.turns), wx.bases[0].transport.MaxConnsPerHost, wx.bases[0].transport.MaxIdleConnsPerHost}
		if !slices.Equal(got, []int{want, want, want}) {
			t.Errorf("got %d turns, connections and unused ones with MAX_INFLIGHT=%d, want %d", got, maxInflight, want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		s, start := newService(t, 5*time.Second, "http://one"), time.Now()
		s.turns = nil
		const want = "all turns were taken for half of WX_TIMEOUT: WeChat is slow, this machine has too little CPU, " +
			"or MAX_INFLIGHT has to be raised"
		got, cause := s.post("x").brief(), s.log.next(t, "request")["cause"]
		if got != "503 overloaded" || cause != want || time.Since(start) != 2500*time.Millisecond {
			t.Errorf("got %s after %v, %v; want 503 overloaded after 2.5 s, %s", got, time.Since(start), cause, want)
		}
	})
}

// TestNoConnection has no connection to a base URL, with all of its time and with less.
func TestNoConnection(t *testing.T) {
	const (
		plain    = "http://u:TopSecret@proxy:1"
		socks    = "socks5://u:TopSecret@proxy:1"
		http200  = ok + "\r\n"
		http400  = "HTTP/1.1 400 X" + end
		machine  = "this machine has no file descriptor left: raise LimitNOFILE (ulimit -n), or lower MAX_CONNS"
		direct   = ": check the firewall, what WX_BASE_URL leads to, and whether you need HTTPS_PROXY"
		dns      = ": check DNS, and the name in WX_BASE_URL"
		cert     = ": check this machine's clock and CA certificates, and what WX_BASE_URL leads to"
		noCA     = "certificate signed by unknown authority"
		notName  = "certificate is valid for x, not wechat"
		proxyCA  = "; a proxy that intercepts TLS needs its CA here"
		away     = "the proxy proxy:1 cannot be reached ("
		start    = "): start it, or fix HTTPS_PROXY"
		noConn   = "the proxy proxy:1 gives no connection to wechat:443 ("
		password = "): check user and password in HTTPS_PROXY"
		rules    = "): check its rules and its node, and the scheme in HTTPS_PROXY " +
			"(http://, socks5:// for SOCKS)"
		late   = "no answer in time"
		closed = "connection closed"
		noTLS  = "tls: first record does not look like a TLS handshake"
	)
	presents := func(host string, from, to time.Duration) func(net.Conn) { // a certificate
		return func(conn net.Conn) {
			ca, begin, end := newAuthority(t), time.Now().Add(from), time.Now().Add(to)
			leaf := ca.sign(t, &x509.Certificate{DNSNames: []string{host}, NotBefore: begin, NotAfter: end})
			pair := tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: ca.key}
			tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{pair}}).Handshake()
		}
	}
	intercepts := func(conn net.Conn) { play(conn, http200); presents("x", -time.Hour, time.Hour)(conn) }
	type ends []any
	silent, noHost := context.DeadlineExceeded, &net.DNSError{Err: "no such host", IsNotFound: true}
	tests := []struct {
		proxy string
		to    ends // a connection each
		cause string
	}{
		{to: ends{syscall.EMFILE, &net.DNSError{Err: "socket: too many open files"}}, cause: machine},
		{to: ends{noHost, &net.DNSError{Err: "read udp 10.0.0.2:40->10.0.0.1:53: refused"}, &net.DNSError{IsTimeout: true}},
			cause: "wechat: the name lookup failed or took too long" + dns},
		{to: ends{presents("wechat", -time.Hour, -time.Minute), presents("wechat", time.Hour, 2*time.Hour)},
			cause: "wechat: the certificate has expired or is not yet valid" + cert},
		{to: ends{presents("wechat", -time.Hour, time.Hour)}, cause: "wechat: x509: " + noCA + cert},
		{proxy: plain, to: ends{intercepts}, cause: "wechat: x509: " + notName + cert + proxyCA},
		{proxy: plain, to: ends{syscall.ECONNREFUSED}, cause: away + "connection refused" + start},
		{proxy: plain, to: ends{silent, syscall.ETIMEDOUT}, cause: away + late + start},
		{proxy: plain, to: ends{noHost}, cause: away + "the name lookup failed or took too long" + start},
		{proxy: plain, to: ends{"HTTP/1.1 407 X" + end}, cause: noConn + "status 407" + password},
		{proxy: plain, to: ends{"HTTP/1.1 401 X" + end}, cause: noConn + "status 401" + password},
		{proxy: plain, to: ends{"HTTP/1.1 403 X\r\nX: " + leaks + end}, cause: noConn + "status 403" + rules},
		{proxy: plain, to: ends{hold, http200 + next + hold}, cause: noConn + late + rules},
		{proxy: plain, to: ends{"", http200 + next, syscall.ECONNRESET}, cause: noConn + closed + rules},
		{proxy: plain, to: ends{http200 + next + http400}, cause: noConn + noTLS + rules},
		{proxy: plain, to: ends{"SSH-2.0-" + leaks + end, ok + leaks + end}, cause: noConn + "no HTTP" + rules},
		{proxy: "https://proxy:1", to: ends{presents("x", -time.Hour, time.Hour)},
			cause: noConn + "x509: certificate is valid for x, not proxy" + rules},
		{proxy: socks, to: ends{"\x05\xff"}, cause: noConn + "no acceptable authentication methods" + password},
		{proxy: socks, to: ends{"\x05\x02" + next + "\x01\x01"},
			cause: noConn + "username/password authentication failed" + password},
		{proxy: socks, to: ends{"\x05\x00" + next + "\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00"},
			cause: noConn + "connection not allowed by ruleset" + rules},
		{proxy: socks, to: ends{http400}, cause: noConn + "unexpected protocol version 72" + rules},
		{proxy: socks, to: ends{"", syscall.ECONNRESET}, cause: noConn + closed + rules},
		{proxy: socks, to: ends{hold}, cause: noConn + late + rules},
		{to: ends{syscall.ECONNREFUSED}, cause: "wechat:443: connection refused" + direct},
		{to: ends{silent, syscall.ETIMEDOUT, hold}, cause: "wechat:443: " + late + direct},
		{to: ends{"", syscall.ECONNRESET}, cause: "wechat:443: " + closed + direct},
		{to: ends{http400}, cause: "wechat:443: " + noTLS + direct},
	}
	for _, test := range tests {
		for i, to := range test.to {
			synctest.Test(t, func(t *testing.T) {
				s := newService(t, 20*time.Second, "https://wechat")
				s.leads(0, to)
				if test.proxy != "" {
					s.bases[0].proxy = must(url.Parse(test.proxy))
				}
				got, log, cause := s.post(leakCode).brief(), s.log.String(), s.log.next(t, "request")["cause"]
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				if _, f := s.exchange(ctx, leakCode); got != breaks || cause != test.cause || f.cause != test.cause {
					t.Errorf("%d: got %s, %v\nwith less time %s\nwant %s", i, got, cause, f.cause, test.cause)
				}
				if strings.Contains(log, `"WeChat is out of reach","host":"wechat",`) != (test.cause != machine) {
					t.Errorf("want a line that it is out of reach, if %s; got log\n%s", test.cause, log)
				}
				checkNoLeak(t, "log", log)
			})
		}
	}
}

// TestSeveralCauses has no connection to two base URLs, each of which is said to be out of reach once.
func TestSeveralCauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(t, 5*time.Second, "http://two", "http://one")
		s.leads(0, context.DeadlineExceeded)
		s.leads(1, syscall.ECONNREFUSED)
		const remedy = ": check the firewall, what WX_BASE_URL leads to, and whether you need HTTP_PROXY"
		const two = "one:80: connection refused" + remedy + "; two:80: no answer in time" + remedy
		const proxy = "the proxy proxy:1 cannot be reached (no answer in time): start it, or fix HTTP_PROXY"
		s.post("x")
		s.post("x")
		s.leads(1, context.DeadlineExceeded)
		s.bases[0].proxy, s.bases[1].proxy = &url.URL{Host: "proxy:1"}, &url.URL{Host: "proxy:1"}
		s.post("x")
		for _, want := range []string{two, two, proxy} { // a proxy fails for both alike
			if cause := s.log.next(t, "request")["cause"]; cause != want {
				t.Errorf("got cause\n%v, want\n%s", cause, want)
			}
		}
		if got := strings.Count(s.log.String(), "out of reach"); got != 2 {
			t.Errorf("got %d lines of that in the log, want 2:\n%s", got, s.log)
		}
	})
}

// TestRequestToWeChat has two AppIDs, each with its AppSecret.
func TestRequestToWeChat(t *testing.T) {
	t.Parallel()
	const strange, other, api = `&=+%#?/\;:@!$'()*,[]{}|^~<>" ` + "`", "wxfedcba9876543210", "/sns/jscode2session"
	tests := []struct{ prefix, appSecret, code, path string }{
		{appSecret: "0123456789abcdef", code: "0a1B2c", path: api},
		{prefix: "/", appSecret: "b", code: "c", path: api},
		{prefix: "/a/b", appSecret: "b", code: "c", path: "/a/b" + api},
		{prefix: "/a%20b%2F/", appSecret: "b", code: "c", path: "/a%20b%2F" + api},
		{appSecret: strange, code: strange, path: api},
		{appSecret: "b", code: "c&appid=x&secret=x&js_code=x#", path: api},
	}
	requests := make(chan *http.Request, 1)
	wechat := newWeChat(t, func(w http.ResponseWriter, r *http.Request) { requests <- r; echo(w, r) })
	for _, test := range tests {
		appIDs, appSecrets := []string{testAppID, other}, []string{test.appSecret, testSecret}
		c := config{appIDs: appIDs, appSecrets: appSecrets, timeout: time.Minute, maxInflight: 1}
		wx := newClient(c, []*url.URL{must(url.Parse(wechat + test.prefix))}, nil)
		for i, appID := range appIDs {
			if got, f := wx.openID(t.Context(), appID, test.code); got.OpenID != test.code {
				t.Fatalf("got %v and %v, want the openid", got, f)
			}
			r, query := <-requests, "?appid="+appID+"&grant_type=authorization_code&secret="+
				url.QueryEscape(appSecrets[i])+"&js_code="+url.QueryEscape(test.code)
			got := fmt.Sprint(r.Method, " ", r.RequestURI, " ", r.Header, r.TransferEncoding) // and no Content-Length
			if want := "GET " + test.path + query + " map[User-Agent:[Go-http-client/1.1]] []"; got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
	}
}

// FuzzReply has WeChat send any bytes. The answer is a user, or a failure in words of the program's own.
func FuzzReply(f *testing.F) {
	f.Add([]byte(whole + whole))
	f.Add([]byte(ok + "Transfer-Encoding: chunked" + end + "2;x=y\r\n{}\r\n0" + end))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, asked := newService(t, 10*time.Second, "http://wechat"), 0
		s.leads(0, func(conn net.Conn) { asked++; conn.Read(make([]byte, 8192)); conn.Write(text) })
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
