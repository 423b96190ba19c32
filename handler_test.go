package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const testRid = "65f1a2b3-0c1d2e3f-4a5b6c7d"

// newWeChat starts a fake WeChat and returns its base URL.
func newWeChat(t testing.TB, wechat http.HandlerFunc) string {
	server := httptest.NewServer(wechat)
	t.Cleanup(server.Close)
	return server.URL
}

// startService starts the program in front of a fake WeChat.
func startService(t testing.TB, wechat http.HandlerFunc, settings ...string) *program {
	t.Helper()
	return startProgram(t, credentials(append(settings, "WX_BASE_URL", newWeChat(t, wechat))...))
}

// What a fake WeChat does: say the same to everybody, refuse with an errcode, give the code as the openid, hang.

func say(reply string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, reply) }
}

func refuse(errcode int) http.HandlerFunc {
	const errmsg = "invalid ip 203.0.113.7, not in whitelist rid: " + testRid
	return say(fmt.Sprintf(`{"errcode":%d,"errmsg":%q}`, errcode, errmsg))
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

// said is the body of a 200, or status, error, errcode and message.
func (got result) said() string {
	if got.Error == "" {
		return fmt.Sprint(got.status, " ", strings.TrimSpace(got.body))
	}
	errcode := strings.TrimSuffix(fmt.Sprint(" ", got.ErrCode), " 0")
	return fmt.Sprintf("%d %s%s: %s", got.status, got.Error, errcode, got.Message)
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

// read reads resp, which has to have what every answer has, and no secret. An error has one sentence: what is wrong,
// and what to do.
func read(t testing.TB, resp *http.Response) result {
	t.Helper()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	got := result{status: resp.StatusCode, header: resp.Header, body: string(body), last: resp.Close}
	if head := resp.Request.Method == "HEAD"; err != nil || (json.Unmarshal(body, &got) != nil) != head {
		t.Errorf("got body %q, error %v, want JSON", body, err)
	}
	h := resp.Header
	same(t, "header", slices.Concat(h["Content-Type"], h["Cache-Control"], h["X-Content-Type-Options"]),
		[]string{"application/json; charset=utf-8", "no-store", "nosniff"})
	same(t, h["X-Request-Id"], regexp.MustCompile("^[!-~]{1,128}$").MatchString(h.Get("X-Request-Id")), true)
	checkNoLeak(t, "answer", fmt.Sprint(h, got.body))
	if got.status != http.StatusOK {
		like(t, got.Message, "…: ….")
		same(t, got.body, []any{got.OpenID, strings.Contains(got.Message, ". ")}, []any{"", false})
	}
	return got
}

// answer has h answer a POST /openid.
func answer(t testing.TB, ctx context.Context, h http.Handler, body string) result {
	t.Helper()
	request := httptest.NewRequestWithContext(ctx, "POST", "/openid", strings.NewReader(body))
	recorder := httptest.NewRecorder()
	h.ServeHTTP(recorder, request)
	resp := recorder.Result()
	resp.Request = request
	return read(t, resp)
}

// checkLog takes the next line of a request from p's log, which has to fit got, and returns it.
func checkLog(t *testing.T, p *program, got result) map[string]any {
	t.Helper()
	record := p.log.next(t, "request")
	want := map[string]any{"level": "INFO", "status": float64(got.status), "request_id": got.header.Get("X-Request-Id")}
	if got.status >= 400 {
		want["level"], want["error"] = map[bool]string{false: "WARN", true: "ERROR"}[got.status >= 500], got.Error
	}
	if got.ErrCode != 0 {
		want["errcode"], want["rid"] = float64(got.ErrCode), testRid
	}
	for _, name := range []string{"level", "status", "request_id", "error", "errcode", "rid"} {
		same(t, name, record[name], want[name])
	}
	same(t, record, record["cause"] != nil, got.status >= 400)
	like(t, fmt.Sprint(record["remote"]), "127.0.0.1:…")
	return record
}

// TestFailures holds WeChat's errcodes against the contract's table.
func TestFailures(t *testing.T) {
	const query = " arrived, so something between here and WeChat changes the query: check the proxy and WX_BASE_URL"
	const badURL = "WeChat refuses the URL: WX_BASE_URL has to begin with https:// and have the right path"
	tests := map[int]struct{ said, retryAfter, cause string }{
		40029: {said: "400 invalid_code", cause: "the code is unknown: compare WX_APPID with the mini program's AppID"},
		40163: {said: "400 code_used", cause: "the code has been used: call wx.login for every request"},
		40226: {said: "403 user_blocked", cause: "WeChat considers the user high-risk: only …"},
		45011: {said: "429 rate_limited", retryAfter: "60", cause: "WeChat limits the calls of a minute: try again …"},
		40013: {said: "500 misconfigured", cause: "WeChat does not know the AppID: copy it again from " + console},
		40125: {said: "500 misconfigured", cause: "the AppSecret does not belong to the AppID: copy it again … since " +
			"mp.weixin.qq.com does not show it again. … reset it at …, which ends the old one everywhere. … restart"},
		40164: {said: "500 misconfigured", cause: "add the address that WeChat saw to IP白名单 … at " + console +
			", or its range …; that takes minutes; WeChat saw the address 203.0.113.7"},
		40243: {said: "500 misconfigured", cause: "the AppSecret is frozen: unfreeze it (ten minutes) at " + console},
		41002: {said: "500 misconfigured", cause: "no AppID" + query},
		41004: {said: "500 misconfigured", cause: "no AppSecret" + query},
		41008: {said: "500 misconfigured", cause: "no code" + query},
		40002: {said: "500 misconfigured", cause: "another grant_type" + query},
		43003: {said: "500 misconfigured", cause: badURL},
		40066: {said: "500 misconfigured", cause: badURL},
		48001: {said: "500 misconfigured", cause: "the AppID's account may not use this API: see " + console},
		50002: {said: "500 misconfigured", cause: "the AppID's account is restricted: read 通知中心 at mp.weixin.qq.com"},
		61451: {said: "502 wechat_error", cause: "look it up at developers.weixin.qq.com"},
		-1:    {said: "503 wechat_busy", retryAfter: "1", cause: "WeChat is busy: try again in a moment"},
		45009: {said: "503 quota_exceeded", cause: "the day's quota is used up. WeChat allows at most twice as many " +
			"logins a day as page views: keep a session instead of logging in at every start"},
	}
	same(t, "rows, with one for an unknown errcode", len(tests), len(errcodes)+1)
	for errcode, test := range tests {
		p := startService(t, refuse(errcode))
		got := post(t, p.url+"/openid", `{"code":"x"}`)
		like(t, got.said(), fmt.Sprintf("%s %d: …", test.said, errcode))
		same(t, got.said(), append([]string{}, got.header["Retry-After"]...), strings.Fields(test.retryAfter))
		like(t, fmt.Sprint(checkLog(t, p, got)["cause"]), fmt.Sprintf("errcode %d: %s", errcode, test.cause))
	}
}

// TestDocuments looks for the words of answers in openid.js, for the settings and their defaults in -h and
// .env.example, and for all of them, and no others, in the READMEs, with the back end of examples/.
func TestDocuments(t *testing.T) {
	has := func(text, pattern string, times int) {
		same(t, pattern, len(regexp.MustCompile(pattern).FindAllString(text, -1)), times)
	}
	file := func(name string) string { return string(must(os.ReadFile(name))) }
	readmes := file("README.md") + file("README.zh-CN.md")
	for word, row := range answers {
		if word == "client_closed_request" { // nobody is there to read it
			continue
		}
		codes, begin := 0, fmt.Sprintf("\n\\| %d \\| `%s` \\|", row.status, word)
		for code, known := range errcodes {
			if known.word == word || known.word == "invalid_code" && word == "appid_mismatch" {
				has(readmes, begin+fmt.Sprintf(".* %d ", code), 2)
				codes++
			}
		}
		has(readmes, fmt.Sprintf(`%s( -?\d+){%d} \| `, begin, codes), 2)
		has(file("miniprogram/openid.js"), "case '"+word+"':", 1)
	}
	has(readmes, `\n\| \d+ \| `, 2*(len(answers)-1))
	has(readmes, regexp.QuoteMeta("```js\n"+file("examples/backend.js")+"```\n"), 2)
	openID := `"` + fakeID("openid", "wx0000000000000000", "sandbox") + `"` // of a sandbox without WX_APPID
	has(readmes+file("docs/openapi.json"), openID, 3)

	c := must(loadConfig(func(name string) string { return credentials()[name] }, false))
	defaults := map[string]string{"ADDR": c.addr, "WX_BASE_URL": wechatURLs, "WX_TIMEOUT": c.timeout.String(),
		"MAX_INFLIGHT": fmt.Sprint(c.maxInflight), "MAX_CONNS": fmt.Sprint(c.maxConns)}
	for _, name := range settingNames {
		inHelp, inTable := `(\n *|, | and )`+name+`\b`, "[^`|]*"
		if defaults[name] != "" {
			inHelp, inTable = inHelp+`[^)]*\(default `+defaults[name]+`\b`, "`"+defaults[name]+"` "
		}
		has(settingsHelp, inHelp, 1)
		if !strings.HasSuffix(name, "_PROXY") {
			has(file(".env.example"), "\n#?"+name+"="+defaults[name]+"\n", 1)
			has(readmes, "\n\\| `"+name+"` \\| "+inTable+"\\|", 2)
		}
	}
	has(readmes, "\n\\| `[A-Z_]+` \\| ", 2*(len(settingNames)-3))
}

// TestMessagesInChinese finds the messages that README.zh-CN.md explains in the program. Some are the system's.
func TestMessagesInChinese(t *testing.T) {
	source := "address already in use Only one usage of each socket address connection refused actively refused "
	for name := range strings.FieldsSeq("config handler main sandbox server wxclient") {
		source += string(must(os.ReadFile(name + ".go")))
	}
	source = regexp.MustCompile(`" \+\s+"`).ReplaceAllString(source, "")
	_, table, _ := strings.Cut(string(must(os.ReadFile("README.zh-CN.md"))), "| 提示里有 |")
	rows := regexp.MustCompile("(?m)^\\| (`[^|]+`) \\|[^|]+\\|$").FindAllStringSubmatch(table, -1)
	same(t, "the table has been found", len(rows) > 40, true)
	for _, row := range rows {
		for _, phrase := range regexp.MustCompile("[`…、]+").Split(row[1], -1) {
			same(t, "the program says "+phrase, strings.Contains(source, strings.TrimSpace(phrase)), true)
		}
	}
}

// TestRequestBody has the contract's table of bodies: the first row that holds is said.
func TestRequestBody(t *testing.T) {
	const form, multipart = "application/x-www-form-urlencoded|", "Multipart/form-data; boundary=x|" // and the body
	long := strings.Repeat("x", 128)
	p := startService(t, echo)
	send := func(text string) result {
		contentType, body, isForm := strings.Cut(text, "|")
		if !isForm {
			contentType, body = "", text
		}
		return post(t, p.url+"/openid", body, "Content-Type", contentType)
	}
	for message, bodies := range map[string][]string{ // or its beginning
		`There is no body: send {"code":"…"} with what wx.login gave.`: {"", form + " \n"},
		`The body is a form: send JSON, {"code":"…"}, as with json in Guzzle or json= in Python's requests.`: {
			"code=“x”", form + "js_code=x&code=x", form + "\xff=", multipart + "--x\r\n"},
		"The body is not plain UTF-8 text: send UTF-8 without BOM, uncompressed.": {"\ufeff{\"code\":\"x\"}",
			"\xff\xfe{\x00}\x00", "\x00{\x00}", form + "\x1f\x8b\b\x00"},
		"The body is [object Object], an object that was not made into text: send JSON.string": {"[object Object]“"},
		`The body has Chinese punctuation: JSON needs " and : and , as in {"code":"…"}.`: {"{“code”:“x”}",
			`{"code"："x"}`, `{"code":"x"，"n":"："}`, "{'code'：'x'}"},
		`The body has no double quotes, which JSON needs and a Windows shell eats: write \" for each " in cmd.exe, `: {
			"{code:x}", "'{code:", "{'code':'x'}", form + "{code=x}"},
		`The body is not JSON: send one JSON object, {"code":"…"}, and nothing else.`: {"x", `{"code":"x"}x`,
			`{"code":"："`, "{ // it's\n\"code\":\"x\"}", `{code: "x"}`, `{"code":"x",}`, form + `{"code":"x="`},
		`The body is JSON but not an object: send {"code":"…"}.`:                     {`[{"code":"x"}]`, `"x"`, "null"},
		"The code is a JSON object, not a string: send res.code of wx.login.":        {`{"code":{"code":"x"}}`},
		"The code is a JSON number, not a string: send res.code of wx.login.":        {`{"code":1,"appid":"x"}`},
		`There is no code in the object: send {"code":"…"} with what wx.login gave.`: {`{}`, `{"code":null}`},
		"The code is empty: send what wx.login gave.":                                {`{"code":""}`},
		"The code is not 1 to 128 printable ASCII characters: send what wx.login gave.": {`{"code":"x\n"}`,
			`{"code":"x` + long + `"}`, `{"code":"x\u007f"}`, `{"code":"é"}`},
		"The appid is a JSON number, not a string: send the AppID, or leave it out.": {`{"code":"x","appid":1}`},
		"The appid does not look like an AppID (wx and 16 of 0-9a-f): fix it, or leave it out.": {`{"code":"x","appid":"<b>"}`,
			`{"code":"x","appid":"` + testAppID + `0"}`},
	} {
		for _, body := range bodies {
			got := send(body)
			like(t, got.said(), "400 invalid_request: "+message+"…")
			same(t, body, checkLog(t, p, got)["cause"], got.Message)
		}
	}
	for body, code := range map[string]string{form + `{"code":" ~","n":{"code":1}}`: " ~", " {\"code\":\"x\"}\r\n": "x",
		`{"code":"` + long + `"}` + strings.Repeat(" ", 4096-128-11): long} {
		same(t, body, send(body).OpenID, code)
	}
	for _, body := range []string{strings.Repeat(" ", 4097), strings.Repeat("x", 100_000)} {
		like(t, send(body).said(), "413 body_too_large: …")
	}
}

// TestAppIDs sends each request to a service with one AppID, whose WeChat refuses the code, and to one with three,
// whose WeChat says which AppID and AppSecret it got.
func TestAppIDs(t *testing.T) {
	const (
		mine, other = `"` + testAppID + `"`, `"` + otherAppID + `"`
		host, page  = "https://servicewechat.com/", "/devtools/page-frame.html"
		fromOther   = host + otherAppID + page
		unknown     = "400 invalid_code 40029: WeChat does not know this code: send what wx.login gave, within "
		none        = `400 invalid_request: The request names no AppID: send {"code":"…","appid":"…"}, or pass on Referer.`
		third       = "wx00112233445566aa"
		has         = "400 appid_mismatch…: The mini program has the AppID "
		differs     = has + otherAppID + " and this service has " + testAppID + ": fix appid in project.config.json, "
		noneOf      = "400 appid_mismatch: This service does not have the mini program's AppID "
		tools       = ": the developer tools are in tourist mode, so give the project an AppID of your own, or use -sandbox"
	)
	one := startService(t, func(w http.ResponseWriter, r *http.Request) {
		refuse(map[bool]int{false: 40029, true: 40163}[r.FormValue("js_code") == "used"])(w, r)
	})
	three := startService(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"openid":"%s and %s"}`, r.FormValue("appid"), r.FormValue("secret"))
	}, "WX_APPID", testAppID+", "+otherAppID+",odd", "WX_APPSECRET", testAppID+"'s,"+otherAppID+"'s,odd's")
	for _, test := range []struct {
		code     string // or "x"
		appid    string // JSON, or null
		referers string // with spaces between them
		plugin   string // the header of plug-ins
		one      string // what the first says, its beginning
		three    string // what the second says, or an openid
		chosen   string // the AppID that the second asks for
	}{
		{one: unknown, three: none},
		{appid: mine, one: unknown, chosen: testAppID},
		{appid: other, one: differs, chosen: otherAppID},
		{appid: other, code: "used", one: "400 code_used 40163: ", chosen: otherAppID},
		{appid: other, referers: host + testAppID + page, one: differs, chosen: otherAppID},
		{appid: other, referers: host + third + page, plugin: "{}", one: differs, chosen: otherAppID},
		{appid: `"odd"`, chosen: "odd", one: "400 invalid_request: The appid does not look like an AppID "},
		{referers: fromOther + " " + host + otherAppID + "/27/page-frame.html", one: differs, chosen: otherAppID},
		{referers: host + third + page, one: has + third + " and this service", three: noneOf + third},
		{appid: `""`, referers: fromOther, one: differs, chosen: otherAppID},
		{referers: fromOther, plugin: "{}", one: unknown, three: none},
		{appid: `"touristappid"`, code: mockCode, three: noneOf + "touristappid",
			one: has + "touristappid and this service has " + testAppID + tools},
		{code: mockCode, one: "400 invalid_code 40029: The code is refused" + tools, three: none},
		{one: unknown, three: none, referers: strings.Join([]string{"https://servicewechat.com.x/" + otherAppID + page,
			host + page, "x?" + fromOther, fromOther + "?x", host + otherAppID + "/27/", host + "<b>" + page,
			host + "wx0" + page}, " ")},
	} {
		body := fmt.Sprintf(`{"code":%q,"appid":%s}`, cmp.Or(test.code, "x"), cmp.Or(test.appid, "null"))
		openID := fmt.Sprintf(`200 {"openid":"%[1]s and %[1]s's","appid":"%[1]s"}`, test.chosen)
		for referer := range strings.SplitSeq(test.referers, " ") {
			for p, want := range map[*program]string{one: test.one, three: cmp.Or(test.three, openID)} {
				got := post(t, p.url+"/openid", body, "Referer", referer, "X-WECHAT-HOSTSIGN", test.plugin)
				like(t, got.said(), want+"…")
				record := checkLog(t, p, got)
				same(t, record, record["appid"], map[bool]any{true: test.chosen}[p == three && test.chosen != ""])
			}
		}
	}
}

func TestRequestID(t *testing.T) {
	p, long := startService(t, echo), strings.Repeat("x", 128)
	for id, kept := range map[string]bool{"7F:_#!~": true, long: true, long + "x": false, "": false, "a b": false,
		"é": false} {
		first := post(t, p.url+"/openid", "", "X-Request-Id", id).header.Get("X-Request-Id")
		again := post(t, p.url+"/openid", "", "X-Request-Id", id).header.Get("X-Request-Id")
		same(t, id, []any{first == id, first == again}, []any{kept, kept})
	}
}

func TestPaths(t *testing.T) {
	p := startService(t, echo)
	ask := func(line string) *http.Response {
		request := &http.Request{Method: strings.Fields(line)[0]}
		return must(http.ReadResponse(bufio.NewReader(sendRaw(t, p, line+" HTTP/1.1\r\nHost: x\r\n\r\n")), request))
	}
	for lines, want := range map[string]string{ // status and error, Allow, the path in the log
		"GET /healthz": `200 {"status":"ok"}`, "HEAD /healthz": "200 ",
		"POST /healthz":                       "405 method_not_allowed: /healthz takes GET and …. GET, HEAD /healthz",
		"GET /openid|OPTIONS /openid":         "405 method_not_allowed: /openid takes POST only: … POST /openid",
		"POST /openid?code=x|POST /%6fpenid":  "400 invalid_request: …  /openid",
		"GET /?" + strings.Repeat("x", 7<<10): "404 not_found: There is nothing here: use POST /openid, or …  (other)",
		"GET /|POST //openid|POST /openid/0a1B2c3D|POST /openid%2F|POST /x/%2e%2e/openid|OPTIONS *|CONNECT x:443|" +
			"GET /sns/jscode2session": "404 not_found: …  (other)",
	} {
		for line := range strings.SplitSeq(lines, "|") {
			got := read(t, ask(line))
			is := got.said()
			if got.status != 200 {
				record := checkLog(t, p, got)
				same(t, line, record["method"], strings.Fields(line)[0])
				is += fmt.Sprint(" ", got.header.Get("Allow"), " ", record["path"])
			}
			like(t, is, want)
		}
	}
	same(t, p.log, strings.Count(p.log.String(), `"path":"/healthz"`), 1) // that of POST
	same(t, "a header of over 8 KiB", ask("GET /?"+strings.Repeat("x", 8<<10)).StatusCode, 431)
}

// TestCallerGone has a caller hang up, or close its own side alone, with one place for logins.
func TestCallerGone(t *testing.T) {
	asked, left := make(chan bool), make(chan bool)
	p := startService(t, func(w http.ResponseWriter, r *http.Request) {
		asked <- true
		hang(w, r)
		left <- true
	}, "MAX_INFLIGHT", "1", "WX_TIMEOUT", "20s")
	for want, gone := range map[string]func(*net.TCPConn) error{
		"": (*net.TCPConn).Close, "HTTP/1.1 499 ": (*net.TCPConn).CloseWrite} {
		conn := sendRaw(t, p, halfBody+`{"code":"x"}`)
		<-asked
		full := post(t, p.url+"/openid", `{"code":"x"}`)
		like(t, full.said()+full.header.Get("Retry-After"), "503 overloaded: The service is full: … again in 1 s.1")
		same(t, "full", checkLog(t, p, full)["cause"], "MAX_INFLIGHT is reached: raise it, or add an instance")
		must(0, gone(conn))
		<-left
		record := p.log.next(t, "request")
		same(t, "log", []any{record["status"], record["level"]}, []any{499.0, "WARN"})
		got, _ := io.ReadAll(conn)
		same(t, "what the caller reads", string(got[:min(len(got), 13)]), want)
	}
}

// FuzzRequest sends any body. WeChat is asked with the code that encoding/json finds, or not at all.
func FuzzRequest(f *testing.F) {
	for _, body := range []string{`{"\u0063ode":" ~\"\u0041"}`, `{"code":"x"} x`, `{"code":1}`, "\ufeff{}",
		"{\"code\":\"\x80\"}", `{"code":"x"}` + strings.Repeat(" ", 4085), `{"appid":"touristappid","code":"a&b=#"}`} {
		f.Add([]byte(body))
	}
	var asked []string
	s := newService(time.Minute, newWeChat(f, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Query()["js_code"]...)
		echo(w, r)
	}))
	code, appID := regexp.MustCompile(`^[ -~]{1,128}$`), regexp.MustCompile(`^(|touristappid|wx[0-9a-f]{16})$`)
	f.Fuzz(func(t *testing.T, body []byte) {
		asked = nil
		got, want := answer(t, t.Context(), s, string(body)), struct{ Code, AppID string }{Code: "\n"}
		err := json.Unmarshal(body, &want)
		switch {
		case len(body) > 4096:
			like(t, got.said(), "413 body_too_large: …")
		case err != nil || !code.MatchString(want.Code) || !appID.MatchString(want.AppID):
			like(t, got.said(), "400 invalid_request: …")
		default:
			same(t, got.said(), []any{got.OpenID, asked}, []any{want.Code, []string{want.Code}})
			return
		}
		same(t, got.said(), asked, []string(nil))
	})
}
