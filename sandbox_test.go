package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
)

// fakeWeChat is the sandbox's, with the settings in env.
func fakeWeChat(env map[string]string) *sandbox {
	return newSandbox(must(loadConfig(getenv(env), true)), slog.New(slog.DiscardHandler))
}

func codeQuery(code string) string {
	return url.Values{"appid": {testAppID}, "secret": {testSecret}, "grant_type": {"authorization_code"}, "js_code": {code}}.Encode()
}

// TestSandboxAsWeChat asks the fake WeChat itself, as another program may.
func TestSandboxAsWeChat(t *testing.T) {
	const first, second = "appid=" + testAppID + "&secret=" + testSecret, "appid=" + otherAppID + "&secret=" + otherSecret
	const grant = "&grant_type=authorization_code&js_code="
	tests := []struct {
		query   string
		errcode int
	}{
		{query: first + grant + "a"},
		{query: first + grant + "a", errcode: 40163},
		{query: second + grant + "b"},
		{query: first + grant + "the+code+is+a+mock+one"},
		{query: first + grant + "sandbox:unionid=1"},
		{query: second + grant + "sandbox:unionid=1"},
		{query: "secret=x&js_code=c", errcode: 41002},
		{query: "appid=x&js_code=c", errcode: 41004},
		{query: "appid=x&secret=x", errcode: 41008},
		{query: "appid=x&secret=" + testSecret + grant + "c", errcode: 40013},
		{query: "appid=" + testAppID + "&secret=" + otherSecret + grant + "c", errcode: 40125},
		{query: first + "&grant_type=client_credential&js_code=c", errcode: 40002},
		{query: first + grant + "c"}, // these have not used it up
	}
	p := startProgram(t, several(), "-sandbox")
	openIDs, unionIDs := make(map[string]bool), make(map[string]bool)
	for _, test := range tests {
		resp := must(http.Get(p.url + "/sns/jscode2session?" + test.query))
		var got struct {
			user
			SessionKey string `json:"session_key"`
			ErrCode    int
			ErrMsg     string
		}
		json.NewDecoder(resp.Body).Decode(&got)
		isUser := regexp.MustCompile(`^o[\w-]{27}$`).MatchString(got.OpenID) && got.SessionKey != ""
		if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/plain" || got.ErrCode != test.errcode ||
			isUser != (test.errcode == 0) || ridPattern.MatchString(got.ErrMsg) == isUser {
			t.Errorf("%s: got %v %+v, want text/plain and errcode %d with a rid, or a user", test.query, resp, got, test.errcode)
		}
		if isUser {
			openIDs[got.OpenID], unionIDs[got.UnionID] = true, true
		}
	}
	if len(openIDs) != 2 || len(unionIDs) != 2 {
		t.Errorf("got openids %v and unionids %v, want one of each AppID, and one of both", openIDs, unionIDs)
	}
}

// TestSandbox sends codes to the service, which asks the sandbox. A proxy is set that nobody runs.
func TestSandbox(t *testing.T) {
	t.Parallel()
	const tourist = "https://servicewechat.com/touristappid/0/page-frame.html"
	tests := []struct {
		code    string
		referer string
		said    string // its beginning, or whose openid it is
		unionID bool
	}{
		{code: "a", said: "everybody"},
		{code: "a", said: "400 code_used"},
		{code: "the code is a mock one", said: "everybody"},
		{code: "the code is a mock one", said: "everybody"},
		{code: "Sandbox:user=alice", said: "everybody"}, // a code like any other
		{code: "sandbox:user=alice", said: "alice"},
		{code: "sandbox:user=alice", said: "alice"},
		{code: "sandbox:unionid=1", said: "everybody", unionID: true},
		{code: "sandbox:unionid=1&user=bob&delay=1ms", said: "bob", unionID: true},
		{code: "sandbox:errcode=45011", said: "429 rate_limited"},
		{code: "sandbox:errcode=12345678&user=bob&delay=1ms", said: "502 wechat_error"},
		{code: "sandbox:errcode=40029", said: "400 invalid_code: The code is refused: the code asks the sandbox for errcode 40029, or " +
			"for something unknown, which the log explains."},
		{code: "sandbox:errcode=40029", referer: tourist, said: "400 appid_mismatch: The mini program has the AppID touristappid and "},
		{code: "sandbox:status=502", said: "502 wechat_error"},
		{code: "sandbox:status=204&delay=1ms", said: "502 wechat_error"},
		{code: "sandbox:", said: "400 invalid_code"},
		{code: "sandbox:color=red", said: "400 invalid_code"},
		{code: "sandbox:errcode=many", said: "400 invalid_code"},
		{code: "sandbox:status=99", said: "400 invalid_code"},
		{code: "sandbox:delay=-1s", said: "400 invalid_code"},
	}
	p := startProcess(t, map[string]string{"HTTP_PROXY": nobody, "http_proxy": nobody, "WX_BASE_URL": nobody}, "-sandbox")
	users := make(map[string]string) // by openid
	for _, test := range tests {
		got := post(t, p.url+"/openid", fmt.Sprintf(`{"code":%q}`, test.code), "Referer", test.referer)
		said := got.said()
		if got.OpenID != "" {
			if users[got.OpenID] == "" {
				users[got.OpenID] = test.said
			}
			said = users[got.OpenID]
		}
		if !strings.HasPrefix(said, test.said) || strings.Contains(got.body, `"unionid":"o`) != test.unionID || strings.Contains(said, "-sandbox") {
			t.Errorf("%s: got %s, want %s, and a unionid: %t", test.code, got.said(), test.said, test.unionID)
		}
	}
	want := `curl -d "{\"code\":\"the code is a mock one\"}" ` + p.url + "/openid\n"
	if code := p.stop(); code != 0 || p.out.String() != want || len(users) != 3 {
		t.Errorf("got exit code %d, %q on standard output and %d users, want 0, %q and 3", code, p.out, len(users), want)
	}
	got := warnings(p.log.String())
	if len(got) != 1+5 || !strings.HasPrefix(got[0], "this is a sandbox") || !strings.HasPrefix(got[1], "the sandbox does not know") {
		t.Errorf("got warnings %q, want one of the sandbox, and one for each code that asks for nothing known", got)
	}
}

func TestCurlLine(t *testing.T) {
	for addr, want := range map[string]string{"127.0.0.1:1": "127.0.0.1:1", "[::]:1": "localhost:1", "0.0.0.0:1": "localhost:1"} {
		want = `curl -k -d "{\"code\":\"the code is a mock one\",\"appid\":\"` + testAppID + `\"}" https://` + want + "/openid"
		if got := curlLine(config{appIDs: []string{testAppID, otherAppID}, tlsCert: "x"}, addr); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestSandboxMemory(t *testing.T) {
	s := fakeWeChat(nil)
	for i := range 2 * maxUsed {
		if s.use(fmt.Sprint(i)) || !s.use(fmt.Sprint(i)) || len(s.used) > maxUsed {
			t.Fatalf("got code %d wrong, or %d codes kept, want it to work once, and %d", i, len(s.used), maxUsed)
		}
	}
}
