package main

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

const (
	maxBody     = 4096             // bytes
	bodyTimeout = 15 * time.Second // for the body of a request to arrive

	fixAppID = "fix appid in project.config.json, or WX_APPID with its AppSecret"
)

// answers are the answers without an openid, by their "error". The message is for the developer who
// calls: what is wrong, then what to do. Some failures have a message of their own.
var answers = map[string]struct {
	status     int
	retryAfter string // seconds
	message    string
}{
	"invalid_request": {status: 400},
	"invalid_code": {status: 400, message: "WeChat does not know this code: send what wx.login gave, within " +
		"5 minutes, to a service that has the mini program's AppID."},
	"appid_mismatch":        {status: 400},
	"code_used":             {status: 400, message: "This code has been used: call wx.login again for every request."},
	"user_blocked":          {status: 403, message: "WeChat considers this user high-risk: tell the user so."},
	"not_found":             {status: 404, message: "There is nothing here: use POST /openid, or GET /healthz."},
	"method_not_allowed":    {status: 405},
	"body_too_large":        {status: 413, message: `The body is over 4096 bytes: send {"code":"…"} and no more.`},
	"rate_limited":          {status: 429, retryAfter: "60", message: "WeChat limits the calls: wait a minute."},
	"client_closed_request": {status: 499, message: "The connection was closed too early: keep it open."},

	"misconfigured":      {status: 500, message: "The service's settings are wrong: ask its operator to read its log."},
	"wechat_error":       {status: 502, message: "WeChat gave no usable answer: call wx.login again, or read the log."},
	"wechat_unreachable": {status: 502, message: "WeChat is out of reach: call wx.login again, or read the log."},
	"wechat_busy":        {status: 503, retryAfter: "1", message: "WeChat is busy: call wx.login again in a second."},
	"quota_exceeded":     {status: 503, message: "The day's quota is used up: keep a session between starts."},
	"overloaded":         {status: 503, retryAfter: "1", message: "The service is full: send this code again in 1 s."},
	"wechat_timeout":     {status: 504, message: "WeChat did not answer in time: call wx.login again for a new code."},
}

// A handler is the HTTP service.
type handler struct {
	wechat   *client
	appIDs   []string
	log      *slog.Logger
	sandbox  http.Handler // the fake WeChat, or nil
	stopping atomic.Bool  // if true, each answer closes its connection
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.sandbox != nil && r.URL.Path == wechatPath {
		h.sandbox.ServeHTTP(w, r)
		return
	}
	start, id, status := time.Now(), r.Header.Get("X-Request-Id"), http.StatusOK
	if !isASCII(id, '!') {
		id = rand.Text()
	}
	body, appID, f := h.route(w, r)
	header := w.Header()
	if f != nil {
		row := answers[f.word]
		status = row.status
		body = errorBody{Error: f.word, Message: cmp.Or(f.message, row.message), ErrCode: f.errcode}
		if row.retryAfter != "" {
			header.Set("Retry-After", row.retryAfter)
		}
	}
	if h.stopping.Load() {
		header.Set("Connection", "close")
	}
	header.Set("Content-Type", "application/json; charset=utf-8")
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Request-Id", id)
	h.logRequest(r, status, appID, f, id, start)
	text, _ := json.Marshal(body) // strings and numbers always marshal
	w.WriteHeader(status)
	w.Write(append(text, '\n'))
}

type errorBody struct {
	Error   string `json:"error"`
	Message string `json:"message"`
	ErrCode int64  `json:"errcode,omitempty"`
}

// route returns the body of a 200, or a failure; and the AppID that was chosen, where there are several.
func (h *handler) route(w http.ResponseWriter, r *http.Request) (any, string, *failure) {
	switch method, path := r.Method, r.URL.Path; {
	case path == "/openid" && method == http.MethodPost:
		return h.openID(w, r)
	case path == "/openid":
		w.Header().Set("Allow", "POST")
		return nil, "", &failure{word: "method_not_allowed",
			message: "/openid takes POST only: set method to POST, since wx.request uses GET by default."}
	case path == "/healthz" && (method == http.MethodGet || method == http.MethodHead):
		return map[string]string{"status": "ok"}, "", nil
	case path == "/healthz":
		w.Header().Set("Allow", "GET, HEAD")
		return nil, "", &failure{word: "method_not_allowed", message: "/healthz takes GET and HEAD only: use GET."}
	}
	return nil, "", &failure{word: "not_found"}
}

// openID exchanges the code for the AppID that the request names, where there are several, or else for the one.
func (h *handler) openID(w http.ResponseWriter, r *http.Request) (any, string, *failure) {
	code, named, f := h.readCode(w, r)
	if f != nil {
		return nil, "", f
	}
	appID, several := h.appIDs[0], len(h.appIDs) > 1
	switch {
	case several && named == "":
		return nil, "", invalid(`The request names no AppID: send {"code":"…","appid":"…"}, or pass on Referer.`)
	case several && !slices.Contains(h.appIDs, named):
		return nil, "", &failure{word: "appid_mismatch",
			message: "This service does not have the mini program's AppID " + named + ": " + fixAppID + "."}
	case several:
		appID = named
	}
	u, f := h.wechat.openID(r.Context(), appID, code)
	if f != nil && f.word == "invalid_code" {
		f = h.unknownCode(f, appID, named, code)
	}
	if !several {
		return u, "", f
	}
	return struct {
		user
		AppID string `json:"appid"`
	}{u, appID}, appID, f
}

// unknownCode makes another failure in the place of f, an invalid code, where it knows more: of a mini program with
// another AppID, of the developer tools in tourist mode, and of what was asked of the sandbox.
func (h *handler) unknownCode(f *failure, appID, named, code string) *failure {
	remedy := fixAppID
	switch {
	case h.sandbox != nil:
		remedy = "the code asks the sandbox for errcode 40029, or for something unknown, which the log explains"
	case code == mockCode:
		remedy = "the developer tools are in tourist mode, so give the project an AppID of your own, or use -sandbox"
	case named == "" || named == appID:
		return f
	}
	word, what := f.word, "The code is refused"
	if named != "" && named != appID {
		word = "appid_mismatch"
		what = "The mini program has the AppID " + named + " and this service has " + appID
	}
	return &failure{word: word, errcode: f.errcode, rid: f.rid, message: what + ": " + remedy + "."}
}

// readCode returns the code in the body of r, and the AppID that r names, or an empty one.
func (h *handler) readCode(w http.ResponseWriter, r *http.Request) (code, named string, f *failure) {
	// net/http clears this deadline once the body has been read. If it passed later, it would cancel r.Context().
	http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return "", "", &failure{word: "body_too_large"}
	} else if err != nil {
		return "", "", invalid("The body did not arrive: send as many bytes as Content-Length says, within 15 seconds.")
	}
	var request struct {
		Code  *string `json:"code"`
		AppID string  `json:"appid"`
	}
	err = json.Unmarshal(body, &request)
	kind, _ := errors.AsType[*json.UnmarshalTypeError](err)
	switch { // the first that holds is the reason
	case kind != nil && kind.Field == "code":
		return "", "", invalid("The code is a JSON " + kind.Value + ", not a string: send res.code of wx.login.")
	case kind != nil && kind.Field == "appid":
		return "", "", invalid("The appid is a JSON " + kind.Value + ", not a string: send the AppID, or leave it out.")
	case err != nil, !bytes.HasPrefix(bytes.TrimSpace(body), []byte("{")):
		return "", "", invalid(notObject(body, r.Header.Get("Content-Type")))
	case request.Code == nil:
		return "", "", invalid(`There is no code in the object: send {"code":"…"} with what wx.login gave.`)
	case *request.Code == "":
		return "", "", invalid("The code is empty: send what wx.login gave.")
	case !isASCII(*request.Code, ' '):
		return "", "", invalid("The code is not 1 to 128 printable ASCII characters: send what wx.login gave.")
	case request.AppID != "" && !h.isAppID(request.AppID):
		return "", "", invalid("The appid does not look like an AppID (wx and 16 of 0-9a-f): fix it, or leave it out.")
	}
	return *request.Code, cmp.Or(request.AppID, h.refererAppID(r)), nil
}

// isASCII reports whether text is 1 to 128 ASCII characters from first to ~.
func isASCII(text string, first rune) bool {
	odd := func(r rune) bool { return r < first || r > '~' }
	return text != "" && len(text) <= 128 && !strings.ContainsFunc(text, odd)
}

func invalid(message string) *failure { return &failure{word: "invalid_request", message: message} }

// isAppID reports whether name may get into a message and the log. The developer tools in tourist mode use
// touristappid.
func (h *handler) isAppID(name string) bool {
	return looksLikeAppID(name) || name == "touristappid" || slices.Contains(h.appIDs, name)
}

// pageReferer finds the AppID in the Referer that WeChat sets for mini programs
// (developers.weixin.qq.com/miniprogram/dev/api/network/request/wx.request.html).
var pageReferer = regexp.MustCompile(`^https://servicewechat\.com/([^/]+)/[^/]*/page-frame\.html$`)

// refererAppID returns the AppID of the mini program that asks, or nothing. A plug-in's Referer has the AppID of the
// mini program around it.
func (h *handler) refererAppID(r *http.Request) string {
	m := pageReferer.FindStringSubmatch(r.Referer())
	if m == nil || !h.isAppID(m[1]) || r.Header.Get("X-WECHAT-HOSTSIGN") != "" {
		return ""
	}
	return m[1]
}

var jsonString = regexp.MustCompile(`"(\\.|[^"\\])*"`)

// notObject says what people send instead of a JSON object. The first that holds is said.
func notObject(body []byte, contentType string) string {
	text, contentType := string(bytes.TrimSpace(body)), strings.ToLower(contentType)
	begins := func(prefix string) bool { return strings.HasPrefix(text, prefix) }
	isForm := strings.Contains(contentType, "form-urlencoded") && strings.Contains(text, "=") && !begins("{")
	outside := jsonString.ReplaceAllString(text, "")
	switch {
	case text == "":
		return `There is no body: send {"code":"…"} with what wx.login gave.`
	case begins("code="), isForm, strings.Contains(contentType, "multipart"):
		return `The body is a form: send JSON, {"code":"…"}, as with json in Guzzle or json= in Python's requests.`
	case !utf8.ValidString(text), strings.Contains(text, "\x00"), begins("\ufeff"):
		return "The body is not plain UTF-8 text: send UTF-8 without BOM, uncompressed."
	case begins("[object "):
		return "The body is [object Object], an object that was not made into text: send JSON.stringify({ code })."
	case json.Valid(body):
		return `The body is JSON but not an object: send {"code":"…"}.`
	case strings.ContainsAny(text, "“”‘’"), strings.ContainsAny(outside, "：，"):
		return `The body has Chinese punctuation: JSON needs " and : and , as in {"code":"…"}.`
	case (begins("{") || begins("'")) && !strings.Contains(text, `"`):
		return "The body has no double quotes, which JSON needs and a Windows shell eats: write " +
			`\" for each " in cmd.exe, use Invoke-RestMethod in PowerShell, and a JSON library in a program.`
	}
	return `The body is not JSON: send one JSON object, {"code":"…"}, and nothing else.`
}

// logRequest writes the line of a request. f is nil if it did not fail.
func (h *handler) logRequest(r *http.Request, status int, appID string, f *failure, id string, start time.Time) {
	level, path := slog.LevelInfo, r.URL.Path
	switch {
	case status >= 500:
		level = slog.LevelError
	case status >= 400:
		level = slog.LevelWarn
	case path == "/healthz":
		level = slog.LevelDebug
	}
	if path != "/openid" && path != "/healthz" {
		path = "(other)" // people write codes into it
	}
	attrs := []slog.Attr{slog.String("method", r.Method), slog.String("path", path), slog.Int("status", status),
		slog.Float64("duration_ms", float64(time.Since(start).Microseconds())/1000),
		slog.String("remote", r.RemoteAddr), slog.String("request_id", id)}
	if appID != "" {
		attrs = append(attrs, slog.String("appid", appID))
	}
	if f != nil {
		cause := cmp.Or(f.cause, f.message, answers[f.word].message)
		attrs = append(attrs, slog.String("error", f.word), slog.String("cause", cause))
		if f.errcode != 0 {
			attrs = append(attrs, slog.Int64("errcode", f.errcode))
		}
		if f.rid != "" {
			attrs = append(attrs, slog.String("rid", f.rid))
		}
	}
	h.log.LogAttrs(r.Context(), level, "request", attrs...)
}
