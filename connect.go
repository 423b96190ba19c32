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

const (
	idleTimeout   = 50 * time.Second // how long an unused connection to WeChat is kept, by the wall clock
	passOverTime  = 30 * time.Second // how long a base URL that is out of reach is passed over
	maxHandshakes = 8                // TLS handshakes at a time: a slow core would finish none of hundreds
	noAnswer      = "no answer in time"
)

// A base is a base URL of WeChat's API, with the connections to it.
type base struct {
	url        url.URL // of jscode2session, without a query
	transport  *http.Transport
	handshakes chan struct{} // one for each TLS handshake under way
	silentAt   atomic.Int64  // when a TLS handshake last took too long, in Unix nanoseconds
	retryAt    atomic.Int64  // until when it is passed over, in Unix nanoseconds; or 0
}

// newBase returns the base URL u. TCP with DNS, and TLS, may each take step.
func newBase(u *url.URL, step time.Duration, maxConns int) *base {
	b := &base{url: *u.JoinPath("/").JoinPath(wechatPath), handshakes: make(chan struct{}, maxHandshakes)}
	b.transport = &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		OnProxyConnectResponse: checkConnect,
		DialContext:            (&net.Dialer{Timeout: step}).DialContext,
		DialTLSContext:         b.dialTLS,
		TLSClientConfig:        &tls.Config{},
		TLSHandshakeTimeout:    step,
		DisableCompression:     true,
		MaxConnsPerHost:        maxConns, // or a turn that comes before its connection is back would open one more
		MaxIdleConnsPerHost:    maxConns,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxReply,
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
	if b.silentAt.Load() >= inLine { // those before had no answer: do not wait as long as they did
		conn.Close()
		return nil, os.ErrDeadlineExceeded
	}
	ctx, cancel := context.WithTimeout(ctx, b.transport.TLSHandshakeTimeout)
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

// A connectStatus is an HTTP status, other than 200, with which a proxy answers CONNECT.
type connectStatus int

func (s connectStatus) Error() string { return fmt.Sprintf("status %d", int(s)) }

func checkConnect(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
	if resp.StatusCode != http.StatusOK {
		return connectStatus(resp.StatusCode)
	}
	return nil
}

// through names the proxy on the way to b, or nothing.
func (b *base) through() string {
	if proxy, _ := b.transport.Proxy(&http.Request{URL: &b.url}); proxy != nil {
		return " through the proxy " + proxy.Host
	}
	return ""
}

// noConnection says in one sentence why there is no connection to b: the culprit, what it said, and the remedy.
// Nothing was sent yet, so err may be quoted.
func (b *base) noConnection(err error) string {
	proxy, _ := b.transport.Proxy(&http.Request{URL: &b.url})
	target := net.JoinHostPort(b.url.Hostname(), cmp.Or(b.url.Port(), b.url.Scheme))
	target = strings.NewReplacer(":https", ":443", ":http", ":80").Replace(target)
	_, badCert := errors.AsType[*tls.CertificateVerificationError](err)
	_, noTLS := errors.AsType[tls.RecordHeaderError](err)
	_, dns := errors.AsType[*net.DNSError](err)
	switch {
	case badCert && proxy != nil:
		return b.url.Hostname() + ": " + said(err) + ": check this machine's clock and CA certificates, and what " +
			"WX_BASE_URL leads to; a proxy that intercepts TLS needs its CA here"
	case badCert:
		return b.url.Hostname() + ": " + said(err) + ": check this machine's clock and CA certificates, and what " +
			"WX_BASE_URL leads to"
	case proxy != nil:
		return proxyFailed(err, proxy, strings.ToUpper(b.url.Scheme)+"_PROXY", target)
	case dns:
		return b.url.Hostname() + ": " + said(err) + ": check DNS, and the name in WX_BASE_URL"
	case noTLS:
		return target + " speaks no TLS: check what WX_BASE_URL leads to"
	}
	return target + ": " + said(err) + ": check the firewall, or set HTTPS_PROXY if this network needs a proxy"
}

// proxyFailed is noConnection for a proxy, which the variable names.
func proxyFailed(err error, proxy *url.URL, variable, target string) string {
	if os.Getenv(variable) == "" && os.Getenv(strings.ToLower(variable)) != "" {
		variable = strings.ToLower(variable)
	}
	_, noTLS := errors.AsType[tls.RecordHeaderError](err)
	status, refused := errors.AsType[connectStatus](err)
	name, text, what := "the proxy "+proxy.Host, err.Error(), " ("+said(err)+"): "
	toProxy, socks := strings.HasPrefix(text, "proxyconnect"), strings.HasPrefix(text, "socks connect")
	overTLS := proxy.Scheme == "https"
	schemes := "write http:// in " + variable + ", or socks5:// if the port is a SOCKS port"
	switch {
	case toProxy && noTLS, overTLS && said(err) == noAnswer, overTLS && toProxy && !strings.Contains(text, "dial "):
		return name + " speaks no TLS" + what + schemes
	case toProxy:
		return name + " cannot be reached" + what + "start it, or fix " + variable
	case status == 407 || status == 401 || socks && strings.Contains(text, "authentication"):
		return name + " wants a password" + what + "check user and password in " + variable
	case refused && status < 500 || socks && strings.Contains(text, "not allowed"):
		return name + " refuses " + target + what + "allow that host and port there"
	case strings.Contains(text, "malformed HTTP"):
		return name + " does not answer in HTTP: " + schemes
	case strings.HasPrefix(proxy.Scheme, "socks5") && said(err) == noAnswer:
		return name + " gives no answer in SOCKS: " + schemes
	case refused || socks && said(err) != "connection closed":
		return name + " cannot reach " + target + what + "check its network, or its node"
	}
	return name + " gives no connection to " + target + what + "look in its log for a rule that rejects the host, " +
		"or a dead node"
}

// said is what err says, without addresses and times, so that equal causes are equal.
func said(err error) string {
	var timeout net.Error
	var dns *net.DNSError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return "DNS knows no such host"
	case errors.As(err, &dns):
		return "the name lookup failed or took too long"
	case errors.As(err, &timeout) && timeout.Timeout():
		return noAnswer
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return "connection closed"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the certificate has expired or is not yet valid"
	case errors.As(err, new(x509.HostnameError)):
		return "the certificate is for another name"
	case errors.As(err, new(*tls.CertificateVerificationError)):
		return "the certificate is not trusted"
	}
	for next := err; next != nil; next = errors.Unwrap(next) {
		err = next
	}
	return err.Error()
}
