package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	maxReply     = 64 << 10         // bytes; WeChat's replies have some 150
	idleTimeout  = 50 * time.Second // how long an unused connection to WeChat is kept, by the wall clock
	passOverTime = 30 * time.Second // how long a base URL that is out of reach is passed over

	changed = "something between here and WeChat changes the query: check the proxy and WX_BASE_URL"
	badURL  = "WeChat refuses the URL: WX_BASE_URL has to begin with https:// and have the right path"
)

// A failure is an error response. The caller reads message, the operator reads cause. It is made complete, and
// never changed. It holds no URL, AppSecret, code or session_key: its texts are this program's own, or say why there
// is no connection.
type failure struct {
	word    string // the "error" of the answer, a key of answers
	errcode int64  // WeChat's, or 0
	rid     string // WeChat's id of the request, or empty
	cause   string // for the operator who reads the log: the culprit, then what to do; if empty, the message
	message string // where the one in answers does not fit
}

var hungUp = &failure{word: "client_closed_request", cause: "the caller hung up: look at its timeout"}

// errcodes are the errcodes with a meaning here, from WeChat's global list, users' reports and
// developers.weixin.qq.com/miniprogram/dev/server/API/user-login/api_code2session.
var errcodes = map[int64]struct{ word, remedy string }{
	40029: {word: "invalid_code", remedy: "the code is unknown: compare WX_APPID with the mini program's AppID"},
	40163: {word: "code_used", remedy: "the code has been used: call wx.login for every request"},
	40226: {word: "user_blocked", remedy: "WeChat considers the user high-risk: only WeChat's support can lift that"},
	45011: {word: "rate_limited", remedy: "WeChat limits the calls of a minute: try again in a minute"},
	40013: {word: "misconfigured", remedy: "WeChat does not know the AppID: copy it again from " + console},
	40125: {word: "misconfigured", remedy: "the AppSecret does not belong to the AppID: copy it again from where it " +
		"is kept, since mp.weixin.qq.com does not show it again. If it is lost, reset it at " + console +
		", which ends the old one everywhere. A new content of WX_APPSECRET_FILE needs a restart"},
	40164: {word: "misconfigured", remedy: "add the address that WeChat saw to IP白名单 (the allowlist) at " +
		console + ", or its range if it changes from one login to the next; that takes minutes"},
	40243: {word: "misconfigured", remedy: "the AppSecret is frozen: unfreeze it (ten minutes) at " + console},
	41002: {word: "misconfigured", remedy: "no AppID arrived, so " + changed},
	41004: {word: "misconfigured", remedy: "no AppSecret arrived, so " + changed},
	41008: {word: "misconfigured", remedy: "no code arrived, so " + changed},
	40002: {word: "misconfigured", remedy: "another grant_type arrived, so " + changed},
	43003: {word: "misconfigured", remedy: badURL},
	40066: {word: "misconfigured", remedy: badURL},
	48001: {word: "misconfigured", remedy: "the AppID's account may not use this API: see " + console},
	50002: {word: "misconfigured", remedy: "the AppID's account is restricted: read 通知中心 at mp.weixin.qq.com"},
	-1:    {word: "wechat_busy", remedy: "WeChat is busy: try again in a moment"},
	45009: {word: "quota_exceeded", remedy: "the day's quota is used up. WeChat allows at most twice as many logins " +
		"a day as page views: keep a session instead of logging in at every start"},
}

// A user is whom a code belongs to. A unionid needs a mini program that is bound to an Open Platform account.
type user struct {
	OpenID  string `json:"openid"`
	UnionID string `json:"unionid,omitempty"`
}

// A client exchanges codes for users. It has the AppSecrets in queries and nowhere else.
//
// A caller passes three gates: a slot, or the login is refused at once; a turn, for which the login waits; and, if no
// kept connection is free, a place of MaxConnsPerHost, which a connection holds from its dial to its end. There are as
// many places as turns: with more, callers who wait for a connection on a cold start would each open one.
type client struct {
	queries map[string]string // by AppID, up to the code
	bases   []*base
	slots   chan struct{} // one for each login under way, those in line included
	turns   chan struct{} // one for each exchange with WeChat
	timeout time.Duration // of one exchange
	log     *slog.Logger
	mu      sync.Mutex // guards the passedOver of each base
}

// A base is a base URL of WeChat's API, with the connections to it.
type base struct {
	url        url.URL       // of jscode2session, without a query
	target     string        // host:port
	limit      time.Duration // of connecting: TCP with the name lookup, a proxy's part and TLS together
	proxy      *url.URL      // on the way there, or nil
	passedOver time.Time     // until when; zero if it is not
	transport  *http.Transport

	dial func(ctx context.Context, network, addr string) (net.Conn, error) // net.Dialer's
}

func newClient(c config, baseURLs []*url.URL, log *slog.Logger) *client {
	wx := &client{
		queries: make(map[string]string),
		slots:   make(chan struct{}, c.maxInflight),
		turns:   make(chan struct{}, max(256, c.maxInflight/4)),
		timeout: c.timeout,
		log:     log,
	}
	for i, appID := range c.appIDs {
		query := url.Values{"appid": {appID}, "secret": {c.appSecrets[i]}, "grant_type": {"authorization_code"}}
		wx.queries[appID] = query.Encode() + "&js_code="
	}
	x509.SystemCertPool() // reads the CA certificates now: Go reads them once, and later a descriptor might be missing
	for _, u := range baseURLs {
		wx.bases = append(wx.bases, newBase(u, c.timeout*9/10/time.Duration(len(baseURLs)), cap(wx.turns)))
	}
	return wx
}

func newBase(u *url.URL, limit time.Duration, maxConns int) *base {
	port := cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	b := &base{
		url:    *u.JoinPath("/").JoinPath(wechatPath), // the first makes a path of none, and one slash of two
		target: net.JoinHostPort(u.Hostname(), port),
		limit:  limit,
		dial:   new(net.Dialer).DialContext,
	}
	b.proxy, _ = http.ProxyFromEnvironment(&http.Request{URL: &b.url})
	b.transport = &http.Transport{
		Proxy:                  func(*http.Request) (*url.URL, error) { return b.proxy, nil },
		DialContext:            b.connect,
		DisableCompression:     true,
		MaxConnsPerHost:        maxConns,
		MaxIdleConnsPerHost:    maxConns,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxReply,
		OnProxyConnectResponse: func(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("status %d", resp.StatusCode) // net/http's own has the bare phrase
			}
			return nil
		},
	}
	return b
}

// connectBy is the context key of the time by which connecting has to end, whenever it began. It is a value, since
// net/http dials on a context that has the values of the request's, but not its deadline.
type connectBy struct{}

// connect opens a TCP connection. What follows on it has to end by the same time.
func (b *base) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	deadline := time.Now().Add(b.limit)
	if by, _ := ctx.Value(connectBy{}).(time.Time); by.Before(deadline) {
		deadline = by
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	conn, err := b.dial(ctx, network, addr)
	if err == nil {
		conn.SetDeadline(deadline)
	}
	return conn, err
}

// openID exchanges code for its user. The AppID is one of the client's.
func (wx *client) openID(ctx context.Context, appID, code string) (user, *failure) {
	select {
	case wx.slots <- struct{}{}:
		defer func() { <-wx.slots }()
	default:
		return user{}, &failure{word: "overloaded", cause: "MAX_INFLIGHT is reached: raise it, or add an instance"}
	}
	ctx, cancel := context.WithTimeout(ctx, wx.timeout)
	defer cancel()
	select {
	case wx.turns <- struct{}{}:
		defer func() { <-wx.turns }()
	case <-ctx.Done():
		return user{}, hungUp
	case <-time.After(wx.timeout / 2): // who gets a turn has the other half
		return user{}, &failure{word: "overloaded", cause: "all turns were taken for half of WX_TIMEOUT: " +
			"WeChat is slow, this machine has too little CPU, or MAX_INFLIGHT has to be raised"}
	}
	return wx.exchange(ctx, wx.queries[appID]+url.QueryEscape(code))
}

// exchange asks the base URLs in order, until there is a connection to one of them.
func (wx *client) exchange(ctx context.Context, query string) (user, *failure) {
	causes := make(map[string]bool) // said in their own order, so that equal troubles are equal, and each once
	end, _ := ctx.Deadline()
	by := end.Add(-wx.timeout / 20) // before the exchange ends, since only the dialer knows what it waited for
	for _, b := range wx.inOrder() {
		u, f, err := wx.ask(context.WithValue(ctx, connectBy{}, by), b, query)
		if err == nil {
			return u, f
		}
		cause := b.noConnection(err)
		causes[cause] = true
		switch { // the first that holds is the reason
		case ctx.Err() == context.Canceled:
			return user{}, hungUp
		case ctx.Err() != nil, os.IsTimeout(err) && !time.Now().Before(by):
			return user{}, &failure{word: "wechat_timeout", cause: strings.Join(slices.Sorted(maps.Keys(causes)), "; ")}
		case !noDescriptor(err):
			wx.passOver(b, cause)
		}
	}
	return user{}, &failure{word: "wechat_unreachable", cause: strings.Join(slices.Sorted(maps.Keys(causes)), "; ")}
}

// inOrder returns the base URLs to try, with those that are passed over at the end. When the time of one is over, a
// single exchange tries it, and until that ends the others go on to pass it over.
func (wx *client) inOrder() []*base {
	wx.mu.Lock()
	defer wx.mu.Unlock()
	var order, last []*base
	for _, b := range wx.bases {
		switch now := time.Now(); {
		case b.passedOver.IsZero():
			order = append(order, b)
		case !now.Before(b.passedOver):
			b.passedOver = now.Add(min(wx.timeout, passOverTime))
			order = append(order, b)
		default:
			last = append(last, b)
		}
	}
	return append(order, last...)
}

// passOver marks b as out of reach. That is logged where it is new.
func (wx *client) passOver(b *base, cause string) {
	wx.mu.Lock()
	isNew := b.passedOver.IsZero()
	b.passedOver = time.Now().Add(passOverTime)
	wx.mu.Unlock()
	if isNew {
		wx.log.Warn("WeChat is out of reach", "host", b.url.Host, "cause", cause)
	}
}

// ask sends the one GET to b. The error says why there was no connection, so that nothing can have been sent.
// It uses the Transport: http.Client would follow redirects, and put the URL with the AppSecret into its errors.
func (wx *client) ask(ctx context.Context, b *base, query string) (user, *failure, error) {
	u := b.url
	u.RawQuery = query
	connected := false
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		connected = true
		info.Conn.SetDeadline(time.Time{}) // connecting has ended
		wx.mu.Lock()
		b.passedOver = time.Time{}
		wx.mu.Unlock()
	}}
	request := &http.Request{Method: http.MethodGet, URL: &u, Header: http.Header{}}
	resp, err := b.transport.RoundTrip(request.WithContext(httptrace.WithClientTrace(ctx, trace)))
	if err != nil && !connected {
		return user{}, nil, err
	} else if err != nil {
		return user{}, b.broken(ctx, "before a reply"), nil
	}
	defer resp.Body.Close()
	var body []byte
	if resp.StatusCode != http.StatusSwitchingProtocols { // its body is the bare connection, without an end
		body, err = io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	}
	if err != nil && (resp.StatusCode == http.StatusOK || ctx.Err() == context.Canceled) {
		return user{}, b.broken(ctx, "in the middle of the reply"), nil
	}
	got, f := b.parseReply(resp.StatusCode, body)
	return got, f, nil
}

// broken is the failure of an exchange that was sent, and had no whole reply. No error is quoted in it: it might quote
// WeChat.
func (b *base) broken(ctx context.Context, when string) *failure {
	switch ctx.Err() {
	case nil:
		return &failure{word: "wechat_unreachable",
			cause: b.name() + ": the connection broke " + when + ": call wx.login again"}
	case context.Canceled:
		return hungUp
	}
	return &failure{word: "wechat_timeout",
		cause: "WeChat is slow: no whole reply from " + b.name() + " within WX_TIMEOUT: raise it"}
}

// name is the host of b, and the proxy on the way there, if there is one.
func (b *base) name() string {
	if b.proxy == nil {
		return b.url.Host
	}
	return b.url.Host + " through the proxy " + b.proxy.Host
}

// parseReply returns the user in a reply of b. HTTP 200 and errcode 0 are not success: an openid
// is. The session_key is not decoded.
func (b *base) parseReply(status int, body []byte) (user, *failure) {
	object := struct {
		user
		ErrCode json.Number `json:"errcode"` // a number, a number in a string, or null
		ErrMsg  string      `json:"errmsg"`
	}{ErrCode: "0"}
	err := json.Unmarshal(body, &object)
	number, _ := object.ErrCode.Float64()
	what := "a reply without an openid"
	switch { // the first that holds is the reason
	case status != http.StatusOK:
		what = fmt.Sprintf("HTTP status %d, not 200", status)
	case len(body) > maxReply:
		what = "a reply of over 64 KiB"
	case number != 0 && number == float64(int64(number)):
		return user{}, refusal(int64(number), object.ErrMsg)
	case err != nil || number != 0:
		what = "a reply that is not the JSON object that WeChat sends"
	case object.OpenID != "":
		return object.user, nil
	}
	return user{}, &failure{word: "wechat_error",
		cause: b.name() + " gave " + what + ": check what WX_BASE_URL, or a proxy, leads to"}
}

var ridPattern = regexp.MustCompile(`\brid: [0-9a-f]{8}-[0-9a-f]{8}-[0-9a-f]{8}\b`)
var ipPattern = regexp.MustCompile(`\binvalid ip [^ ,]+`)

// refusal returns the failure for an errcode. For 40164 it names the address that WeChat saw.
func refusal(errcode int64, errmsg string) *failure {
	row := errcodes[errcode]
	cause := fmt.Sprintf("errcode %d: %s", errcode, cmp.Or(row.remedy, "look it up at developers.weixin.qq.com"))
	ip, err := netip.ParseAddr(strings.TrimPrefix(ipPattern.FindString(errmsg), "invalid ip "))
	if errcode == 40164 && err == nil && ip.Zone() == "" {
		cause += "; WeChat saw the address " + ip.String()
	}
	rid := strings.TrimPrefix(ridPattern.FindString(errmsg), "rid: ")
	return &failure{word: cmp.Or(row.word, "wechat_error"), errcode: errcode, rid: rid, cause: cause}
}

// noConnection says who is to blame for an error of connecting, what it said, and the remedy. Nothing was sent yet, so
// the error may be quoted.
func (b *base) noConnection(err error) string {
	variable, what, host := proxyVariable(os.Getenv, b.url.Scheme), said(err), b.url.Hostname()
	op, _ := errors.AsType[*net.OpError](err)
	ofProxy := op != nil && op.Op == "proxyconnect" // on the way to it, and not through it

	switch { // the first that holds is the reason
	case noDescriptor(err):
		return "this machine has no file descriptor left: raise LimitNOFILE (ulimit -n), or lower MAX_CONNS"
	case b.proxy != nil && unreached(err):
		return "the proxy " + b.proxy.Host + " cannot be reached (" + what + "): start it, or fix " + variable
	case errors.As(err, new(*tls.CertificateVerificationError)) && !ofProxy:
		cause := host + ": " + what + ": check this machine's clock and CA certificates, and what WX_BASE_URL leads to"
		if b.proxy != nil {
			cause += "; a proxy that intercepts TLS needs its CA here"
		}
		return cause
	case b.proxy != nil:
		remedy := "check its rules and its node, and the scheme in " + variable + " (http://, socks5:// for SOCKS)"
		if wantsPassword.MatchString(what) {
			remedy = "check user and password in " + variable
		}
		return "the proxy " + b.proxy.Host + " gives no connection to " + b.target + " (" + what + "): " + remedy
	case errors.As(err, new(*net.DNSError)):
		return host + ": " + what + ": check DNS, and the name in WX_BASE_URL"
	}
	return b.target + ": " + what + ": check the firewall, what WX_BASE_URL leads to, and whether you need " + variable
}

// said is what err says, without addresses and times, so that equal causes are equal.
func said(err error) string {
	invalid, _ := errors.AsType[x509.CertificateInvalidError](err)
	last := err
	for next := err; next != nil; next = errors.Unwrap(next) {
		last = next
	}
	_, isSystem := last.(syscall.Errno)
	switch { // the first that holds is the reason
	case errors.As(err, new(*net.DNSError)):
		return "the name lookup failed or took too long"
	case os.IsTimeout(err), errors.Is(err, syscall.EHOSTUNREACH): // which the system says after some seconds
		return "no answer in time"
	case errors.As(err, new(x509.SystemRootsError)):
		return "the CA certificates cannot be read"
	case isSystem && !unreached(err), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection closed"
	case invalid.Reason == x509.Expired:
		return "the certificate has expired or is not yet valid"
	case strings.Contains(last.Error(), "malformed"): // it quotes the proxy
		return "no HTTP"
	}
	return strings.TrimPrefix(last.Error(), "unknown error ") // of net/http's SOCKS
}

// unreached reports whether err is a dialer's: there was no TCP connection. (One that is reset at once was there.)
func unreached(err error) bool {
	for op, ok := errors.AsType[*net.OpError](err); ok; op, ok = errors.AsType[*net.OpError](op.Err) {
		if op.Op == "dial" {
			return !errors.Is(op, syscall.ECONNRESET)
		}
	}
	return false
}

// noDescriptor looks at the text, since an error of a name lookup has nothing else.
func noDescriptor(err error) bool { return strings.Contains(err.Error(), "too many open files") }

// wantsPassword finds what a proxy says that wants another user and password. net/http's SOCKS has texts alone.
var wantsPassword = regexp.MustCompile("^status 40[17]$|authentication|username/password")
