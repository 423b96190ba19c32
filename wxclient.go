package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
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
	maxReply     = 64 << 10         // bytes; WeChat's replies have some 150
	passOverTime = 30 * time.Second // how long a base URL that is out of reach is passed over

	hungUp  = "the caller hung up before WeChat answered: look at its timeout"
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
	cause   string // for the operator who reads the log: the culprit, then what to do
	message string // where the one in answers does not fit
}

// errcodes are the errcodes with a meaning here, from WeChat's global list, users' reports and
// developers.weixin.qq.com/miniprogram/dev/server/API/user-login/api_code2session.
var errcodes = map[int64]struct{ word, remedy string }{
	40029: {word: "invalid_code", remedy: "the code is unknown: compare WX_APPID with the mini program's AppID"},
	40163: {word: "code_used", remedy: "the code has been used: call wx.login for every request"},
	40226: {word: "user_blocked", remedy: "WeChat considers the user high-risk: only WeChat's support can lift that"},
	45011: {word: "rate_limited", remedy: "WeChat limits the calls of a minute: try again in a minute"},
	40013: {word: "misconfigured", remedy: "WeChat does not know WX_APPID: copy the AppID again from " + console},
	40125: {word: "misconfigured", remedy: "the AppSecret does not belong to WX_APPID. mp.weixin.qq.com does " +
		"not show an AppSecret again: if it is lost, reset it at " + console + ", which ends the old one everywhere; " +
		"after a change in WX_APPSECRET_FILE, restart"},
	40164: {word: "misconfigured", remedy: "add the address that WeChat saw to IP白名单 (the allowlist) at " +
		console + ", or its range if it changes from one login to the next; that takes minutes"},
	40243: {word: "misconfigured", remedy: "the AppSecret is frozen: unfreeze it at " + console +
		"; that takes ten minutes"},
	41002: {word: "misconfigured", remedy: "no AppID arrived, so " + changed},
	41004: {word: "misconfigured", remedy: "no AppSecret arrived, so " + changed},
	41008: {word: "misconfigured", remedy: "no code arrived, so " + changed},
	40002: {word: "misconfigured", remedy: "another grant_type arrived, so " + changed},
	43003: {word: "misconfigured", remedy: badURL},
	40066: {word: "misconfigured", remedy: badURL},
	48001: {word: "misconfigured", remedy: "WX_APPID's account may not use this API: see " + apiRights},
	50002: {word: "misconfigured", remedy: "WX_APPID's account is restricted: read 通知中心 at mp.weixin.qq.com"},
	-1:    {word: "wechat_busy", remedy: "WeChat is busy: try again in a moment"},
	45009: {word: "quota_exceeded", remedy: "the day's quota is used up. WeChat allows at most twice as many logins " +
		"a day as page views: keep a session instead of logging in at every start"},
}

// A user is whom a code belongs to. A unionid needs a mini program that is bound to an Open Platform account.
type user struct {
	OpenID  string `json:"openid"`
	UnionID string `json:"unionid,omitempty"`
}

// A client exchanges codes for users. It has the AppSecret in query and nowhere else.
type client struct {
	bases   []*base
	query   string        // of every request, up to the code
	slots   chan struct{} // one for each exchange under way, those in line included
	turns   chan struct{} // one for each exchange with WeChat; more would drown in TLS handshakes
	timeout time.Duration // of one exchange
	log     *slog.Logger
}

func newClient(c config, baseURLs []*url.URL, log *slog.Logger) *client {
	query := url.Values{"appid": {c.appID}, "secret": {c.appSecret}, "grant_type": {"authorization_code"}}
	wx := &client{
		query:   query.Encode() + "&js_code=",
		slots:   make(chan struct{}, c.maxInflight),
		turns:   make(chan struct{}, max(256, c.maxInflight/4)),
		timeout: c.timeout,
		log:     log,
	}
	for _, u := range baseURLs {
		wx.bases = append(wx.bases, newBase(u, c.timeout/time.Duration(len(baseURLs)), cap(wx.turns)))
	}
	return wx
}

// openID exchanges code for its user.
func (wx *client) openID(ctx context.Context, code string) (user, *failure) {
	select {
	case wx.slots <- struct{}{}:
		defer func() { <-wx.slots }()
	default:
		return user{}, &failure{word: "overloaded", cause: "MAX_INFLIGHT is reached: raise it, or add an instance"}
	}
	deadline := time.Now().Add(wx.timeout)
	select {
	case wx.turns <- struct{}{}:
		defer func() { <-wx.turns }()
	case <-ctx.Done():
		return user{}, &failure{word: "client_closed_request", cause: hungUp}
	case <-time.After(wx.timeout / 2): // who gets a turn has the other half
		return user{}, &failure{word: "overloaded", cause: "all turns were taken for half of WX_TIMEOUT: WeChat is " +
			"slow, this machine has too little CPU, or MAX_INFLIGHT has to be raised"}
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	var causes []string
	for _, b := range wx.inOrder() {
		reply, connected, err := b.get(ctx, wx.query+url.QueryEscape(code))
		if err == nil {
			return parseReply(b, reply)
		}
		word, cause := b.explain(ctx.Err(), reply, connected, err)
		if !slices.Contains(causes, cause) { // a proxy fails for all base URLs alike
			causes = append(causes, cause)
		}
		if !connected && word != "client_closed_request" && b.passOver() {
			wx.log.Warn("WeChat is out of reach", "host", b.url.Host, "cause", cause)
		}
		if connected || ctx.Err() != nil {
			return user{}, &failure{word: word, cause: strings.Join(causes, "; ")}
		}
	}
	return user{}, &failure{word: "wechat_unreachable", cause: strings.Join(causes, "; ")}
}

// inOrder returns the base URLs to try, with those that are passed over at the end. When the time of
// one is up, a single exchange tries it, and the others go on to pass it over.
func (wx *client) inOrder() (order []*base) {
	var last []*base
	for _, b := range wx.bases {
		at, now := b.retryAt.Load(), time.Now()
		if at == 0 || at < now.UnixNano() && b.retryAt.CompareAndSwap(at, now.Add(wx.timeout).UnixNano()) {
			order = append(order, b)
		} else {
			last = append(last, b)
		}
	}
	return append(order, last...)
}

// passOver marks b as out of reach, and reports whether that is new.
func (b *base) passOver() bool { return b.retryAt.Swap(time.Now().Add(passOverTime).UnixNano()) == 0 }

// A reply is an HTTP reply of WeChat. The status is 0 if there is none, the body empty unless it is 200.
type reply struct {
	status int
	body   []byte
}

// get sends the one GET, and reports whether there was a connection, so that a byte may have reached WeChat.
// It uses the Transport: http.Client would follow redirects, and put the URL with the AppSecret into its errors.
func (b *base) get(ctx context.Context, query string) (r reply, connected bool, err error) {
	u := b.url
	u.RawQuery = query
	var lookingUp atomic.Bool
	trace := &httptrace.ClientTrace{
		DNSStart: func(httptrace.DNSStartInfo) { lookingUp.Store(true) },
		DNSDone:  func(httptrace.DNSDoneInfo) { lookingUp.Store(false) },
		GotConn:  func(httptrace.GotConnInfo) { connected = true; b.retryAt.Store(0) },
	}
	request := &http.Request{Method: http.MethodGet, URL: &u, Header: http.Header{}}
	resp, err := b.transport.RoundTrip(request.WithContext(httptrace.WithClientTrace(ctx, trace)))
	if err != nil && lookingUp.Load() {
		return r, connected, &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{IsTimeout: true}}
	} else if err != nil {
		return r, connected, err
	}
	defer resp.Body.Close()
	r.status = resp.StatusCode
	if r.status == http.StatusOK {
		r.body, err = io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	}
	return r, connected, err
}

// explain says what an error of get means: a word, and one sentence with the culprit, what it said, and the
// remedy. Once connected it never quotes err, which may quote WeChat.
func (b *base) explain(ended error, r reply, connected bool, err error) (word, cause string) {
	switch {
	case ended == context.Canceled:
		return "client_closed_request", hungUp
	case ended != nil && connected:
		return "wechat_timeout", b.url.Host + ": no whole reply within WX_TIMEOUT: WeChat" + b.through() +
			" is slow: raise WX_TIMEOUT"
	case ended != nil:
		return "wechat_timeout", b.noConnection(err)
	case !connected:
		return "wechat_unreachable", b.noConnection(err)
	case r.status != 0:
		return "wechat_unreachable", b.url.Host + b.through() + ": the connection broke in the middle of the reply: " +
			"call wx.login again"
	}
	return "wechat_unreachable", b.url.Host + b.through() + ": the connection broke before a reply: call wx.login again"
}

// through names the proxy on the way to b, or nothing.
func (b *base) through() string {
	if b.proxy == nil {
		return ""
	}
	return " through the proxy " + b.proxy.Host
}

// parseReply returns the user in a reply of b. HTTP 200 and errcode 0 are not success: an openid
// is. The session_key is not decoded.
func parseReply(b *base, r reply) (user, *failure) {
	object := struct {
		user
		ErrCode json.Number `json:"errcode"` // a number, a number in a string, or null
		ErrMsg  string      `json:"errmsg"`
	}{ErrCode: "0"}
	err := json.Unmarshal(r.body, &object)
	number, _ := object.ErrCode.Float64()
	what := "a reply without an openid"
	switch {
	case r.status != http.StatusOK:
		what = fmt.Sprintf("HTTP status %d, not 200", r.status)
	case len(r.body) > maxReply:
		what = "a reply of over 64 KiB"
	case number != 0 && number == float64(int64(number)):
		return user{}, refusal(int64(number), object.ErrMsg)
	case err != nil || number != 0:
		what = "a reply that is not the JSON object that WeChat sends"
	case object.OpenID != "":
		return object.user, nil
	}
	return user{}, &failure{word: "wechat_error",
		cause: b.url.Host + b.through() + " gave " + what + ": check what WX_BASE_URL, or a proxy, leads to"}
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
