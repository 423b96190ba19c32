package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const (
	testAppID  = "wx0123456789abcdef"
	testSecret = "5ecre7f0r7e575a1b2c3d4e5f6a7b8c9"
)

// A program is run, under test in this process.
type program struct {
	url  string            // http://127.0.0.1:port
	log  *output           // its standard error
	out  *output           // its standard output
	stop func() (code int) // sends it the signal to stop and returns its exit code
}

// startProgram runs the program in this process until the test ends.
func startProgram(t testing.TB, env map[string]string, args ...string) *program {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &program{log: newOutput(), out: newOutput()}
	exit := make(chan int, 1)
	go func() {
		exit <- run(ctx, args, getenv(env), p.out, p.log)
	}()
	p.stop = sync.OnceValue(func() int {
		cancel()
		return <-exit
	})
	t.Cleanup(func() { p.stop() })

	scheme := "http://"
	if env["TLS_CERT"] != "" {
		scheme = "https://"
	}
	p.url = scheme + p.log.next(t, "listening")["addr"].(string)
	return p
}

// addr is where p listens.
func (p *program) addr() string {
	_, addr, _ := strings.Cut(p.url, "://")
	return addr
}

// credentials returns an environment with an AppID, an AppSecret and more: names and
// values in turn.
func credentials(more ...string) map[string]string {
	env := map[string]string{"WX_APPID": testAppID, "WX_APPSECRET": testSecret}
	for i := 0; i < len(more); i += 2 {
		env[more[i]] = more[i+1]
	}
	return env
}

// getenv looks variables up in env, with a free port for ADDR by default.
func getenv(env map[string]string) func(string) string {
	return func(name string) string {
		if value, ok := env[name]; ok || name != "ADDR" {
			return value
		}
		return "127.0.0.1:0"
	}
}

// runToEnd runs the program where it ends by itself.
func runToEnd(t *testing.T, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var out, err bytes.Buffer
	code = run(ctx, args, getenv(env), &out, &err)
	return code, out.String(), err.String()
}

// An output collects what is written to it and hands it out line by line.
type output struct {
	mu    sync.Mutex
	all   bytes.Buffer
	begun []byte // the line that has no end yet
	lines chan string
}

func newOutput() *output { return &output{lines: make(chan string, 100_000)} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all.Write(p)
	o.begun = append(o.begun, p...)
	for {
		line, rest, ended := bytes.Cut(o.begun, []byte("\n"))
		if !ended {
			return len(p), nil
		}
		o.lines <- string(line)
		o.begun = rest
	}
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.all.String()
}

// next waits for the next line whose msg is the one given, and returns it parsed.
func (o *output) next(t testing.TB, msg string) map[string]any {
	t.Helper()
	for {
		select {
		case line := <-o.lines:
			var record map[string]any
			if json.Unmarshal([]byte(line), &record) == nil && record["msg"] == msg {
				return record
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no log line %q came; the log is:\n%s", msg, o)
		}
	}
}

// warnings returns the log lines of level WARN in what was logged until now.
func (o *output) warnings(t *testing.T) (records []map[string]any) {
	t.Helper()
	for line := range strings.Lines(o.String()) {
		var record map[string]any
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatalf("got a log line that is not JSON: %v: %s", err, line)
		}
		if record["level"] == "WARN" {
			records = append(records, record)
		}
	}
	return records
}

func TestSandboxFromStartToStop(t *testing.T) {
	t.Parallel()
	p := startProgram(t, nil, "-sandbox")
	got := post(t, p.url+"/openid", `{"code":"the code is a mock one"}`)
	if got.status != 200 || len(got.OpenID) != 28 {
		t.Errorf("got %d %s, want 200 and an openid of 28 characters", got.status, got.body)
	}
	if code := p.stop(); code != 0 {
		t.Errorf("got exit code %d, want 0; the log is:\n%s", code, p.log)
	}
	var try string
	for _, record := range p.log.warnings(t) {
		try, _ = record["try"].(string)
	}
	if want := `curl -d '{"code":"the code is a mock one"}' ` + p.url + `/openid`; try != want || p.out.String() != want+"\n" {
		t.Errorf("got %q to try in the log and %q on standard output, want %q", try, p.out, want)
	}
}

func TestCurlLine(t *testing.T) {
	t.Parallel()
	const data = ` -d '{"code":"the code is a mock one"}' `
	for addr, want := range map[string]string{
		"127.0.0.1:2020": "curl" + data + "http://127.0.0.1:2020/openid",
		"0.0.0.0:80":     "curl" + data + "http://localhost:80/openid",
		"[::]:80":        "curl" + data + "http://localhost:80/openid",
		"[::1]:80":       "curl" + data + "http://[::1]:80/openid",
	} {
		if got := curlLine("http", net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))); got != want {
			t.Errorf("got %s for %s, want %s", got, addr, want)
		}
	}
}

func TestFlags(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name           string
		args           []string
		code           int
		stdout, stderr string // what they hold; empty if and only if this is
	}{
		{"version", []string{"-version"}, 0, runtime.Version(), ""},
		{"help", []string{"-h"}, 0, "", "-sandbox"},
		{"unknown flag", []string{"-sandbx"}, 2, "", "-sandbx"},
		{"surplus argument", []string{"-sandbox", "start"}, 2, "", "flags"},
		{"two modes", []string{"-sandbox", "-check"}, 2, "", "-check"},
		{"no settings", nil, 2, "", "go run . -sandbox"},
		{"no settings to check", []string{"-check"}, 2, "", "WX_APPID"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			code, stdout, stderr := runToEnd(t, nil, test.args...)
			if code != test.code {
				t.Errorf("got exit code %d, want %d", code, test.code)
			}
			if !strings.Contains(stdout, test.stdout) || (stdout == "") != (test.stdout == "") {
				t.Errorf("got %q on standard output, want %q in it", stdout, test.stdout)
			}
			if !strings.Contains(stderr, test.stderr) || (stderr == "") != (test.stderr == "") {
				t.Errorf("got %q on standard error, want %q in it", stderr, test.stderr)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		wechat http.HandlerFunc
		code   int
		says   []string
	}{
		{"code unknown", refuse(40029), 0, []string{testAppID}},
		{"code used", refuse(40163), 0, []string{testAppID}},
		{"AppID", refuse(40013), 1, []string{"WX_APPID"}},
		{"AppSecret", refuse(40125), 1, []string{"WX_APPSECRET"}},
		{"IP address", refuse(40164), 1, []string{"IP", "allowlist"}},
		{"AppSecret frozen", refuse(40243), 1, []string{"WX_APPSECRET", "frozen"}},
		{"no AppID arrived", refuse(41002), 1, []string{"WX_APPID", "WX_BASE_URL"}},
		{"no AppSecret arrived", refuse(41004), 1, []string{"WX_APPSECRET", "WX_BASE_URL"}},
		{"API not authorised", refuse(48001), 1, []string{"WX_APPID"}},
		{"account limited", refuse(50002), 1, []string{"WX_APPID"}},
		{"quota", refuse(45009), 1, []string{"quota"}},
		{"busy", refuse(-1), 1, []string{"-1"}},
		{"frequency", refuse(45011), 1, []string{"45011"}},
		{"unknown errcode", refuse(61451), 1, []string{"61451"}},
		{"an openid", say(`{"openid":"o"}`), 1, []string{"WX_BASE_URL"}},
		{"not WeChat", say(`<html>`), 1, []string{"WX_BASE_URL"}},
		{"HTTP status", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, 1, []string{"404", "WX_BASE_URL"}},
		{"no connection", nil, 1, []string{"refused", "WX_BASE_URL"}},
		{"timeout", hang, 1, []string{"WX_TIMEOUT"}},
		{"sandbox", (&sandbox{appID: testAppID, appSecret: credentials()["WX_APPSECRET"]}).ServeHTTP, 0, []string{testAppID}},
		{"sandbox of another AppID", (&sandbox{appID: "wx0", appSecret: credentials()["WX_APPSECRET"]}).ServeHTTP, 1, []string{"WX_APPID"}},
		{"sandbox of another AppSecret", (&sandbox{appID: testAppID, appSecret: "0"}).ServeHTTP, 1, []string{"WX_APPSECRET"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			env := credentials("WX_BASE_URL", "http://127.0.0.1:1")
			if test.wechat != nil {
				env["WX_BASE_URL"] = newWeChat(t, test.wechat)
			}
			if test.name == "timeout" {
				env["WX_TIMEOUT"] = "20ms"
			}
			code, verdict, other := runToEnd(t, env, "-check")
			if code != test.code {
				t.Errorf("got exit code %d, want %d", code, test.code)
			}
			if code != 0 {
				verdict, other = other, verdict
			}
			if other != "" || strings.Index(verdict, "\n") != len(verdict)-1 || strings.HasSuffix(verdict, "?.\n") {
				t.Errorf("got %q on the right output and %q on the other, want one line on the right one", verdict, other)
			}
			for _, want := range test.says {
				if !strings.Contains(verdict, want) {
					t.Errorf("got %q, want %q in it", verdict, want)
				}
			}
			if strings.Contains(verdict, testSecret) {
				t.Errorf("got %q, want no AppSecret in it", verdict)
			}
		})
	}
}

func TestCheckBesideRunningService(t *testing.T) {
	t.Parallel()
	env := credentials("WX_BASE_URL", newWeChat(t, refuse(40029)))
	env["ADDR"] = startProgram(t, env).addr()
	if code, _, stderr := runToEnd(t, env, "-check"); code != 0 {
		t.Errorf("got exit code %d and %q, want 0", code, stderr)
	}
}

func TestHealthy(t *testing.T) {
	t.Parallel()
	cert, key := newCertificate(t)
	for name, env := range map[string]map[string]string{"HTTP": credentials(), "HTTPS": credentials("TLS_CERT", cert, "TLS_KEY", key)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startProgram(t, env)
			env := maps.Clone(env)
			env["ADDR"] = p.addr()
			if code, stdout, stderr := runToEnd(t, env, "-healthy"); code != 0 || stdout+stderr != "" {
				t.Errorf("got exit code %d and %q, want 0 and nothing", code, stdout+stderr)
			}
			env["ADDR"] = "127.0.0.1:1"
			if code, _, stderr := runToEnd(t, env, "-healthy"); code != 1 || !strings.Contains(stderr, "ADDR") {
				t.Errorf("got exit code %d and %q where nothing runs, want 1 and ADDR", code, stderr)
			}
		})
	}
}

func TestStartFails(t *testing.T) {
	t.Parallel()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { busy.Close() })
	cert, key := newCertificate(t)
	tests := []struct {
		name   string
		env    map[string]string
		reason string
	}{
		{"busy port", map[string]string{"ADDR": busy.Addr().String()}, "address already in use"},
		{"no certificate", map[string]string{"TLS_CERT": cert + "0", "TLS_KEY": key}, "no such file"},
		{"no key", map[string]string{"TLS_CERT": cert, "TLS_KEY": key + "0"}, "no such file"},
		{"key for certificate", map[string]string{"TLS_CERT": key, "TLS_KEY": cert}, "certificate"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			maps.Copy(test.env, credentials())
			code, _, stderr := runToEnd(t, test.env)
			if code != 1 || !strings.Contains(stderr, test.reason) {
				t.Errorf("got exit code %d and %q, want 1 and %q in it", code, stderr, test.reason)
			}
		})
	}
}

func TestUnencryptedWarning(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, baseURLs string
		hosts          []any // warned about
	}{
		{"WeChat's", "", nil},
		{"loopback", "http://127.0.0.1:1,http://localhost:1,http://[::1]:1,http://127.1.2.3", nil},
		{"elsewhere", "https://192.0.2.1,http://192.0.2.2:80/wx,http://127.0.0.1.example", []any{"192.0.2.2:80", "127.0.0.1.example"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := startProgram(t, credentials("WX_BASE_URL", test.baseURLs))
			p.stop()
			got := p.log.warnings(t)
			if len(got) != len(test.hosts) {
				t.Fatalf("got warnings %v, want some for hosts %v", got, test.hosts)
			}
			for i, record := range got {
				if record["host"] != test.hosts[i] {
					t.Errorf("got warning %v, want one for host %v", record, test.hosts[i])
				}
			}
		})
	}
}

func TestStopFinishesRequests(t *testing.T) {
	t.Parallel()
	asked, release := make(chan struct{}), make(chan struct{})
	p := startService(t, func(w http.ResponseWriter, r *http.Request) {
		close(asked)
		<-release
		echo(w, r)
	})
	answered := make(chan result)
	go func() {
		answered <- raw(t, p, "POST /openid HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n{\"code\":\"late\"}")
	}()
	<-asked
	stopped := make(chan int)
	go func() { stopped <- p.stop() }()
	untilRefused(p)
	close(release)
	if got := <-answered; got.OpenID != "late" || !got.last {
		t.Errorf("got %d %s, the last on its connection: %t, want the openid and true", got.status, got.body, got.last)
	}
	if code := <-stopped; code != 0 {
		t.Errorf("got exit code %d, want 0; the log is:\n%s", code, p.log)
	}
}

func TestStopWithConnection(t *testing.T) {
	t.Parallel()
	const underWay = "POST /openid HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n" // for 15 s
	tests := []struct {
		name, sent  string
		limit, took time.Duration // took at most
		cut         bool
	}{
		{"unused", "", time.Minute, 2 * time.Second, false},
		{"kept", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", time.Minute, 2 * time.Second, false},
		{"request under way", underWay, time.Minute, 16 * time.Second, false},
		{"request under way beyond the limit", underWay, 10 * time.Second, 10 * time.Second, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, conn := startInBubble(t, t.Context())
				go io.Copy(io.Discard, conn)
				io.WriteString(conn, test.sent)
				synctest.Wait()
				start := time.Now()
				if err := s.stop(test.limit); (err != nil) != test.cut {
					t.Errorf("got error %v, want one: %t", err, test.cut)
				}
				if took := time.Since(start); took > test.took {
					t.Errorf("took %v, want %v at most", took, test.took)
				}
			})
		})
	}
}

func TestStopEndsKeptConnections(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		_, conn := startInBubble(t, ctx)
		reader := bufio.NewReader(conn)
		for _, last := range []bool{false, true} {
			io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
			resp, err := http.ReadResponse(reader, &http.Request{Method: "GET"})
			if err != nil {
				t.Fatal(err)
			}
			if got := read(t, resp); got.status != 200 || resp.Close != last {
				t.Errorf("got %d, the last on its connection: %t, want 200 and %t", got.status, resp.Close, last)
			}
			cancel()
		}
	})
}

// untilRefused waits for p to take no connections any more.
func untilRefused(p *program) {
	for {
		conn, err := net.Dial("tcp", p.addr())
		if err != nil {
			return
		}
		conn.Close()
		time.Sleep(time.Millisecond)
	}
}

// startProcess starts the sandbox in a process of its own, which is this binary, again in
// the test that calls it: there it does not return.
func startProcess(t *testing.T, env ...string) (*program, *exec.Cmd) {
	t.Helper()
	if os.Getenv("WXOPENID_PROCESS") != "" {
		os.Args = []string{"wxopenid", "-sandbox"}
		main()
	}
	p := &program{log: newOutput()}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), append(env, "WXOPENID_PROCESS=1", "ADDR=127.0.0.1:0")...)
	cmd.Stderr = p.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	p.url = "http://" + p.log.next(t, "listening")["addr"].(string)
	return p, cmd
}

func TestSignals(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no signals there")
	}
	t.Parallel()
	p, cmd := startProcess(t)
	conn := sendRaw(t, p, "POST /openid HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\nExpect: 100-continue\r\n\r\n")
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "100 Continue") {
		t.Fatalf("got %q, error %v, want 100 Continue", line, err)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	untilRefused(p)
	exited := make(chan error)
	go func() { exited <- cmd.Wait() }()
	for {
		cmd.Process.Signal(syscall.SIGINT)
		select {
		case <-exited:
			if got, _ := cmd.ProcessState.Sys().(syscall.WaitStatus); got.Signal() != syscall.SIGINT {
				t.Errorf("got %v with a request under way, want the end by the second signal", cmd.ProcessState)
			}
			return
		case <-time.After(10 * time.Millisecond): // the first may have come too early to be the second
		}
	}
}

func TestSandboxDespiteProxy(t *testing.T) {
	t.Parallel()
	const nobody = "http://127.0.0.1:1"
	p, cmd := startProcess(t, "HTTP_PROXY="+nobody, "HTTPS_PROXY="+nobody, "ALL_PROXY="+nobody, "http_proxy="+nobody, "NO_PROXY=")
	if got := post(t, p.url+"/openid", `{"code":"x"}`); got.status != 200 {
		t.Errorf("got %d %s, want 200", got.status, got.body)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Errorf("got %v after SIGTERM, want exit code 0", err)
	}
}

func TestLogOnTerminal(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0) // it echoes what is written to it
	if err != nil || runtime.GOOS != "linux" {
		t.Skip("no terminal to be had: ", err)
	}
	t.Parallel()
	defer terminal.Close()
	terminal.SetReadDeadline(time.Now().Add(10 * time.Second))
	ctx, cancel := context.WithCancel(t.Context())
	exit := make(chan int)
	go func() { exit <- run(ctx, []string{"-sandbox"}, getenv(nil), io.Discard, terminal) }()
	line, err := bufio.NewReader(terminal).ReadString('\n')
	if err != nil || !strings.Contains(line, " level=INFO msg=listening addr=127.0.0.1:") {
		t.Errorf("got %q and error %v, want text", line, err)
	}
	cancel()
	if code := <-exit; code != 0 {
		t.Errorf("got exit code %d, want 0", code)
	}
}

// newCertificate writes a certificate for 127.0.0.1 and its key to files.
func newCertificate(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	renewCertificate(t, certFile, keyFile)
	return certFile, keyFile
}

func renewCertificate(t *testing.T, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyBytes, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})))
	writeFile(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyBytes})))
}

func writeFile(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestHTTPS(t *testing.T) {
	t.Parallel()
	cert, key := newCertificate(t)
	p := startProgram(t, map[string]string{"TLS_CERT": cert, "TLS_KEY": key}, "-sandbox")
	roots := x509.NewCertPool()
	if pem, err := os.ReadFile(cert); err != nil || !roots.AppendCertsFromPEM(pem) {
		t.Fatalf("cannot read the certificate: %v", err)
	}
	tests := []struct {
		name    string
		version uint16
		ok      bool
	}{
		{"TLS 1.1", tls.VersionTLS11, false},
		{"TLS 1.2", tls.VersionTLS12, true},
		{"TLS 1.3", tls.VersionTLS13, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			conf := &tls.Config{RootCAs: roots, MinVersion: test.version, MaxVersion: test.version}
			client := http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}}
			resp, err := client.Post(p.url+"/openid", "", strings.NewReader(`{"code":"`+mockCode+`"}`))
			if (err == nil) != test.ok {
				t.Fatalf("got error %v, want one: %t", err, !test.ok)
			}
			if err == nil {
				if got := read(t, resp); got.status != 200 {
					t.Errorf("got %d %s, want 200", got.status, got.body)
				}
			}
		})
	}
	p.stop()
	if !strings.Contains(p.log.String(), " "+p.url+"/openid") || !strings.Contains(p.log.String(), "curl -k ") {
		t.Errorf("got log\n%s\nwant a curl line with -k and https", p.log)
	}
}

func TestCertificateRenewal(t *testing.T) {
	t.Parallel()
	certFile, keyFile := newCertificate(t)
	synctest.Test(t, func(t *testing.T) {
		log := newOutput()
		cert := &certificate{certFile: certFile, keyFile: keyFile, log: slog.New(slog.NewTextHandler(log, nil))}
		look := func() *tls.Certificate {
			t.Helper()
			time.Sleep(10 * time.Second)
			pair, err := cert.get(nil)
			if err != nil {
				t.Fatal(err)
			}
			return pair
		}
		first := look()
		renewCertificate(t, certFile, keyFile)
		second := look()
		if bytes.Equal(second.Certificate[0], first.Certificate[0]) {
			t.Error("got the old certificate 10 s after the renewal, want the new one")
		}
		writeFile(t, keyFile, "broken")
		for range 2 {
			if look() != second {
				t.Error("got another certificate from broken files, want the old one")
			}
		}
		if got := strings.Count(log.String(), "level=ERROR"); got != 1 {
			t.Errorf("got %d errors logged, want 1:\n%s", got, log)
		}
		renewCertificate(t, certFile, keyFile)
		if bytes.Equal(look().Certificate[0], second.Certificate[0]) {
			t.Error("got the old certificate 10 s after the repair, want the new one")
		}
	})
}
