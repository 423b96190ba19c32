package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const idleTimeout = 50 * time.Second // how long an unused connection to WeChat is kept, by the wall clock

// A base is a base URL of WeChat's API, with the connections to it.
type base struct {
	url        url.URL  // of jscode2session, without a query
	target     string   // host:port
	proxy      *url.URL // on the way there, or nil
	transport  *http.Transport
	handshakes chan struct{} // one for each TLS handshake under way
	silentAt   atomic.Int64  // when a TLS handshake last took too long, in Unix nanoseconds
	retryAt    atomic.Int64  // until when the client passes it over, in Unix nanoseconds; or 0
}

// newBase returns the base URL u. TCP with DNS, and TLS, may each take step.
func newBase(u *url.URL, step time.Duration, maxConns int) *base {
	port := cmp.Or(u.Port(), defaultPorts[u.Scheme])
	b := &base{url: *u.JoinPath("/").JoinPath(wechatPath), target: net.JoinHostPort(u.Hostname(), port)}
	b.proxy, _ = http.ProxyFromEnvironment(&http.Request{URL: &b.url})
	b.handshakes = make(chan struct{}, 8) // a slow core would finish none of hundreds
	b.transport = &http.Transport{
		Proxy:                  func(*http.Request) (*url.URL, error) { return b.proxy, nil },
		DialContext:            (&net.Dialer{Timeout: step}).DialContext,
		DialTLSContext:         b.dialTLS,
		TLSClientConfig:        &tls.Config{},
		TLSHandshakeTimeout:    step,
		DisableCompression:     true,
		MaxConnsPerHost:        maxConns, // or a turn that comes before its connection is back would open one more
		MaxIdleConnsPerHost:    maxConns,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxReply,
		OnProxyConnectResponse: func(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
			if resp.StatusCode != http.StatusOK {
				return connectStatus(resp.StatusCode)
			}
			return nil
		},
	}
	return b
}

// dialTLS connects without a proxy, or to one by https://. The time limit of a handshake begins at its turn.
func (b *base) dialTLS(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := b.transport.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	inLine := time.Now().UnixNano()
	b.handshakes <- struct{}{}
	defer func() { <-b.handshakes }()
	ctx, cancel := context.WithTimeout(ctx, b.transport.TLSHandshakeTimeout)
	defer cancel()
	config := b.transport.TLSClientConfig.Clone()
	config.ServerName, _, _ = net.SplitHostPort(addr)
	tlsConn := tls.Client(conn, config)
	if b.silentAt.Load() >= inLine { // those before had no answer: do not wait as long as they did
		err = os.ErrDeadlineExceeded
	} else if err = tlsConn.HandshakeContext(ctx); ctx.Err() != nil {
		b.silentAt.Store(time.Now().UnixNano())
	}
	if err != nil {
		conn.Close()
	}
	return tlsConn, err
}

// A connectStatus is an HTTP status, other than 200, with which a proxy answers CONNECT.
type connectStatus int

func (s connectStatus) Error() string { return fmt.Sprintf("status %d", int(s)) }

// noConnection says who is to blame, what it said, and the remedy. Nothing was sent yet, so err may be quoted.
func (b *base) noConnection(err error) string {
	host, what, variable := b.url.Hostname(), ": "+said(err)+": ", strings.ToUpper(b.url.Scheme)+"_PROXY"
	badCert := errors.As(err, new(*tls.CertificateVerificationError))
	switch certRemedy := "check this machine's clock and CA certificates, and what WX_BASE_URL leads to"; {
	case badCert && b.proxy != nil:
		return host + what + certRemedy + "; a proxy that intercepts TLS needs its CA here"
	case badCert:
		return host + what + certRemedy
	case b.proxy != nil:
		return "the proxy " + b.proxy.Host + b.proxyFailed(err, setName(os.Getenv, variable))
	case errors.As(err, new(*net.DNSError)):
		return host + what + "check DNS, and the name in WX_BASE_URL"
	case errors.As(err, new(tls.RecordHeaderError)):
		return b.target + " speaks no TLS: check what WX_BASE_URL leads to"
	}
	return b.target + what + "check the firewall, or set " + variable + " if this network needs a proxy"
}

// proxyFailed is noConnection for a proxy, which the variable names. About SOCKS net/http has nothing but texts.
func (b *base) proxyFailed(err error, variable string) string {
	text, said, scheme := err.Error(), said(err), b.proxy.Scheme
	status, _ := errors.AsType[connectStatus](err)
	what, socks := " ("+said+"): ", strings.HasPrefix(text, "socks connect")
	switch {
	case strings.Contains(text, "dial "):
		return " cannot be reached" + what + "start it, or fix " + variable
	case scheme == "https" && strings.HasPrefix(text, "proxyconnect"),
		scheme != "http" && said == silence, strings.Contains(text, "malformed"), strings.Contains(text, "protocol version"):
		return " does not answer in " + scheme + ": write http:// in " + variable + ", or socks5:// for a SOCKS port"
	case status == 407 || status == 401 || socks && strings.Contains(text, "authentication"):
		return " wants a password" + what + "check user and password in " + variable
	case status != 0 && status < 500 || socks && strings.Contains(text, "not allowed"):
		return " refuses " + b.target + what + "allow that host and port there"
	case status != 0 || socks && said != "connection closed":
		return " cannot reach " + b.target + what + "check its network, or its node"
	}
	return " gives no connection to " + b.target + what + "look in its log for a rule against the host, or a dead node"
}

const silence = "no answer in time"

// said is what err says, without addresses and times, so that equal causes are equal.
func said(err error) string {
	var dns *net.DNSError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &dns) && !dns.IsNotFound:
		return "the name lookup failed or took too long"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return silence
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return "connection closed"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the certificate has expired or is not yet valid"
	}
	for ; errors.Unwrap(err) != nil; err = errors.Unwrap(err) {
	}
	return err.Error()
}
