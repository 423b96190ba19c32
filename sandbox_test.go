package main

import (
	"cmp"
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
		errcode int
		queries []string
	}{
		{queries: []string{first + grant + "a", second + grant + "b", first + grant + "the+code+is+a+mock+one",
			first + grant + "sandbox:unionid=1", second + grant + "sandbox:unionid=1"}},
		{errcode: 40163, queries: []string{first + grant + "a"}},
		{errcode: 41002, queries: []string{"secret=x&js_code=c"}},
		{errcode: 41004, queries: []string{"appid=x&js_code=c"}},
		{errcode: 41008, queries: []string{"appid=x&secret=x"}},
		{errcode: 40013, queries: []string{"appid=x&secret=" + testSecret + grant + "c"}},
		{errcode: 40125, queries: []string{"appid=" + testAppID + "&secret=" + otherSecret + grant + "c"}},
		{errcode: 40002, queries: []string{first + "&grant_type=client_credential&js_code=c"}},
		{queries: []string{first + grant + "c"}}, // which these have not used up
	} {
		for _, query := range test.queries {
			resp := must(http.Get(p.url + "/sns/jscode2session?" + query))
			var got struct {
				user
				SessionKey string `json:"session_key"`
				ErrCode    int
				ErrMsg     string
			}
			must(0, json.NewDecoder(resp.Body).Decode(&got))
			isUser := regexp.MustCompile(`^o[\w-]{27}$`).MatchString(got.OpenID) && got.SessionKey != ""
			same(t, query, []any{resp.StatusCode, resp.Header.Get("Content-Type"), got.ErrCode, isUser},
				[]any{200, "text/plain", test.errcode, test.errcode == 0})
			same(t, got.ErrMsg, ridPattern.MatchString(got.ErrMsg), !isUser)
			openIDs[got.OpenID], unionIDs[got.UnionID] = true, true
		}
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
	for _, row := range []string{    // a code, and whose openid it is, or error and errcode
		"a → everybody", "a → code_used 40163", mockCode + " → everybody", mockCode + " → everybody",
		"sandbox: → invalid_code 40029", "Sandbox:user=alice → everybody",
		"sandbox:user=alice → alice", "sandbox:user=alice → alice",
		"sandbox:unionid=1 → everybody with unionid", "sandbox:unionid=1&user=bob&delay=1ms → bob with unionid",
		"sandbox:errcode=45011 → rate_limited 45011", "sandbox:errcode=1234567&user=bob → wechat_error 1234567",
		"sandbox:status=502 → wechat_error 0", "sandbox:status=204&delay=1ms → wechat_error 0",
		"sandbox:errcode=40029 → invalid_code 40029",
		"sandbox:color=red → invalid_code 40029", "sandbox:errcode=many → invalid_code 40029",
		"sandbox:status=99 → invalid_code 40029", "sandbox:delay=-1s → invalid_code 40029",
	} {
		code, want, _ := strings.Cut(row, " → ")
		got := post(t, p.url+"/openid", fmt.Sprintf(`{"code":%q}`, code))
		is, whose := fmt.Sprint(got.Error, " ", got.ErrCode), strings.TrimSuffix(want, " with unionid")
		if got.Error == "" {
			users[got.OpenID] = cmp.Or(users[got.OpenID], whose)
			is = users[got.OpenID]
		}
		same(t, code, []any{is, strings.Contains(got.body, `"unionid":"o`)}, []any{whose, whose != want})
	}
	same(t, "users", len(users), 3)
	shown := fakeID("openid", "wx0000000000000000", "sandbox") // without WX_APPID
	for _, page := range []string{"README.md", "README.zh-CN.md", "docs/openapi.json"} {
		same(t, page+" has "+shown, strings.Contains(string(must(os.ReadFile(page))), shown), true)
	}
	got := post(t, p.url+"/openid", `{"code":"sandbox:errcode=40029","appid":"touristappid"}`)
	like(t, got.said(), "400 appid_mismatch 40029: The mini program has the AppID touristappid and this service has …"+
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
