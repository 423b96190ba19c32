package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"time"
)

const (
	headerTimeout = 15 * time.Second // for the header of a request to arrive; its body has bodyTimeout
	answerTimeout = 5 * time.Second  // for the answer to leave, after body and exchange
	keepAlive     = 65 * time.Minute // for the next request on a connection; Envoy keeps one for 60
	maxHeader     = 4 << 10          // bytes; net/http allows 4 KiB more
	lastRequests  = time.Second      // for requests on kept connections, while stopping
	stopTimeout   = 5 * time.Second  // beyond WX_TIMEOUT and lastRequests, for requests under way to end
	certInterval  = 5 * time.Second  // between two looks at the certificate's files
)

// serve answers until ctx is done, and the requests then under way have ended.
func serve(ctx context.Context, c config, l *listener, logger *slog.Logger, stdout io.Writer) error {
	logger.Info("listening", "addr", l.Addr().String())
	h, baseURLs := &handler{appIDs: c.appIDs, log: logger}, c.baseURLs
	if c.sandbox {
		fake, url, err := startSandbox(c, logger)
		if err != nil {
			return err
		}
		defer fake.Close()
		h.sandbox, baseURLs = fake.Handler, append(baseURLs, url)
		logger.Warn("this is a sandbox: a fake WeChat answers, and the openids are made up")
		fmt.Fprintln(stdout, curlLine(c, l.Addr().String()))
	}
	h.wechat = newClient(c, baseURLs, logger)
	server := newServer(c, h, l, logger)
	// Close the listener first: a client told to reconnect would otherwise queue there and be reset.
	context.AfterFunc(ctx, func() { l.Close() })
	if err := server.Serve(l); ctx.Err() == nil {
		return err
	}
	h.stopping.Store(true)
	for end := time.Now().Add(lastRequests); len(l.places) > 0 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	limit, cancel := context.WithTimeout(context.Background(), c.timeout+stopTimeout)
	defer cancel()
	if server.Shutdown(limit) != nil {
		return errors.New("requests that were still under way have been cut off")
	}
	return nil
}

// curlLine is a command for sh and cmd.exe that gets an openid from the sandbox at addr.
func curlLine(c config, addr string) string {
	addr = regexp.MustCompile(`^(\[::\]|0\.0\.0\.0):`).ReplaceAllString(addr, "localhost:")
	curl, appID := `curl -d "{\"code\":\"%s\"%s}" http://%s/openid`, ""
	if c.tlsCert != "" {
		curl = `curl -k -d "{\"code\":\"%s\"%s}" https://%s/openid`
	}
	if len(c.appIDs) > 1 {
		appID = fmt.Sprintf(`,\"appid\":\"%s\"`, c.appIDs[0])
	}
	return fmt.Sprintf(curl, mockCode, appID, addr)
}

func newServer(c config, h http.Handler, l *listener, logger *slog.Logger) *http.Server {
	return &http.Server{
		Handler:                      h,
		ReadTimeout:                  headerTimeout,
		WriteTimeout:                 bodyTimeout + c.timeout + answerTimeout,
		IdleTimeout:                  keepAlive,
		MaxHeaderBytes:               maxHeader,
		DisableGeneralOptionsHandler: true, // "OPTIONS *" is answered as any other path
		ConnState:                    l.connState,
		ErrorLog:                     log.New(serverLog{logger}, "", 0),
	}
}

// A serverLog logs what net/http reports, except that a TLS handshake ended with nothing said: the
// TCP checks of load balancers look like that.
type serverLog struct{ *slog.Logger }

var silentEnd = regexp.MustCompile(`TLS handshake error .*(: EOF|reset by peer|forcibly closed.*|i/o timeout)$`)

func (l serverLog) Write(line []byte) (int, error) {
	if text := strings.TrimSpace(string(line)); !silentEnd.MatchString(text) {
		l.Warn(text)
	}
	return len(line), nil
}

// A listener accepts at most cap(places) connections at a time; more wait in the kernel's queue.
// Its connections are not wrapped: net/http needs their CloseWrite. So it is told of their end.
type listener struct {
	net.Listener
	places chan struct{}
	stop   <-chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case l.places <- struct{}{}:
	case <-l.stop:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.places
	}
	return conn, err
}

// connState gives back a place. net/http reports StateClosed once for each connection.
func (l *listener) connState(_ net.Conn, state http.ConnState) {
	if state == http.StateClosed {
		<-l.places
	}
}

// listen opens the listener. Its error is for a person.
func listen(ctx context.Context, c config, logger *slog.Logger) (*listener, error) {
	l := &listener{places: make(chan struct{}, c.maxConns), stop: ctx.Done()}
	cert, err := newCertificate(c, logger)
	if err != nil {
		return nil, err
	}
	if l.Listener, err = net.Listen("tcp", c.addr); err != nil {
		return nil, fmt.Errorf("ADDR: %w: stop the other program, or set another ADDR of this machine, say :3020", err)
	}
	if cert != nil {
		go cert.follow(ctx)
		l.Listener = tls.NewListener(l.Listener, &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cert.get})
	}
	return l, nil
}

// A certificate is read from its files, and again whenever they change.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger
	pair              atomic.Pointer[tls.Certificate]
	said              string // last
}

// newCertificate returns the certificate for HTTPS, or nil for plain HTTP. Its error is for a person.
func newCertificate(c config, log *slog.Logger) (*certificate, error) {
	if c.tlsCert == "" {
		return nil, nil
	}
	cert := &certificate{certFile: c.tlsCert, keyFile: c.tlsKey, log: log}
	return cert, cert.load()
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.pair.Load(), nil }

// follow loads the files again and again, until ctx is done. While they are bad, the old certificate stays in use.
func (c *certificate) follow(ctx context.Context) {
	for ; ctx.Err() == nil; time.Sleep(certInterval) {
		if err := c.load(); err != nil {
			c.say("the old certificate stays in use: " + err.Error())
		}
	}
}

// say logs text, if there is any, when it changes.
func (c *certificate) say(text string) {
	if text != c.said && text != "" {
		c.log.Warn(text)
	}
	c.said = text
}

func (c *certificate) load() error {
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	pathErr, unread := errors.AsType[*os.PathError](err)
	switch {
	case unread && pathErr.Path == c.certFile:
		return fmt.Errorf("TLS_CERT cannot be read (%w): name a PEM file that this user may read", pathErr.Err)
	case unread:
		return fmt.Errorf("TLS_KEY cannot be read (%w): name a PEM file that this user may read", pathErr.Err)
	case err != nil:
		return fmt.Errorf("TLS_CERT and TLS_KEY cannot be used (%w): use PEM files, leaf first, without password", err)
	}
	c.pair.Store(&pair)
	c.say(warning(&pair))
	return nil
}

// warning says why phones refuse cert or soon will, or nothing. The first that holds is said.
func warning(cert *tls.Certificate) string {
	leaf, _ := x509.ParseCertificate(cert.Certificate[0]) // Leaf is nil with GODEBUG=x509keypairleaf=0
	left, life := time.Until(leaf.NotAfter), leaf.NotAfter.Sub(leaf.NotBefore)
	end := leaf.NotAfter.UTC().Format(time.DateTime) + " UTC"
	switch {
	case left <= 0:
		return "the certificate in TLS_CERT expired on " + end + ", so phones refuse it: renew it"
	case len(cert.Certificate) == 1 && !bytes.Equal(leaf.RawIssuer, leaf.RawSubject):
		return "TLS_CERT has no intermediate certificate, so phones refuse it: use the full chain"
	case left < min(7*24*time.Hour, life/3):
		return "the certificate in TLS_CERT expires on " + end + ": renew it"
	}
	return ""
}
