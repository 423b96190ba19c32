package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A fake is a WeChat, or a proxy, in memory.
type fake struct {
	connect atomic.Value   // func(context.Context) error: how a connection comes about
	serve   func(net.Conn) // does not have to close it
	dials   atomic.Int64
	asked   atomic.Int64 // requests that each has read
}

func newFake(connect func(context.Context) error, serve func(net.Conn)) *fake {
	f := &fake{serve: serve}
	f.connect.Store(connect)
	return f
}

func (f *fake) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	f.dials.Add(1)
	if err := f.connect.Load().(func(context.Context) error)(ctx); err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Source: &net.TCPAddr{Port: 1}, Err: err}
	}
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		f.serve(theirs)
	}()
	return ours, nil
}

// once answers the one request of each connection.
func (f *fake) once(answer func(net.Conn)) *fake {
	f.serve = func(conn net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			f.asked.Add(1)
			answer(conn)
		}
	}
	return f
}

// named is a WeChat whose openid is its name, for the code "slow" after a second, for "l" after 30, for "wait" never.
func named(name string, connect func(context.Context) error) *fake {
	f := newFake(connect, nil)
	f.serve = func(conn net.Conn) {
		for in := bufio.NewReader(conn); ; io.WriteString(conn, httpReply(`{"openid":"`+name+`"}`)) {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			f.asked.Add(1)
			switch r.FormValue("js_code") {
			case "wait":
				untilClosed(conn)
			case "slow":
				time.Sleep(time.Second)
			case "l":
				time.Sleep(30 * time.Second)
			}
		}
	}
	return f
}

func up(context.Context) error      { return nil }
func refuses(context.Context) error { return os.NewSyscallError("connect", syscall.ECONNREFUSED) }
func silent(context.Context) error  { time.Sleep(2 * time.Second); return context.DeadlineExceeded }

func takes(d time.Duration) func(context.Context) error {
	return func(context.Context) error { time.Sleep(d); return nil }
}

func fails(err error) func(context.Context) error { return func(context.Context) error { return err } }

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

// inBubble runs test in a synctest bubble, where time passes only while all wait, with a service whose base URLs lead to
// fakes.
func inBubble(t *testing.T, timeout time.Duration, baseURLs string, test func(*testing.T, *service), fakes ...*fake) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newService(t, timeout, strings.Fields(baseURLs)...)
		s.fakes = fakes
		for i, f := range fakes {
			s.bases[i].transport.DialContext = f.dial
		}
		test(t, s)
		for range 2 {
			for _, b := range s.bases {
				b.transport.CloseIdleConnections()
			}
			time.Sleep(time.Minute) // for dials to end
		}
	})
}

// TestNoConnection has no connection to the first of two base URLs.
func TestNoConnection(t *testing.T) {
	t.Parallel()
	const (
		ok      = "HTTP/1.1 200 OK\r\n\r\n"
		plain   = "http://u:TopSecret@proxy:1"
		socks   = "socks5://proxy:1"
		secure  = "https://proxy:1"
		direct  = ": check the firewall, or set HTTPS_PROXY if this network needs a proxy"
		dns     = "wechat: the name lookup failed or took too long: check DNS, and the name in WX_BASE_URL"
		rule    = ": look in its log for a rule against the host, or a dead node"
		noConn  = "gives no connection to wechat:443 "
		schemes = ": write http:// in HTTPS_PROXY, or socks5:// for a SOCKS port"
	)
	status := func(line string) func(net.Conn) { return says("HTTP/1.1 " + line + "\r\nX: TopSecret\r\n\r\n") }
	reply := func(code string) func(net.Conn) { // RFC 1928: no password wanted, then a reply code
		return says("\x05\x00", "\x05"+code+"\x00\x01\x00\x00\x00\x00\x00\x00")
	}
	lookup := func(ctx context.Context) error { // begins and does not end
		httptrace.ContextClientTrace(ctx).DNSStart(httptrace.DNSStartInfo{})
		return silent(ctx)
	}
	tests := []struct {
		name    string
		proxy   string
		connect func(context.Context) error
		serve   func(net.Conn)
		timeout time.Duration // of WX_TIMEOUT, which is over before the second base URL is asked
		cause   string        // behind "the proxy …" where there is one
	}{
		{name: "refused", connect: refuses, cause: "wechat:443: connection refused" + direct},
		{name: "unreachable", connect: fails(syscall.ENETUNREACH),
			cause: "wechat:443: network is unreachable" + direct},
		{name: "no answer", connect: silent, cause: "wechat:443: no answer in time" + direct},
		{name: "no such host", connect: fails(&net.DNSError{Name: "wechat", Err: "no such host", IsNotFound: true}),
			cause: "wechat: lookup wechat: no such host: check DNS, and the name in WX_BASE_URL"},
		{name: "DNS refuses", connect: fails(&net.DNSError{Err: "read udp 10.0.0.2:40000->10.0.0.1:53: connection refused"}),
			cause: dns},
		{name: "DNS does not answer", connect: lookup, timeout: time.Second, cause: dns},
		{name: "handshake without an answer", serve: untilClosed, cause: "wechat:443: no answer in time" + direct},
		{name: "handshake that is broken off", serve: says(""), cause: "wechat:443: connection closed" + direct},
		{name: "reset", connect: fails(syscall.ECONNRESET), cause: "wechat:443: connection closed" + direct},
		{name: "no TLS", serve: says("HTTP/1.1 400 Bad\r\n\r\n"),
			cause: "wechat:443 speaks no TLS: check what WX_BASE_URL leads to"},

		{name: "proxy gone", proxy: plain, connect: refuses,
			cause: "cannot be reached (connection refused): start it, or fix HTTPS_PROXY"},
		{name: "proxy without address", proxy: plain, connect: lookup, timeout: time.Second,
			cause: "cannot be reached (the name lookup failed or took too long): start it, or fix HTTPS_PROXY"},
		{name: "407", proxy: plain, serve: status("407 X"),
			cause: "wants a password (status 407): check user and password in HTTPS_PROXY"},
		{name: "401", proxy: plain, serve: status("401 X"),
			cause: "wants a password (status 401): check user and password in HTTPS_PROXY"},
		{name: "403", proxy: plain, serve: status("403 Access violation"),
			cause: "refuses wechat:443 (status 403): allow that host and port there"},
		{name: "503", proxy: plain, serve: status("503 X"),
			cause: "cannot reach wechat:443 (status 503): check its network, or its node"},
		{name: "silent to CONNECT", proxy: plain, serve: untilClosed, timeout: time.Second,
			cause: noConn + "(no answer in time)" + rule},
		{name: "closed", proxy: plain, serve: says(""), cause: noConn + "(connection closed)" + rule},
		{name: "200 and closed", proxy: plain, serve: says(ok, ""), cause: noConn + "(connection closed)" + rule},
		{name: "200 and silent", proxy: plain, serve: func(conn net.Conn) { says(ok)(conn); untilClosed(conn) },
			cause: noConn + "(net/http: TLS handshake timeout)" + rule},
		{name: "200 and no TLS", proxy: plain, serve: says(ok, "HTTP/1.1 400 Bad\r\n\r\n"),
			cause: noConn + "(tls: first record does not look like a TLS handshake)" + rule},
		{name: "no HTTP", proxy: plain, serve: says("SSH-2.0-TopSecret\r\n"),
			cause: "does not answer in http" + schemes},
		{name: "no header", proxy: plain, serve: says("HTTP/1.1 200 OK\r\nTopSecret\r\n\r\n"),
			cause: "does not answer in http" + schemes},

		{name: "SOCKS password", proxy: socks, serve: says("\x05\xff"),
			cause: "wants a password (no acceptable authentication methods): check user and password in HTTPS_PROXY"},
		{name: "SOCKS not allowed", proxy: socks, serve: reply("\x02"),
			cause: "refuses wechat:443 (unknown error connection not allowed by ruleset): allow that host and port there"},
		{name: "SOCKS refused", proxy: socks, serve: reply("\x05"),
			cause: "cannot reach wechat:443 (unknown error connection refused): check its network, or its node"},
		{name: "HTTP proxy that answers SOCKS", proxy: socks, serve: says("HTTP/1.1 400 Bad\r\n\r\n"),
			cause: "does not answer in socks5" + schemes},
		{name: "SOCKS closed", proxy: socks, serve: says(""), cause: noConn + "(connection closed)" + rule},
		{name: "HTTP proxy asked in SOCKS", proxy: socks, serve: untilClosed, timeout: time.Second,
			cause: "does not answer in socks5" + schemes},

		{name: "HTTP proxy asked over TLS", proxy: secure, serve: says("HTTP/1.1 400 Bad\r\n\r\n"),
			cause: "does not answer in https" + schemes},
		{name: "HTTP proxy asked over TLS, silent", proxy: secure, serve: untilClosed,
			cause: "does not answer in https" + schemes},
		{name: "HTTP proxy asked over TLS, closed", proxy: secure, serve: says(""),
			cause: "does not answer in https" + schemes},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if test.connect == nil {
				test.connect = up
			}
			timeout, want := 20*time.Second, `200 {"openid":"two"}`
			if test.timeout > 0 {
				timeout, want = test.timeout, "504 wechat_timeout"
			}
			first, second := newFake(test.connect, test.serve), named("two", up)
			inBubble(t, timeout, "https://wechat http://two", func(t *testing.T, s *service) {
				if test.proxy != "" {
					s.bases[0].proxy, test.cause = must(url.Parse(test.proxy)), "the proxy proxy:1 "+test.cause
				}
				if got := s.post(leakCode).brief(); got != want {
					t.Errorf("got %s, want %s", got, want)
				}
				if got := s.log.next(t, "WeChat is out of reach")["cause"]; got != test.cause {
					t.Errorf("got cause\n%s, want\n%s", got, test.cause)
				}
				checkNoLeak(t, "log", s.log.String())
			}, first, second)
		})
	}
}

// TestCertificateOfWeChat has certificates for 127.0.0.1 that are and are not good, directly and behind a proxy.
func TestCertificateOfWeChat(t *testing.T) {
	t.Parallel()
	const dated, hour = "127.0.0.1: the certificate has expired or is not yet valid", time.Hour
	tests := []struct {
		name, host string
		unknown    bool // its authority
		proxy      *url.URL
		from, to   time.Duration
		openID     string
		cause      string // the beginning
	}{
		{name: "good", host: "127.0.0.1", from: -hour, to: hour, openID: "one"},
		{name: "unknown authority", host: "127.0.0.1", unknown: true, from: -hour, to: hour, openID: "two",
			cause: "127.0.0.1: x509: certificate signed by unknown authority"},
		{name: "expired", host: "127.0.0.1", from: -hour, to: -time.Second, openID: "two", cause: dated},
		{name: "of tomorrow", host: "127.0.0.1", from: hour, to: 2 * hour, openID: "two", cause: dated},
		{name: "for another host, behind a proxy", host: "wechat", proxy: &url.URL{Scheme: "http", Host: "proxy"}, from: -hour, to: hour,
			openID: "two", cause: "wechat: x509: certificate is not valid for any names, but wanted to match wechat"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var pair tls.Certificate
			wechat := newFake(up, func(conn net.Conn) {
				if test.proxy != nil {
					says("HTTP/1.1 200 OK\r\n\r\n")(conn)
				}
				says(httpReply(`{"openid":"one"}`))(tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{pair}}))
			})
			inBubble(t, 20*time.Second, "https://"+test.host+" http://two", func(t *testing.T, s *service) {
				ca, roots, now := newAuthority(t), x509.NewCertPool(), time.Now()
				leaf := ca.sign(t, &x509.Certificate{NotBefore: now.Add(test.from), NotAfter: now.Add(test.to)})
				pair = tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: ca.key}
				if !test.unknown {
					roots.AddCert(ca.cert)
				}
				s.bases[0].transport.TLSClientConfig, s.bases[0].proxy = &tls.Config{RootCAs: roots}, test.proxy
				if got := s.post("x"); got.OpenID != test.openID {
					t.Errorf("got %s, want the openid %s", got.brief(), test.openID)
				}
				want := test.cause + ": check this machine's clock and CA certificates, and what WX_BASE_URL leads to"
				if test.proxy != nil {
					want += "; a proxy that intercepts TLS needs its CA here"
				}
				if test.cause != "" && s.log.next(t, "WeChat is out of reach")["cause"] != want {
					t.Errorf("got log\n%s\nwant cause %s", s.log, want)
				}
			}, wechat, named("two", up))
		})
	}
}

// TestSilentHandshakes has more TLS handshakes than may be under way, with a base URL that never answers.
func TestSilentHandshakes(t *testing.T) {
	t.Parallel()
	var handshakes atomic.Int64
	one := newFake(up, func(conn net.Conn) {
		conn.Read(make([]byte, 1))
		handshakes.Add(1)
		untilClosed(conn)
	})
	inBubble(t, 4*time.Second, "https://one http://two", func(t *testing.T, s *service) {
		start := time.Now()
		var callers sync.WaitGroup
		for range 40 {
			callers.Go(func() {
				if got := s.post("x"); got.OpenID != "two" || time.Since(start) != 2*time.Second {
					t.Errorf("got %s after %v, want the openid after one wait", got.brief(), time.Since(start))
				}
			})
		}
		time.Sleep(time.Second)
		if got := handshakes.Load(); got != 8 {
			t.Errorf("got %d handshakes at a time, want 8", got)
		}
		callers.Wait()
	}, one, named("two", up))
}
