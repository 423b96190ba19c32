package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	headerTimeout = 15 * time.Second // for the header of a request to arrive; its body has bodyTimeout
	answerTimeout = 5 * time.Second  // for the answer to leave, after body and exchange
	keepAlive     = 65 * time.Minute // for the next request on a connection; Envoy keeps one for 60
	maxHeader     = 4 << 10          // bytes; net/http allows 4 KiB more
	lastRequests  = time.Second      // for requests on kept connections, while stopping
	stopTimeout   = 5 * time.Second  // beyond WX_TIMEOUT, for requests under way to end
	certInterval  = 5 * time.Second  // between two looks at the certificate's files
)

// serve answers until ctx is done, and the requests then under way have ended.
func serve(ctx context.Context, c config, l *listener, logger *slog.Logger, stdout io.Writer) error {
	logger.Info("listening", "addr", l.Addr().String())
	var fake http.Handler
	if c.sandbox {
		s, url, err := startSandbox(c, logger)
		if err != nil {
			return err
		}
		defer s.Close()
		fake, c.baseURLs = s.Handler, append(c.baseURLs, url)
		logger.Warn("this is a sandbox: a fake WeChat answers, and the openids are made up")
		fmt.Fprintln(stdout, curlLine(l.tls != nil, l.Addr()))
	}
	h := &handler{wechat: newClient(c, logger), appID: c.appID, log: logger, sandbox: fake}
	server := newServer(c, h, l, logger)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	l.Close()
	// Only now: a client told to reconnect while the listener was open would queue there and be reset.
	h.stopping.Store(true)
	for end := time.Now().Add(lastRequests); len(l.places) > 0 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	limit, cancel := context.WithTimeout(context.Background(), c.timeout+stopTimeout)
	defer cancel()
	if errors.Is(server.Shutdown(limit), context.DeadlineExceeded) {
		return errors.New("requests that were still under way have been cut off")
	}
	return nil
}

// curlLine is a command for sh and cmd.exe that gets an openid from the sandbox at addr.
func curlLine(https bool, addr net.Addr) string {
	host, port, _ := net.SplitHostPort(addr.String())
	if net.ParseIP(host).IsUnspecified() {
		host = "localhost"
	}
	curl, scheme := "curl", "http"
	if https {
		curl, scheme = "curl -k", "https"
	}
	return fmt.Sprintf(`%s -d "{\"code\":\"%s\"}" %s://%s/openid`, curl, mockCode, scheme, net.JoinHostPort(host, port))
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
	tls    *tls.Config // nil for plain HTTP
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
	switch {
	case err != nil:
		<-l.places
	case l.tls != nil:
		return tls.Server(conn, l.tls), nil
	}
	return conn, err
}

// connState gives back a place. net/http reports StateClosed once for each connection.
func (l *listener) connState(_ net.Conn, state http.ConnState) {
	if state == http.StateClosed {
		<-l.places
	}
}

// listen opens the listener, for HTTPS where there is a certificate. Its error is for a person.
func listen(ctx context.Context, c config, logger *slog.Logger) (*listener, error) {
	l := &listener{places: make(chan struct{}, c.maxConns), stop: ctx.Done()}
	if c.tlsCert != "" {
		cert := &certificate{certFile: c.tlsCert, keyFile: c.tlsKey, log: logger}
		if err := cert.load(); err != nil {
			return nil, err
		}
		go cert.follow(ctx)
		l.tls = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cert.get}
	}
	var err error
	if l.Listener, err = net.Listen("tcp", c.addr); err != nil {
		return nil, fmt.Errorf("ADDR: %w: %s", err, listenRemedy(err))
	}
	return l, nil
}

// listenRemedy says what to do about an error of net.Listen. The numbers are Windows's.
func listenRemedy(err error) string {
	switch errno, _ := errors.AsType[syscall.Errno](err); errno {
	case syscall.EADDRINUSE, 10048:
		return "stop the other program that uses the port, or set another ADDR"
	case syscall.EACCES, 10013:
		return "set ADDR to a port above 1023, or give this program the right to use that one"
	case syscall.EADDRNOTAVAIL, 10049:
		return "set ADDR to an address of this machine, or to the port alone, as in :2020"
	}
	return "set ADDR to an address and port that this machine has free, as in :2020"
}

// A certificate is read from its files, and again whenever they change.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger
	pair              atomic.Pointer[tls.Certificate]
	warned            string // the last warning about its time
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.pair.Load(), nil }

// follow loads the files again and again, until ctx is done. While they are bad, the last good
// certificate stays in use.
func (c *certificate) follow(ctx context.Context) {
	logged := ""
	for ctx.Err() == nil {
		time.Sleep(certInterval)
		err := c.load()
		if err != nil && err.Error() != logged {
			c.log.Error("the old certificate stays in use", "cause", err.Error())
		}
		logged = ""
		if err != nil {
			logged = err.Error()
			c.warnOfTime()
		}
	}
}

// load reads the files. It warns of a certificate that phones will refuse.
func (c *certificate) load() error {
	certPEM, err := os.ReadFile(c.certFile)
	if err != nil {
		return fmt.Errorf("TLS_CERT cannot be read (%w): name a PEM file that this user may read", reason(err))
	}
	keyPEM, err := os.ReadFile(c.keyFile)
	if err != nil {
		return fmt.Errorf("TLS_KEY cannot be read (%w): name a PEM file that this user may read", reason(err))
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("TLS_CERT and TLS_KEY cannot be used (%w): use PEM files, leaf first, without password", err)
	}
	old := c.pair.Swap(&pair)
	if old == nil || !slices.EqualFunc(old.Certificate, pair.Certificate, bytes.Equal) {
		c.warned = ""
		if leaf := pair.Leaf; len(pair.Certificate) == 1 && !bytes.Equal(leaf.RawIssuer, leaf.RawSubject) {
			c.log.Warn("TLS_CERT has no intermediate certificate, so phones refuse it: use the full chain")
		}
	}
	c.warnOfTime()
	return nil
}

// warnOfTime warns once of a certificate that has expired, and once of one that soon will.
func (c *certificate) warnOfTime() {
	leaf, warning := c.pair.Load().Leaf, ""
	left, life := time.Until(leaf.NotAfter), leaf.NotAfter.Sub(leaf.NotBefore)
	switch {
	case left <= 0:
		warning = "the certificate in TLS_CERT has expired, so phones refuse it: renew it"
	case left < min(7*24*time.Hour, life/3):
		end := leaf.NotAfter.UTC().Format(time.DateTime)
		warning = "the certificate in TLS_CERT expires on " + end + " UTC: renew it"
	}
	if warning != c.warned && warning != "" {
		c.log.Warn(warning)
	}
	c.warned = warning
}
