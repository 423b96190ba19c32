package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
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
	c := config{appID: testAppID, appSecret: leakSecret, timeout: timeout, maxInflight: 1024}
	for _, base := range baseURLs {
		c.baseURLs = append(c.baseURLs, must(url.Parse(base)))
	}
	log := &output{}
	logger := slog.New(slog.NewJSONHandler(log, nil))
	wx := newClient(c, logger)
	t.Cleanup(func() { wx.transports((*http.Transport).CloseIdleConnections) })
	return &service{handler: &handler{wechat: wx, appID: c.appID, log: logger}, client: wx, log: log, t: t}
}

func (wx *client) transports(do func(*http.Transport)) {
	for _, b := range wx.bases {
		do(b.transport)
	}
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

// A rawWeChat hands every connection to serve, and closes it when the client has.
type rawWeChat struct {
	net.Listener
	addr  string
	asked atomic.Int64 // requests that arrived
}

func startRaw(t testing.TB, serve func(*rawWeChat, net.Conn)) *rawWeChat {
	t.Helper()
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	w := &rawWeChat{Listener: listener, addr: listener.Addr().String()}
	t.Cleanup(func() { w.Close() })
	go func() {
		for {
			conn, err := w.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(w, conn)
				if conn.(*net.TCPConn).CloseWrite() == nil {
					untilClosed(conn)
				}
			}()
		}
	}()
	return w
}

// read returns the next request on conn, or nil if there is none.
func (w *rawWeChat) read(conn net.Conn) *http.Request {
	r, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return nil
	}
	w.asked.Add(1)
	return r
}

// What a raw WeChat does with a connection.

func untilClosed(conn net.Conn) { io.Copy(io.Discard, conn) }

func reset(conn net.Conn) {
	conn.(*net.TCPConn).SetLinger(0)
	conn.Close()
}

func says(raw string) func(net.Conn) {
	return func(conn net.Conn) { io.WriteString(conn, raw) }
}

func replies(body string) func(net.Conn) { return says(httpReply(body)) }

func httpReply(body string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

// repeats says first once and then again over and over, until the client has closed.
func repeats(first, again string) func(net.Conn) {
	return func(conn net.Conn) {
		for _, err := io.WriteString(conn, first); err == nil; _, err = io.WriteString(conn, again) {
		}
	}
}

// A failing is a way in which WeChat fails, or seems to.
type failing struct {
	name   string
	tls    *tls.Config    // of WeChat
	https  bool           // in the base URL, though WeChat has no tls
	proxy  bool           // WeChat is a proxy in front of the base URL
	socks  bool           // WeChat is a SOCKS5 proxy in front of it
	gone   bool           // nothing listens
	greet  func(net.Conn) // in the place of reading a request
	answer func(net.Conn) // to the request on each connection
	want   string
	cause  string // words in the log
}

func (f *failing) serve(w *rawWeChat, conn net.Conn) {
	raw := conn
	if f.tls != nil {
		conn = tls.Server(conn, f.tls)
	}
	switch {
	case f.greet != nil:
		f.greet(raw)
	case w.read(conn) != nil:
		f.answer(conn)
	}
}

const (
	next     = `200 {"openid":"second"}` // there is no connection, so the next base URL is asked
	useless  = "502 wechat_error"
	broken   = "502 wechat_unreachable"
	timedOut = "504 wechat_timeout"
)

func failings(t testing.TB, ca *authority) []failing {
	server := func(a *authority, from, to time.Duration) *tls.Config {
		now := time.Now()
		cert := a.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "wechat"}, NotBefore: now.Add(from), NotAfter: now.Add(to)})
		return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: a.key}}}
	}
	good := server(ca, -time.Hour, time.Hour)
	asksBack := good.Clone()
	asksBack.ClientAuth = tls.RequireAnyClientCert
	elsewhere := startRaw(t, func(w *rawWeChat, conn net.Conn) { w.read(conn) })
	t.Cleanup(func() {
		if n := elsewhere.asked.Load(); n != 0 {
			t.Errorf("redirects: got %d requests where they lead to, want none", n)
		}
	})
	socks := func(code string) func(net.Conn) { // RFC 1928: no password wanted, then a reply code
		return func(conn net.Conn) {
			for _, answer := range []string{"\x05\x00", "\x05" + code + "\x00\x01\x00\x00\x00\x00\x00\x00"} {
				conn.Read(make([]byte, 512))
				io.WriteString(conn, answer)
			}
		}
	}
	padded := func(size int) func(net.Conn) { return replies(fmt.Sprintf("%-*s", size, `{`+openID+`}`)) }
	const ok, end = "HTTP/1.1 200 OK\r\n", "\r\n\r\n"
	return []failing{
		{name: "refused", gone: true, want: next, cause: "127.0.0.1 refused firewall"},
		{name: "proxy that is gone", proxy: true, gone: true, want: next, cause: "proxy 127.0.0.1 refused HTTPS_PROXY"},
		{name: "proxy that does not answer", proxy: true, greet: untilClosed, want: timedOut, cause: "proxy 127.0.0.1 rule node"},
		{name: "proxy that hangs up", proxy: true, answer: says(""), want: next, cause: "proxy 127.0.0.1 closed rule node"},
		{name: "proxy that says 200 and closes", proxy: true, answer: says(ok + "\r\n"), want: next,
			cause: "proxy wechat.invalid:443 closed rule node"},
		{name: "proxy that wants a password", proxy: true, answer: says("HTTP/1.1 407 X" + end), want: next,
			cause: "status 407 user and password HTTPS_PROXY"},
		{name: "proxy that wants another password", proxy: true, answer: says("HTTP/1.1 401 X" + end), want: next,
			cause: "status 401 user and password HTTPS_PROXY"},
		{name: "proxy that refuses the host", proxy: true, answer: says("HTTP/1.1 403 Forbidden" + end), want: next,
			cause: "status 403 allow wechat.invalid:443"},
		{name: "proxy that cannot get there", proxy: true, answer: says("HTTP/1.1 503 X" + end), want: next,
			cause: "status 503 cannot reach wechat.invalid:443 node"},
		{name: "proxy that is no proxy", proxy: true, answer: says("SSH-2.0-x\r\n"), want: next, cause: "not answer in HTTP socks5://"},

		{name: "SOCKS proxy that refuses the host", socks: true, greet: socks("\x02"), want: next,
			cause: "refuses wechat.invalid:443 allow that host and port"},
		{name: "SOCKS proxy that cannot get there", socks: true, greet: socks("\x05"), want: next,
			cause: "cannot reach wechat.invalid:443 refused node"},
		{name: "SOCKS proxy that wants a password", socks: true, greet: says("\x05\xff"), want: next,
			cause: "password user and password in HTTPS_PROXY"},
		{name: "HTTP proxy asked by socks5://", socks: true, greet: untilClosed, want: timedOut, cause: "SOCKS http://"},

		{name: "TLS", tls: good, answer: says(whole), want: success},
		{name: "handshake that does not end", https: true, greet: untilClosed, want: next, cause: "no answer in time firewall"},
		{name: "handshake that is broken off", https: true, greet: says(""), want: next, cause: "connection closed firewall"},
		{name: "expired certificate", tls: server(ca, -time.Hour, -time.Second), want: next, cause: "expired clock"},
		{name: "certificate of tomorrow", tls: server(ca, time.Hour, 2*time.Hour), want: next, cause: "not yet valid clock"},
		{name: "certificate of another authority", tls: server(newAuthority(t), -time.Hour, time.Hour), want: next,
			cause: "not trusted clock CA certificates"},
		{name: "client certificate wanted", tls: asksBack, answer: says(whole), want: broken},
		{name: "HTTP instead of TLS", https: true, greet: says("HTTP/1.1 400 Bad" + end), want: next, cause: "speaks no TLS WX_BASE_URL"},

		{name: "reset before the request is read", greet: func(conn net.Conn) { conn.Read(make([]byte, 1)); reset(conn) }, want: broken},
		{name: "closed at once", greet: says(""), want: broken, cause: "broke"},
		{name: "reset after the request", answer: reset, want: broken, cause: "broke"},
		{name: "no reply", answer: untilClosed, want: timedOut, cause: "WX_TIMEOUT"},
		{name: "half a header", answer: says(ok + "X: " + leaks), want: broken},
		{name: "half a body", answer: says(whole[:len(whole)-1]), want: broken},
		{name: "body that does not end", answer: func(conn net.Conn) { io.WriteString(conn, whole[:len(whole)-1]); untilClosed(conn) },
			want: timedOut},
		{name: "header without end", answer: repeats(ok, "X: "+leaks+"\r\n"), want: broken},
		{name: "header over 64 KiB", answer: says(ok + "X: " + strings.Repeat("x", 65<<10) + whole[len(ok)-2:]), want: broken},
		{name: "body without end", answer: repeats(ok+"\r\n", leaks), want: useless, cause: "64 KiB"},
		{name: "64 KiB", answer: padded(64 << 10), want: success},
		{name: "64 KiB and a byte", answer: padded(64<<10 + 1), want: useless, cause: "64 KiB"},

		{name: "SSH instead of HTTP", answer: says("SSH-2.0-" + leaks + "\r\n"), want: broken},
		{name: "bad status", answer: says("HTTP/1.1 " + leaks + end), want: broken},
		{name: "bad header line", answer: says(ok + leaks + end), want: broken},
		{name: "bad chunk", answer: says(ok + "Transfer-Encoding: chunked" + end + leaks + "\r\n"), want: broken},

		{name: "101", answer: says("HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: " + leaks + end + leaks), want: useless},
		{name: "201 with an openid", answer: says(strings.Replace(whole, "200 OK", "201 Created", 1)), want: useless, cause: "201"},
		{name: "307 elsewhere", answer: says(strings.Replace(whole, "200 OK", "307 Found\r\nLocation: http://"+elsewhere.addr, 1)), want: useless},
		{name: "302 to nowhere", answer: says("HTTP/1.1 302 Found\r\nLocation: http://[" + leaks + "\r\nContent-Length: 0" + end), want: useless},
		{name: "400 with an errcode", answer: says(strings.Replace(httpReply(`{"errcode":40029}`), "200 OK", "400 Bad", 1)), want: useless},
		{name: "502 and HTML", answer: says("HTTP/1.1 502 " + leaks + "\r\nContent-Type: text/html" + end + "<html>" + leaks), want: useless},
	}
}

// TestWeChatFails has two base URLs. The second is well.
func TestWeChatFails(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	for _, f := range failings(t, ca) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			first, second := startRaw(t, f.serve), startRaw(t, (&failing{answer: replies(`{"openid":"second"}`)}).serve)
			base, timeout := "http://"+first.addr, 10*time.Second
			switch {
			case f.proxy, f.socks:
				base = "https://wechat.invalid"
			case f.https || f.tls != nil:
				base = "https://" + first.addr
			}
			if f.gone {
				first.Close()
			}
			if f.want == timedOut {
				timeout = 100 * time.Millisecond
			} else if f.name == "handshake that does not end" {
				timeout = time.Second
			}
			s := newService(t, timeout, base, "http://"+second.addr)
			s.bases[0].transport.TLSClientConfig = &tls.Config{RootCAs: roots}
			if f.proxy || f.socks {
				scheme := "http"
				if f.socks {
					scheme = "socks5"
				}
				s.bases[0].transport.Proxy = http.ProxyURL(&url.URL{Scheme: scheme, Host: first.addr,
					User: url.UserPassword("proxy", "TopSecret")})
			}
			got := s.post(leakCode)
			if got := got.brief(); got != f.want {
				t.Errorf("got %s, want %s; the log is:\n%s", got, f.want, s.log)
			}
			if one, two := first.asked.Load(), second.asked.Load(); one > 1 || two > 0 && f.want != next {
				t.Errorf("got %d requests to the first base URL and %d to the second, want one in all", one, two)
			}
			if f.cause != "" {
				checkWords(t, "the log", s.log.String(), f.cause)
			}
			_, err := s.client.openID(t.Context(), leakCode)
			checkNoLeak(t, "answer", fmt.Sprint(got.header, got.body))
			checkNoLeak(t, "log", s.log.String())
			checkNoLeak(t, "error", fmt.Sprintf("%v %+v %#v", err, err, err))
		})
	}
}

// TestNoConnection has what a network cannot be made to say here.
func TestNoConnection(t *testing.T) {
	t.Parallel()
	s := newService(t, time.Second, "https://wechat.example/x")
	unreachable := &net.OpError{Op: "dial", Net: "tcp", Source: &net.TCPAddr{Port: 1}, Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}
	for want, err := range map[string]error{
		"wechat.example: the name lookup failed or took too long: check DNS, and the name in WX_BASE_URL":                  &net.DNSError{IsTimeout: true},
		"wechat.example: DNS knows no such host: check DNS, and the name in WX_BASE_URL":                                   &net.DNSError{IsNotFound: true},
		"wechat.example:443: network is unreachable: check the firewall, or set HTTPS_PROXY if this network needs a proxy": unreachable,
	} {
		if got := s.bases[0].noConnection(err); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	s.bases[0].transport.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: "proxy.example:7890", User: url.UserPassword("u", "TopSecret")})
	const want = "the proxy proxy.example:7890 cannot be reached (network is unreachable): start it, or fix HTTPS_PROXY"
	if got := s.bases[0].noConnection(&net.OpError{Op: "proxyconnect", Net: "tcp", Err: unreachable}); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestReply has WeChat's JSON in every form.
func TestReply(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, reply, want string }{
		{"empty object", `{}`, useless},
		{"something after the object", `{` + openID + `} ` + leakKey, useless},
		{"white space around", "\r\n\t {" + openID + "} \n", success},

		{"errcode", `{"errcode":40029,"errmsg":"` + url.QueryEscape(leaks) + `, rid: ` + leakKey + `"}`, "400 invalid_code 40029"},
		{"errcode in a string", `{"errcode":"40163"}`, "400 code_used 40163"},
		{"errcode as a whole float", `{"errcode":4.5011e4}`, "429 rate_limited 45011"},
		{"errcode as a broken float", `{"errcode":40029.5,` + openID + `}`, useless},
		{"errcode beyond all bounds", `{"errcode":1e999,` + openID + `}`, useless},
		{"errcode 0", `{"errcode":0,"errmsg":"ok",` + openID + `}`, success},
		{"errcode null", `{"errcode":null,"errmsg":null,"unionid":null,` + openID + `}`, success},
		{"errcode true", `{"errcode":true,` + openID + `}`, useless},
		{"errcode empty", `{"errcode":"",` + openID + `}`, useless},
		{"errcode and an openid", `{` + openID + `,"errcode":40226}`, "403 user_blocked 40226"},
		{"errcode and a bad openid", `{"openid":1,"errcode":40029}`, "400 invalid_code 40029"},
		{"errcode further in", `{"data":{"errcode":40029},` + openID + `}`, success},
		{"openid empty", `{"openid":""}`, useless},
		{"session_key of another kind", `{"session_key":{"a":["` + leakKey + `"]},` + openID + `}`, success},
		{"empty unionid", `{"unionid":"",` + openID + `}`, success},
		{"unionid", `{"unionid":"u",` + openID + `}`, strings.TrimSuffix(success, "}") + `,"unionid":"u"}`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newService(t, 10*time.Second, newWeChat(t, say(test.reply)))
			got := s.post(leakCode)
			if got := got.brief(); got != test.want {
				t.Errorf("got %s, want %s; the log is:\n%s", got, test.want, s.log)
			}
			checkNoLeak(t, "answer", got.body)
			checkNoLeak(t, "log", s.log.String())
		})
	}
}

// TestErrMsg has in the log of an errmsg what may be there, and nothing that was sent.
func TestErrMsg(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, code, errmsg string
		rid, address       string // in the log
	}{
		{"rid", "x", "invalid code, rid: " + testRid, testRid, ""},
		{"rid without a comma", "x", "invalid code rid: " + testRid + " (203.0.113.7)", testRid, ""},
		{"rid too long", "x", "rid: " + testRid + "0", "", ""},
		{"rid in capitals", "x", "rid: " + strings.ToUpper(testRid), "", ""},
		{"IPv4", "x", "invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist rid: " + testRid, testRid, "203.0.113.7"},
		{"IPv6", "x", "invalid ip 2001:db8::1, not in whitelist", "", "2001:db8::1"},
		{"IPv6 with a zone", "x", "invalid ip fe80::1%" + leakKey + ", not in whitelist", "", ""},
		{"no address", "x", "invalid ip " + leakKey + ", not in whitelist", "", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			errcode := 40029
			if strings.Contains(test.errmsg, "whitelist") {
				errcode = 40164
			}
			s := newService(t, 10*time.Second, newWeChat(t, say(fmt.Sprintf(`{"errcode":%d,"errmsg":%q}`, errcode, test.errmsg))))
			_, err := s.client.openID(t.Context(), test.code)
			f, _ := errors.AsType[*failure](err)
			if f == nil || f.rid != test.rid {
				t.Fatalf("got %+v, want rid %q", f, test.rid)
			}
			if strings.Contains(f.cause, "saw the address "+test.address) != (test.address != "") || strings.Contains(f.cause, leakKey) {
				t.Errorf("got cause %q, want the address %q in it, and nothing else of the errmsg", f.cause, test.address)
			}
		})
	}
}

// TestNothingLeaksFromTheProgram looks at the whole of what the program writes, in a process of its
// own: net/http logs past slog, and reads the proxy from the environment.
func TestNothingLeaksFromTheProgram(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	proxy := startRaw(t, (&failing{answer: says("HTTP/1.1 403 Forbidden\r\n\r\n")}).serve)
	bases := []string{"https://one.invalid", "https://two.invalid"} // by the proxy, unlike loopback addresses
	answers := make(map[string]func(net.Conn))
	for _, f := range failings(t, ca) {
		if f.answer != nil && f.tls == nil && !f.proxy && !f.socks && f.want != timedOut {
			answers[leakCode+f.name] = f.answer
		}
	}
	answers[leakCode+"out of turn"] = says(whole + leaks)
	answers[leakCode+"out of turn, and HTTP"] = says(whole + whole)
	wechat := startRaw(t, func(w *rawWeChat, conn net.Conn) {
		if r := w.read(conn); r != nil {
			answers[r.FormValue("js_code")](conn)
		}
	})
	roots := filepath.Join(t.TempDir(), "roots.pem")
	writeFile(t, roots, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})))
	p := startProcess(t, credentials("WX_APPSECRET", leakSecret, "SSL_CERT_FILE", roots,
		"WX_BASE_URL", strings.Join(append(bases, "http://"+wechat.addr), ","), "HTTPS_PROXY", "http://u:"+leakKey[:12]+"@"+proxy.addr), "")
	for code := range answers {
		referer := "https://servicewechat.com/wx1/1/page-frame.html?" + url.QueryEscape(code)
		got := post(t, p.url+"/openid", fmt.Sprintf(`{"code":%q}`, code), "Referer", referer)
		checkNoLeak(t, "answer", fmt.Sprint(got.header, got.body))
	}
	if code := p.stop(); code != 0 {
		t.Errorf("got exit code %d, want 0", code)
	}
	checkNoLeak(t, "output", p.log.String()+p.out.String())
	log := p.log.String()
	if got := strings.Count(log, `"msg":"request"`); got != len(answers) {
		t.Errorf("got %d requests in the log, want %d", got, len(answers))
	}
	if strings.Count(log, "out of reach") != len(bases) || !strings.Contains(log, proxy.addr) || strings.Contains(log, "; no connection") {
		t.Errorf("got log\n%s\nwant each base URL out of reach once, because of the one proxy", log)
	}
}

// TestKeptConnectionDies has net/http send the GET once more, on a new connection to the same base URL, and no
// more than once more. What dies later, or in time, is never sent again.
func TestKeptConnectionDies(t *testing.T) {
	t.Parallel()
	serve := func(w *rawWeChat, conn net.Conn, die func(net.Conn), freshToo bool) {
		in := bufio.NewReader(conn)
		for fresh := true; ; fresh = false {
			if _, err := http.ReadRequest(in); err != nil {
				return
			}
			if n := w.asked.Add(1); n > 1 && (!fresh || freshToo) {
				die(conn)
				return
			}
			io.WriteString(conn, whole)
		}
	}
	tests := []struct {
		name     string
		die      func(net.Conn)
		freshToo bool // a new connection dies as well
		want     string
		asked    int64 // requests that WeChat sees, the first login's included
	}{
		{name: "closed", die: says(""), want: success, asked: 3},
		{name: "reset", die: reset, want: success, asked: 3},
		{name: "closed again", die: says(""), freshToo: true, want: broken, asked: 3},
		{name: "after a byte", die: says("H"), want: broken, asked: 2},
		{name: "half a reply", die: says(whole[:len(whole)-1]), want: broken, asked: 2},
		{name: "silent", die: untilClosed, want: timedOut, asked: 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			one := startRaw(t, func(w *rawWeChat, conn net.Conn) { serve(w, conn, test.die, test.freshToo) })
			two := startRaw(t, (&failing{answer: replies(`{"openid":"second"}`)}).serve)
			s := newService(t, time.Second, "http://"+one.addr, "http://"+two.addr)
			for _, want := range []string{success, test.want} {
				if got := s.post(leakCode).brief(); got != want {
					t.Errorf("got %s, want %s; the log is:\n%s", got, want, s.log)
				}
			}
			if got := one.asked.Load(); got != test.asked || two.asked.Load() != 0 {
				t.Errorf("got %d and %d requests, want %d and none", got, two.asked.Load(), test.asked)
			}
		})
	}
}

// A fallback is a service in a synctest bubble, where time passes only while all wait, in front of
// two WeChats whose openid is their name. connect is how a connection to one comes about.
type fallback struct {
	*service
	one, two *fakeDial
}

// A fakeDial is one of the two.
type fakeDial struct {
	name    string
	connect atomic.Value // func() error
	dials   atomic.Int64
}

func (d *fakeDial) dial() (net.Conn, error) {
	d.dials.Add(1)
	if err := d.connect.Load().(func() error)(); err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
	}
	return pipe(d.serve), nil
}

// serve never answers a code "wait", "think" after 3 s, and "l" after 30 s.
func (d *fakeDial) serve(conn net.Conn) {
	for in := bufio.NewReader(conn); ; {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		switch r.FormValue("js_code") {
		case "wait":
			untilClosed(conn)
		case "think":
			time.Sleep(3 * time.Second)
		case "l":
			time.Sleep(30 * time.Second)
		}
		io.WriteString(conn, httpReply(`{"openid":"`+d.name+`"}`))
	}
}

func up() error      { return nil }
func slow() error    { time.Sleep(time.Second); return nil }
func refuses() error { return syscall.ECONNREFUSED }
func silent() error  { time.Sleep(2 * time.Second); return context.DeadlineExceeded }

// pipe returns a connection in memory, whose other end serve has.
func pipe(serve func(net.Conn)) net.Conn {
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		serve(theirs)
	}()
	return ours
}

func inBubble(t *testing.T, name string, timeout time.Duration, one, two func() error, test func(*testing.T, *fallback)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			f := &fallback{newService(t, timeout, "http://one", "http://two"), &fakeDial{name: "one"}, &fakeDial{name: "two"}}
			f.one.connect.Store(one)
			f.two.connect.Store(two)
			for i, d := range []*fakeDial{f.one, f.two} {
				f.bases[i].transport.DialContext = func(context.Context, string, string) (net.Conn, error) { return d.dial() }
			}
			test(t, f)
			f.transports((*http.Transport).CloseIdleConnections)
			time.Sleep(time.Minute) // for dials to end
			f.transports((*http.Transport).CloseIdleConnections)
		})
	})
}

// check posts code, and wants an outcome after a time, and numbers of dials to the two.
func (f *fallback) check(t *testing.T, code, want string, took time.Duration, one, two int64) {
	t.Helper()
	start := time.Now()
	got := strings.NewReplacer(`200 {"openid":"`, "", `"}`, "").Replace(f.post(code).brief())
	if passed := time.Since(start); got != want || passed != took {
		t.Errorf("got %s after %v, want %s after %v; the log is:\n%s", got, passed, want, took, f.log)
	}
	if gotOne, gotTwo := f.one.dials.Swap(0), f.two.dials.Swap(0); gotOne != one || gotTwo != two {
		t.Errorf("got %d and %d dials, want %d and %d", gotOne, gotTwo, one, two)
	}
}

func TestPassedOver(t *testing.T) {
	t.Parallel()
	for name, connect := range map[string]func() error{"silent": silent, "refuses": refuses} {
		wait := map[string]time.Duration{"silent": 2 * time.Second}[name]
		inBubble(t, name, 5*time.Second, connect, up, func(t *testing.T, f *fallback) {
			f.check(t, "x", "two", wait, 1, 1)
			f.check(t, "x", "two", 0, 0, 0)
			time.Sleep(30*time.Second - time.Millisecond)
			f.check(t, "x", "two", 0, 0, 0)
			time.Sleep(time.Second)
			var retry sync.WaitGroup
			retry.Go(func() { f.post("x") })
			time.Sleep(time.Second)
			if wait > 0 {
				f.check(t, "x", "two", 0, 1, 0) // while another exchange tries the first again
			}
			retry.Wait()
			f.one.dials.Store(0)
			f.check(t, "x", "two", 0, 0, 0)
			time.Sleep(31 * time.Second)
			f.one.connect.Store(up)
			f.check(t, "x", "one", 0, 1, 0)
			f.check(t, "x", "one", 0, 0, 0)
			if got := strings.Count(f.log.String(), "out of reach"); got != 1 {
				t.Errorf("got %d lines of that in the log, want 1:\n%s", got, f.log)
			}
		})
	}
	inBubble(t, "all of them", 5*time.Second, refuses, silent, func(t *testing.T, f *fallback) {
		for range 2 {
			f.check(t, "x", "502 wechat_unreachable", 2*time.Second, 1, 1)
		}
		if cause := f.log.next(t, "request")["cause"].(string); !strings.Contains(cause, "one:80: ") || !strings.Contains(cause, "two:80: ") {
			t.Errorf("got cause %q, want both base URLs in it", cause)
		}
		f.two.connect.Store(up)
		f.check(t, "x", "two", 0, 1, 1)
		f.check(t, "x", "two", 0, 0, 0)
	})
	inBubble(t, "WX_TIMEOUT is over first", time.Second, silent, up, func(t *testing.T, f *fallback) {
		f.check(t, "x", "504 wechat_timeout", time.Second, 1, 0)
		f.check(t, "x", "two", 0, 0, 1)
	})
	inBubble(t, "WX_TIMEOUT covers both", 5*time.Second, silent, up, func(t *testing.T, f *fallback) {
		f.check(t, "wait", "504 wechat_timeout", 5*time.Second, 1, 1)
	})
}

func TestNotPassedOver(t *testing.T) {
	t.Parallel()
	inBubble(t, "the caller hung up", 5*time.Second, silent, up, func(t *testing.T, f *fallback) {
		ctx, hangUp := context.WithCancel(t.Context())
		time.AfterFunc(500*time.Millisecond, hangUp)
		_, err := f.client.openID(ctx, "x")
		if failure, _ := errors.AsType[*failure](err); failure == nil || failure.word != "client_closed_request" {
			t.Errorf("got %v, want client_closed_request", err)
		}
		f.one.connect.Store(up)
		f.check(t, "x", "one", 0, 2, 0)
	})
	inBubble(t, "it did not answer", 5*time.Second, slow, up, func(t *testing.T, f *fallback) {
		f.check(t, "wait", "504 wechat_timeout", 5*time.Second, 1, 0)
		f.check(t, "x", "one", time.Second, 1, 0)
	})
	inBubble(t, "all turns were taken", 10*time.Second, up, up, func(t *testing.T, f *fallback) {
		var callers sync.WaitGroup
		for range 256 {
			callers.Go(func() { f.post("wait") })
		}
		time.Sleep(time.Second)
		f.one.dials.Store(0)
		f.check(t, "x", "503 overloaded", 5*time.Second, 0, 0)
		callers.Wait()
		f.check(t, "x", "one", 0, 1, 0)
	})
}

// TestSilentHandshakes has more TLS handshakes than may be under way, with a base URL that never answers.
func TestSilentHandshakes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newService(t, 4*time.Second, "https://one", "http://two")
		s.bases[0].transport.DialContext = func(context.Context, string, string) (net.Conn, error) { return pipe(untilClosed), nil }
		two := &fakeDial{name: "two"}
		two.connect.Store(up)
		s.bases[1].transport.DialContext = func(context.Context, string, string) (net.Conn, error) { return two.dial() }
		start := time.Now()
		var callers sync.WaitGroup
		for range 40 {
			callers.Go(func() {
				if got := s.post("x"); got.OpenID != "two" || time.Since(start) != 2*time.Second {
					t.Errorf("got %s after %v, want the openid after one wait", got.brief(), time.Since(start))
				}
			})
		}
		callers.Wait()
		s.transports((*http.Transport).CloseIdleConnections)
		synctest.Wait()
	})
}

// TestConnections has many exchanges at a time, and again: connections are bounded, and used again.
func TestConnections(t *testing.T) {
	t.Parallel()
	for maxInflight, want := range map[int]int{1: 256, 1024: 256, 2000: 500} {
		if got := cap(newClient(config{maxInflight: maxInflight}, nil).turns); got != want {
			t.Errorf("got %d turns with MAX_INFLIGHT=%d, want %d", got, maxInflight, want)
		}
	}
	inBubble(t, "300 at a time", 10*time.Second, up, up, func(t *testing.T, f *fallback) {
		for _, want := range []int64{256, 0} {
			var all sync.WaitGroup
			for range 300 {
				all.Go(func() {
					if got := f.post("think"); got.OpenID != "one" {
						t.Errorf("got %s, want the openid", got.brief())
					}
				})
			}
			all.Wait()
			if got := f.one.dials.Swap(0); got != want {
				t.Errorf("got %d dials for 300 exchanges at a time, want %d", got, want)
			}
		}
		time.Sleep(51 * time.Second)
		f.check(t, "x", "one", 0, 1, 0) // the kept ones were given up
	})
}

func TestRequestToWeChat(t *testing.T) {
	t.Parallel()
	const strange = `&=+%#?/\;:@!$'()*,[]{}|^~<>"` + "`"
	tests := []struct{ name, prefix, appSecret, code, path string }{
		{"plain", "", "0123456789abcdef", "0a1B2c", "/sns/jscode2session"},
		{"slash", "/", "b", "c", "/sns/jscode2session"},
		{"prefix", "/a/b", "b", "c", "/a/b/sns/jscode2session"},
		{"prefix and slash", "/a/b/", "b", "c", "/a/b/sns/jscode2session"},
		{"prefix with escapes", "/a%20b%2F", "b", "c", "/a%20b%2F/sns/jscode2session"},
		{"strange AppSecret", "", strange, "c", "/sns/jscode2session"},
		{"strange code", "", "b", strange, "/sns/jscode2session"},
		{"code that adds values", "", "b", "c&appid=x&secret=x&js_code=x#", "/sns/jscode2session"},
	}
	requests := make(chan *http.Request, 1)
	wechat := newWeChat(t, func(w http.ResponseWriter, r *http.Request) { requests <- r; echo(w, r) })
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := startProgram(t, credentials("WX_APPSECRET", test.appSecret, "WX_BASE_URL", wechat+test.prefix))
			if got := post(t, p.url+"/openid", string(must(json.Marshal(map[string]string{"code": test.code})))); got.OpenID != test.code {
				t.Fatalf("got %d %s, want the openid", got.status, got.body)
			}
			r := <-requests
			path, query, _ := strings.Cut(r.RequestURI, "?")
			want := url.Values{"appid": {testAppID}, "secret": {test.appSecret}, "js_code": {test.code}, "grant_type": {"authorization_code"}}
			if values, err := url.ParseQuery(query); r.Method != "GET" || path != test.path || err != nil || !reflect.DeepEqual(values, want) {
				t.Errorf("got %s %s, want GET %s with %v", r.Method, r.RequestURI, test.path, want)
			}
			if odd := strings.Trim(query, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~%+&="); odd != "" {
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
		s := newService(t, 10*time.Second, "http://wechat")
		asked := 0
		s.bases[0].transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
			asked++
			return pipe(func(theirs net.Conn) {
				if _, err := http.ReadRequest(bufio.NewReader(theirs)); err == nil {
					theirs.Write(reply)
				}
			}), nil
		}
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
