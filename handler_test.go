package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const testRid = "65f1a2b3-0c1d2e3f-4a5b6c7d"

// newWeChat starts a fake WeChat and returns its base URL, where nothing listens if there is none.
func newWeChat(t testing.TB, wechat http.HandlerFunc) string {
	if wechat == nil {
		return nobody
	}
	server := httptest.NewServer(wechat)
	t.Cleanup(server.Close)
	return server.URL
}

// startService starts the program in front of a fake WeChat.
func startService(t testing.TB, wechat http.HandlerFunc, settings ...string) *program {
	t.Helper()
	return startProgram(t, credentials(append([]string{"WX_BASE_URL", newWeChat(t, wechat)}, settings...)...))
}

// newHandler is the service without a server.
func newHandler(timeout time.Duration, baseURL string) *handler {
	c := config{appIDs: []string{testAppID}, appSecrets: []string{testSecret}, timeout: timeout, maxInflight: 1024}
	log := slog.New(slog.DiscardHandler)
	return &handler{wechat: newClient(c, []*url.URL{must(url.Parse(baseURL))}, log), appIDs: c.appIDs, log: log}
}

// What a fake WeChat does: say the same to everybody, refuse with an errcode, give the code as the openid, hang.

func say(reply string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, reply) }
}

func refuse(errcode int) http.HandlerFunc {
	return say(fmt.Sprintf(`{"errcode":%d,"errmsg":"invalid ip 203.0.113.7, not in whitelist rid: %s"}`, errcode, testRid))
}

func echo(w http.ResponseWriter, r *http.Request) {
	json.NewEncoder(w).Encode(user{OpenID: r.FormValue("js_code")})
}

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
	request := must(http.NewRequest("POST", url, strings.NewReader(body)))
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
func sendRaw(t testing.TB, p *program, text string) *net.TCPConn {
	t.Helper()
	conn := must(net.Dial("tcp", p.addr))
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	must(io.WriteString(conn, text))
	return conn.(*net.TCPConn)
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
		"X-Request-Id":           `^[!-~]{1,128}$`,
	} {
		if value := strings.Join(resp.Header.Values(name), "|"); !regexp.MustCompile(want).MatchString(value) {
			t.Errorf("got %s %q, want %s", name, value, want)
		}
	}
	return got
}

// answer has h answer a POST /openid.
func answer(t testing.TB, h http.Handler, body string) result {
	t.Helper()
	recorder, request := httptest.NewRecorder(), httptest.NewRequest("POST", "/openid", strings.NewReader(body))
	h.ServeHTTP(recorder, request)
	resp := recorder.Result()
	resp.Request = request
	return read(t, resp)
}

// checkFailure wants an answer without an openid, whose message is one sentence with the words in it.
func checkFailure(t testing.TB, got result, status int, word, words string) {
	t.Helper()
	if got.status != status || got.Error != word {
		t.Errorf("got %d %s, want %d %s", got.status, got.body, status, word)
	}
	if strings.Index(got.Message+" ", ". ") != len(got.Message)-1 || !strings.Contains(got.Message, ": ") {
		t.Errorf("got message %q, want one sentence with what is wrong and what to do", got.Message)
	}
	checkWords(t, "the answer", got.Message, cmp.Or(words, ": "))
}

// checkLog takes the next line of a request from p's log, which has to fit got, and returns it.
func checkLog(t *testing.T, p *program, got result) map[string]any {
	t.Helper()
	record := p.log.next(t, "request")
	level := "INFO"
	switch {
	case got.status >= 500:
		level = "ERROR"
	case got.status >= 400:
		level = "WARN"
	}
	want := map[string]any{"level": level, "status": float64(got.status), "request_id": got.header.Get("X-Request-Id")}
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
	duration, isNumber := record["duration_ms"].(float64)
	if (record["cause"] != nil) != (got.status >= 400) || !isNumber || duration > 60_000 ||
		!strings.HasPrefix(fmt.Sprint(record["remote"]), "127.0.0.1:") {
		t.Errorf("got %v in the log, want a cause, a duration in milliseconds, and the caller's address", record)
	}
	return record
}

// TestFailures holds what WeChat does against the contract's table. TestReplies and TestNoConnection have what breaks,
// TestRequestBody and TestPaths what callers do.
func TestFailures(t *testing.T) {
	t.Parallel()
	const console = " at mp.weixin.qq.com, 开发管理 → 开发设置"
	tests := []struct {
		errcode    int
		status     int
		word       string
		retryAfter string
		cause      string // its beginning
	}{
		{errcode: 40029, status: 400, word: "invalid_code", cause: "the code is unknown: compare WX_APPID"},
		{errcode: 40163, status: 400, word: "code_used",
			cause: "the code has been used: call wx.login for every request"},
		{errcode: 40226, status: 403, word: "user_blocked", cause: "WeChat considers the user high-risk"},
		{errcode: 45011, status: 429, word: "rate_limited", retryAfter: "60",
			cause: "WeChat limits the calls of a minute"},
		{errcode: 40013, status: 500, word: "misconfigured",
			cause: "WeChat does not know WX_APPID: copy the AppID again from"},
		{errcode: 40125, status: 500, word: "misconfigured", cause: "the AppSecret does not belong to WX_APPID. mp.weixin.qq.com " +
			"does not show an AppSecret again: if it is lost, reset it" + console + ", which ends the old one everywhere; after a " +
			"change in WX_APPSECRET_FILE, restart"},
		{errcode: 40164, status: 500, word: "misconfigured", cause: "add the address that WeChat saw to IP白名单 (the allowlist)" +
			console + ", or its range if it changes from one login to the next; that takes minutes; WeChat saw the address 203.0.113.7"},
		{errcode: 40243, status: 500, word: "misconfigured", cause: "the AppSecret is frozen: unfreeze it" + console +
			"; that takes ten minutes"},
		{errcode: 41002, status: 500, word: "misconfigured", cause: "no AppID arrived, so " + changed},
		{errcode: 41004, status: 500, word: "misconfigured", cause: "no AppSecret arrived, so " + changed},
		{errcode: 41008, status: 500, word: "misconfigured", cause: "no code arrived, so " + changed},
		{errcode: 40002, status: 500, word: "misconfigured", cause: "another grant_type arrived, so " + changed},
		{errcode: 43003, status: 500, word: "misconfigured", cause: badURL},
		{errcode: 40066, status: 500, word: "misconfigured", cause: badURL},
		{errcode: 48001, status: 500, word: "misconfigured", cause: "WX_APPID's account may not use this API"},
		{errcode: 50002, status: 500, word: "misconfigured", cause: "WX_APPID's account is restricted"},
		{errcode: 61451, status: 502, word: "wechat_error", cause: "look it up at developers.weixin.qq.com"},
		{errcode: -1, status: 503, word: "wechat_busy", retryAfter: "1", cause: "WeChat is busy"},
		{errcode: 45009, status: 503, word: "quota_exceeded",
			cause: "the day's quota is used up. WeChat allows at most twice"},
	}
	for _, test := range tests {
		t.Run(fmt.Sprint(test.errcode), func(t *testing.T) {
			t.Parallel()
			p := startService(t, refuse(test.errcode))
			const code = "0a1B2c3D"
			got := post(t, p.url+"/openid?code="+code, `{"code":"`+code+`"}`)
			checkFailure(t, got, test.status, test.word, "")
			if retryAfter := got.header.Get("Retry-After"); got.ErrCode != test.errcode || retryAfter != test.retryAfter {
				t.Errorf("got errcode %d and Retry-After %q, want %d and %q", got.ErrCode, retryAfter, test.errcode, test.retryAfter)
			}
			record := checkLog(t, p, got)
			if want := fmt.Sprintf("errcode %d: %s", test.errcode, test.cause); !strings.HasPrefix(record["cause"].(string), want) {
				t.Errorf("got cause\n%v, want\n%s", record["cause"], want)
			}
			if all := p.log.String() + got.body; strings.Contains(all, testSecret) || strings.Contains(all, code) ||
				strings.Contains(all, "203.0.113.7") != (test.errcode == 40164) || record["method"] != "POST" || record["path"] != "/openid" {
				t.Errorf("got answer and log\n%s\nwant no AppSecret or code, the address for 40164 alone, POST and /openid", all)
			}
		})
	}
}

// TestErrorWords holds the program's tables, those of the READMEs and the sample's openid.js together.
func TestErrorWords(t *testing.T) {
	t.Parallel()
	want := make(map[string]string) // by word: status, and the errcodes in order
	for word, row := range answers {
		codes := []string{}
		for code, row := range errcodes {
			if row.word == word || row.word == "invalid_code" && word == "appid_mismatch" {
				codes = append(codes, fmt.Sprint(code))
			}
		}
		slices.Sort(codes)
		want[word] = fmt.Sprint(row.status, " ", codes)
	}
	delete(want, "client_closed_request") // nobody is there to read it
	row := regexp.MustCompile("(?m)^\\| (\\d+) \\| `(\\w+)` \\|([-\\d ]*)\\|")
	for _, name := range []string{"README.md", "README.zh-CN.md"} {
		got := make(map[string]string)
		for _, m := range row.FindAllStringSubmatch(string(must(os.ReadFile(name))), -1) {
			codes := strings.Fields(m[3])
			slices.Sort(codes)
			got[m[2]] = fmt.Sprint(m[1], " ", codes)
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
	sample := string(must(os.ReadFile("miniprogram/openid.js")))
	for word := range want {
		if !strings.Contains(sample, "case '"+word+"':") {
			t.Errorf("openid.js has no case for %s", word)
		}
	}
	for _, m := range regexp.MustCompile(`case '(\w+)':`).FindAllStringSubmatch(sample, -1) {
		if want[m[1]] == "" && strings.Count(sample, "'"+m[1]+"'") < 2 { // nor does it come from openid.js itself
			t.Errorf("openid.js has a case for %s, which does not exist", m[1])
		}
	}
}

// TestMessagesInChinese finds the messages that README.zh-CN.md explains in the program. Some are the system's.
func TestMessagesInChinese(t *testing.T) {
	t.Parallel()
	source := "address already in use Only one usage of each socket address connection refused actively refused "
	for _, name := range must(filepath.Glob("*.go")) {
		if !strings.HasSuffix(name, "_test.go") {
			source += string(must(os.ReadFile(name)))
		}
	}
	source = regexp.MustCompile(`" \+\s+"`).ReplaceAllString(source, "")
	_, table, _ := strings.Cut(string(must(os.ReadFile("README.zh-CN.md"))), "英文提示")
	rows := regexp.MustCompile("(?m)^\\| (`[^|]+`) \\| ").FindAllStringSubmatch(table[:strings.Index(table, "\n## ")], -1)
	if len(rows) < 20 {
		t.Errorf("got %d rows, want the table", len(rows))
	}
	for _, row := range rows {
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			for phrase := range strings.SplitSeq(m[1], "…") {
				if !strings.Contains(source, strings.TrimSpace(phrase)) {
					t.Errorf("the program has no message with %q", phrase)
				}
			}
		}
	}
}

func TestRequestBody(t *testing.T) {
	t.Parallel()
	quote := func(code string) string { return string(must(json.Marshal(map[string]string{"code": code}))) }
	utf16 := strings.Join(strings.Split(quote("x"), ""), "\x00")
	const form, long = "application/x-www-form-urlencoded", "0123456789abcdef"
	tests := []struct {
		name, body, contentType string
		words                   string // in the message
	}{
		{name: "empty", body: ``, contentType: form, words: "no body"},
		{name: "form", body: `code=x`, words: "form JSON"},
		{name: "form by its type", body: `js_code=x&code=x`, contentType: form, words: "form JSON"},
		{name: "form-data", body: "--x\r\n", contentType: "Multipart/Form-Data; boundary=x", words: "form JSON"},
		{name: "quotes lost in cmd.exe", body: `'{code:x}'`, contentType: form,
			words: "quotes were lost cmd.exe PowerShell"},
		{name: "quotes lost in cmd.exe, with a space", body: `'{code:`, contentType: form, words: "quotes cmd.exe"},
		{name: "quotes lost in PowerShell", body: `{code:x}`, words: "quotes PowerShell"},
		{name: "single quotes", body: `{'code':'x'}`, words: "single double"},
		{name: "byte order mark", body: "\ufeff" + quote("x"), words: "byte order mark BOM"},
		{name: "UTF-16", body: "\xff\xfe" + utf16 + "\x00", contentType: form, words: "UTF-16 UTF-8"},
		{name: "UTF-16, big-endian", body: "\xfe\xff\x00" + utf16, words: "UTF-16 UTF-8"},
		{name: "UTF-16 without BOM", body: utf16 + "\x00", words: "UTF-16 UTF-8"},
		{name: "UTF-16 without BOM, big-endian", body: "\x00" + utf16, words: "UTF-16 UTF-8"},
		{name: "gzip", body: "\x1f\x8b\x08\x00", contentType: form, words: "gzip"},
		{name: "object for code", body: `{"code":{"code":"x","errMsg":"login:ok"}}`, words: "object string res.code"},
		{name: "number for code", body: `{"code":12345}`, words: "number string"},
		{name: "no code", body: `{}`, words: "no code"},
		{name: "null for code", body: `{"code":null}`, words: "no code"},
		{name: "129 characters", body: quote(strings.Repeat("x", 129)), words: "128 printable"},
		{name: "no characters", body: quote(""), words: "empty"},
		{name: "DEL", body: quote(long + "\x7f"), words: "ASCII characters"},
		{name: "line break", body: quote(long + "\n"), words: "ASCII characters"},
		{name: "array", body: `[{"code":"x"}]`, words: "not an object"},
		{name: "string", body: `"x"`, contentType: form, words: "not an object"},
		{name: "cut short by curl -d", body: `{"code":"x="`, contentType: form, words: "one JSON object"},
		{name: "something after", body: `{"code":"x"}x`, words: "one JSON object"},
	}
	p := startService(t, echo)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := post(t, p.url+"/openid", test.body, "Content-Type", test.contentType)
			checkLog(t, p, got)
			checkFailure(t, got, 400, "invalid_request", test.words)
			if strings.Contains(got.Message, long) {
				t.Errorf("got message %q, want no code in it", got.Message)
			}
		})
	}
	if got := post(t, p.url+"/openid", quote("x"), "Content-Type", form); got.OpenID != "x" { // as curl -d sends it
		t.Errorf("got %d %s, want the openid", got.status, got.body)
	}
	for _, body := range []string{strings.Repeat(" ", 4097), strings.Repeat("x", 100_000)} {
		checkFailure(t, post(t, p.url+"/openid", body), 413, "body_too_large", "4096")
	}
}

// TestHeaderSize has headers below and above 8 KiB.
func TestHeaderSize(t *testing.T) {
	t.Parallel()
	p := startService(t, echo)
	for size, want := range map[int]int{7 << 10: 404, 8 << 10: 431} {
		conn := sendRaw(t, p, fmt.Sprintf("GET / HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n", strings.Repeat("x", size)))
		if got := must(http.ReadResponse(bufio.NewReader(conn), nil)); got.StatusCode != want {
			t.Errorf("got %d for a header of %d bytes, want %d", got.StatusCode, size, want)
		}
	}
}

// TestTimeToArrive has a body that does not arrive, header and body that both arrive late, and an exchange that takes
// longer than they may.
func TestTimeToArrive(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		parts []string      // of the request
		pause time.Duration // between two
		took  time.Duration // at most
		want  string        // in the answer
	}{
		{name: "stalls", parts: []string{halfBody}, took: 15 * time.Second, want: "did not arrive"},
		{name: "trickles", parts: append([]string{halfBody}, strings.Split(`{"code":" `, "")...), pause: 2 * time.Second,
			took: 15 * time.Second, want: "did not arrive"},
		{name: "is not read", parts: []string{strings.Replace(halfBody, "/openid", "/", 1)}, took: 15 * time.Second,
			want: "not_found"},
		{name: "a time each", parts: []string{halfBody[:30], halfBody[30:], `{"cod":"xx"}`}, pause: 14 * time.Second,
			took: 28 * time.Second, want: "no code"},
		{name: "long exchange", parts: []string{strings.Replace(halfBody, "12", "28", 1) + `{"code":"sandbox:delay=30s"}`},
			took: 30 * time.Second, want: `{"openid":"o`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				// The service asks its own sandbox, over connections to itself.
				h := newHandler(time.Minute, "http://wechat")
				h.sandbox = fakeWeChat(testAppID)
				b, _ := serveInBubble(t, time.Minute, h)
				h.wechat.bases[0].dial = func(context.Context, string, string) (net.Conn, error) { return b.dial(t, ""), nil }
				conn, start := b.dial(t, ""), time.Now()
				go func() {
					for _, part := range test.parts {
						io.WriteString(conn, part)
						time.Sleep(test.pause)
					}
				}()
				if got := readAnswer(t, conn); !strings.Contains(got.body, test.want) || time.Since(start) > test.took {
					t.Errorf("got %d %s after %v, want %s after %v", got.status, got.body, time.Since(start), test.want, test.took)
				}
				conn.Close()
				time.Sleep(time.Minute) // until the last part is sent
			})
		})
	}
}

func TestAppIDMismatch(t *testing.T) {
	t.Parallel()
	const other, page = "wxfedcba9876543210", "/devtools/page-frame.html"
	const host, both = "https://servicewechat.com/", other + " " + testAppID
	tests := []struct {
		name, referer, code string
		plugin              string // the header of plug-ins
		word, message       string // and words in the message
	}{
		{name: "in the tools", referer: host + other + page, code: "x", word: "appid_mismatch",
			message: both + " project.config.json"},
		{name: "on a phone", referer: host + other + "/27/page-frame.html", code: "x1", word: "appid_mismatch",
			message: both},
		{name: "tourist mode", referer: host + "touristappid" + page, code: mockCode, word: "appid_mismatch",
			message: "tourist " + testAppID + " -sandbox"},
		{name: "mock code", code: mockCode, word: "invalid_code", message: "tourist -sandbox"},
		{name: "another errcode", referer: host + other + page, code: "used", word: "code_used", message: "wx.login"},
		{name: "the same AppID", referer: host + testAppID + page, code: "x1", word: "invalid_code"},
		{name: "AppID that holds the code", referer: host + other + page, code: "wxfedcba98", word: "invalid_code"},
		{name: "no Referer", code: "x1", word: "invalid_code"},
		{name: "host that begins so", referer: "https://servicewechat.com.example/" + other + page, code: "x1",
			word: "invalid_code"},
		{name: "host that ends so", referer: "https://x/?" + host + other + page, code: "x1", word: "invalid_code"},
		{name: "another page", referer: host + other + "/27/", code: "x1", word: "invalid_code"},
		{name: "plug-in", referer: host + other + page, plugin: "{}", code: "x1", word: "invalid_code"},
		{name: "no AppID", referer: host + page, code: "x1", word: "invalid_code"},
		{name: "something after", referer: host + other + page + "?x", code: "x1", word: "invalid_code"},
		{name: "markup", referer: host + "<b>wx</b>" + page, code: "x1", word: "invalid_code"},
		{name: "too long", referer: host + strings.Repeat("w", 200) + page, code: "x1", word: "invalid_code"},
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
			got := post(t, p.url+"/openid", `{"code":"`+test.code+`"}`, "Referer", test.referer, "X-WECHAT-HOSTSIGN", test.plugin)
			checkFailure(t, got, 400, test.word, test.message)
			checkLog(t, p, got)
			if strings.Contains(got.body, testAppID) != (test.word == "appid_mismatch") ||
				strings.Contains(got.body, test.code) && len(test.code) > 4 {
				t.Errorf("got %s, want our AppID in a mismatch alone, and no code in it", got.body)
			}
		})
	}
}

func TestRequestID(t *testing.T) {
	t.Parallel()
	p, seen := startService(t, echo), make(map[string]bool)
	for id, kept := range map[string]bool{"Az09._-": true, strings.Repeat("x", 64): true, strings.Repeat("x", 65): false, "": false,
		"a b": false, "é": false} {
		got := post(t, p.url+"/openid", `{"code":"x"}`, "X-Request-Id", id)
		given := got.header.Get("X-Request-Id")
		if (given == id) != kept || seen[given] {
			t.Errorf("got X-Request-Id %q for %q, want the same: %t, or a new one", given, id, kept)
		}
		seen[given] = true
		checkLog(t, p, got)
	}
}

func TestPaths(t *testing.T) {
	t.Parallel()
	tests := []struct {
		line   string // method and target
		path   string // in the log
		status int
		word   string
		allow  string
		words  string // in the message, or the whole body of a 200
	}{
		{line: "POST /openid?code=x", path: "/openid", status: 400, word: "invalid_request", words: "no body"},
		{line: "POST /%6fpenid", path: "/openid", status: 400, word: "invalid_request", words: "no body"},
		{line: "GET /openid", path: "/openid", status: 405, word: "method_not_allowed", allow: "POST",
			words: "POST wx.request"},
		{line: "OPTIONS /openid", path: "/openid", status: 405, word: "method_not_allowed", allow: "POST",
			words: "POST"},
		{line: "GET /healthz", status: 200, words: `{"status":"ok"}` + "\n"},
		{line: "HEAD /healthz", status: 200},
		{line: "POST /healthz", path: "/healthz", status: 405, word: "method_not_allowed", allow: "GET, HEAD",
			words: "GET HEAD"},
		{line: "GET /", path: "/", status: 404, word: "not_found", words: "/openid /healthz"},
		{line: "POST //openid", path: "//openid", status: 404, word: "not_found"},
		{line: "POST /openid/", path: "/openid/", status: 404, word: "not_found"},
		{line: "POST /openid%2F", path: "/openid/", status: 404, word: "not_found"},
		{line: "POST /x/%2e%2e/openid", path: "/x/../openid", status: 404, word: "not_found"},
		{line: "GET /sns/jscode2session", path: "/sns/jscode2session", status: 404, word: "not_found"},
		{line: "OPTIONS *", path: "*", status: 404, word: "not_found"},
		{line: "CONNECT example.com:443", path: "", status: 404, word: "not_found"},
	}
	p := startService(t, echo)
	for _, test := range tests {
		t.Run(test.line, func(t *testing.T) {
			conn, method := sendRaw(t, p, test.line+" HTTP/1.1\r\nHost: x\r\n\r\n"), strings.Fields(test.line)[0]
			got := read(t, must(http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})))
			if allow := got.header.Get("Allow"); allow != test.allow {
				t.Errorf("got Allow %q, want %q", allow, test.allow)
			}
			if test.status == 200 { // and the next test finds no line of this one in the log
				if got.status != 200 || got.body != test.words {
					t.Errorf("got %d %q, want 200 %q", got.status, got.body, test.words)
				}
				return
			}
			checkFailure(t, got, test.status, test.word, test.words)
			if record := checkLog(t, p, got); record["path"] != test.path || record["method"] != method {
				t.Errorf("got %v %v in the log, want %s", record["method"], record["path"], test.path)
			}
		})
	}
}

// TestCallerGone has a caller hang up, or close its own side alone, twice with one place for exchanges.
func TestCallerGone(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		gone func(*net.TCPConn) error
		want string // what the caller reads
	}{
		{name: "hangs up", gone: (*net.TCPConn).Close},
		{name: "half-closes", gone: (*net.TCPConn).CloseWrite, want: "HTTP/1.1 499 "},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			asked, left := make(chan bool), make(chan bool)
			p := startService(t, func(w http.ResponseWriter, r *http.Request) {
				if r.FormValue("js_code") == "s" {
					asked <- true
					hang(w, r)
					left <- true
				}
				echo(w, r)
			}, "MAX_INFLIGHT", "1", "WX_TIMEOUT", "20s")
			for range 2 {
				conn := sendRaw(t, p, halfBody+`{"code":"s"}`)
				<-asked
				full := post(t, p.url+"/openid", `{"code":"x"}`)
				checkFailure(t, full, 503, "overloaded", "this code again")
				if cause := checkLog(t, p, full)["cause"]; full.header.Get("Retry-After") != "1" ||
					cause != "MAX_INFLIGHT is reached: raise it, or add an instance" {
					t.Errorf("got Retry-After %q and cause %v, want 1 and MAX_INFLIGHT", full.header.Get("Retry-After"), cause)
				}
				if err := test.gone(conn); err != nil {
					t.Fatal(err)
				}
				<-left
				if record := p.log.next(t, "request"); record["status"] != 499.0 || record["level"] != "WARN" {
					t.Errorf("got %v in the log, want status 499, level WARN", record)
				}
				if got, _ := io.ReadAll(conn); !strings.HasPrefix(string(got), test.want) || test.want == "" && len(got) > 0 {
					t.Errorf("got %q, want %q", got, test.want)
				}
				if got := post(t, p.url+"/openid", `{"code":"x"}`); got.OpenID != "x" {
					t.Errorf("got %d %s after the caller was gone, want the openid", got.status, got.body)
				}
				p.log.next(t, "request")
			}
		})
	}
}

// FuzzRequest sends any body. WeChat is asked with the code that encoding/json finds, or not at all.
func FuzzRequest(f *testing.F) {
	for _, body := range []string{`{"code":"0a1B"}`, `{"code":"x","code":"y"}`, `{"\u0063ode":" ~\"\u0041"}`, `{"code":"40029"}`,
		`{"code":"x"} x`, `{"code":1}`, `{"code":null}`, ``, "\ufeff{}", "{\"code\":\"\x80\"}", `{"code":"x"}` + strings.Repeat(" ", 4084),
		`{"code":"x"}` + strings.Repeat(" ", 4085), " \r\n\t{ \"code\" : \"the code is a mock one\" }\n ", `{"code":"a&secret=b#c%20+"}`,
		`{"appid":"wx","user":{"a":"y"},"n":[1,{}],"code":"` + strings.Repeat("x", 128) + `","z":null}`} {
		f.Add([]byte(body))
	}
	var asked []string
	h := newHandler(10*time.Second, newWeChat(f, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Query()["js_code"]...)
		echo(w, r)
	}))
	f.Fuzz(func(t *testing.T, body []byte) {
		asked = nil
		got, want := answer(t, h, string(body)), struct{ Code string }{Code: "\n"}
		err := json.Unmarshal(body, &want)
		switch {
		case len(body) > 4096:
			checkFailure(t, got, 413, "body_too_large", "")
		case err != nil || !regexp.MustCompile(`^[ -~]{1,128}$`).MatchString(want.Code):
			checkFailure(t, got, 400, "invalid_request", "")
		case got.OpenID == want.Code && slices.Equal(asked, []string{want.Code}):
			return
		}
		if len(asked) > 0 || got.status == 200 {
			t.Errorf("got %d %s, and WeChat asked with %q, want %q or a failure", got.status, got.body, asked, want.Code)
		}
	})
}
