package main

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// fakeWeChat is the sandbox's, with the settings in env.
func fakeWeChat(env map[string]string) *sandbox {
	return newSandbox(must(loadConfig(getenv(env), true)), slog.New(slog.DiscardHandler))
}

const (
	grant = "&grant_type=authorization_code&js_code="
	first = "appid=" + testAppID + "&secret=" + testSecret + grant
)

// TestSandboxAsWeChat asks the fake WeChat itself, as another program may.
func TestSandboxAsWeChat(t *testing.T) {
	const second = "appid=" + otherAppID + "&secret=" + otherSecret + grant
	user := func(appID, name, more string) string {
		return fmt.Sprintf(`200 text/plain {"openid":"%s","session_key":"%s"%s}`+"\n", fakeID("openid", appID, name),
			fakeID("session_key", name), more)
	}
	refused := func(errcode int) string {
		return fmt.Sprintf(`200 text/plain {"errcode":%d,"errmsg":"refused by the sandbox, rid: …"}`+"\n", errcode)
	}
	unionID, bobs := `,"unionid":"`+fakeID("unionid", "sandbox")+`"`, `,"unionid":"`+fakeID("unionid", "bob")+`"`
	p := startProgram(t, several(), "-sandbox")
	for _, test := range []struct{ query, codes, want string }{
		{query: first, codes: "a|Sandbox:user=bob", want: user(testAppID, "sandbox", "")},
		{query: first, codes: "a|Sandbox:user=bob", want: refused(40163)},
		{query: first, codes: mockCode + "|" + mockCode, want: user(testAppID, "sandbox", "")},
		{query: second, codes: "b|sandbox:delay=1ms", want: user(otherAppID, "sandbox", "")},
		{query: first, codes: "sandbox:user=bob|sandbox:user=bob", want: user(testAppID, "bob", "")},
		{query: first, codes: "sandbox:unionid=1", want: user(testAppID, "sandbox", unionID)},
		{query: second, codes: "sandbox:unionid=1", want: user(otherAppID, "sandbox", unionID)},
		{query: second, codes: "sandbox:unionid=1&user=bob&delay=1ms", want: user(otherAppID, "bob", bobs)},
		{query: "secret=x&js_code=", codes: "c", want: refused(41002)},
		{query: "appid=x&js_code=", codes: "c", want: refused(41004)},
		{query: "appid=x&secret=x&js_code=", want: refused(41008)},
		{query: "appid=x&secret=" + testSecret + grant, codes: "c", want: refused(40013)},
		{query: strings.Replace(first, testSecret, otherSecret, 1), codes: "c|sandbox:user=bob", want: refused(40125)},
		{query: strings.Replace(first, "authorization_code", "client_credential", 1), codes: "c", want: refused(40002)},
		{query: first, codes: "c", want: user(testAppID, "sandbox", "")}, // which these have not used up
		{query: first, codes: "sandbox:errcode=1234567&user=bob", want: refused(1234567)},
		{query: first, codes: "sandbox:status=503", want: "503 text/html <html>…</html>\n"},
		{query: first, codes: "sandbox:status=204&delay=1ms", want: "204 text/html "},
		{query: first, codes: "sandbox:|sandbox:color=red|sandbox:errcode=many|sandbox:status=99|sandbox:delay=-1s",
			want: refused(40029)},
	} {
		for code := range strings.SplitSeq(test.codes, "|") {
			resp := must(http.Get(p.url + "/sns/jscode2session?" + test.query + url.QueryEscape(code)))
			body := must(io.ReadAll(resp.Body))
			like(t, fmt.Sprintf("%d %s %s", resp.StatusCode, resp.Header.Get("Content-Type"), body), test.want)
		}
	}
	got := post(t, p.url+"/openid", `{"code":"sandbox:errcode=40029","appid":"`+otherAppID+`"}`)
	like(t, got.said(), "400 invalid_code 40029: The code is refused: the code asks the sandbox for errcode 40029, or …")
	same(t, "exit code", p.stop(), 0)
	same(t, "standard output", p.out.String(), curlLine(config{appIDs: []string{testAppID, otherAppID}}, p.addr)+"\n")
	like(t, p.log.String(), `…"WARN","msg":"this is a sandbox: …"errcode":40029,"rid":"…`)
	same(t, p.log, strings.Count(p.log.String(), `"WARN","msg":"the sandbox does not know what a code asks for: `), 5)
}

func TestCurlLine(t *testing.T) {
	c := config{appIDs: []string{testAppID}}
	for addr, host := range map[string]string{"x:1": "x:1", "[::]:1": "localhost:1", "0.0.0.0:1": "localhost:1"} {
		same(t, addr, curlLine(c, addr), `curl -d "{\"code\":\"the code is a mock one\"}" http://`+host+"/openid")
	}
	c = config{appIDs: []string{testAppID, otherAppID}, tlsCert: "x"}
	const data = `"{\"code\":\"the code is a mock one\",\"appid\":\"` + testAppID + `\"}"`
	same(t, "several and HTTPS", curlLine(c, "x:1"), "curl -k -d "+data+" https://x:1/openid")
}

func TestSandboxMemory(t *testing.T) {
	s := fakeWeChat(map[string]string{"WX_APPID": testAppID + "," + otherAppID}) // whose AppSecrets are made up
	for i := range 2 * maxUsed {
		same(t, i, []any{s.use(fmt.Sprint(i)), s.use(fmt.Sprint(i))}, []any{false, true})
	}
	same(t, "codes kept", len(s.used), maxUsed)
}
