package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestExamples logs in through each back end of examples/ whose runtime is there.
func TestExamples(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "backend.exe")
	must(exec.Command("go", "build", "-o", program, "examples/backend.go").Output())
	for probe, command := range map[string][]string{ // the probe fails where the runtime is missing or too small
		"node -e fetch":          {"node", "examples/backend.js"},
		"javac --version":        {"java", "examples/Backend.java"},
		"python3 --version":      {"python3", "examples/backend.py"},
		"php -r curl_version();": {"php", "-S", "ADDRESS", "examples/backend.php"},
		"go version":             {program},
	} {
		t.Run(filepath.Base(command[len(command)-1]), func(t *testing.T) {
			t.Parallel()
			words := strings.Fields(probe)
			if text, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
				t.Skipf("%s: %v\n%s", probe, err, text)
			}
			testExample(t, command)
		})
	}
}

func testExample(t *testing.T, command []string) {
	service := newService(time.Minute, newWeChat(t, fakeWeChat(credentials()).ServeHTTP))
	service.queries[testAppID] = first
	replies := map[string]http.HandlerFunc{ // by request id: what something before the service does
		"id-broken": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"id-html":   say("<html>"),
		"id-nobody": say(`{"unionid":"u"}`),
		"id-full": func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"error":"忙"}`, http.StatusTooManyRequests)
		},
	}
	asked := &output{}
	wxopenid := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("X-Request-Id")
		io.WriteString(asked, id+" ")
		if reply, ok := replies[id]; ok {
			reply(w, r)
		} else {
			service.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(wxopenid.Close)
	backEnd, stop := startExample(t, command, wxopenid.URL)
	tests := []struct {
		id, body string
		status   int
		word     string
		errcode  int
	}{
		{id: "id-new", body: `{"code":"once"}`, status: 200},
		{id: "id-used", body: `{"code":"once"}`, status: 400, word: "code_used", errcode: 40163},
		{id: "id-other", body: `{"code":"sandbox:errcode=40029"}`, status: 400, word: "appid_mismatch", errcode: 40029},
		{id: "id-busy", body: `{"code":"sandbox:errcode=-1"}`, status: 503, word: "wechat_busy", errcode: -1},
		{id: "id-full", body: `{"code":"x"}`, status: 429, word: "忙"},
		{id: "id-broken", body: `{"code":"x"}`, status: 502, word: "wxopenid_unreachable"},
		{id: "id-html", body: `{"code":"x"}`, status: 502, word: "wxopenid_unreachable"},
		{id: "id-nobody", body: `{"code":"x"}`, status: 502, word: "wxopenid_unreachable"},
		{id: "id-empty", status: 400, word: "invalid_request"},
		{id: "id-number", body: `{"code":1}`, status: 400, word: "invalid_request"},
		{id: "id-array", body: `[{"code":"x"}]`, status: 400, word: "invalid_request"},
		{id: "id-down", body: `{"code":"x"}`, status: 502, word: "wxopenid_unreachable"},
	}
	for _, test := range tests {
		if test.id == "id-down" {
			wxopenid.Close()
		}
		request := must(http.NewRequest("POST", backEnd+"/any/path", strings.NewReader(test.body)))
		request.Header["x-REQUEST-id"] = []string{test.id}
		request.Header["referer"] = []string{"https://servicewechat.com/" + otherAppID + "/1/page-frame.html"}
		reply := must(http.DefaultClient.Do(request))
		var got struct {
			Token, Error, Message string
			ErrCode               int
		}
		body := json.NewDecoder(reply.Body)
		body.DisallowUnknownFields() // such as the openid
		same(t, test.id, body.Decode(&got), nil)
		reply.Body.Close()
		same(t, test.id, []any{reply.StatusCode, got.Error, got.ErrCode}, []any{test.status, test.word, test.errcode})
		same(t, test.id, []bool{len(got.Token) >= 16, got.Message != ""}, []bool{test.status == 200, test.errcode != 0})
	}
	same(t, "asked", asked.String(), "id-new id-used id-other id-busy id-full id-broken id-html id-nobody ")
	log := stop()
	for _, test := range tests { // its outcome is in the log, and of a 502 the cause
		lines, outcomes := strings.Count(log, test.id+" "), strings.Count(log, fmt.Sprint(test.id, " ", test.status))
		if test.word != "invalid_request" {
			same(t, test.id+" in\n"+log, []any{outcomes, lines > 1}, []any{1, test.status == 502})
		}
	}
}

// startExample starts a back end, with a proxy in its environment that is dead. stop kills it and returns its log.
func startExample(t *testing.T, command []string, wxopenid string) (url string, stop func() string) {
	port := strconv.Itoa(10000 + rand.IntN(20000)) // none that the system gives to a connection meanwhile
	address := "127.0.0.1:" + port
	log := &output{}
	for i, word := range command {
		command[i] = strings.Replace(word, "ADDRESS", address, 1)
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "PORT="+port, "WXOPENID_URL="+wxopenid,
		"http_proxy="+nobody, "HTTP_PROXY="+nobody, "ALL_PROXY="+nobody, "PYTHONUNBUFFERED=")
	must(0, cmd.Start())
	stop = func() string { cmd.Process.Kill(); cmd.Wait(); return log.String() }
	t.Cleanup(func() { stop() })
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			return "http://" + address, stop
		}
	}
	t.Fatalf("%s does not listen:\n%s", command, stop())
	return "", nil
}

// TestMiniProgram runs the sample mini program against services that run here.
func TestMiniProgram(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("node"); err != nil {
		t.Skip("testing the sample mini program needs Node.js 18 or later")
	}
	services := must(json.Marshal(map[string]string{
		"appid":   testAppID,
		"sandbox": startProgram(t, credentials(), "-sandbox").url,
		"hasty":   startProgram(t, credentials("WX_TIMEOUT", "100ms"), "-sandbox").url,
		"cutoff":  startProgram(t, credentials("WX_BASE_URL", nobody)).url,
	}))
	output, err := exec.Command("node", "testdata/miniprogram/test.js", string(services)).CombinedOutput()
	same(t, string(output), err, nil)
}

// TestOpenAPI holds docs/openapi.json to the table of answers.
func TestOpenAPI(t *testing.T) {
	var document struct {
		Paths map[string]map[string]struct {
			Responses map[string]struct {
				Headers map[string]any
				Content map[string]struct{ Examples map[string]any }
			}
		}
	}
	json.Unmarshal(must(os.ReadFile("docs/openapi.json")), &document)
	documented := map[string]int{"not_found": 404, "method_not_allowed": 405, "client_closed_request": 499} // not there
	for status, response := range document.Paths["/openid"]["post"].Responses {
		retryAfter := false
		for word := range response.Content["application/json"].Examples {
			documented[word] = must(strconv.Atoi(status))
			retryAfter = retryAfter || answers[word].retryAfter != ""
		}
		got := []bool{response.Headers["X-Request-Id"] != nil, response.Headers["Retry-After"] != nil}
		same(t, status+" has X-Request-Id and Retry-After", got, []bool{true, retryAfter})
	}
	for word, row := range answers {
		same(t, word, documented[word], row.status)
	}
	same(t, "words", len(documented), len(answers))
}
