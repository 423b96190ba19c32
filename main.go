// Wxopenid is the back end of WeChat mini program login: it exchanges the code of
// wx.login for the user's openid, over WeChat's jscode2session.
//
//	POST /openid   {"code":"…"} → 200 {"openid":"…"}, or a status and {"error":"…","message":"…"}
//	GET /healthz   200 {"status":"ok"}
//
// The environment has the settings: WX_APPID, and WX_APPSECRET or WX_APPSECRET_FILE;
// and, if the defaults will not do, ADDR, WX_BASE_URL, WX_TIMEOUT, MAX_INFLIGHT, and
// TLS_CERT with TLS_KEY. The README says more of each.
package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	headerTimeout = 15 * time.Second // for the header of a request to arrive
	answerTimeout = 5 * time.Second  // for an answer to leave, after body and exchange
	keepAlive     = 2 * time.Minute  // for the next request on a connection
	maxHeader     = 16 << 10         // bytes
	stopGrace     = 5 * time.Second  // beyond WX_TIMEOUT, for requests under way to end
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // so that a second signal ends it at once
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// run is the program, until ctx is done; it returns the exit code.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	mode, err := parseFlags(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case mode.version:
		fmt.Fprintln(stdout, versionLine())
		return 0
	}
	c, err := loadConfig(getenv, mode.sandbox)
	if err != nil && !mode.healthy { // which needs no credentials
		fmt.Fprintf(stderr, "wxopenid needs other settings:\n%v\n", err)
		return 2
	}
	log.SetOutput(io.Discard) // where net/http quotes what WeChat sent out of turn
	switch {
	case mode.check:
		return check(ctx, c, stdout, stderr)
	case mode.healthy:
		return probe(c, stderr)
	}
	logger, flush := newLogger(stderr)
	defer flush()
	// Never touched, it takes no memory, but keeps garbage from being collected every few megabytes.
	ballast := make([]byte, 8<<20)
	defer runtime.KeepAlive(ballast)
	if err := serve(ctx, c, logger, stdout); err != nil {
		logger.Error("stopped", "cause", err.Error())
		return 1
	}
	logger.Info("stopped")
	return 0
}

func versionLine() string {
	info, _ := debug.ReadBuildInfo()
	revision := "unknown"
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			revision = setting.Value
		}
	}
	return fmt.Sprintf("wxopenid %s, revision %s, %s", info.Main.Version, revision, info.GoVersion)
}

// check asks WeChat about a code that nobody has, not a sandbox's user either:
// it looks at the AppID and the AppSecret first.
func check(ctx context.Context, c config, stdout, stderr io.Writer) int {
	_, err := newClient(c, slog.New(slog.DiscardHandler)).openID(ctx, "sandbox:"+rand.Text())
	switch {
	case err == nil:
		fmt.Fprintln(stderr, "WX_BASE_URL leads to something that has an openid for a code that nobody made: it is not WeChat.")
	case err.errcode == 40029, err.errcode == 40163:
		fmt.Fprintf(stdout, "WeChat accepts the AppID %s and its AppSecret.\n", c.appID)
		return 0
	default:
		fmt.Fprintf(stderr, "%s.\n", failureOf(err).hint)
	}
	return 1
}

// probe asks /healthz on this machine, whatever name is in the certificate.
func probe(c config, stderr io.Writer) int {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	client := http.Client{Transport: transport, Timeout: answerTimeout}
	resp, err := client.Get(c.scheme() + "://" + c.addr + "/healthz")
	if err != nil || resp.StatusCode != http.StatusOK {
		fmt.Fprintf(stderr, "No wxopenid answers at %s: is it running, with this ADDR?\n", c.addr)
		return 1
	}
	resp.Body.Close()
	return 0
}

// serve listens and answers until ctx is done and the requests then under way
// have ended.
func serve(ctx context.Context, c config, logger *slog.Logger, stdout io.Writer) error {
	listener, err := listen(c, logger)
	if err != nil {
		return err
	}
	defer listener.Close()
	logger.Info("listening", "addr", listener.Addr().String())
	var fake http.Handler
	if c.sandbox {
		var stop func() error
		if fake, stop, err = startSandbox(&c); err != nil {
			return err
		}
		defer stop()
		try := curlLine(c.scheme(), listener.Addr())
		logger.Warn("this is a sandbox: a fake WeChat answers, with openids of nobody", "try", try)
		fmt.Fprintln(stdout, try) // to be copied: the log has its quotes escaped
	}
	closing, lastCall := context.WithCancel(context.Background())
	defer lastCall()
	s := newServer(c, newHandler(closing, newClient(c, logger), c.appID, logger, fake), logger)
	served := make(chan error, 1)
	go func() { served <- s.Serve(listener) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	listener.Close()
	lastCall() // not before: who is sent away would come again, and be reset on the way to Accept
	return s.stop(c.timeout + stopGrace)
}

// A server knows its connections, to end them without a loss.
type server struct {
	http.Server
	conns atomic.Int64
	fresh sync.Map // net.Conn: those that have sent no request so far
}

func newServer(c config, handler http.Handler, logger *slog.Logger) *server {
	s := &server{Server: http.Server{
		Handler:                      handler,
		ReadTimeout:                  headerTimeout, // and the handler gives the body its own
		WriteTimeout:                 bodyTimeout + c.timeout + answerTimeout,
		IdleTimeout:                  keepAlive,
		MaxHeaderBytes:               maxHeader,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}}
	s.ConnState = s.note
	return s
}

func (s *server) note(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.conns.Add(1)
		s.fresh.Store(conn, nil)
	case http.StateActive:
		s.fresh.Delete(conn)
	case http.StateClosed:
		s.conns.Add(-1)
		s.fresh.Delete(conn)
	}
}

// stop lets requests under way end within limit, and fails if some did not. A
// load balancer may just now be sending on a connection that it keeps: for a
// second it can, and reads in the answer that the connection ends.
func (s *server) stop(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for lastCall := time.Now().Add(time.Second); s.conns.Load() > 0 && time.Now().Before(lastCall); {
		time.Sleep(10 * time.Millisecond)
	}
	s.fresh.Range(func(conn, _ any) bool {
		conn.(net.Conn).Close() // Shutdown would wait 5 s for its first request
		return true
	})
	if errors.Is(s.Shutdown(ctx), context.DeadlineExceeded) {
		s.Close()
		return errors.New("requests that were still under way have been cut off")
	}
	return nil
}

// listen opens the listener, for HTTPS where there is a certificate. The
// handshake offers no HTTP/2, which would bring nothing for requests so small.
func listen(c config, logger *slog.Logger) (net.Listener, error) {
	if c.tlsCert == "" {
		return net.Listen("tcp", c.addr)
	}
	cert := &certificate{certFile: c.tlsCert, keyFile: c.tlsKey, log: logger}
	if _, err := cert.get(nil); err != nil {
		return nil, err
	}
	return tls.Listen("tcp", c.addr, &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cert.get})
}
