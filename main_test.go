package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Two mini programs.
const (
	testAppID   = "wx0123456789abcdef"
	testSecret  = "5ecef00dfeedfacea1b2c3d4e5f6a7b8"
	otherAppID  = "wxfedcba9876543210"
	otherSecret = "0ddba11c0ffee0ddba11c0ffee0ddba1"

	nobody = "http://127.0.0.1:1" // where nothing listens
)

// TestMain keeps what is set in the developer's environment out of the tests. With WXOPENID_ARGS this binary is the
// program, so that a test can have it in a process of its own.
func TestMain(m *testing.M) {
	if args, ok := os.LookupEnv("WXOPENID_ARGS"); ok {
		os.Args = append(os.Args[:1], strings.Fields(args)...)
		main()
	}
	for _, name := range append(settingNames, "https_proxy", "http_proxy", "no_proxy", "ALL_PROXY", "all_proxy") {
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

// same wants got to be want.
func same(t testing.TB, what, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v: got\n%+v\nwant\n%+v", what, got, want)
	}
}

// like wants text to be want, in which … stands for anything.
func like(t testing.TB, text, want string) {
	t.Helper()
	pattern := "(?s)^" + strings.ReplaceAll(regexp.QuoteMeta(want), "…", ".*") + "$"
	if !regexp.MustCompile(pattern).MatchString(text) {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
}

// credentials returns an environment with an AppID, an AppSecret and more: names and values in turn.
func credentials(more ...string) map[string]string {
	env := map[string]string{"WX_APPID": testAppID, "WX_APPSECRET": testSecret}
	for i := 0; i < len(more); i += 2 {
		env[more[i]] = more[i+1]
	}
	return env
}

// several returns an environment with two AppIDs.
func several() map[string]string {
	return credentials("WX_APPID", testAppID+","+otherAppID, "WX_APPSECRET", testSecret+","+otherSecret)
}

// getenv looks variables up in env. Unless that says otherwise, ADDR is a free port, and there is an AppID, so that no
// test reads a developer's own .env.
func getenv(env map[string]string) func(string) string {
	all := map[string]string{"ADDR": "127.0.0.1:0", "WX_APPID": testAppID}
	maps.Copy(all, env)
	return func(name string) string { return all[name] }
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
	return p.start(t)
}

// startProcess runs the program in a process of its own until the test ends.
func startProcess(t testing.TB, env map[string]string, args string) *program {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("a process cannot be told to stop there")
	}
	p := &program{out: &output{}, log: &output{}, cmd: exec.Command(must(os.Executable()))}
	p.cmd.Env = append(os.Environ(), "WXOPENID_ARGS="+args, "ADDR=127.0.0.1:0", "WX_APPID="+testAppID)
	for name, value := range env {
		p.cmd.Env = append(p.cmd.Env, name+"="+value)
	}
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.log
	must(0, p.cmd.Start())
	p.stop = sync.OnceValue(func() int {
		p.cmd.Process.Signal(os.Interrupt)
		p.cmd.Wait()
		return p.cmd.ProcessState.ExitCode()
	})
	return p.start(t)
}

// start waits until p listens.
func (p *program) start(t testing.TB) *program {
	t.Helper()
	t.Cleanup(func() { p.stop() })
	p.addr = p.log.next(t, "listening")["addr"].(string)
	p.url = "http://" + p.addr
	return p
}

// An output keeps what is written to it. next reads it line by line.
type output struct {
	mu   sync.Mutex
	text string
	read int  // bytes that next has passed
	gone bool // what is written is refused
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.gone {
		return 0, io.ErrClosedPipe
	}
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

// TestEnds has the ways in which the program ends by itself. It does so in a folder of its own, for the file .env.
func TestEnds(t *testing.T) {
	t.Chdir(t.TempDir())
	cert, key := newPair(t)
	plain := startProgram(t, credentials()).addr
	secure := startProgram(t, credentials("TLS_CERT", cert, "TLS_KEY", key)).addr
	ctx, interrupt := context.WithTimeout(t.Context(), 20*time.Second)
	by := func(handler http.HandlerFunc, env map[string]string) map[string]string {
		env["WX_BASE_URL"], env["ADDR"] = newWeChat(t, handler), plain // -check opens no listener
		return env
	}
	last := func(w http.ResponseWriter, r *http.Request) { interrupt(); hang(w, r) }
	none := map[string]string{"WX_APPID": "", "ADDR": ""}
	const (
		refused  = "wxopenid takes one flag, such as -sandbox, and no other word: see wxopenid -h.\n"
		accepted = "WeChat accepts the AppID " + testAppID + " and its AppSecret.\n"
		first    = "AppID " + testAppID + ": "
		second   = "WeChat accepts the AppID " + otherAppID + " and its AppSecret.\n"
		start    = "wxopenid does not answer at ADDR (…): start it, or use its ADDR and TLS_CERT.\n"
		noPort   = "ADDR: …: stop the other program, or set another ADDR of this machine, say :3020\n"
		unread   = " cannot be read (…): name a PEM file that this user may read\n"
		unusable = "TLS_CERT and TLS_KEY cannot be used (…): use PEM files, leaf first, without password\n"
		noSecret = "WX_APPSECRET is not set: set it, or WX_APPSECRET_FILE to a file that holds it" + trySandbox + "\n"
		noDotEnv = ".env cannot be read (…): let this user read it, or move it away\n"
	)
	system := " (" + runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH + ")\n"
	for _, test := range []struct {
		args           string // between "|", each alone
		env            map[string]string
		file, content  string // that is in the folder from then on
		code           int    // or, if anything is said on standard error, 1
		stdout, stderr string
	}{
		{args: "-sandbx|hunter2|-check=false|-sandbox hunter2|-sandbox -check|--", code: 2, stderr: refused},
		{args: "-check", env: by(refuse(40029), credentials()), stdout: accepted},
		{args: "-check", env: by(refuse(40163), credentials()), stdout: accepted},
		{args: "-check", env: by(fakeWeChat(several()).ServeHTTP, several()), stdout: accepted + second},
		{args: "-check", env: by(fakeWeChat(credentials()).ServeHTTP, several()), stdout: accepted, stderr: "AppID " +
			otherAppID + ": errcode 40013: WeChat does not know the AppID: copy it again from " + console + ".\n"},
		{args: "-check", env: by(refuse(-1), credentials("WX_APPSECRET", "odd")),
			stderr: `{…"WARN","msg":"WX_APPSECRET does…"}` + "\n" + first +
				"errcode -1: WeChat is busy: try again in a moment.\n"},
		{args: "-check", env: by(say(`{"openid":"o"}`), credentials()),
			stderr: first + "an openid for a made-up code: this is not WeChat, so check WX_BASE_URL.\n"},
		{args: "-check", env: credentials("WX_BASE_URL", nobody), stderr: first + "127.0.0.1:1: …: check the " +
			"firewall, what WX_BASE_URL leads to, and whether you need HTTP_PROXY.\n"},
		{args: "-check", env: credentials("TLS_CERT", "x", "TLS_KEY", "x"), stderr: "TLS_CERT" + unread},

		{args: "-healthy", env: credentials("ADDR", plain, "WX_TIMEOUT", "not looked at")},
		{args: "-healthy", env: credentials("ADDR", secure, "TLS_CERT", cert)},
		{args: "-healthy", env: credentials("ADDR", "127.0.0.1:1"), stderr: start},
		{args: "-healthy", env: credentials("ADDR", strings.TrimPrefix(newWeChat(t, http.NotFound), "http://")),
			stderr: strings.Replace(start, "…", "another program is there, and says 404 Not Found", 1)},
		{args: "-healthy", env: credentials("ADDR", plain+"\r"), stderr: "ADDR ends in a Windows line end (CR): …"},
		{args: "-healthy", env: credentials("ADDR", plain, "TLS_CERT", `"x"`), stderr: "TLS_CERT has quotes …"},

		{env: credentials("ADDR", plain), stderr: noPort},
		{env: credentials("TLS_CERT", cert+"0", "TLS_KEY", key), stderr: "TLS_CERT" + unread},
		{env: credentials("TLS_CERT", cert, "TLS_KEY", key+"0"), stderr: "TLS_KEY" + unread},
		{env: credentials("TLS_CERT", key, "TLS_KEY", key), stderr: unusable},

		{env: none, code: 2, stderr: "WX_APPID is not set: copy the AppID from " + console +
			", into the environment or .env" + trySandbox + "\n" + noSecret},
		{env: none, file: ".env.txt", code: 2, stderr: "WX_APPID is not set: rename .env.txt to .env, the only name " +
			"that is read" + trySandbox + "\n" + noSecret},
		{env: none, file: ".env", content: "WX_APPID: x", code: 2, stderr: "WX_APPID is not written as …\n" + noSecret},
		{env: none, file: ".env", content: "WX_TIMEOUT: x\nADDR=" + plain, args: "-healthy"},
		{env: none, file: ".env/x", args: "-healthy", stderr: noDotEnv},
		{env: none, args: "-sandbox|-check", code: 2, stderr: noDotEnv},
		{env: none, args: "-version|--version", stdout: "wxopenid …" + system},
		{env: none, args: "-h", stdout: usage + settingsHelp},
		{args: "-check", env: by(last, credentials()), stderr: "Stopped before WeChat answered: run -check again.\n"},
	} {
		if test.file != "" {
			must(0, os.RemoveAll(dotEnv))
			must(0, os.MkdirAll(filepath.Dir(test.file), 0o700))
			writeFile(test.file, test.content)
		}
		for args := range strings.SplitSeq(test.args, "|") {
			var stdout, stderr bytes.Buffer
			code := run(ctx, strings.Fields(args), getenv(test.env), &stdout, &stderr)
			same(t, test, code, cmp.Or(test.code, min(len(test.stderr), 1)))
			like(t, stdout.String(), test.stdout)
			like(t, stderr.String(), test.stderr)
			same(t, &stderr, regexp.MustCompile("hunter2|key.pem").Match(stderr.Bytes()), false)
		}
	}
}

// TestProcess has the log's pipe closed, which ends other programs by SIGPIPE, and two signals, the second of which
// ends a stop that a request under way holds up.
func TestProcess(t *testing.T) {
	t.Parallel()
	p := startProcess(t, nil, "-sandbox")
	p.log.mu.Lock()
	p.log.gone = true
	p.log.mu.Unlock()
	for range 20 { // the first closes the pipe
		same(t, "status", post(t, p.url+"/openid", `{"code":"the code is a mock one"}`).status, 200)
	}
	sendRaw(t, p, halfBody)
	post(t, p.url+"/openid", "") // in its turn, and so after that
	go func() {
		for p.cmd.Process.Signal(syscall.SIGTERM) == nil {
			time.Sleep(10 * time.Millisecond)
		}
	}()
	p.cmd.Wait()
	status, _ := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	same(t, p.cmd.ProcessState, status.Signaled(), true)
}

func TestLogOnTerminal(t *testing.T) {
	device := must(os.Open(os.DevNull)) // a character device, as a terminal is
	_, isText := newLogger(device, config{}).Handler().(*slog.TextHandler)
	same(t, "text", isText, true)
}
