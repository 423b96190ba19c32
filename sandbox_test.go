package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A sandboxReply is what the fake WeChat says to those who ask it.
type sandboxReply struct {
	OpenID     string `json:"openid"`
	UnionID    string `json:"unionid"`
	SessionKey string `json:"session_key"`
	ErrCode    int    `json:"errcode"`
	ErrMsg     string `json:"errmsg"`
}

// askRaw asks the sandbox as another program would.
func askRaw(t *testing.T, p *program, query string) (status int, contentType, body string) {
	t.Helper()
	request, err := http.NewRequest("GET", p.url+"/sns/jscode2session?"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Close = true
	resp, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), string(all)
}

// ask does so where an answer of WeChat's own is to come.
func ask(t *testing.T, p *program, query string) (got sandboxReply) {
	t.Helper()
	status, contentType, body := askRaw(t, p, query)
	if status != 200 || contentType != "text/plain" || json.Unmarshal([]byte(body), &got) != nil {
		t.Fatalf("got %d %s %s, want 200 text/plain and JSON", status, contentType, body)
	}
	return got
}

func codeQuery(code string) string {
	return url.Values{"appid": {testAppID}, "secret": {testSecret}, "grant_type": {"authorization_code"}, "js_code": {code}}.Encode()
}

func TestSandboxAsWeChat(t *testing.T) {
	t.Parallel()
	const good = "appid=" + testAppID + "&secret=" + testSecret + "&grant_type=authorization_code"
	tests := []struct {
		name, query string
		errcode     int
	}{
		{"code", good + "&js_code=a", 0},
		{"same code", good + "&js_code=a", 40163},
		{"another code", good + "&js_code=b", 0},
		{"mock code", good + "&js_code=the+code+is+a+mock+one", 0},
		{"mock code again", good + "&js_code=the+code+is+a+mock+one", 0},
		{"nothing", "", 41002},
		{"no appid", "secret=x&js_code=c", 41002},
		{"no secret", "appid=x", 41004},
		{"no code", "appid=x&secret=x", 41008},
		{"another appid", "appid=x&secret=x&js_code=c", 40013},
		{"another secret", "appid=" + testAppID + "&secret=x&js_code=c", 40125},
		{"another grant_type", "appid=" + testAppID + "&secret=" + testSecret + "&grant_type=client_credential&js_code=c", 40002},
		{"no grant_type", "appid=" + testAppID + "&secret=" + testSecret + "&js_code=c", 40002},
		{"code not used up by these", good + "&js_code=c", 0},
	}
	p := startProgram(t, credentials(), "-sandbox")
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := ask(t, p, test.query)
			if got.ErrCode != test.errcode {
				t.Errorf("got %+v, want errcode %d", got, test.errcode)
			}
			if good := got.OpenID != "" && got.SessionKey != ""; good != (test.errcode == 0) {
				t.Errorf("got %+v, want openid and session_key if there is no errcode", got)
			}
			if rid := ridPattern.MatchString(got.ErrMsg); rid != (test.errcode != 0) {
				t.Errorf("got %+v, want errmsg with a rid if there is an errcode", got)
			}
		})
	}
}

// Codes that ask for something, sent to the service that asks the sandbox.
func TestSandboxCodes(t *testing.T) {
	t.Parallel()
	p := startProgram(t, credentials(), "-sandbox")
	everybody, alice, bob := ask(t, p, codeQuery("x")), ask(t, p, codeQuery("sandbox:user=alice")), ask(t, p, codeQuery("sandbox:user=bob"))
	for _, reply := range []sandboxReply{everybody, alice, bob} {
		if !regexp.MustCompile(`^o[A-Za-z0-9_-]{27}$`).MatchString(reply.OpenID) {
			t.Errorf("got openid %q, want 28 characters, o first", reply.OpenID)
		}
	}
	if everybody.OpenID == alice.OpenID || alice.OpenID == bob.OpenID {
		t.Errorf("got openids %q %q %q, want one for each user", everybody.OpenID, alice.OpenID, bob.OpenID)
	}
	tests := []struct {
		code    string
		status  int
		openID  string
		unionID bool
		error   string
		errcode int
	}{
		{"a", 200, everybody.OpenID, false, "", 0},
		{"a", 400, "", false, "code_used", 40163},
		{mockCode, 200, everybody.OpenID, false, "", 0},
		{mockCode, 200, everybody.OpenID, false, "", 0},
		{"sandbox:user=alice", 200, alice.OpenID, false, "", 0},
		{"sandbox:user=alice", 200, alice.OpenID, false, "", 0},
		{"sandbox:unionid=1", 200, everybody.OpenID, true, "", 0},
		{"sandbox:unionid=1&user=bob", 200, bob.OpenID, true, "", 0},
		{"sandbox:user=bob&delay=1ms", 200, bob.OpenID, false, "", 0},
		{"sandbox:user=bob&color=red", 200, bob.OpenID, false, "", 0},
		{"sandbox:errcode=45011", 429, "", false, "rate_limited", 45011},
		{"sandbox:errcode=45011", 429, "", false, "rate_limited", 45011},
		{"sandbox:errcode=-1", 503, "", false, "wechat_busy", -1},
		{"sandbox:errcode=12345678", 502, "", false, "wechat_error", 12345678},
		{"sandbox:errcode=40013&user=bob&delay=1ms", 500, "", false, "misconfigured", 40013},
		{"sandbox:status=502", 502, "", false, "wechat_error", 0},
		{"sandbox:status=200", 502, "", false, "wechat_error", 0},
		{"sandbox:status=204&delay=1ms", 502, "", false, "wechat_error", 0},
		{"sandbox:", 400, "", false, "invalid_code", 40029},
		{"sandbox:color=red", 400, "", false, "invalid_code", 40029},
		{"sandbox:errcode=many", 400, "", false, "invalid_code", 40029},
		{"sandbox:status=99", 400, "", false, "invalid_code", 40029},
		{"sandbox:delay=soon", 400, "", false, "invalid_code", 40029},
		{"sandbox:delay=-1s", 400, "", false, "invalid_code", 40029},
		{"Sandbox:user=alice", 200, everybody.OpenID, false, "", 0}, // a code as any other
	}
	for _, test := range tests {
		t.Run(test.code, func(t *testing.T) {
			got := post(t, p.url+"/openid", fmt.Sprintf(`{"code":%q}`, test.code))
			if got.status != test.status || got.OpenID != test.openID || got.Error != test.error || got.ErrCode != test.errcode {
				t.Errorf("got %d %s, want %d %s%s %d", got.status, got.body, test.status, test.openID, test.error, test.errcode)
			}
			if strings.Contains(got.body, `"unionid":"o`) != test.unionID {
				t.Errorf("got %s, want a unionid: %t", got.body, test.unionID)
			}
		})
	}
	if got := p.log.warnings(); len(got) != 1+6 || !strings.Contains(got[1], "does not know") || strings.Contains(got[1], "color") {
		t.Errorf("got warnings %q, want one of the sandbox, and one for each code that asks for nothing known", got)
	}
	hasty := startProgram(t, map[string]string{"WX_TIMEOUT": "20ms"}, "-sandbox")
	if got := post(t, hasty.url+"/openid", `{"code":"sandbox:delay=10m"}`); got.Error != "wechat_timeout" {
		t.Errorf("got %d %s from a delay beyond WX_TIMEOUT, want wechat_timeout", got.status, got.body)
	}
	if status, contentType, page := askRaw(t, p, codeQuery("sandbox:status=503")); status != 503 || contentType != "text/html" || !strings.HasPrefix(page, "<html>") {
		t.Errorf("got %d %s %s, want 503 and an HTML page", status, contentType, page)
	}
	if stable := ask(t, startProgram(t, credentials(), "-sandbox"), codeQuery("sandbox:user=alice")); stable != alice {
		t.Errorf("got %+v from another sandbox, want %+v", stable, alice)
	}
}

// TestSandboxRecommendsNoSandbox refuses codes of mini programs in tourist mode and with another AppID.
func TestSandboxRecommendsNoSandbox(t *testing.T) {
	t.Parallel()
	p := startProgram(t, nil, "-sandbox")
	for _, appID := range []string{"touristappid", "wxfedcba9876543210"} {
		got := post(t, p.url+"/openid", `{"code":"sandbox:errcode=40029"}`, "Referer", "https://servicewechat.com/"+appID+"/0/page-frame.html")
		if got.Error != "appid_mismatch" || !strings.Contains(got.Message, appID) || strings.Contains(got.Message, "-sandbox") {
			t.Errorf("got %d %s, want appid_mismatch with %s and without -sandbox", got.status, got.body, appID)
		}
	}
}

func TestSandboxDelay(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, code string
		took       time.Duration
	}{
		{"none", "x", 0},
		{"some", "sandbox:delay=3s", 3 * time.Second},
		{"before an errcode", "sandbox:errcode=1&delay=3s", 3 * time.Second},
		{"before a status", "sandbox:status=502&delay=3s", 3 * time.Second},
		{"the most", "sandbox:delay=24h", 10 * time.Minute},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &sandbox{appID: testAppID, appSecret: testSecret, log: slog.New(slog.DiscardHandler)}
				start := time.Now()
				s.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/?"+codeQuery(test.code), nil))
				if took := time.Since(start); took != test.took {
					t.Errorf("got an answer after %v, want it after %v", took, test.took)
				}
			})
		})
	}
}

// TestSandboxFromStartToStop has a proxy in the environment that nobody runs.
func TestSandboxFromStartToStop(t *testing.T) {
	t.Parallel()
	p := startProcess(t, map[string]string{"HTTP_PROXY": nobody, "HTTPS_PROXY": nobody, "http_proxy": nobody, "WX_BASE_URL": nobody}, "-sandbox")
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
	for addr, want := range map[string]string{"127.0.0.1:2020": "127.0.0.1:2020", "0.0.0.0:80": "localhost:80", "[::]:80": "localhost:80", "[::1]:80": "[::1]:80"} {
		got := curlLine(false, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
		if !strings.HasSuffix(got, " http://"+want+"/openid") {
			t.Errorf("got %s for %s, want %s in it", got, addr, want)
		}
	}
}

// TestSandboxDelayOnConnection has a delay beyond the timeouts of the service, whose caller waits or hangs up.
func TestSandboxDelayOnConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fake := &sandbox{appID: testAppID, appSecret: testSecret, log: slog.New(slog.DiscardHandler)}
		b := &bubble{conns: make(chan net.Conn)}
		l := &listener{Listener: b, places: make(chan struct{}, 10), stop: t.Context().Done()}
		server := newServer(config{timeout: time.Second}, &handler{sandbox: fake}, l, fake.log)
		go server.Serve(l)
		defer server.Close()
		request := "GET /sns/jscode2session?" + codeQuery("sandbox:delay=10m") + " HTTP/1.1\r\nHost: x\r\n\r\n"
		resp, err := http.ReadResponse(bufio.NewReader(b.dial(t, request)), nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("got %v, error %v, want 200", resp, err)
		}
		conn := b.dial(t, request)
		time.Sleep(time.Minute)
		conn.Close()
		time.Sleep(time.Second)
		if places := len(l.places); places != 2 { // of the first, and for the next
			t.Errorf("got %d connections a second after one hung up, want 2", places)
		}
	})
}

func TestSandboxMemory(t *testing.T) {
	t.Parallel()
	var s sandbox
	for i := range 5 * maxUsed {
		if s.use(fmt.Sprint(i)) || !s.use(fmt.Sprint(i)) {
			t.Fatalf("got code %d wrong, want it to work once", i)
		}
	}
	if kept := len(s.used) + len(s.older); kept > 2*maxUsed {
		t.Errorf("got %d codes kept, want %d at most", kept, 2*maxUsed)
	}
	if !s.use(fmt.Sprint(5*maxUsed - maxUsed)) {
		t.Errorf("got a code forgotten after %d others, want it kept", maxUsed)
	}
}

func TestSandboxForAnotherProgram(t *testing.T) {
	t.Parallel()
	wechat := startProgram(t, credentials(), "-sandbox")
	p := startProgram(t, credentials("WX_BASE_URL", wechat.url))
	if got := post(t, p.url+"/openid", `{"code":"`+mockCode+`"}`); len(got.OpenID) != 28 {
		t.Errorf("got %d %s, want an openid of the sandbox", got.status, got.body)
	}
	stranger := startProgram(t, credentials("WX_BASE_URL", wechat.url, "WX_APPID", "wxfedcba9876543210"))
	if got := post(t, stranger.url+"/openid", `{"code":"`+mockCode+`"}`); got.ErrCode != 40013 {
		t.Errorf("got %d %s for another AppID, want errcode 40013", got.status, got.body)
	}
}

func TestNoCodeIsSpecialOutsideSandbox(t *testing.T) {
	t.Parallel()
	p := startService(t, echo)
	for _, code := range []string{mockCode, "sandbox:errcode=45011"} {
		if got := post(t, p.url+"/openid", fmt.Sprintf(`{"code":%q}`, code)); got.OpenID != code {
			t.Errorf("got %d %s, want WeChat to be asked with %q", got.status, got.body, code)
		}
	}
}
