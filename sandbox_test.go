package main

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
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
	refused := func(errcode int) string {
		return fmt.Sprintf(`200 text/plain {"errcode":%d,"errmsg":"refused by the sandbox, rid: …"}`, errcode)
	}
	user := `200 text/plain {"openid":"` + fakeID("openid", testAppID, "sandbox") + `","session_key":"o…"`
	other := `200 text/plain {"openid":"` + fakeID("openid", otherAppID, "sandbox") + `","session_key":"o…"`
	unionID := `,"unionid":"` + fakeID("unionid", "sandbox") + `"`
	p := startProgram(t, several(), "-sandbox")
	for _, test := range []struct{ query, want string }{
		{query: first + grant + "a", want: user + "}"},
		{query: second + grant + "b", want: other + "}"},
		{query: first + grant + "a", want: refused(40163)},
		{query: first + grant + "the+code+is+a+mock+one", want: user + "}"},
		{query: first + grant + "sandbox:unionid=1", want: user + unionID + "}"},
		{query: second + grant + "sandbox:unionid=1", want: other + unionID + "}"},
		{query: "secret=x&js_code=c", want: refused(41002)},
		{query: "appid=x&js_code=c", want: refused(41004)},
		{query: "appid=x&secret=x", want: refused(41008)},
		{query: "appid=x&secret=" + testSecret + grant + "c", want: refused(40013)},
		{query: "appid=" + testAppID + "&secret=" + otherSecret + grant + "c", want: refused(40125)},
		{query: first + "&grant_type=client_credential&js_code=c", want: refused(40002)},
		{query: first + grant + "c", want: user + "}"}, // which these have not used up
		{query: first + grant + "sandbox:status=503", want: "503 text/html <html>…</html>"},
	} {
		resp := must(http.Get(p.url + "/sns/jscode2session?" + test.query))
		got := fmt.Sprintf("%d %s %s", resp.StatusCode, resp.Header.Get("Content-Type"), must(io.ReadAll(resp.Body)))
		like(t, got, test.want+"\n")
	}
}

// TestSandbox sends codes to the service, which asks the sandbox. A proxy is set that nobody runs.
func TestSandbox(t *testing.T) {
	t.Parallel()
	p := startProcess(t, map[string]string{"HTTP_PROXY": nobody, "WX_BASE_URL": nobody}, "-sandbox")
	for _, row := range []string{ // a code, and whose openid it is, or error and errcode
		"a → sandbox", "a → code_used 40163", mockCode + " → sandbox", mockCode + " → sandbox",
		"sandbox: → invalid_code 40029", "Sandbox:user=alice → sandbox",
		"sandbox:user=alice → alice", "sandbox:user=alice → alice",
		"sandbox:unionid=1 → sandbox with unionid", "sandbox:unionid=1&user=bob&delay=1ms → bob with unionid",
		"sandbox:errcode=45011 → rate_limited 45011", "sandbox:errcode=1234567&user=bob → wechat_error 1234567",
		"sandbox:status=502 → wechat_error 0", "sandbox:status=204&delay=1ms → wechat_error 0",
		"sandbox:errcode=40029 → invalid_code 40029",
		"sandbox:color=red → invalid_code 40029", "sandbox:errcode=many → invalid_code 40029",
		"sandbox:status=99 → invalid_code 40029", "sandbox:delay=-1s → invalid_code 40029",
	} {
		code, want, _ := strings.Cut(row, " → ")
		whose, hasUnionID := strings.CutSuffix(want, " with unionid")
		got := post(t, p.url+"/openid", fmt.Sprintf(`{"code":%q}`, code))
		is := fmt.Sprint(got.Error, " ", got.ErrCode)
		if got.OpenID == fakeID("openid", testAppID, whose) {
			is = whose
		}
		same(t, code, []any{is, strings.Contains(got.body, `"unionid":"o`)}, []any{whose, hasUnionID})
	}
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
	like(t, log, `…"WARN","msg":"this is a sandbox: …"errcode":40163,"rid":"…`)
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
	s := fakeWeChat(map[string]string{"WX_APPID": testAppID + "," + otherAppID}) // whose AppSecrets are made up
	for i := range 2 * maxUsed {
		same(t, i, []any{s.use(fmt.Sprint(i)), s.use(fmt.Sprint(i))}, []any{false, true})
	}
	same(t, "codes kept", len(s.used), maxUsed)
}
