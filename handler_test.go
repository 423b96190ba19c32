package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
)

// newWeChat starts a fake WeChat and returns its base URL.
func newWeChat(t testing.TB, wechat http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(wechat)
	t.Cleanup(server.Close)
	return server.URL
}

// startService starts the program in front of a fake WeChat, with more settings: names
// and values in turn.
func startService(t testing.TB, wechat http.HandlerFunc, settings ...string) *program {
	t.Helper()
	return startProgram(t, credentials(append([]string{"WX_BASE_URL", newWeChat(t, wechat)}, settings...)...))
}

// say is a WeChat that says the same to everybody.
func say(reply string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		io.WriteString(w, reply)
	}
}

const testRid = "65f1a2b3-0c1d2e3f-4a5b6c7d"

func refuse(errcode int) http.HandlerFunc {
	return say(fmt.Sprintf(`{"errcode":%d,"errmsg":"refused from 203.0.113.7, rid: %s"}`, errcode, testRid))
}

// echo is a WeChat whose openid is the code.
func echo(w http.ResponseWriter, r *http.Request) {
	json.NewEncoder(w).Encode(user{OpenID: r.FormValue("js_code")})
}

// hang is a WeChat that does not answer.
func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// A result is an answer of the service as its caller sees it.
type result struct {
	status int
	header http.Header
	body   string
	last   bool // on its connection

	OpenID, Error, Message string
	ErrCode                int
}

// post sends body, with header fields: names and values in turn.
func post(t testing.TB, url, body string, header ...string) result {
	t.Helper()
	request, err := http.NewRequest("POST", url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	request.Close = true
	resp, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Error(err)
		return result{}
	}
	return read(t, resp)
}

// sendRaw sends text over a connection of its own.
func sendRaw(t *testing.T, p *program, text string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", p.addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

// raw sends text, which begins with a request line, and returns the answer.
func raw(t *testing.T, p *program, text string) result {
	t.Helper()
	conn := sendRaw(t, p, text)
	defer conn.Close()
	method, _, _ := strings.Cut(text, " ")
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	return read(t, resp)
}

// read reads resp, which has to have what every answer has.
func read(t testing.TB, resp *http.Response) result {
	t.Helper()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	got := result{status: resp.StatusCode, header: resp.Header, body: string(body), last: resp.Close}
	if head := resp.Request.Method == "HEAD"; err != nil || (json.Unmarshal(body, &got) != nil) != head {
		t.Errorf("got body %q, error %v, want JSON", body, err)
	}
	for name, want := range map[string]string{
		"Content-Type":           `^application/json; charset=utf-8$`,
		"Cache-Control":          `^no-store$`,
		"X-Content-Type-Options": `^nosniff$`,
		"X-Request-Id":           `^[A-Za-z0-9._-]{1,64}$`,
	} {
		if value := strings.Join(resp.Header.Values(name), "|"); !regexp.MustCompile(want).MatchString(value) {
			t.Errorf("got %s %q, want %s", name, value, want)
		}
	}
	return got
}

// checkLog takes the next line of a request from p's log, which has to fit got, and returns it.
func checkLog(t *testing.T, p *program, got result) map[string]any {
	t.Helper()
	record := p.log.next(t, "request")
	want := map[string]any{"status": float64(got.status), "request_id": got.header.Get("X-Request-Id"), "level": "INFO"}
	switch {
	case got.status >= 500:
		want["level"] = "ERROR"
	case got.status >= 400:
		want["level"] = "WARN"
	}
	if got.Error != "" {
		want["error"] = got.Error
	}
	if got.ErrCode != 0 {
		want["errcode"], want["rid"] = float64(got.ErrCode), testRid
	}
	for _, name := range []string{"status", "request_id", "level", "error", "errcode", "rid"} {
		if record[name] != want[name] {
			t.Errorf("got %s %v in the log, want %v", name, record[name], want[name])
		}
	}
	if duration, _ := record["duration"].(float64); duration <= 0 {
		t.Errorf("got duration %v in the log, want one", record["duration"])
	}
	if remote, _ := record["remote"].(string); !strings.HasPrefix(remote, "127.0.0.1:") {
		t.Errorf("got remote %v in the log, want the caller's address", record["remote"])
	}
	return record
}

// TestFailures holds what WeChat does against the contract's table; TestRequestBody and
// TestPaths do so for what callers do.
func TestFailures(t *testing.T) {
	t.Parallel()
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(code)
			io.WriteString(w, `{"openid":"o"}`)
		}
	}
	tests := []struct {
		name       string
		wechat     http.HandlerFunc // nil for none
		status     int
		error      string
		errcode    int
		retryAfter string
		cause      string // in the log
	}{
		{"invalid_code", refuse(40029), 400, "invalid_code", 40029, "", ""},
		{"code_used", refuse(40163), 400, "code_used", 40163, "", ""},
		{"user_blocked", refuse(40226), 403, "user_blocked", 40226, "", ""},
		{"rate_limited", refuse(45011), 429, "rate_limited", 45011, "60", ""},
		{"misconfigured AppID", refuse(40013), 500, "misconfigured", 40013, "", "WX_APPID"},
		{"misconfigured AppSecret", refuse(40125), 500, "misconfigured", 40125, "", "WX_APPSECRET"},
		{"misconfigured allowlist", refuse(40164), 500, "misconfigured", 40164, "", "mp.weixin.qq.com"},
		{"misconfigured frozen", refuse(40243), 500, "misconfigured", 40243, "", "WX_APPSECRET"},
		{"misconfigured no AppID", refuse(41002), 500, "misconfigured", 41002, "", "WX_APPID"},
		{"misconfigured no AppSecret", refuse(41004), 500, "misconfigured", 41004, "", "WX_APPSECRET"},
		{"misconfigured API", refuse(48001), 500, "misconfigured", 48001, "", "mp.weixin.qq.com"},
		{"misconfigured account", refuse(50002), 500, "misconfigured", 50002, "", "mp.weixin.qq.com"},
		{"wechat_error errcode", refuse(41008), 502, "wechat_error", 41008, "", ""},
		{"wechat_error status", status(500), 502, "wechat_error", 0, "", "500"},
		{"wechat_error redirect", status(302), 502, "wechat_error", 0, "", "302"},
		{"wechat_error no object", say(`["openid"]`), 502, "wechat_error", 0, "", "JSON"},
		{"wechat_error too long", say(`{"openid":"o"}` + strings.Repeat(" ", 64<<10)), 502, "wechat_error", 0, "", "64 KiB"},
		{"wechat_error no openid", say(`{"errcode":0}`), 502, "wechat_error", 0, "", "openid"},
		{"wechat_unreachable", nil, 502, "wechat_unreachable", 0, "", "127.0.0.1:1: connection refused"},
		{"wechat_unreachable half a reply", func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, `{"openid":`)
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, 502, "wechat_unreachable", 0, "", "closed early"},
		{"wechat_busy", refuse(-1), 503, "wechat_busy", -1, "1", ""},
		{"quota_exceeded", refuse(45009), 503, "quota_exceeded", 45009, "", "quota"},
		{"wechat_timeout", hang, 504, "wechat_timeout", 0, "", "WX_TIMEOUT"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			env := credentials("WX_BASE_URL", "http://127.0.0.1:1")
			if test.wechat != nil {
				env["WX_BASE_URL"] = newWeChat(t, test.wechat)
			}
			if test.error == "wechat_timeout" {
				env["WX_TIMEOUT"] = "20ms"
			}
			p := startProgram(t, env)
			const code = "0a1B2c3D"
			got := post(t, p.url+"/openid?code="+code, `{"code":"`+code+`"}`)
			checkFailure(t, got, test.status, test.error)
			if got.ErrCode != test.errcode {
				t.Errorf("got errcode %d, want %d", got.ErrCode, test.errcode)
			}
			if retryAfter := got.header.Get("Retry-After"); retryAfter != test.retryAfter {
				t.Errorf("got Retry-After %q, want %q", retryAfter, test.retryAfter)
			}
			record := checkLog(t, p, got)
			if record["method"] != "POST" || record["path"] != "/openid" {
				t.Errorf("got %v %v in the log, want POST /openid", record["method"], record["path"])
			}
			if cause, _ := record["cause"].(string); !strings.Contains(cause, test.cause) {
				t.Errorf("got cause %q in the log, want %q in it", cause, test.cause)
			}
			for _, secret := range []string{testSecret, code, "203.0.113.7"} {
				if strings.Contains(p.log.String()+got.body, secret) {
					t.Errorf("got answer %s\nand log\n%s\nwant neither to hold %s", got.body, p.log, secret)
				}
			}
		})
	}
}

func checkFailure(t *testing.T, got result, status int, error string) {
	t.Helper()
	if got.status != status || got.Error != error {
		t.Errorf("got %d %s, want %d %s", got.status, got.body, status, error)
	}
	if got.Message == "" || strings.Index(got.Message+" ", ". ") != len(got.Message)-1 {
		t.Errorf("got message %q, want one sentence", got.Message)
	}
}

func TestOpenID(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, reply, body string }{
		{"openid", `{"openid":"oA_-1","session_key":"k"}`, `{"openid":"oA_-1"}`},
		{"unionid", `{"openid":"oA","unionid":"oU","session_key":"k"}`, `{"openid":"oA","unionid":"oU"}`},
		{"empty unionid", `{"openid":"oA","unionid":"","session_key":"k"}`, `{"openid":"oA"}`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := startService(t, say(test.reply))
			got := post(t, p.url+"/openid", `{"code":"x"}`)
			if got.status != 200 || strings.TrimSpace(got.body) != test.body {
				t.Errorf("got %d %s, want 200 %s", got.status, got.body, test.body)
			}
			checkLog(t, p, got)
			if strings.Contains(p.log.String(), "oA") || strings.Contains(p.log.String(), "oU") {
				t.Errorf("got log\n%s\nwant no openid or unionid in it", p.log)
			}
		})
	}
}

func TestRequestBody(t *testing.T) {
	t.Parallel()
	var ascii strings.Builder
	for c := ' '; c <= '~'; c++ {
		ascii.WriteRune(c)
	}
	quote := func(code string) string {
		body, _ := json.Marshal(map[string]string{"code": code})
		return string(body)
	}
	padded := func(n int) string { return quote("x") + strings.Repeat(" ", n-len(quote("x"))) }
	tests := []struct {
		name, body string
		code       string // which WeChat is asked with, or empty
		error      string
	}{
		{"code alone", `{"code":"0a1B"}`, "0a1B", ""},
		{"other members", `{"appid":"wx","user":{"code":"y"},"n":[1,{}],"code":"x","z":null}`, "x", ""},
		{"CODE beside code", `{"Code":"y","code":"x","CODE":1}`, "x", ""},
		{"escaped name", `{"\u0063ode":"x"}`, "x", ""},
		{"escapes", `{"code":"\u0041\/\"\\"}`, `A/"\`, ""},
		{"white space around", " \r\n\t{ \"code\" : \"x\" }\n ", "x", ""},
		{"mock code", quote(mockCode), mockCode, ""},
		{"a space", quote(" "), " ", ""},
		{"space to tilde", quote(ascii.String()), ascii.String(), ""},
		{"what a query could be made of", quote("a&secret=b#c%20+"), "a&secret=b#c%20+", ""},
		{"128 characters", quote(strings.Repeat("x", 128)), strings.Repeat("x", 128), ""},
		{"4096 bytes", padded(4096), "x", ""},

		{"129 characters", quote(strings.Repeat("x", 129)), "", "invalid_request"},
		{"no characters", quote(""), "", "invalid_request"},
		{"DEL", quote("x\x7f"), "", "invalid_request"},
		{"line break", quote("x\ny"), "", "invalid_request"},
		{"line break, not escaped", "{\"code\":\"x\ny\"}", "", "invalid_request"},
		{"NUL", quote("\x00"), "", "invalid_request"},
		{"not ASCII", quote("é"), "", "invalid_request"},
		{"half a surrogate pair", `{"code":"\ud83d"}`, "", "invalid_request"},
		{"Code", `{"Code":"x"}`, "", "invalid_request"},
		{"CODE", `{"CODE":"x"}`, "", "invalid_request"},
		{"no code", `{"js_code":"x"}`, "", "invalid_request"},
		{"code further in", `{"data":{"code":"x"}}`, "", "invalid_request"},
		{"null code", `{"code":null}`, "", "invalid_request"},
		{"number as code", `{"code":12345}`, "", "invalid_request"},
		{"boolean as code", `{"code":true}`, "", "invalid_request"},
		{"array as code", `{"code":["x"]}`, "", "invalid_request"},
		{"object as code", `{"code":{"code":"x"}}`, "", "invalid_request"},
		{"null", `null`, "", "invalid_request"},
		{"number", `1`, "", "invalid_request"},
		{"string", `"code"`, "", "invalid_request"},
		{"array", `[{"code":"x"}]`, "", "invalid_request"},
		{"empty", ``, "", "invalid_request"},
		{"white space", " \n", "", "invalid_request"},
		{"form", `code=x`, "", "invalid_request"},
		{"single quotes", `{'code':'x'}`, "", "invalid_request"},
		{"cut short", `{"code":"x"`, "", "invalid_request"},
		{"comma at the end", `{"code":"x",}`, "", "invalid_request"},
		{"something after", `{"code":"x"}x`, "", "invalid_request"},
		{"brace after", `{"code":"x"}}`, "", "invalid_request"},
		{"NUL after", `{"code":"x"}` + "\x00", "", "invalid_request"},
		{"another object after", `{"code":"x"}{"code":"x"}`, "", "invalid_request"},
		{"deep", strings.Repeat("[", 4096), "", "invalid_request"},

		{"4097 bytes", padded(4097), "", "body_too_large"},
		{"too large and not JSON", strings.Repeat("x", 5000), "", "body_too_large"},
	}
	var asked atomic.Int32
	p := startService(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		echo(w, r)
	})
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before := asked.Load()
			got := post(t, p.url+"/openid", test.body)
			switch test.error {
			case "":
				if got.status != 200 || got.OpenID != test.code {
					t.Errorf("got %d %s, want WeChat to be asked with %q", got.status, got.body, test.code)
				}
			case "invalid_request":
				checkFailure(t, got, 400, test.error)
			case "body_too_large":
				checkFailure(t, got, 413, test.error)
			}
			if test.error != "" && asked.Load() != before {
				t.Error("WeChat was asked")
			}
			checkLog(t, p, got)
		})
	}
}

func TestRequestBodyOnTheWire(t *testing.T) {
	t.Parallel()
	chunk := fmt.Sprintf("%x\r\n%s\r\n", 3000, strings.Repeat("x", 3000))
	tests := []struct {
		name, header, body string
		status             int
		error              string
	}{
		{"chunked", "Transfer-Encoding: chunked", "6\r\n{\"code\r\n6\r\n\":\"x\"}\r\n0\r\n\r\n", 200, ""},
		{"chunked, too large", "Transfer-Encoding: chunked", chunk + chunk + "0\r\n\r\n", 413, "body_too_large"},
		{"chunked, too large, without end", "Transfer-Encoding: chunked", chunk + chunk, 413, "body_too_large"},
		{"broken chunk", "Transfer-Encoding: chunked", "zz\r\n", 400, "invalid_request"},
		{"too large by its header", "Content-Length: 4097", "", 413, "body_too_large"},
		{"too large, but asks before", "Content-Length: 4097\r\nExpect: 100-continue", "", 413, "body_too_large"},
		{"no body", "X: y", "", 400, "invalid_request"},
	}
	p := startService(t, echo)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := raw(t, p, "POST /openid HTTP/1.1\r\nHost: x\r\n"+test.header+"\r\n\r\n"+test.body)
			if test.error != "" {
				checkFailure(t, got, test.status, test.error)
			} else if got.status != 200 || got.OpenID != "x" {
				t.Errorf("got %d %s, want 200 and openid x", got.status, got.body)
			}
		})
	}
}

// A connection that is closed on bytes that nobody read is reset, and the answer may be lost.
func TestBodyTooLargeEndsCleanly(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, header string }{
		{"kept connection", "Content-Length: 1000000"},
		{"last on its connection", "Content-Length: 1000000\r\nConnection: close"},
		{"chunked", "Connection: close\r\nTransfer-Encoding: chunked"},
	}
	p := startService(t, echo)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			conn := sendRaw(t, p, "POST /openid HTTP/1.1\r\nHost: x\r\n"+test.header+"\r\n\r\nfff0\r\n"+strings.Repeat("x", 50_000))
			conn.CloseWrite()
			got, err := io.ReadAll(conn)
			if err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 413 ") {
				t.Errorf("got %q, error %v, want 413 and no error", got, err)
			}
		})
	}
}

// pipes is a listener whose connections take no time of the world's, and whose Close says
// what it says where another was first.
type pipes chan net.Conn

func (p pipes) Close() error   { close(p); return net.ErrClosed }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{} }
func (p pipes) Accept() (net.Conn, error) {
	if conn, ok := <-p; ok {
		return conn, nil
	}
	return nil, net.ErrClosed
}

// startInBubble starts the server until the test ends, or ctx and stop do it before, and
// returns a connection to it.
func startInBubble(t *testing.T, ctx context.Context) (*server, net.Conn) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	s := newServer(config{}, newHandler(ctx, newClient(config{}, log), "", log, nil), log)
	listener := make(pipes)
	go s.Serve(listener)
	conn, theirs := net.Pipe()
	listener <- theirs
	t.Cleanup(func() { conn.Close(); s.Close() })
	return s, conn
}

func TestBodyThatDoesNotArrive(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, request string
		each          time.Duration // byte of the body takes as long
		status        int
		error         string
	}{
		{"stalls", "POST /openid", time.Hour, 400, "invalid_request"},
		{"trickles", "POST /openid", time.Second, 400, "invalid_request"},
		{"nobody reads it", "POST /", time.Hour, 404, "not_found"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, conn := startInBubble(t, t.Context())
				start := time.Now()
				go func() {
					_, err := io.WriteString(conn, test.request+" HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n")
					for ; err == nil; _, err = io.WriteString(conn, " ") {
						time.Sleep(test.each)
					}
				}()
				resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{})
				if err != nil {
					t.Fatal(err)
				}
				checkFailure(t, read(t, resp), test.status, test.error)
				if took := time.Since(start); took > 15*time.Second {
					t.Errorf("got an answer after %v, want it after 15s at most", took)
				}
				conn.Close()
				time.Sleep(test.each) // for the sender to see that
			})
		})
	}
}

// TestHeaderAndBodyHaveATimeEach has both arrive late, and together later than either may.
func TestHeaderAndBodyHaveATimeEach(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, conn := startInBubble(t, t.Context())
		go func() {
			for _, part := range []string{"POST /openid HTTP/1.1\r\n", "Host: x\r\nContent-Length: 2\r\n\r\n", "{}"} {
				io.WriteString(conn, part)
				time.Sleep(14 * time.Second)
			}
		}()
		resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{})
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, resp); !strings.Contains(got.body, "no code") {
			t.Errorf("got %d %s, want the body to have been read", got.status, got.body)
		}
		time.Sleep(14 * time.Second) // for the sender to end
	})
}

func TestContentTypeIsNotLookedAt(t *testing.T) {
	t.Parallel()
	p := startService(t, echo)
	for _, contentType := range []string{"", "application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "none; of=these"} {
		t.Run(contentType, func(t *testing.T) {
			if got := post(t, p.url+"/openid", `{"code":"x"}`, "Content-Type", contentType); got.OpenID != "x" {
				t.Errorf("got %d %s, want the openid", got.status, got.body)
			}
		})
	}
}

func TestAppIDMismatch(t *testing.T) {
	t.Parallel()
	const other, page = "wxfedcba9876543210", "/devtools/page-frame.html"
	tests := []struct {
		name, referer, code string
		error, message      string // of the message, a part
	}{
		{"another AppID in the tools", "https://servicewechat.com/" + other + page, "x1", "appid_mismatch", other},
		{"another AppID on a phone", "https://servicewechat.com/" + other + "/27/page-frame.html", "x1", "appid_mismatch", testAppID},
		{"tourist mode", "https://servicewechat.com/touristappid" + page, "x1", "appid_mismatch", "tourist mode"},
		{"another AppID and another errcode", "https://servicewechat.com/" + other + page, "used", "code_used", ""},
		{"the same AppID", "https://servicewechat.com/" + testAppID + page, "x1", "invalid_code", ""},
		{"AppID that holds the code", "https://servicewechat.com/" + other + page, "wxfedcba98", "invalid_code", ""},
		{"no Referer", "", "x1", "invalid_code", ""},
		{"another host", "https://example.com/" + other + page, "x1", "invalid_code", ""},
		{"another host that begins so", "https://servicewechat.com.example/" + other + page, "x1", "invalid_code", ""},
		{"another host that ends so", "https://example.com/?https://servicewechat.com/" + other + page, "x1", "invalid_code", ""},
		{"another scheme", "http://servicewechat.com/" + other + page, "x1", "invalid_code", ""},
		{"another page", "https://servicewechat.com/" + other + "/27/", "x1", "invalid_code", ""},
		{"no AppID", "https://servicewechat.com/" + page, "x1", "invalid_code", ""},
		{"no version", "https://servicewechat.com/" + other + "/page-frame.html", "x1", "invalid_code", ""},
		{"something after", "https://servicewechat.com/" + other + page + "?x", "x1", "invalid_code", ""},
		{"AppID that is none", "https://servicewechat.com/<b>wx</b>" + page, "x1", "invalid_code", ""},
		{"AppID too long", "https://servicewechat.com/" + strings.Repeat("w", 200) + page, "x1", "invalid_code", ""},
	}
	p := startService(t, func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("js_code") == "used" {
			refuse(40163)(w, r)
		} else {
			refuse(40029)(w, r)
		}
	})
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := post(t, p.url+"/openid", `{"code":"`+test.code+`"}`, "Referer", test.referer)
			checkFailure(t, got, 400, test.error)
			checkLog(t, p, got)
			if !strings.Contains(got.Message, test.message) {
				t.Errorf("got message %q, want %q in it", got.Message, test.message)
			}
			named := strings.Contains(got.body, testAppID)
			if want := test.error == "appid_mismatch"; named != want {
				t.Errorf("got %s, want our AppID in it: %t", got.body, want)
			}
			if strings.Contains(got.body, test.code) && test.code != "used" {
				t.Errorf("got %s, want no code in it", got.body)
			}
		})
	}
}

func TestRequestID(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, id string
		kept     bool
	}{
		{"all kinds", "Az09._-", true},
		{"one character", "-", true},
		{"64 characters", strings.Repeat("x", 64), true},
		{"65 characters", strings.Repeat("x", 65), false},
		{"empty", "", false},
		{"space inside", "a b", false},
		{"quote", `a"b`, false},
		{"slash", "a/b", false},
		{"not ASCII", "é", false},
	}
	p := startService(t, echo)
	seen := make(map[string]bool)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := post(t, p.url+"/openid", `{"code":"x"}`, "X-Request-Id", test.id)
			id := got.header.Get("X-Request-Id")
			if (id == test.id) != test.kept || seen[id] {
				t.Errorf("got X-Request-Id %q for %q, want the same: %t, or a new one", id, test.id, test.kept)
			}
			seen[id] = true
			checkLog(t, p, got)
		})
	}
}

func TestPaths(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string // method and target
		path   string // in the log; empty for no line
		status int
		error  string
		allow  string
	}{
		{"POST /openid", "/openid", 400, "invalid_request", ""},
		{"POST /openid?code=x", "/openid", 400, "invalid_request", ""},
		{"POST /%6fpenid", "/openid", 400, "invalid_request", ""},
		{"POST http://example.com/openid", "/openid", 400, "invalid_request", ""},
		{"GET /openid", "/openid", 405, "method_not_allowed", "POST"},
		{"HEAD /openid", "/openid", 405, "method_not_allowed", "POST"},
		{"PUT /openid", "/openid", 405, "method_not_allowed", "POST"},
		{"OPTIONS /openid", "/openid", 405, "method_not_allowed", "POST"},
		{"CONNECT /openid", "/openid", 405, "method_not_allowed", "POST"},
		{"post /openid", "/openid", 405, "method_not_allowed", "POST"},
		{"GET /healthz", "", 200, "", ""},
		{"HEAD /healthz", "", 200, "", ""},
		{"GET /healthz?x", "", 200, "", ""},
		{"POST /healthz", "/healthz", 405, "method_not_allowed", "GET, HEAD"},
		{"GET /", "/", 404, "not_found", ""},
		{"POST /", "/", 404, "not_found", ""},
		{"POST //openid", "//openid", 404, "not_found", ""},
		{"POST /openid/", "/openid/", 404, "not_found", ""},
		{"POST /openid%2F", "/openid/", 404, "not_found", ""},
		{"POST /OPENID", "/OPENID", 404, "not_found", ""},
		{"POST /../openid", "/../openid", 404, "not_found", ""},
		{"POST /./openid", "/./openid", 404, "not_found", ""},
		{"POST /x/%2e%2e/openid", "/x/../openid", 404, "not_found", ""},
		{"GET /healthz/", "/healthz/", 404, "not_found", ""},
		{"GET /sns/jscode2session", "/sns/jscode2session", 404, "not_found", ""},
		{"OPTIONS *", "*", 404, "not_found", ""},
		{"CONNECT example.com:443", "", 404, "not_found", ""},
	}
	p := startService(t, echo)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := raw(t, p, test.name+" HTTP/1.1\r\nHost: x\r\n\r\n")
			head := strings.HasPrefix(test.name, "HEAD")
			switch {
			case got.status != test.status:
				t.Errorf("got %d %s, want %d", got.status, got.body, test.status)
			case head && got.body != "":
				t.Errorf("got body %q, want none", got.body)
			case head:
				got.Error = test.error
			case test.status == 200:
				if got.body != `{"status":"ok"}`+"\n" {
					t.Errorf("got %s, want status ok", got.body)
				}
			default:
				checkFailure(t, got, test.status, test.error)
			}
			if allow := got.header.Get("Allow"); allow != test.allow {
				t.Errorf("got Allow %q, want %q", allow, test.allow)
			}
			if test.status == 200 {
				return // the next test finds no line of this one in the log
			}
			if record := checkLog(t, p, got); record["path"] != test.path || record["method"] != strings.Fields(test.name)[0] {
				t.Errorf("got %v %v in the log, want %s", record["method"], record["path"], test.path)
			}
		})
	}
}

func TestCallerGone(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		gone func(*net.TCPConn) error
	}{
		{"hangs up", (*net.TCPConn).Close},
		{"half-closes", (*net.TCPConn).CloseWrite},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			asked := make(chan struct{})
			p := startService(t, func(w http.ResponseWriter, r *http.Request) {
				close(asked)
				hang(w, r) // until the exchange is ended
			})
			conn := sendRaw(t, p, "POST /openid HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n"+`{"code":"x"}`)
			<-asked
			if err := test.gone(conn); err != nil {
				t.Fatal(err)
			}
			if record := p.log.next(t, "request"); record["status"] != 499.0 || record["level"] != "WARN" {
				t.Errorf("got %v in the log, want status 499, level WARN", record)
			}
			if got, err := io.ReadAll(conn); len(got) > 0 {
				t.Errorf("got %q, error %v, want nothing", got, err)
			}
		})
	}
}

func TestMaxInflight(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{})
	p := startService(t, func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("js_code") == "slow" {
			close(asked)
			hang(w, r)
		}
		echo(w, r)
	}, "MAX_INFLIGHT", "1")
	slow := sendRaw(t, p, "POST /openid HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n"+`{"code":"slow"}`)
	<-asked
	got := post(t, p.url+"/openid", `{"code":"fast"}`)
	checkFailure(t, got, 503, "overloaded")
	if retryAfter := got.header.Get("Retry-After"); retryAfter != "1" {
		t.Errorf("got Retry-After %q, want 1", retryAfter)
	}
	if record := checkLog(t, p, got); !strings.Contains(record["cause"].(string), "MAX_INFLIGHT") {
		t.Errorf("got cause %v in the log, want MAX_INFLIGHT in it", record["cause"])
	}
	slow.Close()
	p.log.next(t, "request")
	if got := post(t, p.url+"/openid", `{"code":"fast"}`); got.OpenID != "fast" {
		t.Errorf("got %d %s after the other caller hung up, want the openid", got.status, got.body)
	}
}

// FuzzRequest sends any body. WeChat, which refuses a code that is a number with this
// errcode, is asked with just the code that is in the body, and else not at all.
func FuzzRequest(f *testing.F) {
	for _, body := range []string{
		`{"code":"0a1B"}`, `{"Code":"x","code":"y"}`, `{"code":"x","code":"y"}`, `{"\u0063ode":" ~\"\u0041"}`,
		`{"code":"40029"}`, `{"code":"-1"}`, `{"code":"x"} x`, `{"code":"x",}`, `{"code":1}`, `{"code":null}`, `null`, ``,
		"\ufeff{}", "{\"code\":\"\x80\"}", `{"code":"` + strings.Repeat("x", 129) + `"}`, strings.Repeat(" ", 4097),
	} {
		f.Add([]byte(body))
	}
	statuses := map[string]int{
		"": 200, "invalid_request": 400, "invalid_code": 400, "code_used": 400, "user_blocked": 403, "body_too_large": 413,
		"rate_limited": 429, "misconfigured": 500, "wechat_error": 502, "wechat_busy": 503, "quota_exceeded": 503,
	}
	var asked []string
	wechat := newWeChat(f, func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		asked = append(asked, query["js_code"]...)
		if errcode, err := strconv.Atoi(query.Get("js_code")); err == nil {
			refuse(errcode)(w, r)
			return
		}
		echo(w, r)
	})
	c, err := loadConfig(getenv(credentials("WX_BASE_URL", wechat)), false)
	if err != nil {
		f.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	handler := newHandler(f.Context(), newClient(c, log), testAppID, log, nil)
	f.Fuzz(func(t *testing.T, body []byte) {
		asked = nil
		recorder := httptest.NewRecorder()
		request := httptest.NewRequest("POST", "/openid", bytes.NewReader(body))
		handler.ServeHTTP(recorder, request)
		resp := recorder.Result()
		resp.Request = request
		got := read(t, resp)
		if status, ok := statuses[got.Error]; !ok || status != got.status {
			t.Errorf("got %d %s, want a row of the table", got.status, got.body)
		}
		code, members := codeIn(body)
		switch valid := regexp.MustCompile(`^[ -~]{1,128}$`).MatchString(code); {
		case len(asked) > 0:
			if len(asked) > 1 || asked[0] != code || !valid {
				t.Errorf("WeChat was asked with %q, want %q if that is a code", asked, code)
			} else if got.Error == "" && got.OpenID != code {
				t.Errorf("got %s, want openid %q", got.body, code)
			}
		case len(body) > 4096:
			checkFailure(t, got, 413, "body_too_large")
		case !valid || members > 1 || !utf8.Valid(body): // the last two may be refused
			checkFailure(t, got, 400, "invalid_request")
		default:
			t.Errorf("got %d %s, want WeChat to be asked with %q", got.status, got.body, code)
		}
	})
}

// codeIn returns the last code in body that is a string, and how many members have that name.
func codeIn(body []byte) (code string, members int) {
	decoder := json.NewDecoder(bytes.NewReader(body))
	if start, _ := decoder.Token(); len(body) > 4096 || !json.Valid(body) || start != json.Delim('{') {
		return "", 0
	}
	for decoder.More() {
		name, _ := decoder.Token()
		var value any
		decoder.Decode(&value)
		if name == "code" {
			members++
			code, _ = value.(string)
		}
	}
	return code, members
}
