package main

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"time"
)

const (
	maxBody     = 4096             // bytes
	maxCode     = 128              // bytes
	bodyTimeout = 15 * time.Second // for the body of a request to arrive
)

// answers are the answers without an openid, by their "error". The message is for the developer who
// calls: what is wrong, then what to do. Some failures have a message of their own.
var answers = map[string]struct {
	status     int
	retryAfter string // seconds
	message    string
}{
	"invalid_request": {status: 400, message: `The body has to be one JSON object: send {"code":"…"}.`},
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
	"quota_exceeded": {status: 503, message: "The day's quota is used up: keep a session instead of logging in at " +
		"every start."},
	"overloaded":     {status: 503, retryAfter: "1", message: "The service is full: send this code again in 1 s."},
	"wechat_timeout": {status: 504, message: "WeChat did not answer in time: call wx.login again for a new code."},
}

// A handler is the HTTP service.
type handler struct {
	wechat   *client
	appID    string
	log      *slog.Logger
	sandbox  http.Handler // the fake WeChat, or nil
	stopping atomic.Bool  // if true, each answer closes its connection
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.sandbox != nil && r.URL.Path == wechatPath {
		h.sandbox.ServeHTTP(w, r)
		return
	}
	start, id, status := time.Now(), requestID(r), http.StatusOK
	body, f := h.route(w, r)
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
	h.logRequest(r, status, f, id, start)
	text, _ := json.Marshal(body) // strings and numbers always marshal
	w.WriteHeader(status)
	w.Write(append(text, '\n'))
}

type errorBody struct {
	Error   string `json:"error"`
	Message string `json:"message"`
	ErrCode int64  `json:"errcode,omitempty"`
}

// route returns the body of a 200, or a failure.
func (h *handler) route(w http.ResponseWriter, r *http.Request) (any, *failure) {
	switch r.URL.Path {
	case "/openid":
		if r.Method == http.MethodPost {
			return h.openID(w, r)
		}
		w.Header().Set("Allow", "POST")
		return nil, &failure{word: "method_not_allowed",
			message: "/openid takes POST only: set method to POST, since wx.request uses GET by default."}
	case "/healthz":
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			return map[string]string{"status": "ok"}, nil
		}
		w.Header().Set("Allow", "GET, HEAD")
		return nil, &failure{word: "method_not_allowed", message: "/healthz takes GET and HEAD only: use GET."}
	}
	return nil, &failure{word: "not_found"}
}

func (h *handler) openID(w http.ResponseWriter, r *http.Request) (any, *failure) {
	code, f := readCode(w, r)
	if f != nil {
		return nil, f
	}
	u, f := h.wechat.openID(r.Context(), code)
	if f != nil && f.word == "invalid_code" {
		f = h.unknownCode(f, r, code)
	}
	return u, f
}

// pageReferer finds the AppID in the Referer that WeChat sets for mini programs
// (developers.weixin.qq.com/miniprogram/dev/api/network/request/wx.request.html).
var pageReferer = regexp.MustCompile(`^https://servicewechat\.com/([A-Za-z0-9_-]{1,20})/[^/]*/page-frame\.html$`)

// unknownCode makes another failure in the place of f, an invalid code, where it knows more: of a mini program with
// another AppID, of the developer tools in tourist mode, and of what was asked of the sandbox.
func (h *handler) unknownCode(f *failure, r *http.Request, code string) *failure {
	appID := h.appID
	plugin := r.Header.Get("X-WECHAT-HOSTSIGN") != "" // its Referer has the AppID of the mini program around it
	m := pageReferer.FindStringSubmatch(r.Referer())
	if m != nil && !plugin && (len(code) < 8 || !strings.Contains(m[1], code)) {
		appID = m[1] // unless it holds the code, which must not get out
	}
	word, what, remedy := f.word, "The code is refused", ""
	if appID != h.appID {
		word = "appid_mismatch"
		what = fmt.Sprintf("The mini program has the AppID %s and this service has %s", appID, h.appID)
		remedy = "fix appid in project.config.json, or WX_APPID with its AppSecret"
	}
	switch {
	case h.sandbox != nil:
		remedy = "the code asks the sandbox for errcode 40029, or for something unknown, which the log explains"
	case appID == "touristappid", code == mockCode:
		remedy = "the developer tools are in tourist mode, so give the project an AppID of your own, or start this " +
			"service with -sandbox"
	}
	if remedy == "" {
		return f
	}
	message := what + ": " + remedy + "."
	return &failure{word: word, errcode: f.errcode, rid: f.rid, cause: message, message: message}
}

// readCode returns the code in the body of r.
func readCode(w http.ResponseWriter, r *http.Request) (string, *failure) {
	http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return "", &failure{word: "body_too_large"}
	} else if err != nil {
		return "", invalid("The body did not arrive: send as many bytes as Content-Length says, within 15 seconds.")
	}
	var request struct {
		Code *string `json:"code"`
	}
	err = json.Unmarshal(body, &request)
	if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && kind.Field == "code" {
		return "", invalid("The code is a JSON " + kind.Value + ", not a string: send res.code of wx.login, not res.")
	} else if err != nil {
		return "", invalid(notJSON(body, r.Header.Get("Content-Type")))
	}
	switch code := request.Code; {
	case code == nil:
		return "", invalid(`There is no code in the object: send {"code":"…"} with what wx.login gave.`)
	case *code == "":
		return "", invalid("The code is empty: send what wx.login gave.")
	case len(*code) > maxCode || strings.ContainsFunc(*code, notASCII):
		return "", invalid("The code is not 1 to 128 printable ASCII characters: send what wx.login gave, unchanged.")
	}
	return *request.Code, nil
}

func notASCII(r rune) bool { return r < ' ' || r > '~' }

func invalid(message string) *failure { return &failure{word: "invalid_request", message: message} }

var singleQuotes = regexp.MustCompile(`^\{\s*'`)         // what Python's str(dict) gives
var lostQuotes = regexp.MustCompile(`^('|\{\s*[^"}\s])`) // what Windows shells make of '{"code":"…"}'

// notJSON says what people send instead of a JSON object, or nothing if it is none of that.
func notJSON(body []byte, contentType string) string {
	text := bytes.TrimSpace(body)
	begins := func(prefix string) bool { return bytes.HasPrefix(body, []byte(prefix)) }
	contentType = strings.ToLower(contentType)
	multipart := strings.Contains(contentType, "multipart")
	form := multipart || strings.Contains(contentType, "form") && bytes.Contains(text, []byte("="))
	switch {
	case len(text) == 0:
		return `There is no body: send {"code":"…"} with what wx.login gave.`
	case begins("\x1f\x8b"):
		return "The body is compressed with gzip: send it uncompressed."
	case begins("\xef\xbb\xbf"):
		return "The body begins with a byte order mark (BOM): send UTF-8 without BOM."
	case begins("\xff\xfe"), begins("\xfe\xff"), begins("{\x00"), begins("\x00{"):
		return "The body is UTF-16: send UTF-8 without BOM."
	case bytes.HasPrefix(text, []byte("code=")), form && text[0] != '{':
		return `The body is a form: send the JSON object {"code":"…"}, as wx.request does by default.`
	case singleQuotes.Match(text):
		return `The body has single quotes: JSON needs double quotes, as in {"code":"…"}.`
	case lostQuotes.Match(text):
		return `The quotes were lost, as in a Windows shell: in cmd.exe write \" for each ", in PowerShell use ` +
			"Invoke-RestMethod."
	case (text[0] == '[' || text[0] == '"') && json.Valid(text):
		return `The body is JSON but not an object: send {"code":"…"}.`
	}
	return ""
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

// logRequest writes the line of a request. f is nil if it did not fail.
func (h *handler) logRequest(r *http.Request, status int, f *failure, id string, start time.Time) {
	level := slog.LevelInfo
	switch {
	case status >= 500:
		level = slog.LevelError
	case status >= 400:
		level = slog.LevelWarn
	case r.URL.Path == "/healthz":
		level = slog.LevelDebug
	}
	attrs := append(make([]slog.Attr, 0, 10),
		slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Int("status", status),
		slog.Duration("duration", time.Since(start)),
		slog.String("remote", r.RemoteAddr), slog.String("request_id", id))
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
