package main

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestExamples logs in through each back end of examples/ whose runtime is there.
func TestExamples(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "backend.exe")
	must(exec.Command("go", "build", "-o", program, "examples/backend.go").Output())
	for _, example := range []struct {
		file, runtime, args string
		probe               []string // a command that fails where the runtime is missing or too small
	}{
		{file: "backend.js", runtime: "node", args: "examples/backend.js", probe: []string{"node", "-e", "fetch"}},
		{file: "Backend.java", runtime: "java", args: "examples/Backend.java", probe: []string{"javac", "--version"}},
		{file: "backend.py", runtime: "python3", args: "examples/backend.py", probe: []string{"python3", "--version"}},
		{file: "backend.php", runtime: "php", args: "-S ADDRESS examples/backend.php", probe: []string{"php", "-r", "curl_version();"}},
		{file: "backend.go", runtime: program, probe: []string{"go", "version"}},
	} {
		t.Run(example.file, func(t *testing.T) {
			t.Parallel()
			if text, err := exec.Command(example.probe[0], example.probe[1:]...).CombinedOutput(); err != nil {
				t.Skipf("%s: %v\n%s", strings.Join(example.probe, " "), err, text)
			}
			testExample(t, example.runtime, example.args)
		})
	}
}

func testExample(t *testing.T, runtime, args string) {
	service := startProgram(t, credentials(), "-sandbox")
	proxy := httputil.NewSingleHostReverseProxy(must(url.Parse(service.url)))
	replies := map[string]string{ // by request id: what something before the service says
		"id-broken": "",
		"id-html":   "HTTP/1.1 200 OK\r\n\r\n<html>",
		"id-nobody": "HTTP/1.1 200 OK\r\n\r\n" + `{"unionid":"u"}`,
		"id-full":   "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\n\r\n" + `{"message":"忙"}`,
	}
	var asked atomic.Int32
	wxopenid := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		reply, ok := replies[r.Header.Get("X-Request-Id")]
		if !ok {
			proxy.ServeHTTP(w, r)
			return
		}
		io.Copy(io.Discard, r.Body) // unread bytes would reset the connection
		conn, _, _ := http.NewResponseController(w).Hijack()
		io.WriteString(conn, reply)
		conn.Close()
	}))
	t.Cleanup(wxopenid.Close)
	backEnd, stop := startExample(t, runtime, args, wxopenid.URL)
	const unreachable = `{"error":"wxopenid_unreachable"}`
	const missing = `{"error":"invalid_request"}`
	tests := []struct {
		id, body, appID string
		status          int
		answer          string // has these members
		asked           int32  // how often wxopenid is
	}{
		{id: "id-new", body: `{"code":"once"}`, status: 200, asked: 1},
		{id: "id-used", body: `{"code":"once"}`, status: 400, answer: `{"error":"code_used","errcode":40163}`, asked: 1},
		{id: "id-other", body: `{"code":"sandbox:errcode=40029"}`, appID: "wx89abcdef01234567", status: 400,
			answer: `{"error":"appid_mismatch","errcode":40029}`, asked: 1},
		{id: "id-busy", body: `{"code":"sandbox:errcode=-1"}`, status: 503, answer: `{"error":"wechat_busy","errcode":-1}`, asked: 1},
		{id: "id-full", body: `{"code":"x"}`, status: 429, answer: `{"message":"忙"}`, asked: 1},
		{id: "id-broken", body: `{"code":"x"}`, status: 502, answer: unreachable, asked: 1},
		{id: "id-html", body: `{"code":"x"}`, status: 502, answer: unreachable, asked: 1},
		{id: "id-nobody", body: `{"code":"x"}`, status: 502, answer: unreachable, asked: 1},
		{id: "id-empty", status: 400, answer: missing},
		{id: "id-number", body: `{"code":1}`, status: 400, answer: missing},
		{id: "id-array", body: `[{"code":"x"}]`, status: 400, answer: missing},
		{id: "id-down", body: `{"code":"x"}`, status: 502, answer: unreachable},
	}
	for _, test := range tests {
		if test.id == "id-down" {
			wxopenid.Close()
		}
		request := must(http.NewRequest("POST", backEnd+"/any/path", strings.NewReader(test.body)))
		request.Header["x-REQUEST-id"] = []string{test.id}
		request.Header["referer"] = []string{"https://servicewechat.com/" + test.appID + "/1/page-frame.html"}
		reply := must(http.DefaultClient.Do(request))
		var got, want map[string]any
		if err := json.NewDecoder(reply.Body).Decode(&got); err != nil || reply.StatusCode != test.status {
			t.Errorf("%s: got status %d, error %v, want %d and JSON", test.id, reply.StatusCode, err, test.status)
		}
		reply.Body.Close()
		json.Unmarshal([]byte(test.answer), &want)
		for name, value := range want {
			if got[name] != value {
				t.Errorf("%s: got answer %v, want %s", test.id, got, test.answer)
			}
		}
		if token, _ := got["token"].(string); test.status == 200 && (len(got) != 1 || len(token) < 16) {
			t.Errorf("%s: got answer %v, want a token alone", test.id, got)
		}
		if n := asked.Swap(0); n != test.asked {
			t.Errorf("%s: wxopenid was asked %d times", test.id, n)
		}
		if _, ok := replies[test.id]; !ok && test.asked == 1 {
			if id := service.log.next(t, "request")["request_id"]; id != test.id {
				t.Errorf("%s: the service logged request id %v", test.id, id)
			}
		}
	}
	log := stop()
	for _, test := range tests {
		cause, outcome := strings.Count(log, test.id+" "), strings.Count(log, test.id+" "+strconv.Itoa(test.status))
		if test.answer != missing && (outcome != 1 || (cause > 1) != (test.status == 502)) {
			t.Errorf("%s: want its outcome in the log, and of a 502 the cause:\n%s", test.id, log)
		}
	}
}

// startExample starts a back end, with a proxy in its environment that is dead. stop kills it and returns its log.
func startExample(t *testing.T, runtime, args, wxopenid string) (url string, stop func() string) {
	port := strconv.Itoa(10000 + rand.IntN(20000)) // none that the system gives to a connection meanwhile
	address := "127.0.0.1:" + port
	var log bytes.Buffer
	cmd := exec.Command(runtime, strings.Fields(strings.ReplaceAll(args, "ADDRESS", address))...)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Env = append(os.Environ(), "PORT="+port, "WXOPENID_URL="+wxopenid,
		"http_proxy="+nobody, "HTTP_PROXY="+nobody, "ALL_PROXY="+nobody, "PYTHONUNBUFFERED=")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = func() string { cmd.Process.Kill(); cmd.Wait(); return log.String() }
	t.Cleanup(func() { stop() })
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			return "http://" + address, stop
		}
	}
	t.Fatalf("%s does not listen:\n%s", runtime, stop())
	return "", nil
}

// TestBackEndOfReadmes wants the READMEs to show examples/backend.js as it is.
func TestBackEndOfReadmes(t *testing.T) {
	t.Parallel()
	block := "```js\n" + string(must(os.ReadFile("examples/backend.js"))) + "```\n"
	for _, page := range []string{"README.md", "README.zh-CN.md"} {
		if !strings.Contains(string(must(os.ReadFile(page))), block) {
			t.Errorf("%s does not show examples/backend.js as it is", page)
		}
	}
}

// TestOpenAPI holds docs/openapi.json to the table of answers.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	var document struct {
		Paths map[string]map[string]struct {
			Responses map[string]struct {
				Headers map[string]any
				Content map[string]struct{ Examples map[string]any }
			}
		}
	}
	json.Unmarshal(must(os.ReadFile("docs/openapi.json")), &document)
	documented := map[string]string{"not_found": "404", "method_not_allowed": "405", "client_closed_request": "499"} // not there
	for status, response := range document.Paths["/openid"]["post"].Responses {
		retryAfter := false
		for word := range response.Content["application/json"].Examples {
			documented[word] = status
			retryAfter = retryAfter || answers[word].retryAfter != ""
		}
		if response.Headers["X-Request-Id"] == nil || (response.Headers["Retry-After"] != nil) != retryAfter {
			t.Errorf("%s: got headers %v", status, response.Headers)
		}
	}
	for word, row := range answers {
		if status := documented[word]; status != strconv.Itoa(row.status) {
			t.Errorf("%s: docs/openapi.json has status %q, want %d", word, status, row.status)
		}
		delete(documented, word)
	}
	if len(documented) > 0 {
		t.Errorf("docs/openapi.json has words that are never sent: %v", documented)
	}
}
