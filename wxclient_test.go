package main

import (
	"cmp"
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
	"strconv"
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

	openID = `"openid":"` + leakOpenID + `"`
	object = "{" + openID + "}"
	whole  = reply(`{"session_key":"` + leakKey + `",` + openID + `}`)
	half   = whole[:len(whole)-1]
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
}

// newService has base URLs as in WX_BASE_URL.
func newService(timeout time.Duration, baseURLs string) *service {
	c := config{appIDs: []string{testAppID}, appSecrets: []string{leakSecret}, timeout: timeout, maxInflight: 1024}
	log := &output{}
	logger := slog.New(slog.NewJSONHandler(log, nil))
	wx := newClient(c, urls(baseURLs), logger)
	return &service{handler: &handler{wechat: wx, appIDs: c.appIDs, log: logger}, client: wx, log: log}
}

func asJSON(code string) string { return fmt.Sprintf(`{"code":%q}`, code) }

// says wants the answer to a login to begin so, and this cause in the log.
func (s *service) says(t *testing.T, want, cause string) {
	t.Helper()
	got, record := answer(t, t.Context(), s, asJSON(leakCode)), s.log.next(t, "request")
	like(t, got.said(), want+"…")
	like(t, fmt.Sprint(record["cause"]), cause)
	same(t, record, record["rid"], nil)
	checkNoLeak(t, "log", s.log.String())
}

// leads has a base URL lead there.
func (s *service) leads(i int, to any) {
	s.bases[i].dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, to) }
}

// dial is a network that leads to an error, or to a script or a function at the other end of the connection.
func dial(ctx context.Context, to any) (net.Conn, error) {
	if to == context.DeadlineExceeded {
		<-ctx.Done()
	}
	if err, failed := to.(error); failed {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Source: &net.TCPAddr{Port: 1}, Err: err}
	}
	serve, isFunc := to.(func(net.Conn))
	if !isFunc {
		serve = func(conn net.Conn) { play(conn, to.(string)) }
	}
	ours, theirs := net.Pipe()
	go func() { serve(theirs); theirs.Close() }()
	return wire{ours}, nil
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

const (
	next     = "<next>" // in a script: read something
	hold     = "<hold>" // at the end of a part: wait until the client closes
	ok, end  = "HTTP/1.1 200 OK\r\n", "\r\n\r\n"
	breaks   = "502 wechat_unreachable"
	useless  = "502 wechat_error"
	timedOut = "504 wechat_timeout"
	noReply  = "WeChat is slow: no whole reply from one"
	leadsTo  = ": check what WX_BASE_URL, or a proxy, leads to"
	proxied  = " through the proxy proxy:1"
	badIP    = `{"errcode":40164,"errmsg":"invalid ip `
)

// A verdict is what comes of each of some replies of WeChat. An empty cause stands for any.
type verdict struct {
	want, cause string
	replies     []string
}

var verdicts = []verdict{
	{want: breaks, cause: "one: the connection broke before a reply: call wx.login again", replies: []string{
		"", ok + "X: " + strings.Repeat(leaks, 500) + end, ok + leaks + end, "HTTP/1.1 " + leaks + end,
		"SSH-2.0-" + leaks + "\r\n"}},
	{want: breaks, cause: "one: the connection broke in the middle of the reply: call wx.login again",
		replies: []string{half, ok + "Transfer-Encoding: chunked" + end + leaks}},
	{want: timedOut, cause: noReply + " within WX_TIMEOUT: raise it",
		replies: []string{hold, half + hold}},
	{want: timedOut, replies: []string{hold},
		cause: noReply + proxied + " within WX_TIMEOUT: raise it"},
	{want: useless, cause: "one" + proxied + " gave HTTP status 502, not 200" + leadsTo,
		replies: []string{"HTTP/1.1 502 " + leaks + end + "<html>" + leaks}},
	{want: useless, cause: "one gave HTTP status …, not 200" + leadsTo, replies: []string{
		"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: " + leaks + end + hold, "HTTP/1.1 201 X" + end + object,
		"HTTP/1.1 302 X\r\nLocation: http://[" + leaks + end, "HTTP/1.1 400 X" + end + `{"errcode":40029}`,
		"HTTP/1.1 503 X\r\nContent-Length: 9" + end + "half"}},
	{want: useless, cause: "one gave a reply of over 64 KiB" + leadsTo,
		replies: []string{reply(fmt.Sprintf("%-65537s", object))}},
	{want: useless, cause: "one gave a reply without an openid" + leadsTo, replies: []string{reply(`{}`)}},
	{want: useless, cause: "one gave a reply that is not the JSON object that WeChat sends" + leadsTo,
		replies: []string{reply("[" + object + "]"), reply(object + leakKey), reply(`{"errcode":true,` + openID + `}`),
			reply(`{"errcode":40029.5,` + openID + `}`)}},
	{want: "200 " + object, replies: []string{reply(fmt.Sprintf("%-65536s", object)), reply("\r\n\t " + object + " \n"),
		reply(`{"session_key":["` + leakKey + `"],` + openID + `}`), reply(`{"unionid":"",` + openID + `}`),
		reply(`{"errcode":0,"errmsg":"ok",` + openID + `}`), reply(`{"data":{"errcode":40029},` + openID + `}`),
		reply(`{"errcode":null,"errmsg":null,"unionid":null,` + openID + `}`)}},
	{want: `200 {` + openID + `,"unionid":"u"}`, replies: []string{reply(`{"unionid":"u",` + openID + `}`)}},
	{want: "400 code_used 40163", replies: []string{reply(`{"errcode":"40163","errmsg":"` + leakKey + `"}`)}},
	{want: "403 user_blocked 40226", replies: []string{reply(`{` + openID + `,"errcode":40226}`)}},
	{want: "400 invalid_code 40029", replies: []string{reply(`{"openid":1,"errcode":40029}`)}},
	{want: "503 wechat_busy -1", replies: []string{reply(`{"errcode":-1,"errmsg":"rid: ` + testRid + `0"}`)}},
	{want: "500 misconfigured 40164", replies: []string{reply(badIP + `2001:db8::1, not in"}`)},
		cause: "errcode 40164: " + errcodes[40164].remedy + "; WeChat saw the address 2001:db8::1"},
	{want: "500 misconfigured 40164", cause: "errcode 40164: " + errcodes[40164].remedy, replies: []string{
		reply(badIP + `fe80::1%` + leakKey + `, not in"}`), reply(badIP + leakKey + `, not in"}`)}},
}

// TestReplies holds what a WeChat replies against the service's answer and cause.
func TestReplies(t *testing.T) {
	for _, test := range verdicts {
		for _, text := range test.replies {
			synctest.Test(t, func(t *testing.T) {
				s := newService(5*time.Second, "http://one")
				s.leads(0, text)
				if strings.Contains(test.cause, proxied) {
					s.bases[0].proxy = must(url.Parse("http://u:TopSecret@proxy:1"))
				}
				s.says(t, test.want, cmp.Or(test.cause, "…"))
			})
		}
	}
}

// TestNothingLeaksFromTheProgram looks at the whole of what the program writes, in a process of its own: net/http logs
// past slog, and reads the proxy from the environment.
func TestNothingLeaksFromTheProgram(t *testing.T) {
	t.Parallel()
	replies := []string{whole + whole, whole + leaks}
	for _, v := range verdicts {
		replies = append(replies, v.replies...)
	}
	wechat := newWeChat(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(strings.TrimPrefix(r.FormValue("js_code"), leakCode))
		conn, _, _ := w.(http.Hijacker).Hijack()
		write(conn, strings.TrimSuffix(replies[n], hold))
		conn.Close()
	})
	proxy := strings.TrimPrefix(newWeChat(t, http.NotFound), "http://") // not for loopback addresses
	p := startProcess(t, credentials("WX_APPSECRET", leakSecret, "HTTPS_PROXY", "http://u:"+leakKey[:12]+"@"+proxy,
		"WX_BASE_URL", "https://one.invalid,https://two.invalid,"+wechat), "")
	for n := range replies {
		referer := "https://servicewechat.com/wx1/1/page-frame.html?" + url.QueryEscape(leakCode)
		post(t, p.url+"/openid", asJSON(fmt.Sprint(leakCode, n)), "Referer", referer)
	}
	p.stop()
	log := p.log.String()
	checkNoLeak(t, "output", log+p.out.String())
	same(t, log, strings.Count(log, `"msg":"request"`), len(replies))
	same(t, log, strings.Count(log, "out of reach"), 2) // of each base URL once
}

// TestConnectionIsKept has a connection used again, whatever the status was, until nobody has used it for 50 s.
func TestConnectionIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, dials := newService(5*time.Second, "http://one"), 0
		badGateways := strings.Repeat(strings.Replace(whole, "200 OK", "502 X", 1)+next, 3)
		s.leads(0, func(conn net.Conn) { dials++; play(conn, badGateways) })
		for i, wait := range []time.Duration{0, 49 * time.Second, 51 * time.Second} {
			time.Sleep(wait)
			s.says(t, useless, "one gave HTTP status 502, not 200"+leadsTo)
			same(t, wait, dials, max(1, i))
		}
		time.Sleep(time.Minute)
	})
}

// TestTurns has as many connections as turns, and then no turn.
func TestTurns(t *testing.T) {
	for maxInflight, want := range map[int]int{1: 256, 1024: 256, 2000: 500} {
		wx := newClient(config{maxInflight: maxInflight}, urls("http://one"), nil)
		got := []int{cap(wx.turns), wx.bases[0].transport.MaxConnsPerHost, wx.bases[0].transport.MaxIdleConnsPerHost}
		same(t, maxInflight, got, []int{want, want, want})
	}
	synctest.Test(t, func(t *testing.T) {
		s, start := newService(5*time.Second, "http://one"), time.Now()
		s.turns = nil
		s.says(t, "503 overloaded", "all turns were taken for half of WX_TIMEOUT: WeChat is slow, this machine has "+
			"too little CPU, or MAX_INFLIGHT has to be raised")
		same(t, "after", time.Since(start), 2500*time.Millisecond)
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
		away     = "the proxy proxy:1 cannot be reached ("
		start    = "): start it, or fix HTTPS_PROXY"
		noConn   = "the proxy proxy:1 gives no connection to wechat:443 ("
		password = "): check user and password in HTTPS_PROXY"
		rules    = "): check its rules and its node, and the scheme in HTTPS_PROXY " +
			"(http://, socks5:// for SOCKS)"
		noTLS = "tls: first record does not look like a TLS handshake"
	)
	presents := func(host string, from, to time.Duration) func(net.Conn) { // a certificate for these hours
		return func(conn net.Conn) {
			ca, now := newAuthority(t), time.Now()
			leaf := ca.sign(t, &x509.Certificate{DNSNames: []string{host}, NotBefore: now.Add(from * time.Hour),
				NotAfter: now.Add(to * time.Hour)})
			pair := tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: ca.key}
			tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{pair}}).Handshake()
		}
	}
	intercepts := func(conn net.Conn) { play(conn, http200); presents("x", -1, 1)(conn) }
	type ends []any
	silent, noHost := context.DeadlineExceeded, &net.DNSError{Err: "no such host", IsNotFound: true}
	for _, test := range []struct {
		proxy string
		to    ends // a connection each
		cause string
	}{
		{to: ends{syscall.EMFILE, &net.DNSError{Err: "socket: too many open files"}}, cause: machine},
		{to: ends{noHost, &net.DNSError{Err: "read udp 10.0.0.2:40->10.0.0.1:53: refused"}},
			cause: "wechat: the name lookup failed or took too long" + dns},
		{to: ends{presents("wechat", -2, -1), presents("wechat", 1, 2)},
			cause: "wechat: the certificate has expired or is not yet valid" + cert},
		{to: ends{presents("wechat", -1, 1)}, cause: "wechat: x509: certificate signed by unknown authority" + cert},
		{proxy: plain, to: ends{intercepts}, cause: "wechat: x509: certificate is valid for x, not wechat" + cert +
			"; a proxy that intercepts TLS needs its CA here"},
		{proxy: plain, to: ends{syscall.ECONNREFUSED}, cause: away + "connection refused" + start},
		{proxy: plain, to: ends{silent, syscall.ETIMEDOUT}, cause: away + "no answer in time" + start},
		{proxy: plain, to: ends{noHost}, cause: away + "the name lookup failed or took too long" + start},
		{proxy: plain, to: ends{"HTTP/1.1 407 X" + end}, cause: noConn + "status 407" + password},
		{proxy: plain, to: ends{"HTTP/1.1 401 X" + end}, cause: noConn + "status 401" + password},
		{proxy: plain, to: ends{"HTTP/1.1 403 X\r\nX: " + leaks + end}, cause: noConn + "status 403" + rules},
		{proxy: plain, to: ends{hold, http200 + next + hold}, cause: noConn + "no answer in time" + rules},
		{proxy: plain, to: ends{"", http200 + next, syscall.ECONNRESET}, cause: noConn + "connection closed" + rules},
		{proxy: plain, to: ends{http200 + next + http400}, cause: noConn + noTLS + rules},
		{proxy: plain, to: ends{"SSH-2.0-" + leaks + end, ok + leaks + end}, cause: noConn + "no HTTP" + rules},
		{proxy: "https://proxy:1", to: ends{presents("x", -1, 1)},
			cause: noConn + "x509: certificate is valid for x, not proxy" + rules},
		{proxy: socks, to: ends{"\x05\xff"}, cause: noConn + "no acceptable authentication methods" + password},
		{proxy: socks, to: ends{"\x05\x02" + next + "\x01\x01"},
			cause: noConn + "username/password authentication failed" + password},
		{proxy: socks, to: ends{"\x05\x00" + next + "\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00"},
			cause: noConn + "connection not allowed by ruleset" + rules},
		{proxy: socks, to: ends{http400}, cause: noConn + "unexpected protocol version 72" + rules},
		{proxy: socks, to: ends{"", syscall.ECONNRESET}, cause: noConn + "connection closed" + rules},
		{proxy: socks, to: ends{hold}, cause: noConn + "no answer in time" + rules},
		{to: ends{syscall.ECONNREFUSED}, cause: "wechat:443: connection refused" + direct},
		{to: ends{silent, syscall.ETIMEDOUT, syscall.EHOSTUNREACH, hold}, cause: "wechat:443: " + "no answer in time" + direct},
		{to: ends{"", syscall.ECONNRESET}, cause: "wechat:443: " + "connection closed" + direct},
		{to: ends{http400}, cause: "wechat:443: " + noTLS + direct},
	} {
		for _, to := range test.to {
			synctest.Test(t, func(t *testing.T) {
				s := newService(20*time.Second, "https://wechat")
				s.leads(0, to)
				if test.proxy != "" {
					s.bases[0].proxy = must(url.Parse(test.proxy))
				}
				s.says(t, breaks, test.cause)
				isMarked := strings.Contains(s.log.String(), `"WeChat is out of reach","host":"wechat",`)
				same(t, test.cause, isMarked, test.cause != machine)
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // which is less
				defer cancel()
				_, f := s.exchange(ctx, leakCode)
				same(t, "with less time", f.cause, test.cause)
			})
		}
	}
}

// TestSeveralCauses has no connection to two base URLs, which a proxy causes once. Each is out of reach once in the log.
func TestSeveralCauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const remedy = ": check the firewall, what WX_BASE_URL leads to, and whether you need HTTP_PROXY"
		const two = "one:80: connection refused" + remedy + "; two:80: no answer in time" + remedy
		s := newService(5*time.Second, "http://two,http://one")
		s.leads(0, context.DeadlineExceeded)
		s.leads(1, syscall.ECONNREFUSED)
		s.says(t, breaks, two)
		s.says(t, breaks, two)
		s.leads(1, context.DeadlineExceeded)
		s.bases[0].proxy, s.bases[1].proxy = &url.URL{Host: "proxy:1"}, &url.URL{Host: "proxy:1"}
		s.says(t, breaks, "the proxy proxy:1 cannot be reached (no answer in time): start it, or fix HTTP_PROXY")
		same(t, s.log, strings.Count(s.log.String(), "out of reach"), 2)
	})
}

// TestRequestToWeChat has a WeChat that answers with what it was sent, by each of two AppIDs.
func TestRequestToWeChat(t *testing.T) {
	const strange = `&=+%#?/\;:@!$'()*,[]{}|^~<>" &appid=x` + "`"
	wechat := newWeChat(t, func(w http.ResponseWriter, r *http.Request) {
		sent := fmt.Sprint(r.Method, " ", r.RequestURI, " ", r.Header, r.TransferEncoding) // and no Content-Length
		json.NewEncoder(w).Encode(user{OpenID: sent})
	})
	c := config{appIDs: []string{testAppID, otherAppID}, appSecrets: []string{strange, testSecret},
		timeout: time.Minute, maxInflight: 1}
	for prefix, path := range map[string]string{"": "", "/": "", "/a/b": "/a/b", "/a%20b%2F/": "/a%20b%2F"} {
		wx := newClient(c, urls(wechat+prefix), nil)
		for i, appID := range c.appIDs {
			got, _ := wx.openID(t.Context(), appID, strange)
			same(t, prefix, got.OpenID, "GET "+path+"/sns/jscode2session?appid="+appID+"&grant_type=authorization_code"+
				"&secret="+url.QueryEscape(c.appSecrets[i])+"&js_code="+url.QueryEscape(strange)+
				" map[User-Agent:[Go-http-client/1.1]] []")
		}
	}
}

// FuzzReply has WeChat send any bytes. The answer is a user, or a failure in words of the program's own.
func FuzzReply(f *testing.F) {
	f.Add([]byte(whole + whole))
	f.Add([]byte(ok + "Transfer-Encoding: chunked" + end + "2;x=y\r\n{}\r\n0" + end))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, asked := newService(10*time.Second, "http://wechat"), 0
		s.leads(0, func(conn net.Conn) { asked++; conn.Read(make([]byte, 8192)); conn.Write(text) })
		got := answer(t, t.Context(), s, asJSON(leakCode))
		checkNoLeak(t, "log", s.log.String())
		same(t, got.body, []any{asked, got.OpenID != ""}, []any{1, got.status == 200})
		row := answers[got.Error] // or none
		same(t, got.body, []any{got.status, got.Message}, []any{cmp.Or(row.status, 200), row.message})
	})
}
