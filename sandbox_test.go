package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
)

// fakeWeChat is the sandbox's, with the settings in env.
func fakeWeChat(env map[string]string) *sandbox {
	return newSandbox(must(loadConfig(getenv(env), true)), slog.New(slog.DiscardHandler))
}

const (
	first = "appid=" + testAppID + "&secret=" + testSecret
	grant = "&grant_type=authorization_code&js_code="
)

// TestSandboxAsWeChat asks the fake WeChat itself, as another program may.
func TestSandboxAsWeChat(t *testing.T) {
	const second = "appid=" + otherAppID + "&secret=" + otherSecret
	p, openIDs, unionIDs := startProgram(t, several(), "-sandbox"), make(map[string]bool), make(map[string]bool)
	for _, test := range []struct {
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
	} {
		resp := must(http.Get(p.url + "/sns/jscode2session?" + test.query))
		var got struct {
			user
			SessionKey string `json:"session_key"`
			ErrCode    int
			ErrMsg     string
		}
		must(0, json.NewDecoder(resp.Body).Decode(&got))
		isUser := regexp.MustCompile(`^o[\w-]{27}$`).MatchString(got.OpenID) && got.SessionKey != ""
		is := []any{resp.StatusCode, resp.Header.Get("Content-Type"), got.ErrCode}
		same(t, test.query, is, []any{200, "text/plain", test.errcode})
		same(t, got, []any{isUser, ridPattern.MatchString(got.ErrMsg)}, []any{test.errcode == 0, test.errcode != 0})
		openIDs[got.OpenID], unionIDs[got.UnionID] = true, true
	}
	page := must(http.Get(p.url + "/sns/jscode2session?" + first + grant + "sandbox:status=503"))
	same(t, "page", []any{page.StatusCode, page.Header.Get("Content-Type")}, []any{503, "text/html"})
	same(t, "openids, one of each AppID and none", len(openIDs), 3)
	same(t, "unionids, one of both and none", len(unionIDs), 2)
}

// TestSandbox sends codes to the service, which asks the sandbox. A proxy is set that nobody runs.
func TestSandbox(t *testing.T) {
	t.Parallel()
	p := startProcess(t, map[string]string{"HTTP_PROXY": nobody, "WX_BASE_URL": nobody}, "-sandbox")
	users := make(map[string]string) // by openid
	for _, test := range []struct {
		code    string
		is      string // error and errcode, or whose openid it is
		unionID bool
	}{
		{code: "a", is: "everybody"},
		{code: "a", is: "code_used 40163"},
		{code: "the code is a mock one", is: "everybody"},
		{code: "the code is a mock one", is: "everybody"},
		{code: "Sandbox:user=alice", is: "everybody"}, // a code like any other
		{code: "sandbox:user=alice", is: "alice"},
		{code: "sandbox:user=alice", is: "alice"},
		{code: "sandbox:unionid=1", is: "everybody", unionID: true},
		{code: "sandbox:unionid=1&user=bob&delay=1ms", is: "bob", unionID: true},
		{code: "sandbox:errcode=45011", is: "rate_limited 45011"},
		{code: "sandbox:errcode=12345678&user=bob&delay=1ms", is: "wechat_error 12345678"},
		{code: "sandbox:status=502", is: "wechat_error 0"},
		{code: "sandbox:status=204&delay=1ms", is: "wechat_error 0"},
		{code: "sandbox:errcode=40029", is: "invalid_code 40029"},
		{code: "sandbox:", is: "invalid_code 40029"},
		{code: "sandbox:color=red", is: "invalid_code 40029"},
		{code: "sandbox:errcode=many", is: "invalid_code 40029"},
		{code: "sandbox:status=99", is: "invalid_code 40029"},
		{code: "sandbox:delay=-1s", is: "invalid_code 40029"},
	} {
		got := post(t, p.url+"/openid", fmt.Sprintf(`{"code":%q}`, test.code))
		is := fmt.Sprint(got.Error, " ", got.ErrCode)
		if got.Error == "" {
			if users[got.OpenID] == "" {
				users[got.OpenID] = test.is
			}
			is = users[got.OpenID]
		}
		same(t, test.code, is, test.is)
		same(t, test.code, strings.Contains(got.body, `"unionid":"o`), test.unionID)
	}
	same(t, "users", len(users), 3)
	shown := fakeID("openid", "wx0000000000000000", "sandbox") // without WX_APPID
	for _, page := range []string{"README.md", "README.zh-CN.md", "docs/openapi.json"} {
		same(t, page+" has "+shown, strings.Contains(string(must(os.ReadFile(page))), shown), true)
	}
	got := post(t, p.url+"/openid", `{"code":"sandbox:errcode=40029","appid":"touristappid"}`)
	like(t, got.said(), "400 appid_mismatch: The mini program has the AppID touristappid and this service has …"+
		": the code asks the sandbox for errcode 40029, or for something unknown, which the log explains.")
	same(t, "exit code", p.stop(), 0)
	same(t, "standard output", p.out.String(), `curl -d "{\"code\":\"the code is a mock one\"}" `+p.url+"/openid\n")
	log := p.log.String()
	like(t, log, `…"WARN","msg":"this is a sandbox: …`)
	same(t, log, strings.Count(log, `"WARN","msg":"the sandbox does not know what a code asks for: after sandbox: `), 5)
}

func TestCurlLine(t *testing.T) {
	for addr, host := range map[string]string{"x:1": "x:1", "[::]:1": "localhost:1", "0.0.0.0:1": "localhost:1"} {
		got := curlLine(config{appIDs: []string{testAppID, otherAppID}, tlsCert: "x"}, addr)
		const data = `"{\"code\":\"the code is a mock one\",\"appid\":\"` + testAppID + `\"}"`
		same(t, addr, got, "curl -k -d "+data+" https://"+host+"/openid")
	}
}

func TestSandboxMemory(t *testing.T) {
	s := fakeWeChat(nil)
	for i := range 2 * maxUsed {
		same(t, i, []any{s.use(fmt.Sprint(i)), s.use(fmt.Sprint(i))}, []any{false, true})
	}
	same(t, "codes kept", len(s.used), maxUsed)
}
