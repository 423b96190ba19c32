package main

import (
	"bufio"
	"bytes"
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
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
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
	a.cert = a.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "authority"}, IsCA: true,
		BasicConstraintsValid: true, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)})
	return a
}

// sign signs a certificate for 127.0.0.1. The first is the authority's own.
func (a *authority) sign(_ testing.TB, template *x509.Certificate) *x509.Certificate {
	template.SerialNumber, template.IPAddresses = big.NewInt(1), []net.IP{net.IPv4(127, 0, 0, 1)}
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

// newPair writes a self-signed certificate for 127.0.0.1 and its key to files.
func newPair(t testing.TB) (certFile, keyFile string) {
	a := newAuthority(t)
	return a.write(t.TempDir(), a.cert)
}

// A bubble is the server in a synctest bubble, where time passes only while all wait.
type bubble struct {
	conns  chan net.Conn
	served chan error
}

func (b *bubble) Accept() (net.Conn, error) {
	if conn, ok := <-b.conns; ok {
		return conn, nil
	}
	return nil, net.ErrClosed
}

func (b *bubble) Close() error   { defer func() { recover() }(); close(b.conns); return nil } // a second time, too
func (b *bubble) Addr() net.Addr { return &net.TCPAddr{} }

// startInBubble serves until ctx is done, with the handler given or its own.
func startInBubble(t *testing.T, ctx context.Context, c config, h *handler) *bubble {
	t.Helper()
	c.addr, c.maxConns = "127.0.0.1:0", cmp.Or(c.maxConns, 10)
	log := slog.New(slog.DiscardHandler)
	b := &bubble{conns: make(chan net.Conn), served: make(chan error, 1)}
	l := must(listen(ctx, c, must(newCertificate(c, log))))
	l.Listener.Close()
	l.Listener = b
	var serving sync.WaitGroup
	serving.Go(func() {
		if h == nil {
			b.served <- serve(ctx, c, l, log, io.Discard)
		} else {
			b.served <- newServer(c, h, l, log).Serve(l)
		}
	})
	t.Cleanup(func() { b.Close(); serving.Wait() })
	return b
}

// dial returns a connection to the server, on which text was sent.
func (b *bubble) dial(t *testing.T, text string) net.Conn {
	t.Helper()
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

func readAnswer(t *testing.T, conn net.Conn) result {
	t.Helper()
	return read(t, must(http.ReadResponse(bufio.NewReader(conn), &http.Request{})))
}

// TestStop has a connection of some kind when the program is told to stop. An answer after that is the last.
func TestStop(t *testing.T) {
	t.Parallel()
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
			b := startInBubble(t, ctx, config{timeout: 8 * time.Second}, nil)
			var conn net.Conn
			if test.dials {
				conn = b.dial(t, test.sent)
			}
			if test.sent == getHealthz {
				same(t, "the last answer", readAnswer(t, conn).last, false)
			}
			synctest.Wait()
			start := time.Now()
			stop()
			if test.late != "" {
				time.Sleep(time.Second / 2)
				io.WriteString(conn, test.late)
				same(t, "the last answer", readAnswer(t, conn).last, true)
			}
			same(t, test, []any{<-b.served != nil, time.Since(start) > test.took}, []any{test.limited, false})
		})
	}
}

// TestStopCutsOff has the program say so, as half a body never becomes a whole one.
func TestStopCutsOff(t *testing.T) {
	t.Parallel()
	p := startProgram(t, map[string]string{"WX_TIMEOUT": "10ms"}, "-sandbox")
	sendRaw(t, p, halfBody+"{")
	runToEnd(t, 0, map[string]string{"ADDR": p.addr}, "-healthy") // in its turn, and so after that
	same(t, "exit code", p.stop(), 1)
	same(t, "log", p.log.next(t, "stopped")["cause"], "requests that were still under way have been cut off")
}

// TestTimes has connections, and how long it takes until the server closes them. It asks its own sandbox, by itself.
func TestTimes(t *testing.T) {
	t.Parallel()
	ask := func(code string) string {
		return "GET " + wechatPath + "?" + first + grant + code + " HTTP/1.1\r\nHost: x\r\n\r\n"
	}
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
		{parts: []string{strings.Replace(halfBody, "12", "28", 1), `{"code":"sandbox:delay=30s"}`},
			want: `…{"openid":"o…`, logged: 30 * time.Second, closed: 30*time.Second + 65*time.Minute},
		{parts: []string{ask("sandbox:delay=24h")}, want: `…"openid":"o…`, closed: 75 * time.Minute},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := newService(time.Minute, "http://wechat")
			h.sandbox, h.queries[testAppID] = fakeWeChat(credentials()), first+grant
			b := startInBubble(t, t.Context(), config{timeout: time.Minute}, h.handler)
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
	t.Parallel()
	cert, key := newPair(t)
	for sent, c := range map[string]config{"": {}, getHealthz[:20]: {}, halfBody: {}, getHealthz: {},
		"\x16\x03": {tlsCert: cert, tlsKey: key}} {
		synctest.Test(t, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			c.timeout, c.maxConns = time.Minute, 2
			b := startInBubble(t, ctx, c, nil)
			dial := func() net.Conn {
				conn := b.dial(t, sent)
				go io.Copy(io.Discard, conn)
				return conn
			}
			first, second := dial(), dial()
			for range 3 { // places are given back, and each once
				var third net.Conn
				go func() { third = dial() }()
				synctest.Wait()
				same(t, "third of two", third, nil)
				first.Close()
				synctest.Wait()
				first, second = second, third
			}
			start := time.Now()
			stop() // while it waits for a place
			same(t, sent, []any{<-b.served, time.Since(start) > keepAlive/2}, []any{nil, false})
		})
	}
}

// TestHTTPS has good and bad handshakes, and load balancers' TCP checks, which send nothing.
func TestHTTPS(t *testing.T) {
	t.Parallel()
	cert, key := newPair(t)
	p := startProgram(t, credentials("TLS_CERT", cert, "TLS_KEY", key))
	for version, want := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true} {
		c := &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version}
		conn, err := tls.Dial("tcp", p.addr, c)
		if same(t, version, err == nil, want); want {
			conn.Close()
		}
	}
	sendRaw(t, p, "").Close()
	reset := sendRaw(t, p, "")
	reset.SetLinger(0)
	reset.Close()
	sendRaw(t, p, "").CloseWrite()
	runToEnd(t, 0, map[string]string{"ADDR": p.addr, "TLS_CERT": cert}, "-healthy") // in its turn, and so after those
	p.stop()
	log := p.log.String()
	like(t, log, `…"WARN","msg":"http: TLS handshake error…`)
	same(t, log, strings.Count(log, "WARN"), 1)
	for _, end := range []string{"i/o timeout", "An existing connection was forcibly closed by the remote host."} {
		var log bytes.Buffer
		fmt.Fprintln(serverLog{slog.New(slog.NewTextHandler(&log, nil))}, "http: TLS handshake error from x:", end)
		same(t, end, log.String(), "")
	}
}

// TestCertificate renews the files of a certificate, and breaks them. What there is to say is said once.
func TestCertificate(t *testing.T) {
	t.Setenv("GODEBUG", "x509keypairleaf=0") // no certificate comes with its Leaf
	a, dir := newAuthority(t), t.TempDir()
	at := func(year, hour int) time.Time { return time.Date(year, 1, 1, hour, 0, 0, 0, time.UTC) } // now is 2000
	leaf := func(from, to time.Time) *x509.Certificate {
		return a.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "leaf"}, NotBefore: from, NotAfter: to})
	}
	chain := func(certs ...*x509.Certificate) []*x509.Certificate { return certs }
	first, second := leaf(at(1998, 0), at(2000, 90*24)), leaf(at(1999, 0), at(2002, 0))
	expired, soon := leaf(at(1998, 0), at(1999, 0)), leaf(at(1999, 0), at(2000, 2))
	short := leaf(at(2000, 0), at(2000, 3))
	certFile, keyFile := a.write(dir, expired)
	const refuse = "so phones refuse it: "
	const broken = `…level=ERROR msg="the old certificate stays in use" cause="TLS_CERT and TLS_KEY cannot be used (…`
	synctest.Test(t, func(t *testing.T) {
		log, want, before := &output{}, expired, 0
		c := must(newCertificate(config{tlsCert: certFile, tlsKey: keyFile}, slog.New(slog.NewTextHandler(log, nil))))
		ctx, cancel := context.WithCancel(t.Context())
		defer must(listen(ctx, config{addr: "127.0.0.1:0"}, c)).Close()
		time.Sleep(time.Second) // the files change between two looks
		for n, step := range []struct {
			after  time.Duration
			certs  []*x509.Certificate // or the key is broken
			logged string
		}{
			{certs: chain(expired), logged: "…WARN…TLS_CERT expired on 1999-01-01 00:00:00 UTC, " + refuse + "renew…"},
			{certs: chain(second, a.cert)},
			{logged: broken},
			{},
			{certs: chain(first, a.cert)},
			{logged: broken},
			{certs: chain(second), logged: "…WARN…TLS_CERT has no intermediate certificate, " + refuse + "use…"},
			{certs: chain(first)},
			{certs: chain(a.cert)}, // self-signed
			{certs: chain(short, a.cert)},
			{certs: chain(soon, a.cert), logged: "…WARN…TLS_CERT expires on 2000-01-01 02:00:00 UTC: renew it…"},
			{certs: chain(soon, a.cert), after: time.Hour},
			{certs: chain(soon, a.cert), after: time.Hour,
				logged: "…WARN…TLS_CERT expired on 2000-01-01 02:00:00 UTC, " + refuse + "renew it…"},
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
		cancel()
		time.Sleep(certInterval)
	})
}
