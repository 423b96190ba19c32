package main

import (
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

const (
	idleTimeout   = 50 * time.Second // how long an unused connection to WeChat is kept, by the wall clock
	passOverTime  = 30 * time.Second // how long a base URL that is out of reach is passed over
	maxHandshakes = 8                // TLS handshakes at a time, since a slow core finishes none of too many
)

// A base is a base URL of WeChat's API, with the connections to it.
type base struct {
	url        url.URL // of jscode2session, without a query
	transport  *http.Transport
	dialer     net.Dialer
	handshakes chan struct{} // one for each TLS handshake under way
	silentAt   atomic.Int64  // Unix nanoseconds: when a TLS handshake last took too long
	retryAt    atomic.Int64  // Unix nanoseconds: until when it is passed over, or 0
}

// newBase returns a base URL to which TCP with DNS, and TLS, may each take step.
func newBase(u *url.URL, step time.Duration, maxConns int) *base {
	b := &base{
		url:        *u.JoinPath("/").JoinPath(wechatPath),
		dialer:     net.Dialer{Timeout: step},
		handshakes: make(chan struct{}, maxHandshakes),
	}
	b.transport = &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		OnProxyConnectResponse: checkConnect,
		DialContext:            b.dialer.DialContext,
		DialTLSContext:         b.dialTLS,
		TLSClientConfig:        &tls.Config{},
		TLSHandshakeTimeout:    step, // behind a proxy
		DisableCompression:     true,
		MaxConnsPerHost:        maxConns, // or a turn that comes before its connection is back would open one more
		MaxIdleConnsPerHost:    maxConns,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxReply,
	}
	return b
}

// dialTLS connects without a proxy, or to one with an https:// URL. The time limit of a handshake begins at its turn.
func (b *base) dialTLS(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := b.transport.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	inLine := time.Now().UnixNano()
	b.handshakes <- struct{}{}
	defer func() { <-b.handshakes }()
	if b.silentAt.Load() >= inLine { // others had no answer meanwhile: do not wait once more
		conn.Close()
		return nil, os.ErrDeadlineExceeded
	}
	ctx, cancel := context.WithTimeout(ctx, b.dialer.Timeout)
	defer cancel()
	config := b.transport.TLSClientConfig.Clone()
	config.ServerName, _, _ = net.SplitHostPort(addr)
	tlsConn := tls.Client(conn, config)
	if err := tlsConn.HandshakeContext(ctx); err != nil {
		conn.Close()
		if ctx.Err() != nil {
			b.silentAt.Store(time.Now().UnixNano())
		}
		return nil, err
	}
	return tlsConn, nil
}

// passOver marks b as out of reach, and reports whether that is new.
func (b *base) passOver() bool { return b.retryAt.Swap(time.Now().Add(passOverTime).UnixNano()) == 0 }

// A connectStatus is the HTTP status, other than 200, with which a proxy answered CONNECT.
type connectStatus int

func (s connectStatus) Error() string { return fmt.Sprintf("status %d", int(s)) }

func checkConnect(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
	if resp.StatusCode != http.StatusOK {
		return connectStatus(resp.StatusCode)
	}
	return nil
}

// proxy returns host and port of the proxy, the scheme of its URL, and the variable that names it; or nothing.
func (b *base) proxy() (addr, scheme, variable string) {
	u, err := b.transport.Proxy(&http.Request{URL: &b.url})
	if u == nil || err != nil {
		return "", "", ""
	}
	variable = strings.ToUpper(b.url.Scheme) + "_PROXY"
	if os.Getenv(variable) == "" && os.Getenv(strings.ToLower(variable)) != "" {
		variable = strings.ToLower(variable)
	}
	return u.Host, u.Scheme, variable
}

// through names the proxy on the way to b, if there is one.
func (b *base) through() string {
	if addr, _, _ := b.proxy(); addr != "" {
		return " through the proxy " + addr
	}
	return ""
}

// noConnection says in one sentence why there is no connection to b: the culprit, what it said, and the remedy.
func (b *base) noConnection(err error) string {
	addr, scheme, variable := b.proxy()
	dns, isDNS := errors.AsType[*net.DNSError](err)
	op, isOp := errors.AsType[*net.OpError](err)
	_, isCert := errors.AsType[*tls.CertificateVerificationError](err)
	toProxy := isOp && op.Op == "proxyconnect"
	switch _, noTLS := errors.AsType[tls.RecordHeaderError](err); {
	case isCert && addr != "":
		return b.url.Hostname() + certSaid(err) + ": check this machine's clock and CA certificates, and what WX_BASE_URL " +
			"leads to; if the proxy " + addr + " intercepts TLS, its CA has to be trusted here"
	case isCert:
		return b.url.Hostname() + certSaid(err) + ": check this machine's clock and CA certificates, and what WX_BASE_URL " +
			"leads to"
	case addr != "":
		return proxySaid(err, toProxy, addr, scheme, variable, b.target())
	case isDNS && dns.IsNotFound:
		return b.url.Hostname() + ": DNS knows no such host: check DNS and WX_BASE_URL"
	case isDNS:
		return b.url.Hostname() + ": the name lookup failed or took too long: check DNS"
	case noTLS:
		return b.target() + " speaks no TLS: check what WX_BASE_URL leads to"
	}
	return b.target() + ": " + said(err) + ": check the firewall, or set HTTPS_PROXY if this network needs a proxy"
}

// proxySaid says why the proxy at addr gives no connection to target.
func proxySaid(err error, toProxy bool, addr, scheme, variable, target string) string {
	status, refused := errors.AsType[connectStatus](err)
	_, noTLS := errors.AsType[tls.RecordHeaderError](err)
	text, addr := err.Error(), "the proxy "+addr
	schemes := ": write http:// in " + variable + ", or socks5:// if the port is a SOCKS port"
	switch socks := strings.HasPrefix(text, "socks connect"); {
	case toProxy && (noTLS || scheme == "https" && !strings.Contains(text, "dial ")):
		return addr + " speaks no TLS" + schemes
	case toProxy:
		return addr + " cannot be reached (" + said(err) + "): start it, or fix " + variable
	case status == 407 || status == 401 || socks && strings.Contains(text, "authentication"):
		return addr + " asks for a password (" + said(err) + "): check user and password in " + variable
	case refused && status < 500 || socks && strings.Contains(text, "not allowed"):
		return addr + " refuses " + target + " (" + said(err) + "): allow that host and port there"
	case strings.Contains(text, "malformed HTTP"):
		return addr + " does not answer in HTTP" + schemes
	case strings.HasPrefix(scheme, "socks5") && said(err) == noAnswer:
		return addr + " gives no answer in SOCKS" + schemes
	case refused || socks && !errors.Is(err, io.EOF) && said(err) != noAnswer:
		return addr + " cannot reach " + target + " (" + said(err) + "): check its network, or its node"
	}
	return addr + " gives no TLS connection to " + target + " (" + said(err) + "): look in its log for a rule that " +
		"rejects the host, or a dead node"
}

// target is the host and port of b.
func (b *base) target() string {
	port := b.url.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[b.url.Scheme]
	}
	return net.JoinHostPort(b.url.Hostname(), port)
}

const noAnswer = "no answer in time"

// said is the innermost of err, without addresses and times, so that equal causes are equal.
func said(err error) string {
	timeout, isNet := errors.AsType[net.Error](err)
	dns, isDNS := errors.AsType[*net.DNSError](err)
	errno, isErrno := errors.AsType[syscall.Errno](err)
	switch {
	case isDNS && dns.IsNotFound:
		return "no such host"
	case isDNS:
		return "its name lookup failed or took too long"
	case isErrno:
		return errno.Error()
	case isNet && timeout.Timeout():
		return noAnswer
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return "connection closed"
	}
	for next := err; next != nil; next = errors.Unwrap(next) {
		err = next
	}
	return err.Error()
}

// certSaid says what is wrong with a certificate, without the time of day that x509 adds.
func certSaid(err error) string {
	invalid, _ := errors.AsType[x509.CertificateInvalidError](err)
	_, otherName := errors.AsType[x509.HostnameError](err)
	switch {
	case otherName:
		return ": the certificate is for another name"
	case invalid.Cert != nil && invalid.Reason == x509.Expired:
		return ": the certificate has expired or is not yet valid"
	}
	return ": the certificate is not trusted"
}
