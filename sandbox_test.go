package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// fakeWeChat knows AppIDs, which have the same AppSecret.
func fakeWeChat(appIDs ...string) *sandbox {
	c := config{appIDs: appIDs, appSecrets: slices.Repeat([]string{testSecret}, len(appIDs))}
	return newSandbox(c, slog.New(slog.DiscardHandler))
}

func codeQuery(code string) string {
	return url.Values{"appid": {testAppID}, "secret": {testSecret}, "grant_type": {"authorization_code"}, "js_code": {code}}.Encode()
}

// ask asks the fake WeChat itself.
func (s *sandbox) ask(query string) (answer *httptest.ResponseRecorder, reply struct {
	user
	SessionKey string `json:"session_key"`
	ErrCode    int    `json:"errcode"`
	ErrMsg     string `json:"errmsg"`
}) {
	answer = httptest.NewRecorder()
	s.ServeHTTP(answer, httptest.NewRequest("GET", wechatPath+"?"+query, nil))
	json.Unmarshal(answer.Body.Bytes(), &reply)
	return answer, reply
}

func TestSandboxAsWeChat(t *testing.T) {
	t.Parallel()
	const good = "appid=" + testAppID + "&secret=" + testSecret + "&grant_type=authorization_code"
	tests := []struct {
		name, query string
		errcode     int
	}{
		{name: "code", query: good + "&js_code=a"},
		{name: "same code", query: good + "&js_code=a", errcode: 40163},
		{name: "mock code", query: good + "&js_code=the+code+is+a+mock+one"},
		{name: "nothing", errcode: 41002},
		{name: "no appid", query: "secret=x&js_code=c", errcode: 41002},
		{name: "no secret", query: "appid=x", errcode: 41004},
		{name: "no code", query: "appid=x&secret=x", errcode: 41008},
		{name: "another appid", query: "appid=x&secret=x&js_code=c", errcode: 40013},
		{name: "another secret", query: "appid=" + testAppID + "&secret=x&js_code=c", errcode: 40125},
		{name: "another grant_type", query: "appid=" + testAppID + "&secret=" + testSecret + "&grant_type=client_credential&js_code=c", errcode: 40002},
		{name: "code not used up by these", query: good + "&js_code=c"},
	}
	s := fakeWeChat(testAppID)
	for _, test := range tests {
		answer, got := s.ask(test.query)
		if answer.Code != 200 || answer.Header().Get("Content-Type") != "text/plain" || got.ErrCode != test.errcode {
			t.Errorf("%s: got %d %v %s, want 200, text/plain and errcode %d", test.name, answer.Code, answer.Header(), answer.Body, test.errcode)
		}
		success := regexp.MustCompile(`^o[A-Za-z0-9_-]{27}$`).MatchString(got.OpenID) && got.SessionKey != ""
		if success != (test.errcode == 0) || ridPattern.MatchString(got.ErrMsg) == success {
			t.Errorf("%s: got %s, want either openid and session_key, or errmsg with a rid", test.name, answer.Body)
		}
	}
	if answer, _ := s.ask(codeQuery("sandbox:status=503")); answer.Code != 503 || answer.Header().Get("Content-Type") != "text/html" {
		t.Errorf("got %d %v %s, want 503 and an HTML page", answer.Code, answer.Header(), answer.Body)
	}
}

// TestSandboxCodes sends codes to the service that asks the sandbox. An openid is named by the code
// of the user whom it belongs to.
func TestSandboxCodes(t *testing.T) {
	t.Parallel()
	const (
		everybody = "x"
		alice     = "sandbox:user=alice"
		bob       = "sandbox:user=bob"
	)
	tests := []struct {
		code    string
		status  int
		user    string
		unionID bool
		word    string
		errcode int
	}{
		{code: "a", status: 200, user: everybody},
		{code: "a", status: 400, word: "code_used", errcode: 40163},
		{code: mockCode, status: 200, user: everybody},
		{code: alice, status: 200, user: alice},
		{code: alice, status: 200, user: alice},
		{code: "sandbox:unionid=1", status: 200, user: everybody, unionID: true},
		{code: "sandbox:unionid=1&user=bob", status: 200, user: bob, unionID: true},
		{code: "sandbox:user=bob&delay=1ms", status: 200, user: bob},
		{code: "sandbox:errcode=45011", status: 429, word: "rate_limited", errcode: 45011},
		{code: "sandbox:errcode=12345678", status: 502, word: "wechat_error", errcode: 12345678},
		{code: "sandbox:errcode=40013&user=bob&delay=1ms", status: 500, word: "misconfigured", errcode: 40013},
		{code: "sandbox:status=502", status: 502, word: "wechat_error"},
		{code: "sandbox:status=204&delay=1ms", status: 502, word: "wechat_error"},
		{code: "sandbox:", status: 400, word: "invalid_code", errcode: 40029},
		{code: "sandbox:color=red", status: 400, word: "invalid_code", errcode: 40029},
		{code: "sandbox:errcode=many", status: 400, word: "invalid_code", errcode: 40029},
		{code: "sandbox:status=99", status: 400, word: "invalid_code", errcode: 40029},
		{code: "sandbox:delay=-1s", status: 400, word: "invalid_code", errcode: 40029},
		{code: "Sandbox:user=alice", status: 200, user: everybody}, // a code like any other
	}
	p := startProgram(t, credentials(), "-sandbox")
	for _, test := range tests {
		t.Run(test.code, func(t *testing.T) {
			openID := ""
			if test.user != "" {
				_, reply := fakeWeChat(testAppID).ask(codeQuery(test.user)) // another sandbox has the same openids
				openID = reply.OpenID
			}
			got := post(t, p.url+"/openid", fmt.Sprintf(`{"code":%q}`, test.code))
			if got.status != test.status || got.OpenID != openID || got.Error != test.word || got.ErrCode != test.errcode {
				t.Errorf("got %d %s, want %d %s%s %d", got.status, got.body, test.status, openID, test.word, test.errcode)
			}
			if strings.Contains(got.body, `"unionid":"o`) != test.unionID {
				t.Errorf("got %s, want a unionid: %t", got.body, test.unionID)
			}
		})
	}
	if got := p.log.warnings(); len(got) != 1+5 || !strings.Contains(got[1], "does not know") || strings.Contains(got[1], "color") {
		t.Errorf("got warnings %q, want one of the sandbox, and one for each code that asks for nothing known", got)
	}
}

// TestSandboxRecommendsNoSandbox refuses a code of a mini program in tourist mode.
func TestSandboxRecommendsNoSandbox(t *testing.T) {
	t.Parallel()
	p := startProgram(t, nil, "-sandbox")
	got := post(t, p.url+"/openid", `{"code":"sandbox:errcode=40029"}`, "Referer", "https://servicewechat.com/touristappid/0/page-frame.html")
	if got.Error != "appid_mismatch" || strings.Contains(got.Message, "-sandbox") {
		t.Errorf("got %d %s, want appid_mismatch without -sandbox", got.status, got.body)
	}
}

// TestSandboxDelay has delays beyond the timeouts of the service. The last caller hangs up.
func TestSandboxDelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, places := serveInBubble(t, time.Second, &handler{sandbox: fakeWeChat(testAppID)})
		ask := func(code string) net.Conn {
			return b.dial(t, "GET /sns/jscode2session?"+codeQuery(code)+" HTTP/1.1\r\nHost: x\r\n\r\n")
		}
		for code, delay := range map[string]time.Duration{"sandbox:errcode=1&delay=3s": 3 * time.Second, "sandbox:delay=24h": 10 * time.Minute} {
			start := time.Now()
			resp, err := http.ReadResponse(bufio.NewReader(ask(code)), nil)
			if took := time.Since(start); err != nil || resp.StatusCode != 200 || took != delay {
				t.Errorf("%s: got %v, error %v, after %v, want 200 after %v", code, resp, err, took, delay)
			}
		}
		before := len(places)
		conn := ask("sandbox:delay=10m")
		time.Sleep(time.Minute)
		conn.Close()
		time.Sleep(time.Second)
		if got := len(places); got != before {
			t.Errorf("got %d connections a second after one hung up, want the %d from before", got, before)
		}
	})
}

// TestSandboxFromStartToStop has a proxy in the environment that nobody runs.
func TestSandboxFromStartToStop(t *testing.T) {
	t.Parallel()
	p := startProcess(t, map[string]string{"HTTP_PROXY": nobody, "http_proxy": nobody, "WX_BASE_URL": nobody}, "-sandbox")
	want := `curl -d "{\"code\":\"the code is a mock one\"}" ` + p.url + "/openid\n"
	if got := post(t, p.url+"/openid", `{"code":"the code is a mock one"}`); got.status != 200 || len(got.OpenID) != 28 {
		t.Errorf("got %d %s, want 200 and an openid of 28 characters", got.status, got.body)
	}
	if code := p.stop(); code != 0 || p.out.String() != want {
		t.Errorf("got exit code %d and %q on standard output, want 0 and %q", code, p.out, want)
	}
	if got := p.log.warnings(); len(got) != 1 || !strings.Contains(got[0], "sandbox") {
		t.Errorf("got warnings %q, want one that this is a sandbox", got)
	}
}

func TestCurlLine(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{"127.0.0.1:1": "127.0.0.1:1", "[::]:1": "localhost:1", "0.0.0.0:1": "localhost:1", "10.0.0.0:1": "10.0.0.0:1"} {
		if got := curlLine(false, addr); !strings.HasSuffix(got, " http://"+want+"/openid") {
			t.Errorf("got %s for %s, want %s in it", got, addr, want)
		}
	}
}

func TestSandboxMemory(t *testing.T) {
	t.Parallel()
	s := fakeWeChat(testAppID)
	for i := range 5 * maxUsed {
		if s.use(fmt.Sprint(i)) || !s.use(fmt.Sprint(i)) {
			t.Fatalf("got code %d wrong, want it to work once", i)
		}
	}
	if len(s.used) != maxUsed {
		t.Errorf("got %d codes kept, want %d", len(s.used), maxUsed)
	}
}

func TestSandboxForAnotherProgram(t *testing.T) {
	t.Parallel()
	wechat := startProgram(t, credentials(), "-sandbox")
	p := startProgram(t, credentials("WX_BASE_URL", wechat.url))
	if got := post(t, p.url+"/openid", `{"code":"`+mockCode+`"}`); got.status != 200 {
		t.Errorf("got %d %s, want 200", got.status, got.body)
	}
}
