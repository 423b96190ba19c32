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
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func writeFile(t testing.TB, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// An authority signs certificates. It has one key for all of them.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{key: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))}
	a.cert = a.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)})
	return a
}

// sign signs a certificate for 127.0.0.1. The first is the authority's own.
func (a *authority) sign(t testing.TB, template *x509.Certificate) *x509.Certificate {
	t.Helper()
	template.SerialNumber, _ = rand.Int(rand.Reader, big.NewInt(1<<62))
	template.IPAddresses = append(template.IPAddresses, net.IPv4(127, 0, 0, 1))
	parent := a.cert
	if parent == nil {
		parent = template
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, parent, a.key.Public(), a.key))))
}

// write writes certificates and the key to PEM files, whose names it returns.
func (a *authority) write(t testing.TB, dir string, certs ...*x509.Certificate) (certFile, keyFile string) {
	t.Helper()
	var chain []byte
	for _, cert := range certs {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(a.key))})
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writeFile(t, certFile, string(chain))
	writeFile(t, keyFile, string(key))
	return certFile, keyFile
}

// newPair writes a self-signed certificate for 127.0.0.1 and its key to files.
func newPair(t testing.TB) (certFile, keyFile string) {
	t.Helper()
	a := newAuthority(t)
	return a.write(t, t.TempDir(), a.cert)
}

func TestStartFails(t *testing.T) {
	t.Parallel()
	busy := must(net.Listen("tcp", "127.0.0.1:0"))
	t.Cleanup(func() { busy.Close() })
	cert, key := newPair(t)
	_, otherKey := newPair(t)
	tests := []struct {
		name  string
		env   map[string]string
		words string
	}{
		{name: "port in use", env: credentials("ADDR", busy.Addr().String()), words: "ADDR in use another ADDR"},
		{name: "address of another machine", env: credentials("ADDR", "192.0.2.1:2020"),
			words: "ADDR cannot assign another ADDR address of this machine"},
		{name: "no such host", env: credentials("ADDR", "wxopenid.invalid:2020"),
			words: "ADDR wxopenid.invalid another ADDR"},
		{name: "no certificate", env: credentials("TLS_CERT", cert+"0", "TLS_KEY", key), words: "TLS_CERT read PEM"},
		{name: "no key", env: credentials("TLS_CERT", cert, "TLS_KEY", key+"0"), words: "TLS_KEY read PEM"},
		{name: "key for certificate", env: credentials("TLS_CERT", key, "TLS_KEY", key), words: "TLS_CERT certificate"},
		{name: "key of another certificate", env: credentials("TLS_CERT", cert, "TLS_KEY", otherKey),
			words: "TLS_KEY match"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			stdout, stderr := runToEnd(t, 1, test.env)
			if stdout != "" || strings.Count(stderr, "\n") != 1 || strings.HasPrefix(stderr, "{") {
				t.Errorf("got %q and %q, want nothing and one plain line", stdout, stderr)
			}
			checkWords(t, "standard error", stderr, test.words)
			if strings.Contains(stderr, key) {
				t.Errorf("got %q, want no path in it", stderr)
			}
		})
	}
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

// startInBubble serves until ctx is done.
func startInBubble(t *testing.T, ctx context.Context, c config) *bubble {
	t.Helper()
	c.addr, c.maxConns = "127.0.0.1:0", cmp.Or(c.maxConns, 10)
	log := slog.New(slog.DiscardHandler)
	b := &bubble{conns: make(chan net.Conn), served: make(chan error, 1)}
	l := must(listen(ctx, c, must(newCertificate(c, log))))
	l.Listener.Close()
	l.Listener = b
	var serving sync.WaitGroup
	serving.Go(func() { b.served <- serve(ctx, c, l, log, io.Discard) })
	t.Cleanup(serving.Wait)
	return b
}

// serveInBubble serves h until the test ends. It returns the places of its connections, too.
func serveInBubble(t *testing.T, timeout time.Duration, h *handler) (*bubble, chan struct{}) {
	t.Helper()
	b := &bubble{conns: make(chan net.Conn)}
	l := &listener{Listener: b, places: make(chan struct{}, 10), stop: t.Context().Done()}
	server := newServer(config{timeout: timeout}, h, l, slog.New(slog.DiscardHandler))
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return b, l.places
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

// TestStop has a connection of some kind when the program is told to stop.
func TestStop(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, sent string
		timeout    time.Duration // WX_TIMEOUT
		took       time.Duration // until it has stopped, at most
		cut        bool          // a request was cut off
	}{
		{name: "none", timeout: time.Minute, took: 10 * time.Millisecond},
		{name: "unused", sent: "-", timeout: time.Minute, took: 7 * time.Second}, // net/http waits 5 s for its first request
		{name: "kept", sent: getHealthz, timeout: time.Minute, took: 2 * time.Second},
		{name: "request under way", sent: halfBody, timeout: 10 * time.Second, took: 16 * time.Second},
		{name: "request under way beyond the limit", sent: halfBody, timeout: 8 * time.Second, took: 14 * time.Second,
			cut: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				b := startInBubble(t, ctx, config{timeout: test.timeout})
				if test.sent != "" {
					go io.Copy(io.Discard, b.dial(t, strings.TrimPrefix(test.sent, "-")))
				}
				synctest.Wait()
				start := time.Now()
				cancel()
				if err := <-b.served; (err != nil) != test.cut {
					t.Errorf("got error %v, want one: %t", err, test.cut)
				}
				if took := time.Since(start); took > test.took {
					t.Errorf("took %v, want %v at most", took, test.took)
				}
			})
		})
	}
}

// TestStopClosesKeptConnections asks on a kept connection before and after the program is told to stop.
func TestStopClosesKeptConnections(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := startInBubble(t, ctx, config{timeout: time.Second})
		conn := b.dial(t, getHealthz)
		if got := readAnswer(t, conn); got.status != 200 || got.last {
			t.Errorf("got %d, the last on its connection: %t, want 200 and false", got.status, got.last)
		}
		cancel()
		time.Sleep(500 * time.Millisecond)
		io.WriteString(conn, getHealthz)
		if got := readAnswer(t, conn); got.status != 200 || !got.last {
			t.Errorf("got %d, the last on its connection: %t, want 200 and true", got.status, got.last)
		}
		if err := <-b.served; err != nil {
			t.Errorf("got %v, want no error", err)
		}
	})
}

// TestConnectionTimes has connections that nobody uses, and a request whose answer nobody reads.
func TestConnectionTimes(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, sent string
		idle       bool          // the answer is read
		kept       time.Duration // for so long the connection is kept, and not much longer
	}{
		{name: "unused", kept: headerTimeout},
		{name: "half a header", sent: getHealthz[:20], kept: headerTimeout},
		{name: "kept", sent: getHealthz, idle: true, kept: keepAlive},
		{name: "not read", sent: getHealthz, kept: bodyTimeout + time.Second + answerTimeout},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := startInBubble(t, t.Context(), config{timeout: time.Second})
				conn := b.dial(t, test.sent)
				if test.idle {
					readAnswer(t, conn)
				}
				time.Sleep(test.kept - time.Second)
				conn.SetWriteDeadline(time.Now().Add(time.Millisecond))
				if _, err := conn.Write([]byte("GET")[:0]); errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("got the connection closed after %v, want it kept", test.kept-time.Second)
				}
				time.Sleep(2 * time.Second)
				conn.SetReadDeadline(time.Now().Add(time.Millisecond))
				if _, err := io.Copy(io.Discard, conn); err != nil {
					t.Errorf("got error %v after %v, want the connection closed", err, test.kept+time.Second)
				}
			})
		})
	}
}

// TestStopDuringExchange has the answer of a request that was under way close its connection, too.
func TestStopDuringExchange(t *testing.T) {
	t.Parallel()
	asked, release := make(chan bool), make(chan bool)
	p := startProgram(t, credentials("WX_BASE_URL", newWeChat(t, func(w http.ResponseWriter, r *http.Request) {
		asked <- true
		<-release
		echo(w, r)
	})))
	answered := make(chan result)
	go func() { answered <- readAnswer(t, sendRaw(t, p, halfBody+`{"code":"l"}`)) }()
	<-asked
	stopped := make(chan int)
	go func() { stopped <- p.stop() }()
	untilRefused(p)
	close(release)
	if got := <-answered; got.OpenID != "l" || !got.last {
		t.Errorf("got %d %s, the last on its connection: %t, want the openid and true", got.status, got.body, got.last)
	}
	if code := <-stopped; code != 0 {
		t.Errorf("got exit code %d, want 0; the log is:\n%s", code, p.log)
	}
}

// untilRefused waits until p accepts no connections.
func untilRefused(p *program) {
	for {
		conn, err := net.Dial("tcp", p.addr)
		if err != nil {
			return
		}
		conn.Close()
		time.Sleep(time.Millisecond)
	}
}

// TestStopCutsOff has the program say so before its limit, as half a body never becomes a whole one.
func TestStopCutsOff(t *testing.T) {
	t.Parallel()
	p := startProcess(t, map[string]string{"WX_TIMEOUT": "10ms"}, "-sandbox")
	sendRaw(t, p, halfBody+"{")
	runToEnd(t, 0, map[string]string{"ADDR": p.addr}, "-healthy") // in its turn, and so after that
	if code := p.stop(); code != 1 || !strings.Contains(p.log.String(), "have been cut off") {
		t.Errorf("got exit code %d and log\n%s\nwant 1 and what was cut off", code, p.log)
	}
}

func TestSecondSignal(t *testing.T) {
	t.Parallel()
	p := startProcess(t, nil, "-sandbox")
	conn := sendRaw(t, p, strings.Replace(halfBody, "\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n", 1))
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "100 Continue") {
		t.Fatalf("got %q, error %v, want 100 Continue", line, err)
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	untilRefused(p)
	exited := make(chan int)
	go func() { exited <- p.stop() }()
	for {
		p.cmd.Process.Signal(syscall.SIGTERM) // the second, or one after it
		select {
		case <-exited:
			if got, _ := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !got.Signaled() {
				t.Errorf("got %v with a request under way, want the end by a signal", p.cmd.ProcessState)
			}
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// TestMaxConns fills both places, in every way that does not give one back at once.
func TestMaxConns(t *testing.T) {
	t.Parallel()
	cert, key := newPair(t)
	tests := []struct{ name, sent, cert, key string }{
		{name: "idle"},
		{name: "half a header", sent: getHealthz[:20]},
		{name: "half a body", sent: halfBody},
		{name: "kept", sent: getHealthz},
		{name: "handshake that never ends", sent: "\x16\x03", cert: cert, key: key},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				b := startInBubble(t, ctx, config{timeout: time.Minute, maxConns: 2, tlsCert: test.cert, tlsKey: test.key})
				dial := func() net.Conn {
					conn := b.dial(t, test.sent)
					go io.Copy(io.Discard, conn)
					return conn
				}
				first, second := dial(), dial()
				for range 3 { // places are given back, and each once
					var third net.Conn
					go func() { third = dial() }()
					synctest.Wait()
					if third != nil {
						t.Error("got a connection accepted with all places taken, want it to wait")
					}
					first.Close()
					synctest.Wait()
					if third == nil {
						t.Fatal("got no connection accepted after one was closed, want the one that waits")
					}
					first, second = second, third
				}
				start := time.Now()
				cancel() // while it waits for a place
				if err, took := <-b.served, time.Since(start); err != nil || took > keepAlive/2 {
					t.Errorf("got error %v after %v, want none, and soon", err, took)
				}
			})
		})
	}
}

func TestHTTPS(t *testing.T) {
	t.Parallel()
	cert, key := newPair(t)
	p := startProgram(t, map[string]string{"TLS_CERT": cert, "TLS_KEY": key}, "-sandbox")
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(must(os.ReadFile(cert)))
	for version, ok := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		transport := &http.Transport{DisableKeepAlives: true,
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: version, MaxVersion: version}}
		resp, err := (&http.Client{Transport: transport}).Post(p.url+"/openid", "", strings.NewReader(`{"code":"`+mockCode+`"}`))
		if (err == nil) != ok {
			t.Errorf("got error %v with TLS version %x, want one: %t", err, version, !ok)
		} else if err == nil && read(t, resp).status != 200 {
			t.Errorf("got status %d, want 200", resp.StatusCode)
		}
	}
	p.stop() // after which the line of the failed handshake is written
	if got := strings.Join(p.log.warnings(), "\n"); strings.Count(got, "TLS handshake error") != 1 {
		t.Errorf("got warnings\n%s\nwant one of the handshake that failed", got)
	}
	if got := p.out.String(); !strings.Contains(got, "curl -k -d ") || !strings.Contains(got, p.url+"/openid") {
		t.Errorf("got %q on standard output, want a curl command for HTTPS", got)
	}
}

// TestSilentConnectionToHTTPS is a load balancer's TCP check, which ends in one of three ways.
func TestSilentConnectionToHTTPS(t *testing.T) {
	t.Parallel()
	cert, key := newPair(t)
	p := startProgram(t, credentials("TLS_CERT", cert, "TLS_KEY", key))
	sendRaw(t, p, "").Close()
	reset := sendRaw(t, p, "")
	reset.SetLinger(0)
	reset.Close()
	sendRaw(t, p, "").CloseWrite()
	runToEnd(t, 0, map[string]string{"ADDR": p.addr, "TLS_CERT": cert}, "-healthy") // in its turn, and so after those
	p.stop()
	p.stop()
	if got := p.log.warnings(); len(got) > 0 {
		t.Errorf("got warnings %q, want none", got)
	}
	for _, end := range []string{"read tcp: i/o timeout", "wsarecv: An existing connection was forcibly closed by the remote host."} {
		log := &output{}
		serverLog{slog.New(slog.NewJSONHandler(log, nil))}.Write([]byte("http: TLS handshake error from 127.0.0.1:1: " + end + "\n"))
		if log.String() != "" {
			t.Errorf("got log %s, want nothing", log)
		}
	}
}

// TestCertificate renews the files of a certificate, and breaks them.
func TestCertificate(t *testing.T) {
	t.Parallel()
	root, dir := newAuthority(t), t.TempDir()
	leaf := func(end int) *x509.Certificate { // of life, in a bubble that begins in 2000
		return root.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "leaf"}, NotAfter: time.Date(end, 1, 1, 0, 0, 0, 0, time.UTC)})
	}
	first, second, third, lone, expired := leaf(2001), leaf(2002), leaf(2003), leaf(2004), leaf(1999)
	soon := root.sign(t, &x509.Certificate{NotAfter: time.Date(2000, 1, 1, 2, 0, 0, 0, time.UTC)})
	short := root.sign(t, &x509.Certificate{NotBefore: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter: time.Date(2000, 1, 1, 3, 0, 0, 0, time.UTC)})
	certFile, keyFile := root.write(t, dir, first, root.cert)
	synctest.Test(t, func(t *testing.T) {
		log := &output{}
		c := must(newCertificate(config{tlsCert: certFile, tlsKey: keyFile}, slog.New(slog.NewJSONHandler(log, nil))))
		ctx, cancel := context.WithCancel(t.Context())
		go c.follow(ctx)
		time.Sleep(time.Second) // the files change between two looks
		steps := []struct {
			name   string
			change func()
			want   *x509.Certificate
			logged string // words in new log lines, or nothing
		}{
			{name: "as it was", change: func() {}, want: first},
			{name: "renewed", change: func() { root.write(t, dir, second, root.cert) }, want: second},
			{name: "broken", change: func() { writeFile(t, keyFile, "broken") }, want: second,
				logged: "ERROR stays in use"},
			{name: "still broken", change: func() {}, want: second},
			{name: "repaired", change: func() { root.write(t, dir, third, root.cert) }, want: third},
			{name: "broken again", change: func() { writeFile(t, keyFile, "broken") }, want: third,
				logged: "ERROR stays in use"},
			{name: "without its intermediate", change: func() { root.write(t, dir, lone) }, want: lone,
				logged: "WARN intermediate"},
			{name: "expired", change: func() { root.write(t, dir, expired, root.cert) }, want: expired,
				logged: "WARN expired"},
			{name: "self-signed", change: func() { root.write(t, dir, root.cert) }, want: root.cert},
			{name: "short life", change: func() { root.write(t, dir, short, root.cert) }, want: short},
			{name: "less than seven days to go", change: func() { root.write(t, dir, soon, root.cert) }, want: soon,
				logged: "WARN expires on 2000-01-01 02:00:00 UTC: renew it"},
			{name: "half an hour later", change: func() { time.Sleep(time.Hour / 2) }, want: soon},
			{name: "when they are over", change: func() { time.Sleep(2 * time.Hour) }, want: soon,
				logged: "WARN expired on"},
			{name: "and later", change: func() { time.Sleep(time.Hour) }, want: soon},
			{name: "gone", change: func() { root.write(t, dir, root.cert); time.Sleep(10 * time.Second); os.Remove(keyFile) }, want: root.cert,
				logged: "ERROR stays in use"},
		}
		for _, step := range steps {
			before := len(log.String())
			step.change()
			time.Sleep(10 * time.Second)
			if pair, err := c.get(nil); err != nil || !bytes.Equal(pair.Certificate[0], step.want.Raw) {
				t.Errorf("%s: got another certificate or error %v after 10 s", step.name, err)
			}
			logged := log.String()[before:]
			checkWords(t, step.name, logged, step.logged)
			if strings.Count(logged, "\n") > 1 {
				t.Errorf("%s: got log\n%swant one line at most", step.name, logged)
			}
		}
		cancel()
		time.Sleep(certInterval)
	})
}
