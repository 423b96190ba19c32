package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	connectTimeout = 2 * time.Second  // without a connection for so long, the next base URL is tried
	passOver       = 30 * time.Second // how long a base URL that could not be reached is left alone
	idleTimeout    = 90 * time.Second // how long an unused connection is kept
	maxReply       = 64 << 10         // bytes; WeChat's replies have some 150
)

// A fault is the way in which an exchange with WeChat failed.
type fault int

const (
	refused      fault = iota // WeChat answered with an errcode
	badReply                  // WeChat answered with neither an errcode nor an openid
	noConnection              // no base URL could be reached: the code is still good
	broken                    // a connection broke before the whole reply was read
	timedOut                  // WX_TIMEOUT was over
	hungUp                    // the caller was gone first
	overloaded                // MAX_INFLIGHT exchanges are under way: the code is still good
)

// An exchangeError says why there is no openid. Its texts are this program's own,
// with hosts that the operator set and numbers, and nothing else that was sent or
// received: no URL, AppSecret, code or session_key can be in it.
type exchangeError struct {
	fault   fault
	errcode int64  // WeChat's if it refused, else 0
	rid     string // WeChat's id of the request if it refused and gave one
	cause   string // for the log
}

// A user is whom a code belongs to, by opaque ids. There is a UnionID only where
// the mini program is bound to an Open Platform account.
type user struct {
	OpenID  string `json:"openid"`
	UnionID string `json:"unionid,omitempty"`
}

// A client asks WeChat's jscode2session. What it has of the AppSecret is in query.
type client struct {
	transport *http.Transport
	bases     []*base
	query     string        // of every request, up to the value of js_code
	slots     chan struct{} // filled by the exchanges under way
	timeout   time.Duration
	log       *slog.Logger
}

// A base is a place where WeChat is.
type base struct {
	url   url.URL      // of jscode2session, without a query
	conns atomic.Int64 // how often a connection to it was had
	down  atomic.Int64 // until when to pass it over, as Unix ns; 0 if it is not
}

func newClient(c config, log *slog.Logger) *client {
	values := url.Values{"appid": {c.appID}, "secret": {c.appSecret}, "grant_type": {"authorization_code"}}
	wx := &client{
		transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: connectTimeout}).DialContext, // and so no HTTP/2
			TLSHandshakeTimeout:    connectTimeout,
			DisableCompression:     true,
			MaxIdleConnsPerHost:    c.maxInflight,
			IdleConnTimeout:        idleTimeout,
			MaxResponseHeaderBytes: maxReply,
			ReadBufferSize:         1 << 10, // for less memory: a reply fits
			WriteBufferSize:        2 << 10, // and so does a request of maxText parts
		},
		query:   values.Encode() + "&js_code=",
		slots:   make(chan struct{}, c.maxInflight),
		timeout: c.timeout,
		log:     log,
	}
	for _, u := range c.baseURLs {
		if isPlain(u) {
			log.Warn("the AppSecret travels unencrypted: WX_BASE_URL should begin with https", "host", u.Host)
		}
		u = u.JoinPath("/").JoinPath("sns/jscode2session") // alone, the latter leaves out a first slash
		wx.bases = append(wx.bases, &base{url: *u})
	}
	return wx
}

// openID exchanges code for its user. WeChat may have seen one request at most.
func (wx *client) openID(caller context.Context, code string) (user, *exchangeError) {
	select {
	case wx.slots <- struct{}{}:
		defer func() { <-wx.slots }()
	default:
		return user{}, &exchangeError{fault: overloaded, cause: "MAX_INFLIGHT is reached"}
	}
	deadline := time.Now().Add(wx.timeout)
	query := wx.query + url.QueryEscape(code)
	var err *exchangeError
	for i, b := range wx.inOrder() {
		var body []byte
		conns := b.conns.Load()
		if body, err = wx.get(caller, deadline, b, query); err == nil {
			return parseReply(body, query)
		}
		if b.conns.Load() == conns && (err.fault == noConnection || err.fault == timedOut && i == 0) {
			if b.down.Swap(time.Now().Add(passOver).UnixNano()) == 0 {
				wx.log.Warn("WeChat is out of reach", "host", b.url.Host, "cause", err.cause)
			}
		}
		if err.fault != noConnection {
			break
		}
	}
	return user{}, err
}

// inOrder returns the bases to try, with those to pass over at the end. When the
// time of one is up, a single caller tries it, and no other until it has given up.
func (wx *client) inOrder() []*base {
	var first, last []*base
	for _, b := range wx.bases {
		down := b.down.Load()
		if down == 0 || down < time.Now().UnixNano() && b.down.CompareAndSwap(down, time.Now().Add(connectTimeout+time.Second/2).UnixNano()) {
			first = append(first, b)
		} else {
			last = append(last, b)
		}
	}
	return append(first, last...)
}

// get asks b and returns the body of a reply with status 200. It goes past
// http.Client, which follows redirects and puts the URL into its errors.
func (wx *client) get(caller context.Context, deadline time.Time, b *base, query string) ([]byte, *exchangeError) {
	ctx, cancel := context.WithCancel(caller)
	defer cancel()
	a := &attempt{base: b, log: wx.log, cancel: cancel, deadline: deadline}
	a.timer = time.AfterFunc(min(connectTimeout, time.Until(deadline)), cancel)
	defer a.timer.Stop()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:      a.gotConn,
		WroteHeaders: func() { a.sent.Store(true) }, // to a buffer, before they are on the wire
	})
	u := b.url
	u.RawQuery = query
	resp, err := wx.transport.RoundTrip((&http.Request{Method: http.MethodGet, URL: &u, Header: http.Header{}}).WithContext(ctx))
	if err != nil {
		return nil, a.explain(err, caller)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, &exchangeError{fault: badReply, cause: fmt.Sprintf("WeChat answered with HTTP status %d", resp.StatusCode)}
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	if err != nil {
		return nil, a.explain(err, caller)
	}
	return body, nil
}

// An attempt is one request to one base, watched through httptrace.
type attempt struct {
	*base
	log       *slog.Logger
	cancel    context.CancelFunc
	deadline  time.Time
	timer     *time.Timer // cancels it: for want of a connection first, at the deadline then
	connected atomic.Bool // there was a connection for it
	sent      atomic.Bool // some of it may be on the wire
}

// gotConn is called with a connection to which nothing was written yet.
func (a *attempt) gotConn(got httptrace.GotConnInfo) {
	inTime := a.timer.Reset(time.Until(a.deadline))
	a.conns.Add(1)
	if a.down.Load() != 0 && a.down.Swap(0) != 0 {
		a.log.Info("WeChat is within reach again", "host", a.url.Host)
	}
	if !inTime || a.sent.Load() {
		// It came too late; or a kept connection died without a reply and net/http is about to
		// repeat the GET, though WeChat may have used the code. Nothing can be written to a
		// closed connection, and a cancelled request is not repeated again.
		a.cancel()
		got.Conn.Close()
		return
	}
	a.connected.Store(true)
}

// explain says what went wrong, of which err is what net/http knows.
func (a *attempt) explain(err error, caller context.Context) *exchangeError {
	e := &exchangeError{fault: broken, cause: a.url.Host + ": " + describe(err, a.connected.Load())}
	switch {
	case caller.Err() != nil:
		e.fault, e.cause = hungUp, "the caller hung up"
	case !time.Now().Before(a.deadline):
		e.fault, e.cause = timedOut, a.url.Host+": no whole reply within WX_TIMEOUT"
	case !a.connected.Load():
		e.fault = noConnection
	}
	return e
}

// describe says what err is, and never in err's own words: they may be WeChat's.
func describe(err error, connected bool) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	switch {
	case errors.As(err, new(*net.DNSError)):
		return "its name cannot be resolved"
	case errors.As(err, new(x509.UnknownAuthorityError)):
		return "no authority known here has signed its certificate (are CA certificates installed?)"
	case errors.As(err, new(*tls.CertificateVerificationError)):
		return "its certificate has expired, is for another name or is otherwise not valid"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), connected && errors.Is(err, context.Canceled):
		return "the connection was closed early"
	case connected:
		return "the reply is not HTTP"
	case errors.As(err, new(net.Error)), errors.Is(err, context.Canceled):
		return "no connection in time"
	}
	return "no TLS connection, or none through the proxy"
}

// A reply is what is read of WeChat's: its session_key is not. The names in capitals are
// there for encoding/json, which would else put Openid and its like where openid belongs.
type reply struct {
	OPENID, UNIONID, ERRCODE, ERRMSG json.RawMessage

	OpenID  string      `json:"openid"`
	UnionID any         `json:"unionid"`
	ErrCode json.Number `json:"errcode"` // a number, a number in a string, or null
	ErrMsg  any         `json:"errmsg"`
}

var ridPattern = regexp.MustCompile(`\brid: ([0-9a-f]{8}-[0-9a-f]{8}-[0-9a-f]{8})\b`)

// parseReply returns the user of a reply to query. HTTP 200 and errcode 0 are not
// success: an openid is.
func parseReply(body []byte, query string) (user, *exchangeError) {
	r := reply{ErrCode: "0"}
	err := json.Unmarshal(body, &r)
	number, _ := r.ErrCode.Float64()
	errcode := int64(number)
	switch {
	case len(body) > maxReply:
		return user{}, &exchangeError{fault: badReply, cause: "WeChat's reply is over 64 KiB"}
	case errcode != 0 && float64(errcode) == number:
		e := &exchangeError{fault: refused, errcode: errcode, cause: fmt.Sprintf("WeChat refused with errcode %d", errcode)}
		errmsg, _ := r.ErrMsg.(string)
		if m := ridPattern.FindStringSubmatch(errmsg); m != nil && !strings.Contains(query, m[1]) {
			e.rid = m[1] // and no echo of what was sent
		}
		return user{}, e
	case err != nil, number != 0:
		return user{}, &exchangeError{fault: badReply, cause: "WeChat's reply is not the JSON object that it should be"}
	case r.OpenID == "":
		return user{}, &exchangeError{fault: badReply, cause: "WeChat's reply has no openid"}
	}
	unionID, _ := r.UnionID.(string)
	return user{OpenID: r.OpenID, UnionID: unionID}, nil
}
