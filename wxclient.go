package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

const (
	passOverTime = 30 * time.Second // how long a base URL that is out of reach is passed over
	retryTime    = 5 * time.Second  // how long the one exchange that tries it again may take
	maxReply     = 64 << 10         // bytes; WeChat's replies have some 150
	checkNetwork = "check DNS, the firewall, HTTPS_PROXY and WX_BASE_URL"
	changed      = "something on the way to WeChat changes the query: check HTTPS_PROXY and WX_BASE_URL"
)

// A failure says why there is no openid. Its texts are this program's own or the operating
// system's: no URL, AppSecret, code or session_key can be in them.
type failure struct {
	word    string // the "error" of the answer, a key of answers
	errcode int64  // WeChat's, or 0
	rid     string // WeChat's id of the request, or empty
	cause   string // for the operator who reads the log: the culprit, then what to do
	message string // for the caller, where the message in answers does not fit
}

func (f *failure) Error() string { return f.word + ": " + f.cause }

// errcodes are the errcodes with a meaning here, from WeChat's global list, users' reports and
// developers.weixin.qq.com/miniprogram/dev/server/API/user-login/api_code2session.
var errcodes = map[int64]struct{ word, remedy string }{
	40029: {word: "invalid_code", remedy: "the code is unknown: compare WX_APPID with the mini program's AppID"},
	40163: {word: "code_used", remedy: "the code has been used: call wx.login for every request"},
	40226: {word: "user_blocked", remedy: "WeChat considers the user high-risk: only WeChat's support can lift that"},
	45011: {word: "rate_limited", remedy: "this user logs in too often: try again in a minute"},
	40013: {word: "misconfigured", remedy: "WeChat does not know WX_APPID: copy the AppID again from " + console},
	40125: {word: "misconfigured", remedy: "the AppSecret is not that of WX_APPID: find the right one, since " +
		"mp.weixin.qq.com shows none again, or reset it at " + console + ", which ends the old one everywhere"},
	40164: {word: "misconfigured", remedy: "add this machine's public address to IP白名单 (the allowlist) at " + console},
	40243: {word: "misconfigured", remedy: "the AppSecret is frozen: unfreeze it at " + console},
	41002: {word: "misconfigured", remedy: "no AppID arrived, so " + changed},
	41004: {word: "misconfigured", remedy: "no AppSecret arrived, so " + changed},
	41008: {word: "misconfigured", remedy: "no code arrived, so " + changed},
	40002: {word: "misconfigured", remedy: "another grant_type arrived, so " + changed},
	48001: {word: "misconfigured", remedy: "the account of WX_APPID may not use this API: see " + apiRights},
	50002: {word: "misconfigured", remedy: "the account of WX_APPID is restricted: read 通知中心 at mp.weixin.qq.com"},
	-1:    {word: "wechat_busy", remedy: "WeChat is busy: try again in a moment"},
	45009: {word: "quota_exceeded", remedy: "the day's quota is used up: see " + apiRights},
}

// A user is whom a code belongs to. A unionid needs a mini program that is bound to an Open Platform account.
type user struct {
	OpenID  string `json:"openid"`
	UnionID string `json:"unionid,omitempty"`
}

// A client exchanges codes for users. It has the AppSecret in query and nowhere else.
type client struct {
	transport *http.Transport
	bases     []*base
	query     string        // of every request, up to the code
	slots     chan struct{} // one for each exchange under way
	timeout   time.Duration // of one exchange
	log       *slog.Logger
}

func newClient(c config, transport *http.Transport, log *slog.Logger) *client {
	query := url.Values{"appid": {c.appID}, "secret": {c.appSecret}, "grant_type": {"authorization_code"}}
	wx := &client{
		transport: transport,
		query:     query.Encode() + "&js_code=",
		slots:     make(chan struct{}, c.maxInflight),
		timeout:   c.timeout,
		log:       log,
	}
	for _, u := range c.baseURLs {
		wx.bases = append(wx.bases, &base{url: *u.JoinPath("/").JoinPath(wechatPath)})
	}
	return wx
}

// openID exchanges code for its user. WeChat sees one request at most. The error is a *failure.
func (wx *client) openID(ctx context.Context, code string) (user, error) {
	select {
	case wx.slots <- struct{}{}:
		defer func() { <-wx.slots }()
	default:
		return user{}, &failure{word: "overloaded", cause: "MAX_INFLIGHT is reached: raise it, or add an instance"}
	}
	ctx, cancel := context.WithTimeout(ctx, wx.timeout)
	defer cancel()
	query := wx.query + url.QueryEscape(code)
	f, culprits := &failure{}, []string{}
	for _, b := range wx.inOrder() {
		x, start := &exchange{base: b}, time.Now()
		status, body, err := x.get(ctx, wx.transport, query)
		if err == nil {
			return parseReply(status, body, query)
		}
		word, culprit, remedy := wx.explain(ctx.Err(), x, err)
		if !slices.Contains(culprits, culprit) { // a proxy fails for all base URLs alike
			culprits = append(culprits, culprit)
		}
		f.word, f.cause = word, strings.Join(culprits, "; ")+": "+remedy
		if word == "wechat_timeout" {
			start = start.Add(-wx.timeout) // if x only waited for a free connection, others got theirs since then
		}
		if word != "client_closed_request" && b.passOver(start) {
			wx.log.Warn("WeChat is out of reach", "host", b.url.Host, "cause", f.cause)
		}
		if x.connected || word != "wechat_unreachable" {
			break
		}
	}
	return user{}, f
}

// A base is a base URL of WeChat's API. Its times are Unix nanoseconds.
type base struct {
	url       url.URL      // of jscode2session, without a query
	connected atomic.Int64 // when an exchange last got a connection to it
	retryAt   atomic.Int64 // until when it is passed over, or 0
}

// inOrder returns the base URLs to try, with those that are passed over at the end. When the time of
// one is up, a single exchange tries it, and the others pass it over until there is a connection.
func (wx *client) inOrder() (order []*base) {
	var last []*base
	for _, b := range wx.bases {
		at, now := b.retryAt.Load(), time.Now()
		if at == 0 || at < now.UnixNano() && b.retryAt.CompareAndSwap(at, now.Add(retryTime).UnixNano()) {
			order = append(order, b)
		} else {
			last = append(last, b)
		}
	}
	return append(order, last...)
}

// passOver marks b as out of reach, unless an exchange got a connection since then, and reports if that is new.
func (b *base) passOver(since time.Time) bool {
	return b.connected.Load() < since.UnixNano() && b.retryAt.Swap(time.Now().Add(passOverTime).UnixNano()) == 0
}

// An exchange is one GET to one base URL.
type exchange struct {
	base      *base
	connected bool // from here on a byte may have reached WeChat
}

// gotConn is called when there is a connection for x, before anything is sent.
func (x *exchange) gotConn(httptrace.GotConnInfo) {
	x.connected = true
	x.base.connected.Store(time.Now().UnixNano())
	x.base.retryAt.Store(0)
}

// get returns the status of the reply, and its body if that is 200. It uses the Transport:
// http.Client would follow redirects, and put the URL with the AppSecret into its errors.
func (x *exchange) get(ctx context.Context, t *http.Transport, query string) (status int, body []byte, err error) {
	u := x.base.url
	u.RawQuery = query
	// net/http repeats a GET when a kept connection dies, but not one with a body that it cannot
	// rewind. This body is empty, and "identity" keeps net/http from sending it as chunks.
	request := &http.Request{Method: http.MethodGet, URL: &u, Header: http.Header{},
		Body: io.NopCloser(strings.NewReader("")), TransferEncoding: []string{"identity"}}
	trace := &httptrace.ClientTrace{GotConn: x.gotConn}
	resp, err := t.RoundTrip(request.WithContext(httptrace.WithClientTrace(ctx, trace)))
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		body, err = io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	}
	return resp.StatusCode, body, err
}

// explain says what an error of x.get means. Once connected it never quotes err, which may quote WeChat.
func (wx *client) explain(ended error, x *exchange, err error) (word, culprit, remedy string) {
	host := x.base.url.Host
	word, culprit, remedy = "wechat_unreachable", fmt.Sprintf("%s: %v", host, err), checkNetwork
	switch proxy, _ := wx.transport.Proxy(&http.Request{URL: &x.base.url}); {
	case ended == context.Canceled:
		return "client_closed_request", "the caller hung up before WeChat answered", "look at its timeout"
	case ended != nil && !x.connected && proxy != nil:
		return "wechat_timeout", "no connection through proxy " + proxy.Host + " within WX_TIMEOUT", "check HTTPS_PROXY"
	case ended != nil:
		return "wechat_timeout", host + ": no whole reply within WX_TIMEOUT", "raise it, or " + checkNetwork
	case x.connected:
		culprit = host + ": the connection broke before a whole HTTP reply came"
	case proxy != nil:
		culprit, remedy = fmt.Sprintf("no connection through the proxy %s: %v", proxy.Host, err), "check HTTPS_PROXY"
	case errors.As(err, new(*tls.CertificateVerificationError)):
		remedy = "check this machine's clock and CA certificates, and what WX_BASE_URL leads to"
	}
	return word, culprit, remedy
}

// parseReply returns the user in a reply to query. HTTP 200 and errcode 0 are not success: an openid
// is. The session_key is not decoded.
func parseReply(status int, body []byte, query string) (user, error) {
	reply := struct {
		user
		ErrCode json.Number `json:"errcode"` // a number, a number in a string, or null
		ErrMsg  string      `json:"errmsg"`
	}{ErrCode: "0"}
	err := json.Unmarshal(body, &reply)
	number, _ := reply.ErrCode.Float64()
	what := "a reply without an openid"
	switch {
	case status != http.StatusOK:
		what = fmt.Sprintf("HTTP status %d, not 200", status)
	case len(body) > maxReply:
		what = "a reply of over 64 KiB"
	case number != 0 && number == float64(int64(number)):
		return user{}, refusal(int64(number), reply.ErrMsg, query)
	case err != nil || number != 0:
		what = "a reply that is not the JSON object that WeChat sends"
	case reply.OpenID != "":
		return reply.user, nil
	}
	return user{}, &failure{word: "wechat_error", cause: what + ": check what WX_BASE_URL, or a proxy, leads to"}
}

var ridPattern = regexp.MustCompile(`\brid: ([0-9a-f]{8}-[0-9a-f]{8}-[0-9a-f]{8})\b`)
var ipPattern = regexp.MustCompile(`\binvalid ip ([^ ,]+)`)

// refusal returns the failure for an errcode. For 40164 it names the address that WeChat saw.
func refusal(errcode int64, errmsg, query string) error {
	row := errcodes[errcode]
	f := &failure{word: cmp.Or(row.word, "wechat_error"), errcode: errcode, rid: find(ridPattern, errmsg, query)}
	f.cause = fmt.Sprintf("errcode %d: %s", errcode, cmp.Or(row.remedy, "look it up at developers.weixin.qq.com"))
	if ip, err := netip.ParseAddr(find(ipPattern, errmsg, query)); err == nil && ip.Zone() == "" {
		f.cause = strings.Replace(f.cause, "this machine's public address", ip.String()+", which WeChat saw,", 1)
	}
	return f
}

// find returns the group of pattern in errmsg, unless it is an echo of the query.
func find(pattern *regexp.Regexp, errmsg, query string) string {
	if m := pattern.FindStringSubmatch(errmsg); m != nil && !strings.Contains(query, url.QueryEscape(m[1])) {
		return m[1]
	}
	return ""
}
