package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const testRid = "65f1a2b3-0c1d2e3f-4a5b6c7d"

// newWeChat starts a fake WeChat and returns its base URL, where nothing listens if there is none.
func newWeChat(t testing.TB, wechat http.HandlerFunc) string {
	t.Helper()
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

// What a fake WeChat does: say the same to everybody, refuse with an errcode, answer a status, give
// the code as the openid, not answer, and hang up in the middle.

func say(reply string) http.HandlerFunc { return status(200, reply) }

func status(code int, reply string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(code)
		io.WriteString(w, reply)
	}
}

func refuse(errcode int) http.HandlerFunc {
	return say(fmt.Sprintf(`{"errcode":%d,"errmsg":"invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist rid: %s"}`,
		errcode, testRid))
}

func echo(w http.ResponseWriter, r *http.Request) {
	json.NewEncoder(w).Encode(user{OpenID: r.FormValue("js_code")})
}

func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func abort(w http.ResponseWriter, _ *http.Request) {
	io.WriteString(w, `{"openid":`)
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

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
		"X-Request-Id":           `^[A-Za-z0-9._-]{1,64}$`,
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

// checkFailure wants an answer without an openid, whose message is one sentence.
func checkFailure(t testing.TB, got result, status int, error string) {
	t.Helper()
	if got.status != status || got.Error != error {
		t.Errorf("got %d %s, want %d %s", got.status, got.body, status, error)
	}
	if strings.Index(got.Message+" ", ". ") != len(got.Message)-1 || !strings.Contains(got.Message, ": ") {
		t.Errorf("got message %q, want one sentence with what is wrong and what to do", got.Message)
	}
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
	if cause, _ := record["cause"].(string); (cause != "") != (got.status >= 400) {
		t.Errorf("got cause %q in the log for status %d", cause, got.status)
	}
	if duration, _ := record["duration"].(float64); duration < 0 || duration > float64(time.Minute) {
		t.Errorf("got duration %v in the log, want one in nanoseconds", record["duration"])
	}
	if remote, _ := record["remote"].(string); !strings.HasPrefix(remote, "127.0.0.1:") {
		t.Errorf("got remote %v in the log, want the caller's address", record["remote"])
	}
	return record
}

// TestFailures holds what WeChat does against the contract's table. TestRequestBody and TestPaths
// do so for what callers do.
func TestFailures(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name       string // begins with the error
		wechat     http.HandlerFunc
		status     int
		errcode    int
		retryAfter string
		cause      string // words in the log
	}{
		{"invalid_code", refuse(40029), 400, 40029, "", "WX_APPID"},
		{"code_used", refuse(40163), 400, 40163, "", "wx.login"},
		{"user_blocked", refuse(40226), 403, 40226, "", "high-risk"},
		{"rate_limited", refuse(45011), 429, 45011, "60", "minute"},
		{"misconfigured AppID", refuse(40013), 500, 40013, "", "WX_APPID mp.weixin.qq.com"},
		{"misconfigured AppSecret", refuse(40125), 500, 40125, "", "shows no AppSecret again ends the old one everywhere restart"},
		{"misconfigured address", refuse(40164), 500, 40164, "", "saw 203.0.113.7 range minutes IP白名单 mp.weixin.qq.com"},
		{"misconfigured frozen", refuse(40243), 500, 40243, "", "frozen ten minutes mp.weixin.qq.com"},
		{"misconfigured https", refuse(43003), 500, 43003, "", "WX_BASE_URL https://"},
		{"misconfigured path", refuse(40066), 500, 40066, "", "WX_BASE_URL path"},
		{"misconfigured no AppID", refuse(41002), 500, 41002, "", "AppID changes the query proxy"},
		{"misconfigured no AppSecret", refuse(41004), 500, 41004, "", "AppSecret changes the query"},
		{"misconfigured no code", refuse(41008), 500, 41008, "", "code changes the query"},
		{"misconfigured grant_type", refuse(40002), 500, 40002, "", "grant_type changes the query"},
		{"misconfigured API", refuse(48001), 500, 48001, "", "WX_APPID mp.weixin.qq.com"},
		{"misconfigured account", refuse(50002), 500, 50002, "", "restricted mp.weixin.qq.com"},
		{"wechat_error errcode", refuse(61451), 502, 61451, "", "61451 developers.weixin.qq.com"},
		{"wechat_error status", status(500, `{"openid":"o"}`), 502, 0, "", "status 500 WX_BASE_URL"},
		{"wechat_error redirect", status(302, `{"openid":"o"}`), 502, 0, "", "status 302 WX_BASE_URL"},
		{"wechat_error no object", say(`["openid"]`), 502, 0, "", "JSON"},
		{"wechat_error too long", say(`{"openid":"o"}` + strings.Repeat(" ", 64<<10)), 502, 0, "", "64 KiB"},
		{"wechat_error no openid", say(`{"errcode":0}`), 502, 0, "", "without an openid"},
		{"wechat_unreachable", nil, 502, 0, "", "127.0.0.1:1: connection refused firewall HTTP_PROXY"},
		{"wechat_unreachable half a reply", abort, 502, 0, "", "broke"},
		{"wechat_busy", refuse(-1), 503, -1, "1", "busy"},
		{"quota_exceeded", refuse(45009), 503, 45009, "", "quota"},
		{"wechat_timeout", hang, 504, 0, "", "WX_TIMEOUT"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			word, _, _ := strings.Cut(test.name, " ")
			timeout := map[string]string{"wechat_timeout": "20ms"}[word]
			p := startService(t, test.wechat, "WX_TIMEOUT", timeout)
			const code = "0a1B2c3D"
			got := post(t, p.url+"/openid?code="+code, `{"code":"`+code+`"}`)
			checkFailure(t, got, test.status, word)
			if retryAfter := got.header.Get("Retry-After"); got.ErrCode != test.errcode || retryAfter != test.retryAfter {
				t.Errorf("got errcode %d and Retry-After %q, want %d and %q", got.ErrCode, retryAfter, test.errcode, test.retryAfter)
			}
			record := checkLog(t, p, got)
			if record["method"] != "POST" || record["path"] != "/openid" {
				t.Errorf("got %v %v in the log, want POST /openid", record["method"], record["path"])
			}
			checkWords(t, "the log", record["cause"].(string), test.cause)
			if strings.Contains(p.log.String()+got.body, testSecret) || strings.Contains(p.log.String()+got.body, code) {
				t.Errorf("got answer %s\nand log\n%s\nwant neither to hold the AppSecret or the code", got.body, p.log)
			}
			if strings.Contains(p.log.String(), "203.0.113.7") != (test.errcode == 40164) {
				t.Errorf("got log\n%s\nwant the address for 40164 alone", p.log)
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

func TestRequestBody(t *testing.T) {
	t.Parallel()
	quote := func(code string) string { return string(must(json.Marshal(map[string]string{"code": code}))) }
	padded := func(n int) string { return quote("x") + strings.Repeat(" ", n-len(quote("x"))) }
	utf16 := strings.Join(strings.Split(quote("x"), ""), "\x00")
	const form, long = "application/x-www-form-urlencoded", "0123456789abcdef"
	tests := []struct {
		name, body, contentType string
		code                    string // that WeChat is asked with, if the body is good
		words                   string // in the message of invalid_request, if it is not
	}{
		{"code alone", `{"code":"0a1B"}`, "", "0a1B", ""},
		{"other members", `{"appid":"wx","user":{"a":"y"},"n":[1,{}],"code":"x","z":null}`, "", "x", ""},
		{"white space around", " \r\n\t{ \"code\" : \"x\" }\n ", "", "x", ""},
		{"curl -d", quote("x"), form, "x", ""},
		{"mock code", quote(mockCode), "", mockCode, ""},
		{"code of the sandbox", quote("sandbox:errcode=45011"), "", "sandbox:errcode=45011", ""},
		{"space and tilde", quote(" ~"), "", " ~", ""},
		{"what a query is made of", quote("a&secret=b#c%20+"), "", "a&secret=b#c%20+", ""},
		{"128 characters", quote(strings.Repeat("x", 128)), "", strings.Repeat("x", 128), ""},
		{"4096 bytes", padded(4096), "", "x", ""},

		{"empty", ``, "", "", "no body"},
		{"empty form", ``, form, "", "no body"},
		{"form", `code=x`, "", "", "form JSON"},
		{"form by its type", `js_code=x&code=x`, form, "", "form JSON"},
		{"form-data", "--x\r\n", "multipart/form-data; boundary=x", "", "form JSON"},
		{"quotes lost in cmd.exe", `'{code:x}'`, form, "", "quotes were lost cmd.exe PowerShell"},
		{"quotes lost in cmd.exe, with a space", `'{code:`, form, "", "quotes cmd.exe"},
		{"quotes lost in PowerShell", `{code:x}`, form, "", "quotes PowerShell"},
		{"single quotes", `{'code':'x'}`, "", "", "single double"},
		{"byte order mark", "\ufeff" + quote("x"), "", "", "byte order mark BOM"},
		{"UTF-16", "\xff\xfe" + utf16 + "\x00", form, "", "UTF-16 UTF-8"},
		{"UTF-16, big-endian", "\xfe\xff\x00" + utf16, "", "", "UTF-16 UTF-8"},
		{"UTF-16 without BOM", utf16 + "\x00", "", "", "UTF-16 UTF-8"},
		{"UTF-16 without BOM, big-endian", "\x00" + utf16, "", "", "UTF-16 UTF-8"},
		{"gzip", "\x1f\x8b\x08\x00", form, "", "gzip"},
		{"object for code", `{"code":{"code":"x","errMsg":"login:ok"}}`, "", "", "object string res.code"},
		{"number for code", `{"code":12345}`, "", "", "number string"},
		{"no code", `{}`, "", "", "no code"},
		{"null for code", `{"code":null}`, "", "", "no code"},
		{"129 characters", quote(strings.Repeat("x", 129)), "", "", "128 characters"},
		{"no characters", quote(""), "", "", "empty"},
		{"DEL", quote(long + "\x7f"), "", "", "ASCII characters"},
		{"line break", quote(long + "\n"), "", "", "ASCII characters"},
		{"null", `null`, "", "", "no code"},
		{"array", `[{"code":"x"}]`, "", "", "not an object"},
		{"string", `"x"`, form, "", "not an object"},
		{"cut short", `{"code":"x"`, "", "", "one JSON object"},
		{"something after", `{"code":"x"}x`, "", "", "one JSON object"},
	}
	var asked atomic.Int32
	p := startService(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		echo(w, r)
	})
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before := asked.Load()
			got := post(t, p.url+"/openid", test.body, "Content-Type", test.contentType)
			if test.code != "" && (got.status != 200 || got.OpenID != test.code) {
				t.Errorf("got %d %s, want WeChat to be asked with %q", got.status, got.body, test.code)
			}
			if test.code == "" {
				checkFailure(t, got, 400, "invalid_request")
				checkWords(t, "the answer", got.Message, test.words)
				if strings.Contains(got.Message, long) || asked.Load() != before {
					t.Errorf("got message %q, want no code in it and WeChat not asked", got.Message)
				}
			}
			checkLog(t, p, got)
		})
	}
	for _, body := range []string{padded(4097), strings.Repeat("x", 100_000)} {
		checkFailure(t, post(t, p.url+"/openid", body), 413, "body_too_large")
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

// TestTimeToArrive has a body that does not arrive, and header and body that both arrive late.
func TestTimeToArrive(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		parts []string      // of the request
		pause time.Duration // between two
		took  time.Duration
		want  string // in the answer
	}{
		{"stalls", []string{halfBody}, 0, 15 * time.Second, "did not arrive"},
		{"trickles", append([]string{halfBody}, strings.Split(`{"code":" `, "")...), 2 * time.Second, 15 * time.Second, "did not arrive"},
		{"is not read", []string{strings.Replace(halfBody, "/openid", "/", 1)}, 0, 15 * time.Second, "not_found"},
		{"a time each", []string{halfBody[:30], halfBody[30:], `{"cod":"xx"}`}, 14 * time.Second, 28 * time.Second, "no code"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn := startInBubble(t, t.Context(), config{timeout: time.Second}).dial(t, "")
				start := time.Now()
				go func() {
					for _, part := range test.parts {
						io.WriteString(conn, part)
						time.Sleep(test.pause)
					}
				}()
				if got := readAnswer(t, conn); !strings.Contains(got.body, test.want) {
					t.Errorf("got %d %s, want %s", got.status, got.body, test.want)
				}
				if took := time.Since(start); took > test.took {
					t.Errorf("got an answer after %v, want it after %v at most", took, test.took)
				}
				conn.Close()
				time.Sleep(time.Minute) // for all to end
			})
		})
	}
}

// TestLongExchange has WeChat take longer than header and body may: the caller still gets the answer.
func TestLongExchange(t *testing.T) {
	t.Parallel()
	inBubble(t, time.Minute, "http://one", func(t *testing.T, s *service) {
		b, _ := serveInBubble(t, time.Minute, s.handler)
		if got := readAnswer(t, b.dial(t, halfBody+`{"code":"l"}`)); got.OpenID != "one" {
			t.Errorf("got %d %s, want the openid", got.status, got.body)
		}
	}, named("one", up))
}

func TestAppIDMismatch(t *testing.T) {
	t.Parallel()
	const other, page = "wxfedcba9876543210", "/devtools/page-frame.html"
	tests := []struct {
		name, referer, code string
		error, message      string // words in the message
	}{
		{"in the tools", "https://servicewechat.com/" + other + page, "x", "appid_mismatch", other + " " + testAppID},
		{"on a phone", "https://servicewechat.com/" + other + "/27/page-frame.html", "x1", "appid_mismatch", other + " " + testAppID},
		{"tourist mode", "https://servicewechat.com/touristappid" + page, mockCode, "appid_mismatch", "tourist " + testAppID + " -sandbox"},
		{"mock code", "", mockCode, "invalid_code", "tourist -sandbox"},
		{"another errcode", "https://servicewechat.com/" + other + page, "used", "code_used", "wx.login"},
		{"the same AppID", "https://servicewechat.com/" + testAppID + page, "x1", "invalid_code", "AppID"},
		{"AppID that holds the code", "https://servicewechat.com/" + other + page, "wxfedcba98", "invalid_code", "AppID"},
		{"no Referer", "", "x1", "invalid_code", "AppID"},
		{"host that begins so", "https://servicewechat.com.example/" + other + page, "x1", "invalid_code", "AppID"},
		{"host that ends so", "https://example.com/?https://servicewechat.com/" + other + page, "x1", "invalid_code", "AppID"},
		{"another page", "https://servicewechat.com/" + other + "/27/", "x1", "invalid_code", "AppID"},
		{"plug-in", "https://servicewechat.com/" + other + page + "#plugin", "x1", "invalid_code", "AppID"},
		{"no AppID", "https://servicewechat.com/" + page, "x1", "invalid_code", "AppID"},
		{"something after", "https://servicewechat.com/" + other + page + "?x", "x1", "invalid_code", "AppID"},
		{"markup", "https://servicewechat.com/<b>wx</b>" + page, "x1", "invalid_code", "AppID"},
		{"too long", "https://servicewechat.com/" + strings.Repeat("w", 200) + page, "x1", "invalid_code", "AppID"},
	}
	p := startService(t, func(w http.ResponseWriter, r *http.Request) {
		errcode := 40029
		if r.FormValue("js_code") == "used" {
			errcode = 40163
		}
		refuse(errcode)(w, r)
	})
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			referer, plugin := strings.CutSuffix(test.referer, "#plugin")
			header := []string{"Referer", referer}
			if plugin {
				header = append(header, "X-WECHAT-HOSTSIGN", "{}")
			}
			got := post(t, p.url+"/openid", `{"code":"`+test.code+`"}`, header...)
			checkFailure(t, got, 400, test.error)
			checkLog(t, p, got)
			checkWords(t, "the answer", got.Message, test.message)
			if strings.Contains(got.body, testAppID) != (test.error == "appid_mismatch") {
				t.Errorf("got %s, want our AppID in a mismatch alone", got.body)
			}
			if strings.Contains(got.body, test.code) && len(test.code) > 4 {
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
		{"64 characters", strings.Repeat("x", 64), true},
		{"65 characters", strings.Repeat("x", 65), false},
		{"empty", "", false},
		{"space inside", "a b", false},
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
		path   string // in the log
		status int
		error  string
		words  string // in the message, or the whole body of a 200
	}{
		{"POST /openid?code=x", "/openid", 400, "invalid_request", "no body"},
		{"POST /%6fpenid", "/openid", 400, "invalid_request", "no body"},
		{"GET /openid", "/openid", 405, "method_not_allowed", "POST wx.request"},
		{"OPTIONS /openid", "/openid", 405, "method_not_allowed", "POST"},
		{"GET /healthz", "", 200, "", `{"status":"ok"}` + "\n"},
		{"HEAD /healthz", "", 200, "", ""},
		{"POST /healthz", "/healthz", 405, "method_not_allowed", "GET HEAD"},
		{"GET /", "/", 404, "not_found", "/openid /healthz"},
		{"POST //openid", "//openid", 404, "not_found", "/openid"},
		{"POST /openid/", "/openid/", 404, "not_found", "/openid"},
		{"POST /openid%2F", "/openid/", 404, "not_found", "/openid"},
		{"POST /x/%2e%2e/openid", "/x/../openid", 404, "not_found", "/openid"},
		{"GET /sns/jscode2session", "/sns/jscode2session", 404, "not_found", "/openid"},
		{"OPTIONS *", "*", 404, "not_found", "/openid"},
		{"CONNECT example.com:443", "", 404, "not_found", "/openid"},
	}
	allow := map[string]string{"/openid": "POST", "/healthz": "GET, HEAD"}
	p := startService(t, echo)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			conn, method := sendRaw(t, p, test.name+" HTTP/1.1\r\nHost: x\r\n\r\n"), strings.Fields(test.name)[0]
			got := read(t, must(http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})))
			if want := map[int]string{405: allow[test.path]}[test.status]; got.header.Get("Allow") != want {
				t.Errorf("got Allow %q, want %q", got.header.Get("Allow"), want)
			}
			if test.status == 200 { // and the next test finds no line of this one in the log
				if got.status != 200 || got.body != test.words {
					t.Errorf("got %d %q, want 200 %q", got.status, got.body, test.words)
				}
				return
			}
			checkFailure(t, got, test.status, test.error)
			checkWords(t, "the answer", got.Message, test.words)
			if record := checkLog(t, p, got); record["path"] != test.path || record["method"] != method {
				t.Errorf("got %v %v in the log, want %s", record["method"], record["path"], test.path)
			}
		})
	}
}

// TestCallerGone has a caller hang up, or close its own side alone, three times with one place for exchanges.
func TestCallerGone(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		gone func(*net.TCPConn) error
		want string // what the caller reads
	}{
		{"hangs up", (*net.TCPConn).Close, ""},
		{"half-closes", (*net.TCPConn).CloseWrite, "HTTP/1.1 499 "},
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
			for range 3 {
				conn := sendRaw(t, p, halfBody+`{"code":"s"}`)
				<-asked
				full := post(t, p.url+"/openid", `{"code":"x"}`)
				checkFailure(t, full, 503, "overloaded")
				if record := checkLog(t, p, full); full.header.Get("Retry-After") != "1" || !strings.Contains(record["cause"].(string), "MAX_INFLIGHT") {
					t.Errorf("got Retry-After %q and %v in the log, want 1 and MAX_INFLIGHT", full.header.Get("Retry-After"), record)
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
		`{"code":"x"} x`, `{"code":1}`, `{"code":null}`, ``, "\ufeff{}", "{\"code\":\"\x80\"}", strings.Repeat(" ", 4097)} {
		f.Add([]byte(body))
	}
	var asked []string
	wechat := newWeChat(f, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Query()["js_code"]...)
		echo(w, r)
	})
	s := newService(f, 10*time.Second, wechat)
	f.Fuzz(func(t *testing.T, body []byte) {
		asked = nil
		got := answer(t, s, string(body))
		want := struct{ Code string }{Code: "\n"}
		err := json.Unmarshal(body, &want)
		valid := err == nil && len(body) <= 4096 && regexp.MustCompile(`^[ -~]{1,128}$`).MatchString(want.Code)
		switch {
		case valid:
			if got.OpenID != want.Code || !slices.Equal(asked, []string{want.Code}) {
				t.Errorf("got %d %s, and WeChat asked with %q, want %q", got.status, got.body, asked, want.Code)
			}
			return
		case len(body) > 4096:
			checkFailure(t, got, 413, "body_too_large")
		default:
			checkFailure(t, got, 400, "invalid_request")
		}
		if len(asked) > 0 {
			t.Errorf("WeChat was asked with %q, want it not asked", asked)
		}
	})
}
