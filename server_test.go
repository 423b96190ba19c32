package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func writeFile(name, content string) { must(0, os.WriteFile(name, []byte(content), 0o600)) }

// An authority signs certificates. It has one key for all of them.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	a := &authority{key: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))}
	a.cert = a.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)})
	return a
}

// sign signs a certificate. The first is the authority's own.
func (a *authority) sign(_ testing.TB, template *x509.Certificate) *x509.Certificate {
	der := must(x509.CreateCertificate(rand.Reader, template, cmp.Or(a.cert, template), a.key.Public(), a.key))
	return must(x509.ParseCertificate(der))
}

// write writes certificates and the key to PEM files, whose names it returns.
func (a *authority) write(dir string, certs ...*x509.Certificate) (certFile, keyFile string) {
	var chain []byte
	for _, cert := range certs {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	key := &pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(a.key))}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writeFile(certFile, string(chain))
	writeFile(keyFile, string(pem.EncodeToMemory(key)))
	return certFile, keyFile
}

// newPair writes a self-signed certificate and its key to files.
func newPair(t testing.TB) (certFile, keyFile string) {
	a := newAuthority(t)
	return a.write(t.TempDir(), a.cert)
}

// A bubble is the network of a server in a synctest bubble, where time passes only while all wait.
type bubble struct {
	conns chan net.Conn
	stop  <-chan struct{}
}

func (b *bubble) Accept() (net.Conn, error) {
	select {
	case conn := <-b.conns:
		return conn, nil
	case <-b.stop:
		return nil, net.ErrClosed
	}
}

func (b *bubble) Close() error   { return nil }
func (b *bubble) Addr() net.Addr { return &net.TCPAddr{} }

// startInBubble has the program serve until ctx is done. The channel has what that ends with.
func startInBubble(ctx context.Context, c config) (*bubble, <-chan error) {
	b, served := &bubble{conns: make(chan net.Conn), stop: ctx.Done()}, make(chan error, 1)
	l := &listener{Listener: b, places: make(chan struct{}, c.maxConns), stop: b.stop}
	if c.tlsCert != "" {
		l.Listener = tls.NewListener(b, &tls.Config{}) // no handshake gets as far as the certificate
	}
	go func() { served <- serve(ctx, c, l, slog.New(slog.DiscardHandler), io.Discard) }()
	return b, served
}

// dial returns a connection to the server, on which text was sent.
func (b *bubble) dial(t *testing.T, text string) net.Conn {
	conn, theirs := net.Pipe()
	b.conns <- theirs
	t.Cleanup(func() { conn.Close() })
	io.WriteString(conn, text)
	return conn
}

const (
	getHealthz = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
	halfBody   = "POST /openid HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n"
)

// TestStop has a connection of some kind when the program is told to stop. An answer after that is the last.
func TestStop(t *testing.T) {
	for _, test := range []struct {
		dials      bool
		sent, late string        // before, and half a second after
		took       time.Duration // until it has stopped, at most
		limited    bool          // so that a request is cut off
	}{
		{took: 10 * time.Millisecond},
		{dials: true, took: 7 * time.Second}, // net/http waits 5 s for a first request
		{dials: true, sent: getHealthz, took: 2 * time.Second},
		{dials: true, sent: getHealthz, late: getHealthz, took: 2 * time.Second},
		{dials: true, sent: halfBody, late: `{"cod":"xx"}`, took: 2 * time.Second},
		{dials: true, sent: halfBody, took: 14 * time.Second, limited: true},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			b, served := startInBubble(ctx, config{timeout: 8 * time.Second, maxConns: 1})
			var conn net.Conn
			isLast := func() bool {
				return read(t, must(http.ReadResponse(bufio.NewReader(conn), &http.Request{}))).last
			}
			if test.dials {
				conn = b.dial(t, test.sent)
			}
			if test.sent == getHealthz {
				same(t, "the last answer", isLast(), false)
			}
			synctest.Wait()
			start := time.Now()
			stop()
			if test.late != "" {
				time.Sleep(time.Second / 2)
				io.WriteString(conn, test.late)
				same(t, "the last answer", isLast(), true)
			}
			same(t, test, []any{<-served != nil, time.Since(start) > test.took}, []any{test.limited, false})
		})
	}
}

// TestTimes has connections, and how long it takes until the server closes them. It asks its own sandbox, by itself.
func TestTimes(t *testing.T) {
	const slow = "GET " + wechatPath + "?" + first + "sandbox:delay=24h HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, test := range []struct {
		parts  []string      // of the request
		pause  time.Duration // behind each
		deaf   bool          // the answer is not read
		want   string        // what the server sends
		logged time.Duration // duration_ms
		closed time.Duration // or half a second later
	}{
		{closed: 15 * time.Second},
		{parts: []string{getHealthz[:20]}, want: "…400 Bad Request", closed: 15 * time.Second},
		{parts: []string{getHealthz}, want: "…ok…", closed: 65 * time.Minute},
		{parts: []string{getHealthz}, deaf: true, closed: 80 * time.Second},
		{parts: []string{halfBody}, want: "…did not arrive…", logged: 15 * time.Second, closed: 15 * time.Second},
		{parts: append([]string{halfBody}, strings.Split(`{"code":" `, "")...), pause: 2 * time.Second,
			want: "…did not arrive…", logged: 15 * time.Second, closed: 15 * time.Second},
		{parts: []string{strings.Replace(halfBody, "/openid", "/", 1)}, want: "…not_found…", closed: 15 * time.Second},
		{parts: []string{halfBody[:30], halfBody[30:], `{"cod":"xx"}`}, pause: 14 * time.Second, want: "…no code…",
			logged: 14 * time.Second, closed: 28*time.Second + 65*time.Minute},
		{parts: []string{strings.Replace(halfBody, "12", "28", 1), `{"code":"sandbox:delay=59s"}`}, want: `…"openid"…`,
			pause: 14 * time.Second, logged: 73 * time.Second, closed: 73*time.Second + 65*time.Minute},
		{parts: []string{slow}, want: `…"openid":"o…`, closed: 75 * time.Minute},
	} {
		synctest.Test(t, func(t *testing.T) {
			b, h := &bubble{conns: make(chan net.Conn), stop: t.Context().Done()}, newService(time.Minute, "http://wechat")
			h.sandbox, h.queries[testAppID] = fakeWeChat(credentials()), first
			l := &listener{Listener: b, places: make(chan struct{}, 2), stop: b.stop}
			go newServer(config{timeout: time.Minute}, h, l, h.handler.log).Serve(l)
			h.bases[0].dial = func(context.Context, string, string) (net.Conn, error) {
				return b.dial(t, ""), nil
			}
			conn, start := b.dial(t, ""), time.Now()
			go func() {
				for _, part := range test.parts {
					io.WriteString(conn, part)
					time.Sleep(test.pause)
				}
			}()
			if test.deaf {
				time.Sleep(test.closed + time.Second/2)
			}
			got, _ := io.ReadAll(conn)
			late := time.Since(start) - test.closed
			time.Sleep(time.Minute) // until the last part is sent
			like(t, string(got), test.want)
			same(t, late, 0 <= late && late <= time.Second, true)
			if test.logged != 0 {
				same(t, test, h.log.next(t, "request")["duration_ms"], float64(test.logged.Milliseconds()))
			}
		})
	}
}

// TestMaxConns fills both places, in every way that does not give one back at once.
func TestMaxConns(t *testing.T) {
	for sent, c := range map[string]config{"": {}, getHealthz[:20]: {}, halfBody: {}, getHealthz: {},
		"\x16\x03": {tlsCert: "x"}} {
		synctest.Test(t, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			c.timeout, c.maxConns = time.Minute, 2
			b, served := startInBubble(ctx, c)
			dial := func() net.Conn {
				conn := b.dial(t, sent)
				go io.Copy(io.Discard, conn)
				return conn
			}
			conns := []net.Conn{dial(), dial()}
			for range 3 { // places are given back, and each once
				go func() { conns = append(conns, dial()) }()
				synctest.Wait()
				same(t, "connections", len(conns), 2)
				conns[0].Close()
				synctest.Wait()
				conns = conns[1:]
			}
			start := time.Now()
			stop() // while it waits for a place
			same(t, sent, []any{<-served, time.Since(start) > keepAlive/2}, []any{nil, false})
		})
	}
}

// TestHTTPS has handshakes, load balancers' TCP checks, which send nothing, and half a request, which a stop cuts off.
func TestHTTPS(t *testing.T) {
	t.Parallel()
	cert, key := newPair(t)
	p := startProgram(t, credentials("TLS_CERT", cert, "TLS_KEY", key, "WX_TIMEOUT", "10ms"))
	sendRaw(t, p, "").Close()
	reset := sendRaw(t, p, "")
	reset.SetLinger(0)
	reset.Close()
	for version, want := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true} { // accepted later
		c := &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version}
		_, err := io.WriteString(tls.Client(sendRaw(t, p, ""), c), halfBody)
		same(t, version, err == nil, want)
	}
	for _, end := range []string{"i/o timeout", "An existing connection was forcibly closed by the remote host."} {
		fmt.Fprintln(serverLog{newLogger(p.log, config{})}, "http: TLS handshake error from x:", end)
	}
	same(t, "exit code", p.stop(), 1)
	like(t, p.log.String(), `…"WARN","msg":"http: TLS handshake error…"ERROR","msg":"stopped",`+
		`"cause":"requests that were still under way have been cut off"}`+"\n")
	same(t, p.log, strings.Count(p.log.String(), "WARN"), 1)
}

// TestCertificate renews the files of a certificate, and breaks them. What there is to say is said once.
func TestCertificate(t *testing.T) {
	t.Setenv("GODEBUG", "x509keypairleaf=0") // no certificate comes with its Leaf
	a, dir := newAuthority(t), t.TempDir()
	leaf := func(year, hour int, life time.Duration) *x509.Certificate {
		end := time.Date(year, 1, 1, hour, 0, 0, 0, time.UTC) // now is 2000
		return a.sign(t, &x509.Certificate{NotBefore: end.Add(-life), NotAfter: end})
	}
	chain := func(certs ...*x509.Certificate) []*x509.Certificate { return certs }
	const year = 365 * 24 * time.Hour
	expired, long := leaf(1999, 0, year), leaf(2002, 0, 3*year)
	short, soon := leaf(2000, 3, 3*time.Hour), leaf(2000, 2, year)
	certFile, keyFile := a.write(dir, expired)
	const broken = `…WARN msg="the old certificate stays in use: TLS_CERT and TLS_KEY cannot be used (…`
	synctest.Test(t, func(t *testing.T) {
		log, followed, want, before := &output{}, &output{}, expired, 0
		settings := config{addr: "127.0.0.1:0", tlsCert: certFile, tlsKey: keyFile}
		c := must(newCertificate(settings, slog.New(slog.NewTextHandler(log, nil))))
		go c.follow(t.Context())
		must(listen(t.Context(), settings, slog.New(slog.NewTextHandler(followed, nil)))).Close()
		t.Cleanup(func() { time.Sleep(certInterval) }) // until neither looks any more
		time.Sleep(time.Second)                        // the files change between two looks
		for n, step := range []struct {
			after  time.Duration
			certs  []*x509.Certificate // or the key is broken
			logged string
		}{
			{certs: chain(expired), logged: "…WARN…TLS_CERT expired on 1999-01-01 00:00:00 UTC, so phones refuse it…"},
			{certs: chain(long, a.cert)},
			{logged: broken},
			{certs: chain(long, a.cert)},
			{logged: broken},
			{certs: chain(long), logged: "…WARN…TLS_CERT has no intermediate certificate, so phones refuse it: use…"},
			{certs: chain(a.cert)}, // self-signed
			{certs: chain(short, a.cert)},
			{certs: chain(soon, a.cert), logged: "…WARN…TLS_CERT expires on 2000-01-01 02:00:00 UTC: renew it…"},
			{certs: chain(soon, a.cert), after: 2 * time.Hour,
				logged: "…WARN…TLS_CERT expired on 2000-01-01 02:00:00 UTC, so phones refuse it: renew it…"},
		} {
			if step.certs != nil {
				a.write(dir, step.certs...)
				want = step.certs[0]
			} else {
				writeFile(keyFile, "broken")
			}
			time.Sleep(step.after + 10*time.Second)
			same(t, n, must(c.get(nil)).Certificate[0], want.Raw)
			logged := log.String()[before:]
			like(t, logged, step.logged)
			same(t, n, strings.Count(logged, "\n"), min(1, len(step.logged)))
			before += len(logged)
		}
		same(t, "log of a listener", followed.String(), log.String())
	})
}
