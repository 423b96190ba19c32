package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path"
	"regexp"
	"strings"
	"time"
)

const (
	maxBody     = 4096             // bytes
	maxCode     = 128              // bytes
	bodyTimeout = 15 * time.Second // for a body to arrive
)

// A failure is what an answer without an openid says, to each of its readers.
type failure struct {
	status     int
	Word       string `json:"error"` // for programs: stable
	retryAfter string // seconds, or empty
	Message    string `json:"message"` // for the developer who gets the answer: what to do
	hint       string // for the operator who reads the log: what to mend, or empty
}

// refusals are the errcodes of WeChat's that mean something here.
var refusals = map[int64]failure{
	40029: {400, "invalid_code", "", "WeChat does not know this code: send what wx.login gave, unchanged and within 5 minutes, to a service that has the mini program's AppID.", ""},
	40163: {400, "code_used", "", "A code works once and this one has been used: call wx.login again for every request.", ""},
	40226: {403, "user_blocked", "", "WeChat blocks this user's login because of a high risk: tell the user so, for another attempt does not help.", ""},
	45011: {429, "rate_limited", "60", "This user logs in more often than WeChat allows: wait a minute before calling wx.login again.", ""},
	40013: {500, "misconfigured", "", badSettings, "WX_APPID is no AppID that WeChat knows: copy it anew from " + console},
	40125: {500, "misconfigured", "", badSettings, "WX_APPSECRET (or WX_APPSECRET_FILE) is not the AppSecret of WX_APPID: copy or reset it at " + console},
	40164: {500, "misconfigured", "", badSettings, "this machine's IP address is not on the mini program's API allowlist: add it to IP白名单 at " + console},
	40243: {500, "misconfigured", "", badSettings, "the AppSecret of WX_APPSECRET is frozen: lift that at " + console},
	41002: {500, "misconfigured", "", badSettings, "WeChat got no AppID: check WX_APPID, and what WX_BASE_URL leads to"},
	41004: {500, "misconfigured", "", badSettings, "WeChat got no AppSecret: check WX_APPSECRET, and what WX_BASE_URL leads to"},
	48001: {500, "misconfigured", "", badSettings, "the account of WX_APPID may not use this API: look at mp.weixin.qq.com, 开发 → 开发管理 → 接口设置"},
	50002: {500, "misconfigured", "", badSettings, "the account of WX_APPID is limited: read its notices at mp.weixin.qq.com, 通知中心"},
	-1:    {503, "wechat_busy", "1", "WeChat is busy: wait a second, then call wx.login again.", ""},
	45009: {503, "quota_exceeded", "", "The mini program's quota of WeChat's API is used up for today: try again tomorrow, or ask the service's operator.", "the daily quota is used up: look at mp.weixin.qq.com, 开发 → 开发管理 → 接口设置"},
}

// faults are the ways to fail without one of these errcodes.
var faults = map[fault]failure{
	refused:      {502, "wechat_error", "", badAnswer, "an errcode without a meaning here: look it up at developers.weixin.qq.com"},
	badReply:     {502, "wechat_error", "", badAnswer, "check what WX_BASE_URL, or a proxy, leads to"},
	noConnection: {502, "wechat_unreachable", "", outOfReach, "check DNS, firewall, HTTPS_PROXY and WX_BASE_URL"},
	broken:       {502, "wechat_unreachable", "", outOfReach, ""},
	timedOut:     {504, "wechat_timeout", "", "WeChat did not answer in time: call wx.login again, since this code may have been used.", ""},
	overloaded:   {503, "overloaded", "1", "The service is at its limit: send the same code again in a second.", "raise it, or start another copy"},
	hungUp:       {499, "hung_up", "", "", ""}, // for the log alone: nobody is there to answer to
}

const (
	badSettings = "WeChat refuses this service's settings: ask its operator, whose log says what to mend."
	badAnswer   = "WeChat gave an answer that this service cannot use: call wx.login again, and if that does not help, ask the service's operator."
	outOfReach  = "This service cannot reach WeChat: call wx.login again in a moment, and if that does not help, ask the service's operator."
)

var (
	bodyTooLarge     = failure{413, "body_too_large", "", `The body is over 4096 bytes: send {"code":"…"} and no more.`, "the body is over 4096 bytes"}
	notFound         = failure{404, "not_found", "", "There is nothing at this path: use POST /openid, or GET /healthz.", "there is nothing at this path"}
	methodNotAllowed = failure{405, "method_not_allowed", "", "This path takes no such method: use one that the Allow header names.", "this path takes no such method"}
)

func invalidRequest(why string) failure {
	return failure{400, "invalid_request", "", why + `: send {"code":"…"} with what wx.login gave.`, why}
}

// failureOf returns the row for e, with e's cause before the hint.
func failureOf(e *exchangeError) failure {
	f, ok := refusals[e.errcode]
	if !ok {
		f = faults[e.fault]
	}
	f.hint = strings.TrimSuffix(e.cause+": "+f.hint, ": ")
	return f
}

// An answer is what a request ends in: a failure, or 200 and a body.
type answer struct {
	failure
	ErrCode int64  `json:"errcode,omitempty"` // WeChat's, if it refused with one
	rid     string // WeChat's, or empty
	allow   string // the methods that the path takes, if this is no such method
	body    any
}

func ok(body any) answer { return answer{failure: failure{status: http.StatusOK}, body: body} }

type handler struct {
	closing context.Context // once done, answers end their connections
	wechat  *client
	appID   string
	log     *slog.Logger
}

// newHandler returns the service, whose answers end their connections once closing is done.
// A sandbox that is not nil is mounted where WeChat has jscode2session, without a log line.
func newHandler(closing context.Context, wechat *client, appID string, log *slog.Logger, sandbox http.Handler) http.Handler {
	h := &handler{closing, wechat, appID, log}
	always := func(a answer) http.Handler {
		return h.endpoint(func(http.ResponseWriter, *http.Request) answer { return a })
	}
	nothing := always(answer{failure: notFound})
	mux := http.NewServeMux()
	mux.Handle("POST /openid", h.endpoint(h.openID))
	mux.Handle("/openid", always(answer{failure: methodNotAllowed, allow: "POST"}))
	mux.Handle("GET /healthz", always(ok(map[string]string{"status": "ok"})))
	mux.Handle("/healthz", always(answer{failure: methodNotAllowed, allow: "GET, HEAD"}))
	mux.Handle("/", nothing)
	if sandbox != nil {
		mux.Handle("/sns/jscode2session", sandbox)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := r.URL.Path; !path.IsAbs(p) || path.Clean(p) != p {
			nothing.ServeHTTP(w, r) // where ServeMux would redirect to the clean path
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// openID is POST /openid: a code in, its openid out.
func (h *handler) openID(w http.ResponseWriter, r *http.Request) answer {
	code, bad := readCode(w, r)
	if bad.status != 0 {
		return answer{failure: bad}
	}
	u, err := h.wechat.openID(r.Context(), code)
	if err == nil {
		return ok(u)
	}
	a := answer{failure: failureOf(err), ErrCode: err.errcode, rid: err.rid}
	if message := h.mismatch(r, code); a.Word == "invalid_code" && message != "" {
		a.Word, a.Message = "appid_mismatch", message
	}
	return a
}

// readCode returns the code in the body of r, or the failure to answer with.
func readCode(w http.ResponseWriter, r *http.Request) (string, failure) {
	if r.ContentLength > maxBody {
		w.Header().Set("Connection", "close") // else net/http waits for the body before it answers
		return "", bodyTooLarge
	}
	conn := http.NewResponseController(w)
	conn.SetReadDeadline(time.Now().Add(bodyTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err == nil {
		conn.SetReadDeadline(time.Time{}) // its end would look as if the caller hung up
	}
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return "", bodyTooLarge
	}
	var request struct {
		CODE json.RawMessage // takes Code and its like, which encoding/json would take for code
		Code string          `json:"code"`
	}
	switch {
	case err != nil:
		return "", invalidRequest("The body did not arrive whole")
	case json.Unmarshal(body, &request) != nil:
		return "", invalidRequest("The body is not a JSON object with a string code")
	case request.Code == "":
		return "", invalidRequest("There is no code in the body")
	case len(request.Code) > maxCode || strings.ContainsFunc(request.Code, func(r rune) bool { return r < ' ' || r > '~' }):
		return "", invalidRequest("The code is not 1 to 128 ASCII characters from space to ~")
	}
	return request.Code, failure{}
}

// pageReferer finds the AppID in the Referer that WeChat sets for mini programs
// (developers.weixin.qq.com/miniprogram/dev/api/network/request/wx.request.html).
var pageReferer = regexp.MustCompile(`^https://servicewechat\.com/([A-Za-z0-9_-]{1,20})/[^/]*/page-frame\.html$`)

// mismatch returns what to say of a code that comes from a mini program with
// another AppID than ours, or nothing where it does not.
func (h *handler) mismatch(r *http.Request, code string) string {
	m := pageReferer.FindStringSubmatch(r.Referer())
	switch {
	case m == nil, m[1] == h.appID, strings.Contains(m[1], code):
		return ""
	case m[1] == "touristappid":
		return fmt.Sprintf("The developer tools are in tourist mode (touristappid), whose codes WeChat does not know: give the project the AppID %s, or start this service with -sandbox.", h.appID)
	}
	return fmt.Sprintf("The mini program has the AppID %s and this service has %s: mend appid in project.config.json if the service is right, else WX_APPID and its AppSecret.", m[1], h.appID)
}

// endpoint makes f a handler: it writes the request's log line and f's answer.
func (h *handler) endpoint(f func(http.ResponseWriter, *http.Request) answer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start, id := time.Now(), requestID(r)
		a := f(w, r)
		h.logRequest(r, a, id, start)
		if a.status == faults[hungUp].status {
			panic(http.ErrAbortHandler) // else net/http answers 200, which a half-closed caller would read
		}
		if h.closing.Err() != nil {
			w.Header().Set("Connection", "close")
		}
		a.write(w, id)
		if a.status == bodyTooLarge.status {
			// A caller may read only when it has sent all: hear it out, but not for long.
			conn := http.NewResponseController(w)
			conn.Flush()
			conn.SetReadDeadline(time.Now().Add(time.Second))
			io.Copy(io.Discard, r.Body)
		}
	})
}

// requestID returns the caller's X-Request-Id if it is fit for a log, or a new one.
func requestID(r *http.Request) string {
	const fit = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
	id := r.Header.Get("X-Request-Id")
	if id == "" || len(id) > 64 || strings.Trim(id, fit) != "" {
		return rand.Text()
	}
	return id
}

// The values of the headers that all answers have.
var asJSON, noStore, noSniff = []string{"application/json; charset=utf-8"}, []string{"no-store"}, []string{"nosniff"}

func (a answer) write(w http.ResponseWriter, id string) {
	if a.Word != "" {
		a.body = a
	}
	body, _ := json.Marshal(a.body) // strings and numbers always marshal
	header := w.Header()
	header["Content-Type"], header["Cache-Control"], header["X-Content-Type-Options"] = asJSON, noStore, noSniff
	header.Set("X-Request-Id", id)
	if a.retryAfter != "" {
		header.Set("Retry-After", a.retryAfter)
	}
	if a.allow != "" {
		header.Set("Allow", a.allow)
	}
	w.WriteHeader(a.status)
	w.Write(append(body, '\n'))
}

func (h *handler) logRequest(r *http.Request, a answer, id string, start time.Time) {
	level := [6]slog.Level{2: slog.LevelInfo, 4: slog.LevelWarn, 5: slog.LevelError}[a.status/100]
	if a.status < 400 && r.URL.Path == "/healthz" {
		level = slog.LevelDebug
	}
	attrs := append(make([]slog.Attr, 0, 10),
		slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Int("status", a.status),
		slog.Duration("duration", time.Since(start)), slog.String("remote", r.RemoteAddr), slog.String("request_id", id))
	if a.Word != "" {
		attrs = append(attrs, slog.String("error", a.Word), slog.String("cause", a.hint))
	}
	if a.ErrCode != 0 {
		attrs = append(attrs, slog.Int64("errcode", a.ErrCode))
	}
	if a.rid != "" {
		attrs = append(attrs, slog.String("rid", a.rid))
	}
	h.log.LogAttrs(r.Context(), level, "request", attrs...)
}
