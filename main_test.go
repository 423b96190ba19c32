package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	testAppID  = "wx0123456789abcdef"
	testSecret = "5ecef00dfeedfacea1b2c3d4e5f6a7b8"
	nobody     = "http://127.0.0.1:1" // where nothing listens
)

// TestMain keeps what is set in the developer's environment out of the tests. With WXOPENID_ARGS
// this binary is the program, so that a test can have it in a process of its own.
func TestMain(m *testing.M) {
	if args, ok := os.LookupEnv("WXOPENID_ARGS"); ok {
		os.Args = append(os.Args[:1], strings.Fields(args)...)
		main()
	}
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "all_proxy",
		"WX_APPID", "WX_APPSECRET", "WX_APPSECRET_FILE", "ADDR", "WX_BASE_URL", "WX_TIMEOUT", "MAX_INFLIGHT", "MAX_CONNS",
		"TLS_CERT", "TLS_KEY"} {
		os.Unsetenv(name)
	}
	os.Exit(m.Run())
}

// must returns v, where an error would be one of the test's own set-up.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// credentials returns an environment with an AppID, an AppSecret and more: names and values in turn.
func credentials(more ...string) map[string]string {
	env := map[string]string{"WX_APPID": testAppID, "WX_APPSECRET": testSecret}
	for i := 0; i < len(more); i += 2 {
		env[more[i]] = more[i+1]
	}
	return env
}

// getenv looks variables up in env, with a free port for ADDR by default. A WX_APPID by default keeps a developer's own
// .env out of the tests.
func getenv(env map[string]string) func(string) string {
	return func(name string) string {
		value, ok := env[name]
		switch {
		case ok:
			return value
		case name == "ADDR":
			return "127.0.0.1:0"
		case name == "WX_APPID":
			return testAppID
		}
		return ""
	}
}

// A program runs in this process, or in one of its own.
type program struct {
	url      string // with its port
	addr     string
	out, log *output
	stop     func() int // asks it to stop, and returns its exit code
	cmd      *exec.Cmd  // or nil
}

// startProgram runs the program in this process until the test ends.
func startProgram(t testing.TB, env map[string]string, args ...string) *program {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &program{out: &output{}, log: &output{}}
	exit := make(chan int, 1)
	go func() { exit <- run(ctx, args, getenv(env), p.out, p.log) }()
	p.stop = sync.OnceValue(func() int { cancel(); return <-exit })
	t.Cleanup(func() { p.stop() })
	p.listening(t, env)
	return p
}

// startProcess runs the program in a process of its own until the test ends.
func startProcess(t testing.TB, env map[string]string, args string) *program {
	t.Helper()
	p := startProcessTo(t, nil, env, args)
	p.listening(t, env)
	return p
}

// startProcessTo has the log go to a file, if there is one, and does not wait for it.
func startProcessTo(t testing.TB, log *os.File, env map[string]string, args string) *program {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("a process cannot be told to stop there")
	}
	p := &program{out: &output{}, log: &output{}, cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), "WXOPENID_ARGS="+args, "ADDR=127.0.0.1:0", "WX_APPID="+testAppID)
	for name, value := range env {
		p.cmd.Env = append(p.cmd.Env, name+"="+value)
	}
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.log
	if log != nil {
		p.cmd.Stderr = log
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.stop = sync.OnceValue(func() int {
		p.cmd.Process.Signal(os.Interrupt)
		p.cmd.Wait()
		return p.cmd.ProcessState.ExitCode()
	})
	t.Cleanup(func() { p.cmd.Process.Kill(); p.stop() })
	return p
}

func (p *program) listening(t testing.TB, env map[string]string) {
	t.Helper()
	p.addr = p.log.next(t, "listening")["addr"].(string)
	p.url = "http://" + p.addr
	if env["TLS_CERT"] != "" {
		p.url = "https://" + p.addr
	}
}

// runToEnd runs the program where it ends by itself, with the exit code wanted.
func runToEnd(t *testing.T, want int, env map[string]string, args ...string) (stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var out, log bytes.Buffer
	if code := run(ctx, args, getenv(env), &out, &log); code != want {
		t.Errorf("got exit code %d, want %d", code, want)
	}
	return out.String(), log.String()
}

// An output keeps what is written to it. next reads it line by line.
type output struct {
	mu   sync.Mutex
	text string
	read int // bytes that next has passed
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text += string(p)
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text
}

// next waits for the next log line whose msg is the one given, and returns it parsed.
func (o *output) next(t testing.TB, msg string) map[string]any {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		line, _, whole := strings.Cut(o.String()[o.read:], "\n")
		if !whole {
			time.Sleep(time.Millisecond)
			continue
		}
		o.read += len(line) + 1
		var record map[string]any
		if json.Unmarshal([]byte(line), &record) == nil && record["msg"] == msg {
			return record
		}
	}
	t.Fatalf("no log line %q came; the log is:\n%s", msg, o)
	return nil
}

// warnings returns the msg of each log line of level WARN, but for those of requests.
func (o *output) warnings() (messages []string) {
	for line := range strings.Lines(o.String()) {
		var record struct{ Level, Msg string }
		if json.Unmarshal([]byte(line), &record) == nil && record.Level == "WARN" && record.Msg != "request" {
			messages = append(messages, record.Msg)
		}
	}
	return messages
}

func TestFlags(t *testing.T) {
	t.Parallel()
	const help = "-sandbox -check -healthy -version WX_APPID WX_APPSECRET WX_APPSECRET_FILE ADDR :2020 127.0.0.1:2020 WX_BASE_URL " +
		wechatURLs + " WX_TIMEOUT 5s MAX_INFLIGHT 1024 MAX_CONNS 10000 TLS_CERT TLS_KEY"
	tests := []struct {
		args           string
		code           int
		stdout, stderr string // words in them; none if and only if there is nothing
	}{
		{args: "-version", stdout: "wxopenid " + runtime.Version()},
		{args: "-h", stdout: help},
		{args: "-sandbx", code: 2, stderr: "-sandbox -h"},
		{args: "-check=hunter2", code: 2, stderr: "-sandbox -h"},
		{args: "sandbox", code: 2, stderr: "-sandbox"},
		{args: "hunter2", code: 2, stderr: "no other word. environment variables"},
		{args: "-sandbox -check", code: 2, stderr: "one flag, such as"},
		{args: "", code: 2, stderr: "WX_APPSECRET -sandbox"},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			t.Parallel()
			stdout, stderr := runToEnd(t, test.code, nil, strings.Fields(test.args)...)
			checkWords(t, "standard output", stdout, test.stdout)
			checkWords(t, "standard error", stderr, test.stderr)
			if strings.Contains(stdout+stderr, "hunter2") {
				t.Errorf("got %q, want no word that may be a secret", stdout+stderr)
			}
		})
	}
}

// checkWords wants all of the words in text, and no text if there are none.
func checkWords(t testing.TB, where, text, words string) {
	t.Helper()
	for word := range strings.FieldsSeq(words) {
		if !strings.Contains(text, word) {
			t.Errorf("got %q on %s, want %q in it", text, where, word)
		}
	}
	if words == "" && text != "" {
		t.Errorf("got %q on %s, want nothing", text, where)
	}
}

// TestCheck has another program listen on ADDR, since -check opens no listener.
func TestCheck(t *testing.T) {
	t.Parallel()
	cert, key := newPair(t)
	tests := []struct {
		name   string
		wechat http.HandlerFunc
		more   map[string]string
		code   int
		stdout string
		stderr string // its last line; the warnings come before
	}{
		{name: "code unknown", wechat: refuse(40029),
			stdout: "WeChat accepts the AppID " + testAppID + " and its AppSecret.\n"},
		{name: "code used", wechat: refuse(40163),
			stdout: "WeChat accepts the AppID " + testAppID + " and its AppSecret.\n"},
		{name: "sandbox", wechat: fakeWeChat(testAppID).ServeHTTP,
			stdout: "WeChat accepts the AppID " + testAppID + " and its AppSecret.\n"},
		{name: "busy", wechat: refuse(-1), code: 1, stderr: "errcode -1: WeChat is busy: try again in a moment."},
		{name: "frequency", wechat: refuse(45011), more: map[string]string{"WX_APPSECRET": "odd"}, code: 1,
			stderr: "errcode 45011: WeChat limits the calls of a minute: try again in a minute."},
		{name: "an openid", wechat: say(`{"openid":"o"}`), code: 1,
			stderr: "An openid for a made-up code: this is not WeChat, so check WX_BASE_URL."},
		{name: "no connection", code: 1,
			stderr: "127.0.0.1:1: connection refused: check the firewall, or set HTTP_PROXY if this network needs a proxy."},
		{name: "no certificate", wechat: refuse(40029), more: map[string]string{"TLS_CERT": key, "TLS_KEY": cert}, code: 1,
			stderr: "TLS_CERT and TLS_KEY cannot be used"},
		{name: "odd AppSecret", wechat: refuse(40029), more: map[string]string{"WX_APPSECRET": "odd"},
			stdout: "WeChat accepts the AppID " + testAppID + " and its AppSecret.\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			wechat := newWeChat(t, test.wechat)
			env := credentials("WX_BASE_URL", wechat, "ADDR", strings.TrimPrefix(wechat, "http://"))
			maps.Copy(env, test.more)
			stdout, stderr := runToEnd(t, test.code, env, "-check")
			warning, last := "", stderr
			if test.more["WX_APPSECRET"] != "" {
				warning, last, _ = strings.Cut(stderr, "\n")
			}
			if stdout != test.stdout || !strings.HasPrefix(last, test.stderr) || (last == "") != (test.code == 0) {
				t.Errorf("got %q and %q, want %q and %q", stdout, stderr, test.stdout, test.stderr)
			}
			if strings.Contains(warning, "AppSecret does not look like one") != (test.more["WX_APPSECRET"] != "") {
				t.Errorf("got %q, want the warnings of a start first", stderr)
			}
		})
	}
}

func TestCheckInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	env := credentials("WX_BASE_URL", newWeChat(t, func(w http.ResponseWriter, r *http.Request) { cancel(); hang(w, r) }))
	var stderr bytes.Buffer
	if code := run(ctx, []string{"-check"}, getenv(env), io.Discard, &stderr); code != 1 || !strings.HasPrefix(stderr.String(), "Stopped") {
		t.Errorf("got exit code %d and %q, want 1 and that it was stopped", code, &stderr)
	}
}

func TestHealthy(t *testing.T) {
	t.Parallel()
	cert, key := newPair(t)
	plain := startProgram(t, credentials()).addr
	secure := startProgram(t, credentials("TLS_CERT", cert, "TLS_KEY", key)).addr
	other := strings.TrimPrefix(newWeChat(t, http.NotFound), "http://")
	tests := []struct {
		name, addr, cert string
		code             int
		words            string
	}{
		{name: "HTTP", addr: plain},
		{name: "HTTPS", addr: secure, cert: cert},
		{name: "HTTPS of an HTTP service", addr: plain, cert: cert, code: 1, words: "TLS_CERT"},
		{name: "nobody", addr: "127.0.0.1:1", code: 1, words: "ADDR refused start"},
		{name: "another program", addr: other, code: 1, words: "ADDR another program 404"},
		{name: "bad ADDR", addr: plain + "\r", code: 1, words: "ADDR CR"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			stdout, stderr := runToEnd(t, test.code, map[string]string{"ADDR": test.addr, "TLS_CERT": test.cert}, "-healthy")
			checkWords(t, "standard output", stdout, "")
			checkWords(t, "standard error", stderr, test.words)
		})
	}
}

// TestLogWithoutReader has the log's pipe closed, which ends other programs by SIGPIPE.
func TestLogWithoutReader(t *testing.T) {
	t.Parallel()
	read, write, _ := os.Pipe()
	p := startProcessTo(t, write, nil, "-sandbox")
	write.Close()
	in := bufio.NewReader(read)
	for p.addr == "" {
		var record struct{ Addr string }
		json.Unmarshal(must(in.ReadBytes('\n')), &record)
		p.addr = record.Addr
	}
	p.url = "http://" + p.addr
	read.Close()
	for range 2 {
		if got := post(t, p.url+"/openid", `{"code":"the code is a mock one"}`); got.status != 200 {
			t.Errorf("got %d %s, want 200", got.status, got.body)
		}
	}
	if code := p.stop(); code != 0 {
		t.Errorf("got exit code %d, want 0", code)
	}
}

func TestLogOnTerminal(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0) // it echoes what is written to it
	if err != nil || runtime.GOOS != "linux" {
		t.Skip("no terminal: ", err)
	}
	t.Parallel()
	defer terminal.Close()
	newLogger(terminal).Info("message", "addr", "x")
	terminal.SetReadDeadline(time.Now().Add(10 * time.Second))
	line, err := bufio.NewReader(terminal).ReadString('\n')
	if err != nil || !strings.Contains(line, " level=INFO msg=message addr=x") {
		t.Errorf("got %q and error %v, want text", line, err)
	}
}
