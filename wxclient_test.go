package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
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
	leakName   = "topsecret.onetimecode.keyofsession.test"
	leakOpenID = "oPersonalData_-0123456789abc"
)

var (
	leaks   = leakSecret + leakCode + leakKey + url.QueryEscape(leakSecret+leakCode+leakKey)
	success = `200 {"openid":"` + leakOpenID + `"}`
	whole   = httpReply(`{"session_key":"` + leakKey + `","openid":"` + leakOpenID + `"}`)
)

func checkNoLeak(t *testing.T, where, text string) {
	t.Helper()
	for _, core := range []string{"topsecret", "onetimecode", "keyofsession"} {
		if strings.Contains(strings.ToLower(text), core) {
			t.Errorf("%s: got %q in it, want it nowhere:\n%s", where, core, text)
		}
	}
}

// A service is the handler over a client of its own.
type service struct {
	*client
	handler http.Handler
	log     *output
}

func newService(t testing.TB, timeout time.Duration, baseURLs ...string) *service {
	t.Helper()
	c := config{appID: "wx0123456789abcdef", appSecret: leakSecret, timeout: timeout, maxInflight: 100}
	for _, base := range baseURLs {
		u, err := url.Parse(base)
		if err != nil {
			t.Fatal(err)
		}
		c.baseURLs = append(c.baseURLs, u)
	}
	return serviceOf(t, c)
}

func serviceOf(t testing.TB, c config) *service {
	s := &service{log: &output{lines: make(chan string, 1000)}}
	logger := slog.New(slog.NewJSONHandler(s.log, nil))
	s.client = newClient(c, logger)
	s.handler = newHandler(context.Background(), s.client, c.appID, logger, nil)
	t.Cleanup(s.transport.CloseIdleConnections)
	return s
}

// post sends code and returns the answer.
func (s *service) post(code string) *httptest.ResponseRecorder {
	body, _ := json.Marshal(map[string]string{"code": code})
	answer := httptest.NewRecorder()
	s.handler.ServeHTTP(answer, httptest.NewRequest("POST", "/openid", bytes.NewReader(body)))
	return answer
}

// brief is an answer in short: 200 and its body, or status, error and errcode.
func brief(answer *httptest.ResponseRecorder) string {
	body := strings.TrimSpace(answer.Body.String())
	if answer.Code == http.StatusOK {
		return "200 " + body
	}
	var failure struct {
		Error   string
		ErrCode int64
	}
	if err := json.Unmarshal([]byte(body), &failure); err != nil {
		return fmt.Sprint(answer.Code, " ", err)
	}
	short := fmt.Sprint(answer.Code, " ", failure.Error)
	if failure.ErrCode != 0 {
		short += fmt.Sprint(" ", failure.ErrCode)
	}
	return short
}

// A rawWeChat is a WeChat that is told what to do with its connections.
type rawWeChat struct {
	net.Listener
	addr    string
	asked   atomic.Int64 // requests that arrived
	running sync.WaitGroup
}

// startRaw hands every connection to serve, until the test ends, and closes it
// when the client has. The connections are TLS where config is not nil.
func startRaw(t testing.TB, config *tls.Config, serve func(*rawWeChat, net.Conn)) *rawWeChat {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &rawWeChat{Listener: listener, addr: listener.Addr().String()}
	if config != nil {
		w.Listener = tls.NewListener(listener, config)
	}
	ctx := t.Context()
	w.running.Go(func() {
		for {
			conn, err := w.Accept()
			if err != nil {
				return
			}
			w.running.Go(func() {
				defer conn.Close()
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				serve(w, conn)
				if half, ok := conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
					untilClosed(conn)
				}
			})
		}
	})
	t.Cleanup(func() {
		w.Close()
		w.running.Wait()
	})
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

func untilClosed(conn net.Conn) { io.Copy(io.Discard, conn) }

func reset(conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	conn.(*net.TCPConn).SetLinger(0)
	conn.Close()
}

func says(raw string) func(net.Conn) {
	return func(conn net.Conn) { io.WriteString(conn, raw) }
}

// repeats says first once and then again over and over, until the client has closed.
func repeats(first, again string, pause time.Duration) func(net.Conn) {
	return func(conn net.Conn) {
		for _, err := io.WriteString(conn, first); err == nil; _, err = io.WriteString(conn, again) {
			time.Sleep(pause)
		}
	}
}

func httpReply(body string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

func replies(body string) func(net.Conn) { return says(httpReply(body)) }

// An authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key, pool: x509.NewCertPool()}
	a.cert = a.sign(t, &x509.Certificate{
		Subject:               pkix.Name{CommonName: leakName},
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
	})
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) sign(t testing.TB, template *x509.Certificate) *x509.Certificate {
	t.Helper()
	template.SerialNumber = big.NewInt(1)
	parent := a.cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// server is the configuration of a server whose certificate ends in life and is for ip.
func (a *authority) server(t testing.TB, life time.Duration, ip string) *tls.Config {
	t.Helper()
	cert := a.sign(t, &x509.Certificate{
		Subject:     pkix.Name{CommonName: leakName},
		DNSNames:    []string{leakName},
		IPAddresses: []net.IP{net.ParseIP(ip)},
		NotAfter:    time.Now().Add(life),
	})
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: a.key}}}
}

// A failing is a way in which WeChat fails, or seems to.
type failing struct {
	name   string
	tls    *tls.Config               // of WeChat, for connections that come about
	https  bool                      // in the base URL, though WeChat has no tls
	setup  func(*client, *rawWeChat) // what else is out of order
	greet  func(net.Conn)            // in the place of reading a request
	answer func(net.Conn)            // to the request on each connection
	next   bool                      // no connection: the next base URL is to be tried
	want   string
}

func (f *failing) serve(w *rawWeChat, conn net.Conn) {
	if f.greet != nil {
		f.greet(conn)
	} else if w.read(conn) != nil {
		f.answer(conn)
	}
}

func (f *failing) start(t *testing.T) (w *rawWeChat, base string) {
	t.Helper()
	w = startRaw(t, f.tls, f.serve)
	if f.https || f.tls != nil {
		return w, "https://" + w.addr
	}
	return w, "http://" + w.addr
}

func failings(t *testing.T, ca *authority) []failing {
	elsewhere := startRaw(t, nil, func(w *rawWeChat, conn net.Conn) { w.read(conn) })
	t.Cleanup(func() {
		if n := elsewhere.asked.Load(); n != 0 {
			t.Errorf("redirects: got %d requests where they lead to, want none", n)
		}
	})
	good := ca.server(t, time.Hour, "127.0.0.1")
	asksBack := good.Clone()
	asksBack.ClientAuth = tls.RequireAnyClientCert
	padded := func(size int) func(net.Conn) {
		return replies(fmt.Sprintf("%-*s", size, `{"openid":"`+leakOpenID+`"}`))
	}
	var zipped bytes.Buffer
	zip := gzip.NewWriter(&zipped)
	io.WriteString(zip, `{"openid":"`+leakOpenID+`"}`)
	zip.Close()
	const (
		openID    = `"openid":"` + leakOpenID + `"`
		useless   = "502 wechat_error"
		broken    = "502 wechat_unreachable"
		timedOut  = "504 wechat_timeout"
		endOfHead = "\r\n\r\n"
	)

	return []failing{
		{name: "refused", setup: gone, next: true, want: broken},
		{name: "no such name", setup: nameServer(true), next: true, want: broken},
		{name: "DNS that does not answer", setup: nameServer(false), want: timedOut},
		{name: "proxy that refuses CONNECT", https: true, setup: proxy, answer: says("HTTP/1.1 403 " + leaks + "\r\nX: " + leaks + endOfHead), next: true, want: broken},
		{name: "proxy that is gone", https: true, setup: goneProxy, next: true, want: broken},

		{name: "TLS", tls: good, answer: says(whole), want: success},
		{name: "handshake that never ends", https: true, greet: untilClosed, want: timedOut},
		{name: "handshake that is broken off", https: true, greet: func(net.Conn) {}, next: true, want: broken},
		{name: "handshake that is reset", https: true, greet: reset, next: true, want: broken},
		{name: "expired certificate", tls: ca.server(t, -time.Second, "127.0.0.1"), greet: untilClosed, next: true, want: broken},
		{name: "certificate for another address", tls: ca.server(t, time.Hour, "127.0.0.2"), greet: untilClosed, next: true, want: broken},
		{name: "certificate for another host", tls: good, setup: otherHost, greet: untilClosed, next: true, want: broken},
		{name: "certificate of another authority", tls: newAuthority(t).server(t, time.Hour, "127.0.0.1"), greet: untilClosed, next: true, want: broken},
		{name: "client certificate wanted", tls: asksBack, answer: says(whole), want: broken},
		{name: "HTTP in the place of TLS", https: true, greet: says("HTTP/1.1 400 " + leaks + endOfHead), next: true, want: broken},
		{name: "SSH in the place of TLS", https: true, greet: says("SSH-2.0-" + leaks + "\r\n"), next: true, want: broken},

		{name: "reset before the request is read", greet: func(conn net.Conn) { conn.Read(make([]byte, 1)); reset(conn) }, want: broken},
		{name: "closed at once", greet: func(net.Conn) {}, want: broken},
		{name: "reset after the request", answer: reset, want: broken},
		{name: "closed after the request", answer: func(net.Conn) {}, want: broken},
		{name: "closed after the request, over TLS", tls: good, answer: func(net.Conn) {}, want: broken},
		{name: "no reply", answer: untilClosed, want: timedOut},
		{name: "half a header", answer: says("HTTP/1.1 200 OK\r\nX: " + leaks), want: broken},
		{name: "half a body", answer: says(whole[:len(whole)-1]), want: broken},
		{name: "half a body and reset", answer: func(conn net.Conn) { io.WriteString(conn, whole[:len(whole)-1]); reset(conn) }, want: broken},
		{name: "half a chunk", answer: says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{" + leaks), want: broken},
		{name: "header that trickles", answer: repeats("HTTP/1.1 200 OK\r\nX: ", "x", time.Millisecond), want: timedOut},
		{name: "body that trickles", answer: repeats("HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n{"+leaks, " ", time.Millisecond), want: timedOut},
		{name: "header without end", answer: repeats("HTTP/1.1 200 OK\r\n", "X: "+leaks+"\r\n", 0), want: broken},
		{name: "header over 64 KiB", answer: says("HTTP/1.1 200 OK\r\nX: " + strings.Repeat(leaks, 64<<10/len(leaks)+1) + whole[len("HTTP/1.1 200 OK"):]), want: broken},
		{name: "header line without end", answer: repeats("HTTP/1.1 200 OK\r\nX: ", leaks, 0), want: broken},
		{name: "interim replies without end", answer: repeats("", "HTTP/1.1 103 "+leaks+endOfHead, 0), want: broken},
		{name: "body without end", answer: repeats("HTTP/1.1 200 OK\r\n\r\n", leaks, 0), want: useless},
		{name: "64 KiB", answer: padded(64 << 10), want: success},
		{name: "64 KiB and a byte", answer: padded(64<<10 + 1), want: useless},

		{name: "SSH in the place of HTTP", answer: says("SSH-2.0-" + leaks + "\r\n"), want: broken},
		{name: "status that is no number", answer: says("HTTP/1.1 " + leaks + endOfHead), want: broken},
		{name: "version that is none", answer: says("HTTP/" + leaks + " 200 OK" + endOfHead), want: broken},
		{name: "header line that is none", answer: says("HTTP/1.1 200 OK\r\n" + leaks + endOfHead), want: broken},
		{name: "length that is none", answer: says("HTTP/1.1 200 OK\r\nContent-Length: " + leaks + endOfHead), want: broken},
		{name: "two lengths", answer: says("HTTP/1.1 200 OK\r\nContent-Length: 1" + leaks + "\r\nContent-Length: 2" + leaks + endOfHead), want: broken},
		{name: "transfer encoding unheard of", answer: says("HTTP/1.1 200 OK\r\nTransfer-Encoding: " + leaks + endOfHead), want: broken},
		{name: "chunk size that is none", answer: says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + leaks + "\r\n"), want: broken},

		{name: "HTTP 1.0", answer: says("HTTP/1.0 200 OK\r\n\r\n{" + openID + "}"), want: success},
		{name: "chunks", answer: says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n27\r\n" + openID + "\r\n1\r\n}\r\n0\r\n\r\n"), want: success},
		{name: "interim replies first", answer: says("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: " + leaks + endOfHead + whole), want: success},
		{name: "cookies and hints", answer: says("HTTP/1.1 200 " + leaks + "\r\nSet-Cookie: a=" + leaks + "\r\nConnection: close\r\n" + whole[len("HTTP/1.1 200 OK\r\n"):]), want: success},

		{name: "101", answer: says("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + leaks + endOfHead + leaks), want: useless},
		{name: "201 with an openid", answer: says(strings.Replace(whole, "200 OK", "201 Created", 1)), want: useless},
		{name: "204", answer: says("HTTP/1.1 204 " + leaks + endOfHead), want: useless},
		{name: "301 to itself", answer: says("HTTP/1.1 301 Moved\r\nLocation: ?" + leaks + "\r\nContent-Length: 0" + endOfHead), want: useless},
		{name: "302 elsewhere", answer: says("HTTP/1.1 302 Found\r\nLocation: http://" + elsewhere.addr + "/" + url.PathEscape(leaks) + "\r\nContent-Length: 0" + endOfHead), want: useless},
		{name: "307 elsewhere with an openid", answer: says(strings.Replace(whole, "200 OK", "307 Found\r\nLocation: http://"+elsewhere.addr, 1)), want: useless},
		{name: "302 to nowhere", answer: says("HTTP/1.1 302 Found\r\nLocation: http://[" + leaks + "\r\nContent-Length: 0" + endOfHead), want: useless},
		{name: "400 with an errcode", answer: says(strings.Replace(httpReply(`{"errcode":40029}`), "200 OK", "400 Bad Request", 1)), want: useless},
		{name: "502 and HTML", answer: says("HTTP/1.1 502 " + leaks + "\r\nContent-Type: text/html\r\n\r\n<html>" + leaks), want: useless},
		{name: "HTML", answer: replies("<html>" + leaks + "</html>"), want: useless},
		{name: "gzip", answer: says(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", zipped.Len(), &zipped)), want: useless},

		{name: "nothing", answer: replies(""), want: useless},
		{name: "empty object", answer: replies(`{}`), want: useless},
		{name: "null", answer: replies(`null`), want: useless},
		{name: "array", answer: replies(`[{` + openID + `}]`), want: useless},
		{name: "string", answer: replies(`"` + leakOpenID + `"`), want: useless},
		{name: "half an object", answer: replies(`{` + openID), want: useless},
		{name: "something after the object", answer: replies(`{` + openID + `} ` + leakKey), want: useless},
		{name: "two objects", answer: replies(`{"errcode":40029}{` + openID + `}`), want: useless},
		{name: "white space around", answer: replies("\r\n\t {" + openID + "} \n"), want: success},

		{name: "errcode", answer: replies(`{"errcode":40029,"errmsg":"` + url.QueryEscape(leaks) + `, rid: ` + leakKey + `"}`), want: "400 invalid_code 40029"},
		{name: "errcode as a string", answer: replies(`{"errcode":"40163"}`), want: "400 code_used 40163"},
		{name: "errcode as a whole float", answer: replies(`{"errcode":4.5011e4}`), want: "429 rate_limited 45011"},
		{name: "errcode as a broken float", answer: replies(`{"errcode":40029.5,` + openID + `}`), want: useless},
		{name: "errcode below zero", answer: replies(`{"errcode":-1}`), want: "503 wechat_busy -1"},
		{name: "errcode unheard of", answer: replies(`{"errcode":99999}`), want: useless + " 99999"},
		{name: "errcode beyond all bounds", answer: replies(`{"errcode":1e999,` + openID + `}`), want: useless},
		{name: "errcode 0", answer: replies(`{"errcode":0,"errmsg":"ok",` + openID + `}`), want: success},
		{name: "errcode 0 as a string", answer: replies(`{"errcode":"0",` + openID + `}`), want: success},
		{name: "errcode null", answer: replies(`{"errcode":null,"errmsg":null,"unionid":null,` + openID + `}`), want: success},
		{name: "errcode 0 without an openid", answer: replies(`{"errcode":0,"session_key":"` + leakKey + `"}`), want: useless},
		{name: "errcode true", answer: replies(`{"errcode":true,` + openID + `}`), want: useless},
		{name: "errcode false", answer: replies(`{"errcode":false,` + openID + `}`), want: useless},
		{name: "errcode an object", answer: replies(`{"errcode":{},` + openID + `}`), want: useless},
		{name: "errcode an array", answer: replies(`{"errcode":[0],` + openID + `}`), want: useless},
		{name: "errcode a word", answer: replies(`{"errcode":"abc",` + openID + `}`), want: useless},
		{name: "errcode empty", answer: replies(`{"errcode":"",` + openID + `}`), want: useless},
		{name: "errcode and an openid", answer: replies(`{` + openID + `,"errcode":40226}`), want: "403 user_blocked 40226"},
		{name: "errcode and an openid that is none", answer: replies(`{"openid":1,"errcode":40029}`), want: "400 invalid_code 40029"},
		{name: "errcode in other letters", answer: replies(`{"ERRCODE":40029,"Errcode":40029,` + openID + `}`), want: success},
		{name: "errcode further in", answer: replies(`{"data":{"errcode":40029},` + openID + `}`), want: success},
		{name: "errcode twice", answer: replies(`{"errcode":0,"errcode":40029,` + openID + `}`), want: "400 invalid_code 40029"},
		{name: "errcode that is taken back", answer: replies(`{"errcode":40029,"errcode":null,` + openID + `}`), want: "400 invalid_code 40029"},
		{name: "errmsg a number", answer: replies(`{"errmsg":0,` + openID + `}`), want: success},

		{name: "openid a number", answer: replies(`{"openid":1}`), want: useless},
		{name: "openid empty", answer: replies(`{"openid":""}`), want: useless},
		{name: "openid null", answer: replies(`{"openid":null}`), want: useless},
		{name: "openid an object", answer: replies(`{"openid":{` + openID + `}}`), want: useless},
		{name: "openid in other letters", answer: replies(`{"OPENID":"x","OpenID":"x","openId":"x"}`), want: useless},
		{name: "openid in other letters as well", answer: replies(`{` + openID + `,"OPENID":"x","OpenID":1}`), want: success},
		{name: "openid further in", answer: replies(`{"data":{` + openID + `}}`), want: useless},
		{name: "openid twice", answer: replies(`{"openid":"x",` + openID + `}`), want: success},
		{name: "openid escaped", answer: replies(`{"\u006fpenid":"\u006f` + leakOpenID[1:] + `"}`), want: success},
		{name: "session_key of another kind", answer: replies(`{"session_key":{"a":["` + leakKey + `"]},` + openID + `}`), want: success},
		{name: "unionid", answer: replies(`{"unionid":"u",` + openID + `}`), want: strings.TrimSuffix(success, "}") + `,"unionid":"u"}`},
		{name: "unionid empty", answer: replies(`{"unionid":"",` + openID + `}`), want: success},
		{name: "unionid a number", answer: replies(`{"unionid":1,` + openID + `}`), want: success},
		{name: "unionid in other letters", answer: replies(`{"UnionID":"u",` + openID + `}`), want: success},
	}
}

func otherHost(c *client, _ *rawWeChat) { c.transport.TLSClientConfig.ServerName = "wechat" }

func gone(_ *client, w *rawWeChat) { w.Close() }

func proxy(c *client, w *rawWeChat) {
	c.transport.Proxy = func(r *http.Request) (*url.URL, error) {
		if r.URL.Scheme == "http" {
			return nil, nil
		}
		return &url.URL{Scheme: "http", Host: w.addr}, nil
	}
}

func goneProxy(c *client, w *rawWeChat) {
	proxy(c, w)
	gone(c, w)
}

// nameServer puts a name in the place of WeChat's address. The name server knows no
// name, or says nothing.
func nameServer(talks bool) func(*client, *rawWeChat) {
	resolver := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		asking, asked := net.Pipe()
		go func() {
			defer asked.Close()
			query := make([]byte, 512)
			n, err := asked.Read(query) // a length of two bytes first
			if n == 2 {
				n, err = asked.Read(query[2:])
				n += 2
			}
			if talks && err == nil {
				query[4] |= 0x80 // it is an answer
				query[5] = 3     // there is no such name
				asked.Write(query[:n])
			}
			untilClosed(asked)
		}()
		return asking, nil
	}}
	return func(c *client, w *rawWeChat) {
		dialer := net.Dialer{Timeout: connectTimeout, Resolver: resolver}
		c.transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == w.addr {
				addr = "wechat.invalid.:80"
			}
			return dialer.DialContext(ctx, network, addr)
		}
	}
}

func TestWeChatFailsInEveryWay(t *testing.T) {
	ca := newAuthority(t)
	for _, f := range failings(t, ca) {
		timeout := 10 * time.Second
		if strings.HasPrefix(f.want, "504") {
			timeout = 50 * time.Millisecond
		}
		start := func(t *testing.T, others ...string) (*rawWeChat, *service) {
			w, base := f.start(t)
			s := newService(t, timeout, append([]string{base}, others...)...)
			s.transport.TLSClientConfig = &tls.Config{RootCAs: ca.pool}
			if f.setup != nil {
				f.setup(s.client, w)
			}
			return w, s
		}
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			w, s := start(t)
			answer := s.post(leakCode)
			if got := brief(answer); got != f.want {
				t.Errorf("got %s, want %s; the log is:\n%s", got, f.want, s.log)
			}
			if got := w.asked.Load(); got > 1 {
				t.Errorf("got %d requests sent, want one at most", got)
			}
			_, err := s.openID(t.Context(), leakCode)
			checkNoLeak(t, "answer", fmt.Sprint(answer.Header(), answer.Body))
			checkNoLeak(t, "log", s.log.String())
			checkNoLeak(t, "error", fmt.Sprintf("%v %+v %#v", err, err, err))
			if strings.Contains(s.log.String(), leakOpenID) {
				t.Errorf("got the openid in the log, want it in the answer alone:\n%s", s.log)
			}
		})
		t.Run(f.name+", first of two", func(t *testing.T) {
			t.Parallel()
			second := startRaw(t, nil, (&failing{answer: says(whole)}).serve)
			_, s := start(t, "http://"+second.addr)
			want, asked := f.want, int64(0)
			if f.next {
				want, asked = success, 1
			}
			if got := brief(s.post(leakCode)); got != want {
				t.Errorf("got %s, want %s; the log is:\n%s", got, want, s.log)
			}
			if got := second.asked.Load(); got != asked {
				t.Errorf("got %d requests to the second base URL, want %d", got, asked)
			}
		})
	}
}

// TestNothingLeaksFromTheProgram runs the program in a process of its own, for the
// whole of what it writes to standard error: net/http logs past slog.
func TestNothingLeaksFromTheProgram(t *testing.T) {
	if os.Getenv("WXOPENID_LEAKS") != "" {
		os.Args = os.Args[:1]
		main()
	}
	t.Parallel()
	ca := newAuthority(t)
	refusing := startRaw(t, nil, (&failing{answer: says("HTTP/1.1 403 " + leaks + "\r\n\r\n")}).serve)
	bases := []string{"https://wechat.invalid"} // through the proxy, as loopback addresses are not
	answers := make(map[string]func(net.Conn))
	for _, f := range failings(t, ca) {
		switch {
		case f.next && f.setup == nil:
			_, base := f.start(t)
			bases = append(bases, base)
		case f.answer != nil && f.tls == nil && !strings.HasPrefix(f.want, "504"):
			answers[leakCode+f.name] = f.answer
		}
	}
	answers[leakCode+"out of turn"] = says(whole + leaks)
	answers[leakCode+"out of turn, and HTTP"] = says(whole + whole)
	served := make(chan bool, len(answers))
	wechat := startRaw(t, nil, func(w *rawWeChat, conn net.Conn) {
		r := w.read(conn)
		if r == nil {
			return
		}
		answers[r.FormValue("js_code")](conn)
		if half, ok := conn.(*net.TCPConn); ok && half.CloseWrite() == nil {
			untilClosed(conn)
		}
		served <- true
	})
	bases = append(bases, "http://"+wechat.addr)

	roots := filepath.Join(t.TempDir(), "roots.pem")
	writeFile(t, roots, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})))
	stderr := newOutput()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), "WXOPENID_LEAKS=1", "ADDR=127.0.0.1:0", "WX_APPID="+testAppID, "WX_APPSECRET="+leakSecret,
		"WX_BASE_URL="+strings.Join(bases, ","), "SSL_CERT_FILE="+roots,
		"HTTPS_PROXY=http://"+refusing.addr, "NO_PROXY=")
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	address := "http://" + stderr.next(t, "listening")["addr"].(string) + "/openid"
	for code := range answers {
		body, _ := json.Marshal(map[string]string{"code": code})
		got := post(t, address, string(body), "Referer", "https://servicewechat.com/wx1/1/page-frame.html?"+url.QueryEscape(code))
		checkNoLeak(t, "answer", fmt.Sprint(got.header, got.body))
		receive(t, served)
	}
	cmd.Process.Signal(os.Interrupt)
	if err := cmd.Wait(); err != nil {
		t.Errorf("got %v at the end, want exit code 0", err)
	}
	checkNoLeak(t, "standard error", stderr.String())
	if refusing.asked.Load() == 0 {
		t.Error("got no request to HTTPS_PROXY, want one")
	}
	if got := strings.Count(stderr.String(), `"msg":"request"`); got != len(answers) {
		t.Errorf("got %d requests in the log, want %d", got, len(answers))
	}
	if got := strings.Count(stderr.String(), "out of reach"); got != len(bases)-1 {
		t.Errorf("got %d base URLs out of reach in the log, want %d", got, len(bases)-1)
	}
}

func TestRid(t *testing.T) {
	t.Parallel()
	const secret, code = "05ec7e70-05ec7e70-05ec7e70", "0badc0de-0badc0de-0badc0de"
	tests := []struct{ name, errmsg, want string }{
		{"after a comma", "invalid code, rid: " + testRid, testRid},
		{"after a space", "invalid code rid: " + testRid, testRid},
		{"further on", "invalid code, rid: " + testRid + " (203.0.113.7)", testRid},
		{"none", "invalid code", ""},
		{"older hints", "invalid code, hints: [ req_id: " + testRid + " ]", ""},
		{"too long", "rid: " + testRid + "0", ""},
		{"too short", "rid: " + testRid[1:], ""},
		{"other letters", "rid: " + strings.ToUpper(testRid), ""},
		{"something else", "rid: " + leakKey, ""},
		{"the code", "rid: " + code, ""},
		{"the AppSecret", "rid: " + secret, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newService(t, 10*time.Second, newWeChat(t, func(w http.ResponseWriter, _ *http.Request) {
				json.NewEncoder(w).Encode(map[string]any{"errcode": 40029, "errmsg": test.errmsg})
			}))
			s.query = "secret=" + secret + "&js_code="
			_, failed := s.openID(t.Context(), code)
			if failed == nil || failed.rid != test.want {
				t.Errorf("got %+v, want rid %q", failed, test.want)
			}
		})
	}
}

// receive waits for c.
func receive(t *testing.T, c <-chan bool) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(10 * time.Second):
		t.Fatal("got nothing for 10 s where something has to happen")
	}
}

// A meeting holds up callers until so many are there, so that each has a connection.
type meeting struct {
	size  int64
	came  atomic.Int64
	leave chan bool
}

func newMeeting(size int64) *meeting { return &meeting{size: size, leave: make(chan bool, size)} }

func (m *meeting) join(ctx context.Context) {
	if m.came.Add(1)%m.size == 0 {
		for range m.size {
			m.leave <- true
		}
	}
	select {
	case <-m.leave:
	case <-ctx.Done():
	}
}

// A mortal is a WeChat whose kept connections die when they are used again.
type mortal struct {
	*rawWeChat
	dying    atomic.Bool
	together *meeting
	ended    chan bool // connections
}

const keptConns = 4

func newMortal(t *testing.T, config *tls.Config, die func(*bufio.Reader, net.Conn)) *mortal {
	t.Helper()
	m := &mortal{together: newMeeting(keptConns), ended: make(chan bool, 1000)}
	ctx := t.Context()
	m.rawWeChat = startRaw(t, config, func(w *rawWeChat, conn net.Conn) {
		defer func() { m.ended <- true }()
		in := bufio.NewReader(conn)
		for {
			if _, err := in.Peek(1); err != nil {
				return
			}
			if m.dying.Load() {
				w.asked.Add(1)
				die(in, conn)
				return
			}
			if _, err := http.ReadRequest(in); err != nil {
				return
			}
			m.together.join(ctx)
			io.WriteString(conn, whole)
		}
	})
	return m
}

// kill has ask meet the death of each connection that it uses, of those that are kept
// and perhaps of others. It returns how many requests arrived, and over how many others.
func (m *mortal) kill(t *testing.T, transport *http.Transport, ask func() error) (requests, others int64) {
	t.Helper()
	var dials atomic.Int64
	transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials.Add(1)
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		return slowlyClosed{conn}, err
	}
	m.dying.Store(false)
	var warm sync.WaitGroup
	for range keptConns {
		warm.Go(func() {
			if err := ask(); err != nil {
				t.Errorf("got %v with all well, want an openid", err)
			}
		})
	}
	warm.Wait()
	m.asked.Store(0)
	m.dying.Store(true)
	if ask() == nil {
		t.Error("got an openid from a connection that died, want an error")
	}
	transport.CloseIdleConnections()
	for range dials.Load() {
		receive(t, m.ended)
	}
	return m.asked.Load(), dials.Load() - keptConns
}

// A slowlyClosed connection leaves time to use it while it is being closed.
type slowlyClosed struct{ net.Conn }

func (s slowlyClosed) Close() error {
	time.Sleep(time.Millisecond)
	return s.Conn.Close()
}

func TestCodeIsNeverSentTwice(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	closes := func(in *bufio.Reader, _ net.Conn) { http.ReadRequest(in) }
	resets := func(in *bufio.Reader, conn net.Conn) { http.ReadRequest(in); reset(conn) }
	resetsEarly := func(_ *bufio.Reader, conn net.Conn) { reset(conn) }
	tests := []struct {
		name string
		tls  *tls.Config
		die  func(*bufio.Reader, net.Conn)
	}{
		{"closed", nil, closes},
		{"reset", nil, resets},
		{"reset halfway", nil, resetsEarly},
		{"closed, TLS", ca.server(t, time.Hour, "127.0.0.1"), closes},
		{"reset, TLS", ca.server(t, time.Hour, "127.0.0.1"), resets},
	}
	for _, test := range tests {
		scheme := "http://"
		if test.tls != nil {
			scheme = "https://"
		}
		trust := &tls.Config{RootCAs: ca.pool}
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMortal(t, test.tls, test.die)
			s := newService(t, 10*time.Second, scheme+m.addr)
			s.transport.TLSClientConfig = trust
			for range 10 {
				var last atomic.Value
				requests, others := m.kill(t, s.transport, func() error {
					answer := brief(s.post(leakCode))
					last.Store(answer)
					if answer != success {
						return fmt.Errorf("%s", answer)
					}
					return nil
				})
				if requests != 1 || others != 0 || last.Load() != "502 wechat_unreachable" {
					t.Fatalf("got %v, %d requests and %d new connections, want 502 wechat_unreachable, 1 and none", last.Load(), requests, others)
				}
			}
		})
		t.Run(test.name+", net/http alone", func(t *testing.T) {
			t.Parallel()
			m := newMortal(t, test.tls, test.die)
			transport := &http.Transport{MaxIdleConnsPerHost: keptConns, TLSClientConfig: trust}
			requests, _ := m.kill(t, transport, func() error {
				resp, err := (&http.Client{Transport: transport}).Get(scheme + m.addr)
				if err == nil {
					defer resp.Body.Close()
					io.Copy(io.Discard, resp.Body)
				}
				return err
			})
			if requests < 2 {
				t.Errorf("got %d requests, want some repeated: else this test shows nothing", requests)
			}
		})
	}
}

// An observed connection tells when the client closes it.
type observed struct {
	net.Conn
	closed func()
}

func (o observed) Close() error {
	defer o.closed()
	return o.Conn.Close()
}

// TestConnectionThatComesTooLate has one come about when the time for it has just ended:
// nothing may be sent over it, since the next base URL is about to be tried.
func TestConnectionThatComesTooLate(t *testing.T) {
	t.Parallel()
	conn, wechat := net.Pipe()
	defer wechat.Close()
	cancelled := make(chan struct{})
	a := &attempt{base: &base{}, cancel: func() {}, deadline: time.Now().Add(time.Hour)}
	a.timer = time.AfterFunc(0, func() { close(cancelled) })
	<-cancelled
	defer a.timer.Stop()
	a.gotConn(httptrace.GotConnInfo{Conn: conn})
	conn.SetWriteDeadline(time.Now())
	if _, err := conn.Write([]byte("GET")); err != io.ErrClosedPipe {
		t.Errorf("got %v from a write to the connection, want it closed", err)
	}
	if e := a.explain(context.Canceled, t.Context()); e.fault != noConnection {
		t.Errorf("got %+v, want noConnection", e)
	}
}

func TestConnectionClosedWhileIdle(t *testing.T) {
	t.Parallel()
	ctx, end := t.Context(), make(chan bool)
	w := startRaw(t, nil, func(w *rawWeChat, conn net.Conn) {
		w.read(conn)
		io.WriteString(conn, whole)
		select {
		case <-end:
		case <-ctx.Done():
		}
	})
	s := newService(t, 10*time.Second, "http://"+w.addr)
	closed := make(chan bool, 1)
	s.transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		return observed{conn, sync.OnceFunc(func() { closed <- true })}, err
	}
	for i := range int64(10) {
		if got := brief(s.post(leakCode)); got != success || w.asked.Load() != i+1 {
			t.Fatalf("got %s after %d requests, want %s after %d", got, w.asked.Load(), success, i+1)
		}
		end <- true
		receive(t, closed)
	}
}

// A bubble is a service in a synctest bubble, where time passes only while all wait,
// in front of two WeChats whose openid is their name.
type bubble struct {
	*service
	one, two *bubbleWeChat
}

type bubbleWeChat struct {
	connect atomic.Value // func() error: how a connection comes about
	dials   atomic.Int64
	left    chan bool // callers that hung up
}

func (w *bubbleWeChat) is(connect func() error) { w.connect.Store(connect) }

func up() error      { return nil }
func slow() error    { time.Sleep(time.Second); return nil }
func refuses() error { return syscall.ECONNREFUSED }
func silent() error  { time.Sleep(time.Minute); return os.ErrDeadlineExceeded }

// inBubble runs test with a WX_TIMEOUT and with how connections to the two WeChats come about.
func inBubble(t *testing.T, timeout time.Duration, one, two func() error, test func(*testing.T, *bubble)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{service: newService(t, timeout, "http://one", "http://two")}
		listeners := make(map[string]pipes)
		start := func(name string, connect func() error) *bubbleWeChat {
			w := &bubbleWeChat{left: make(chan bool, 100)}
			w.is(connect)
			listeners[name+":80"] = make(pipes)
			server := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				switch r.FormValue("js_code") {
				case "wait":
					<-r.Context().Done()
					w.left <- true
				case "think":
					time.Sleep(3 * time.Second)
				}
				io.WriteString(rw, `{"openid":"`+name+`"}`)
			})}
			go server.Serve(listeners[name+":80"])
			t.Cleanup(func() { server.Close() })
			return w
		}
		b.one, b.two = start("one", one), start("two", two)
		b.transport.DialContext = func(_ context.Context, _, addr string) (net.Conn, error) {
			w := map[string]*bubbleWeChat{"one:80": b.one, "two:80": b.two}[addr]
			w.dials.Add(1)
			if err := w.connect.Load().(func() error)(); err != nil {
				return nil, &net.OpError{Op: "dial", Err: err}
			}
			ours, theirs := net.Pipe()
			listeners[addr] <- theirs
			return ours, nil
		}
		defer b.transport.CloseIdleConnections()
		defer time.Sleep(2 * time.Minute) // for dials to end
		test(t, b)
	})
}

// check posts code and holds the outcome, and how long it took, against what is wanted.
func (b *bubble) check(t *testing.T, code, want string, took time.Duration) {
	t.Helper()
	start := time.Now()
	got := strings.NewReplacer(`200 {"openid":"`, "", `"}`, "").Replace(brief(b.post(code)))
	if passed := time.Since(start); got != want || passed != took {
		t.Errorf("got %s after %v, want %s after %v; the log is:\n%s", got, passed, want, took, b.log)
	}
}

func (b *bubble) checkDials(t *testing.T, one, two int64) {
	t.Helper()
	if gotOne, gotTwo := b.one.dials.Swap(0), b.two.dials.Swap(0); gotOne != one || gotTwo != two {
		t.Errorf("got %d and %d new connections tried, want %d and %d", gotOne, gotTwo, one, two)
	}
}

func (b *bubble) checkLog(t *testing.T, out, back int) {
	t.Helper()
	log := b.log.String()
	if gotOut, gotBack := strings.Count(log, "WeChat is out of reach"), strings.Count(log, "WeChat is within reach again"); gotOut != out || gotBack != back {
		t.Errorf("got %d times out of reach and %d times back in the log, want %d and %d:\n%s", gotOut, gotBack, out, back, log)
	}
}

func TestBaseURLPassedOver(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		connect func() error
		cost    time.Duration
	}{
		{"silent", silent, 2 * time.Second},
		{"refuses", refuses, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, 5*time.Second, test.connect, up, func(t *testing.T, b *bubble) {
				b.check(t, "x", "two", test.cost)
				b.checkDials(t, 1, 1)
				for range 5 {
					b.check(t, "x", "two", 0)
				}
				time.Sleep(30*time.Second - time.Millisecond)
				b.check(t, "x", "two", 0)
				b.checkDials(t, 0, 0)

				time.Sleep(2 * time.Millisecond)
				var callers sync.WaitGroup
				for range 10 {
					callers.Go(func() { b.post("x") })
				}
				callers.Wait()
				b.checkDials(t, 1, b.two.dials.Load())
				b.check(t, "x", "two", 0)
				b.checkLog(t, 1, 0)

				time.Sleep(31 * time.Second)
				b.one.is(up)
				b.check(t, "x", "one", 0)
				b.check(t, "x", "one", 0)
				b.checkDials(t, 1, 0)
				b.checkLog(t, 1, 1)
			})
		})
	}
}

func TestBaseURLProbedByOne(t *testing.T) {
	t.Parallel()
	inBubble(t, 5*time.Second, silent, up, func(t *testing.T, b *bubble) {
		b.check(t, "x", "two", 2*time.Second)
		b.checkDials(t, 1, 1)
		time.Sleep(31 * time.Second)
		var probe sync.WaitGroup
		probe.Go(func() { b.check(t, "x", "two", 2*time.Second) })
		for range 20 {
			time.Sleep(90 * time.Millisecond)
			b.check(t, "x", "two", 0)
		}
		probe.Wait()
		b.checkDials(t, 1, 0)
	})
}

func TestAllBaseURLsPassedOver(t *testing.T) {
	t.Parallel()
	inBubble(t, 5*time.Second, refuses, refuses, func(t *testing.T, b *bubble) {
		for range 3 {
			b.check(t, "x", "502 wechat_unreachable", 0)
			b.checkDials(t, 1, 1)
		}
		b.checkLog(t, 2, 0)
		b.one.is(up)
		b.check(t, "x", "one", 0)
		b.checkDials(t, 1, 0)
		b.check(t, "x", "one", 0)
		b.checkLog(t, 2, 1)
	})
	inBubble(t, 5*time.Second, silent, silent, func(t *testing.T, b *bubble) {
		for range 3 {
			b.check(t, "x", "502 wechat_unreachable", 4*time.Second)
			b.checkDials(t, 1, 1)
		}
	})
}

func TestBaseURLNotPassedOver(t *testing.T) {
	t.Parallel()
	t.Run("the caller hung up", func(t *testing.T) {
		inBubble(t, 5*time.Second, silent, up, func(t *testing.T, b *bubble) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := b.openID(ctx, "x"); err == nil || err.fault != hungUp {
				t.Errorf("got %+v, want fault hungUp", err)
			}
			b.one.is(up)
			b.check(t, "x", "one", 0)
			b.checkDials(t, 2, 0)
			b.checkLog(t, 0, 0)
		})
	})
	t.Run("the caller that tried it again hung up", func(t *testing.T) {
		inBubble(t, 5*time.Second, silent, up, func(t *testing.T, b *bubble) {
			b.check(t, "x", "two", 2*time.Second)
			time.Sleep(31 * time.Second)
			b.one.is(slow)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
			defer cancel()
			b.openID(ctx, "x")
			time.Sleep(3 * time.Second)
			b.check(t, "x", "one", 0) // over the connection that came about for nobody
			b.checkLog(t, 1, 1)
		})
	})
	t.Run("another connection came about meanwhile", func(t *testing.T) {
		inBubble(t, 5*time.Second, silent, up, func(t *testing.T, b *bubble) {
			var callers sync.WaitGroup
			callers.Go(func() { b.check(t, "x", "two", 2*time.Second) })
			time.Sleep(time.Second)
			b.one.is(up)
			callers.Go(func() { b.check(t, "think", "one", 3*time.Second) })
			callers.Wait()
			b.check(t, "x", "one", 0)
			b.checkLog(t, 0, 0)
		})
	})
	t.Run("it did not answer", func(t *testing.T) {
		inBubble(t, 5*time.Second, slow, up, func(t *testing.T, b *bubble) {
			b.check(t, "wait", "504 wechat_timeout", 5*time.Second)
			receive(t, b.one.left)
			b.check(t, "x", "one", time.Second)
			b.checkDials(t, 2, 0)
			b.checkLog(t, 0, 0)
		})
	})
}

func TestTimeoutOfSeveralBaseURLs(t *testing.T) {
	t.Parallel()
	t.Run("covers both", func(t *testing.T) {
		inBubble(t, 5*time.Second, silent, up, func(t *testing.T, b *bubble) {
			b.check(t, "wait", "504 wechat_timeout", 5*time.Second)
			receive(t, b.two.left)
			b.checkDials(t, 1, 1)
		})
	})
	t.Run("is over before the first is given up", func(t *testing.T) {
		inBubble(t, time.Second, silent, up, func(t *testing.T, b *bubble) {
			b.check(t, "x", "504 wechat_timeout", time.Second)
			b.checkDials(t, 1, 0)
			b.check(t, "x", "two", 0)
			b.checkLog(t, 1, 0)
		})
	})
	t.Run("leaves the second too little time once", func(t *testing.T) {
		inBubble(t, 2500*time.Millisecond, silent, slow, func(t *testing.T, b *bubble) {
			b.check(t, "x", "504 wechat_timeout", 2500*time.Millisecond)
			time.Sleep(time.Second)
			b.check(t, "x", "two", 0) // over the connection that came too late
		})
	})
}

func TestConnectionsAreUsedAgain(t *testing.T) {
	t.Parallel()
	const callers = 20
	together := newMeeting(callers)
	var conns atomic.Int64
	wechat := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("js_code") == "together" {
			together.join(r.Context())
		}
		io.WriteString(w, `{"openid":"x"}`)
	}))
	wechat.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	wechat.StartTLS()
	t.Cleanup(wechat.Close)
	s := newService(t, 10*time.Second, wechat.URL)
	s.transport.TLSClientConfig = wechat.Client().Transport.(*http.Transport).TLSClientConfig
	check := func(step string, want int64) {
		t.Helper()
		if got := conns.Load(); got != want {
			t.Errorf("got %d connections after %s, want %d", got, step, want)
		}
	}
	one := func(code string) {
		if got := brief(s.post(code)); got != `200 {"openid":"x"}` {
			t.Errorf("got %s, want openid x", got)
		}
	}
	for range callers {
		one("alone")
	}
	check("one caller after another", 1)
	for range 2 {
		var all sync.WaitGroup
		for range callers {
			all.Go(func() { one("together") })
		}
		all.Wait()
		check("callers at one time", callers)
	}
}

func TestRequestToWeChat(t *testing.T) {
	t.Parallel()
	var request atomic.Pointer[http.Request]
	wechat := newWeChat(t, func(w http.ResponseWriter, r *http.Request) {
		request.Store(r)
		io.WriteString(w, `{"openid":"x"}`)
	})
	const strange = `&=+%#?/\;:@!$'()*,[]{}|^~<>"` + "`"
	tests := []struct{ name, prefix, appID, appSecret, code, path string }{
		{"plain", "", "wx0123456789abcdef", "0123456789abcdef", "0a1B2c", "/sns/jscode2session"},
		{"slash", "/", "a", "b", "c", "/sns/jscode2session"},
		{"prefix", "/a/b", "a", "b", "c", "/a/b/sns/jscode2session"},
		{"prefix and slash", "/a/b/", "a", "b", "c", "/a/b/sns/jscode2session"},
		{"prefix with escapes", "/a%20b", "a", "b", "c", "/a%20b/sns/jscode2session"},
		{"prefix with a slash escaped", "/a%2Fb", "a", "b", "c", "/a%2Fb/sns/jscode2session"},
		{"strange AppID", "", strange, "b", "c", "/sns/jscode2session"},
		{"strange AppSecret", "", "a", strange, "c", "/sns/jscode2session"},
		{"strange code", "", "a", "b", strange, "/sns/jscode2session"},
		{"mock code", "", "a", "b", mockCode, "/sns/jscode2session"},
		{"code that adds values", "", "a", "b", "c&appid=x&secret=x&grant_type=x&js_code=x#", "/sns/jscode2session"},
		{"code that ends the request", "", "a", "b", "c HTTP/1.1%0d%0a%0d%0aGET /", "/sns/jscode2session"},
		{"longest", "/" + strings.Repeat("a", 130), strings.Repeat("%", maxText), strings.Repeat("&", maxText), strings.Repeat(" ", 128), "/" + strings.Repeat("a", 130) + "/sns/jscode2session"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, err := loadConfig(getenv(map[string]string{"WX_APPID": test.appID, "WX_APPSECRET": test.appSecret, "WX_BASE_URL": wechat + test.prefix}), false)
			if err != nil {
				t.Fatal(err)
			}
			s, base := serviceOf(t, c), c.baseURLs[0]
			if got := brief(s.post(test.code)); got != `200 {"openid":"x"}` {
				t.Fatalf("got %s, want openid x", got)
			}
			r := request.Load()
			if r.Method != "GET" || r.Host != base.Host || r.ContentLength != 0 {
				t.Errorf("got %s to %s with %d bytes, want GET to %s with none", r.Method, r.Host, r.ContentLength, base.Host)
			}
			if got := r.URL.EscapedPath(); got != test.path {
				t.Errorf("got path %s, want %s", got, test.path)
			}
			got, err := url.ParseQuery(r.URL.RawQuery)
			want := url.Values{"appid": {test.appID}, "secret": {test.appSecret}, "js_code": {test.code}, "grant_type": {"authorization_code"}}
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("got query %v, error %v, want %v", got, err, want)
			}
			if plain := strings.Trim(r.URL.RawQuery, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~%+&="); plain != "" {
				t.Errorf("got query %s, want all else escaped", r.URL.RawQuery)
			}
			for name := range r.Header {
				if name != "User-Agent" {
					t.Errorf("got header %s, want none but User-Agent", name)
				}
			}
		})
	}
}

func TestCallerHangsUp(t *testing.T) {
	t.Parallel()
	arrived, left := make(chan bool, 3), make(chan bool, 3)
	wechat := newWeChat(t, func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("js_code") == "wait" {
			arrived <- true
			<-r.Context().Done()
			left <- true
		}
		io.WriteString(w, `{"openid":"x"}`)
	})
	p := startProgram(t, credentials("WX_BASE_URL", wechat, "MAX_INFLIGHT", "1", "WX_TIMEOUT", "20s"))
	for range 3 {
		caller := sendRaw(t, p, "POST /openid HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n"+`{"code":"wait"}`)
		receive(t, arrived)
		if got := post(t, p.url+"/openid", `{"code":"x"}`); got.Error != "overloaded" {
			t.Errorf("got %d %s with one under way, want overloaded", got.status, got.body)
		}
		p.log.next(t, "request")
		caller.Close()
		receive(t, left)
		if got := p.log.next(t, "request")["status"]; got != 499.0 {
			t.Errorf("got status %v in the log, want 499", got)
		}
		if got := post(t, p.url+"/openid", `{"code":"x"}`); got.OpenID != "x" {
			t.Errorf("got %d %s after the caller hung up, want openid x", got.status, got.body)
		}
		p.log.next(t, "request")
	}
}

func FuzzReply(f *testing.F) {
	for _, reply := range []string{
		`{"openid":"o6_bmjrPTlm6_2sgVt7hMZOPfL2M","session_key":"tiihtNczf5v6AKRyjwEUhQ==","unionid":"u"}`,
		`{"errcode":40029,"errmsg":"invalid code, rid: 65f1a2b3-0c1d2e3f-4a5b6c7d"}`, `{"errcode":"40163"}`,
		`{"errcode":0,"errmsg":"ok","openid":"o"}`, `{"errcode":null,"openid":"o"}`, `{"errcode":-1}`, `{"errcode":4.5009e4}`,
		`{"ERRCODE":40029,"OPENID":"o"}`, `{"openid":1}`, `{"openid":"o"}x`, `[{}]`, `null`, `{"a":{"openid":"o"}}`, "<html>", "",
		`{"openid":"\u003c\ud800\u2028"}`, "{\"openid\":\"\x80\"}", strings.Repeat(" ", 64<<10) + `{"openid":"o"}`,
	} {
		f.Add([]byte(reply))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		answer, _ := answerTo(t, []byte(httpReply(string(body))))
		want, exact := wantOf(body)
		if got := brief(answer); got != want && (exact || !strings.HasPrefix(got, want)) {
			t.Errorf("got %s, want %s", got, want)
		}
		checkOwnWords(t, answer)
	})
}

// answerTo returns the answer and the log of a service whose WeChat replies so.
func answerTo(t *testing.T, reply []byte) (answer *httptest.ResponseRecorder, log string) {
	t.Helper()
	s := newService(t, 10*time.Second, "http://wechat")
	var asked atomic.Int64
	s.transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			if _, err := http.ReadRequest(bufio.NewReader(theirs)); err == nil {
				asked.Add(1)
				theirs.Write(reply)
			}
		}()
		return ours, nil
	}
	answer = s.post(leakCode)
	if got := asked.Load(); got != 1 {
		t.Errorf("got %d requests, want 1", got)
	}
	return answer, s.log.String()
}

// wantOf returns the outcome of a reply, or how it begins where not exact. Where names
// are repeated, or a number is out of bounds, any will do.
func wantOf(body []byte) (want string, exact bool) {
	const useless = "502 wechat_error"
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	if start, _ := decoder.Token(); len(body) > 64<<10 || !json.Valid(body) || start != json.Delim('{') {
		return useless, true
	}
	reply := make(map[string]any)
	if json.Unmarshal(body, new(any)) != nil {
		return "", false
	}
	for decoder.More() {
		token, _ := decoder.Token()
		name := token.(string)
		if _, repeated := reply[name]; repeated {
			return "", false
		}
		var value any
		decoder.Decode(&value)
		reply[name] = value
	}
	number := "0"
	switch errcode := reply["errcode"].(type) {
	case nil:
	case json.Number:
		number = string(errcode)
	case string:
		number = errcode
	default:
		return useless, true
	}
	if strings.Trim(number, "0123456789+-.eE") != "" || !json.Valid([]byte(number)) {
		return useless, true
	}
	openID, _ := reply["openid"].(string)
	unionID, _ := reply["unionid"].(string)
	errcode, _ := strconv.ParseFloat(number, 64)
	switch word, known := words[errcode]; {
	case known:
		return fmt.Sprintf("%s %.0f", word, errcode), true
	case errcode != 0:
		return useless, false
	case openID == "":
		return useless, true
	}
	success, _ := json.Marshal(user{openID, unionID})
	return "200 " + string(success), true
}

// words are the errcodes that mean something here, from the API's description.
var words = map[float64]string{
	40029: "400 invalid_code", 40163: "400 code_used", 40226: "403 user_blocked", 45011: "429 rate_limited",
	40013: "500 misconfigured", 40125: "500 misconfigured", 40164: "500 misconfigured", 40243: "500 misconfigured",
	41002: "500 misconfigured", 41004: "500 misconfigured", 48001: "500 misconfigured", 50002: "500 misconfigured",
	-1: "503 wechat_busy", 45009: "503 quota_exceeded",
}

// checkOwnWords checks that answer is a user and nothing else, or one of the table's
// failures to the last letter.
func checkOwnWords(t *testing.T, answer *httptest.ResponseRecorder) {
	t.Helper()
	var got struct {
		Error, Message string
		ErrCode        int64
	}
	decoder := json.NewDecoder(bytes.NewReader(answer.Body.Bytes()))
	decoder.DisallowUnknownFields()
	if answer.Code == http.StatusOK {
		if err := decoder.Decode(new(user)); err != nil {
			t.Errorf("got %s, want a user and nothing else", answer.Body)
		}
		return
	}
	if err := decoder.Decode(&got); err != nil {
		t.Errorf("got %s, want a failure and nothing else", answer.Body)
	}
	for _, f := range slices.Concat(slices.Collect(maps.Values(refusals)), slices.Collect(maps.Values(faults))) {
		if f.status == answer.Code && f.Word == got.Error && f.Message == got.Message {
			return
		}
	}
	t.Errorf("got %d %+v, want a row of the table", answer.Code, got)
}

func FuzzRawReply(f *testing.F) {
	for _, reply := range []string{
		whole, whole[:len(whole)-1], whole + whole, "", "\r\n\r\n", "SSH-2.0-" + leaks + "\r\n",
		"HTTP/1.0 200 OK\r\n\r\n" + `{"openid":"o"}`, "HTTP/1.1 100 Continue\r\n\r\n" + whole,
		"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + leaks + "\r\n\r\n",
		"HTTP/1.1 204 " + leaks + "\r\n\r\n", "HTTP/1.1 302 Found\r\nLocation: " + leaks + "\r\n\r\n", "HTTP/1.1 200 OK\r\n" + leaks,
		"HTTP/1.1 200 OK\r\nContent-Length: " + leaks + "\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\nContent-Length: 2\r\n\r\n{}",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: " + leaks + "\r\n\r\n2;x=y\r\n{}\r\n0\r\nX: " + leaks + "\r\n\r\n",
	} {
		f.Add([]byte(reply))
	}
	log.SetOutput(io.Discard) // as run does
	f.Cleanup(func() { log.SetOutput(os.Stderr) })
	f.Fuzz(func(t *testing.T, reply []byte) {
		answer, log := answerTo(t, reply)
		checkOwnWords(t, answer)
		checkNoLeak(t, "log", log)
		if answer.Code != http.StatusOK {
			checkNoLeak(t, "answer", fmt.Sprint(answer.Header(), answer.Body))
		}
	})
}
