//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func init() { servers["watched service"] = watchedService }

// watchedService is the service, which on SIGUSR1 logs what it has in use. With
// NOFILE it has no more descriptors than that.
func watchedService() {
	var limit syscall.Rlimit
	if n, _ := fmt.Sscan(os.Getenv("NOFILE"), &limit.Max); n == 1 {
		limit.Cur = limit.Max
		syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
	logger, _ := newLogger(os.Stderr)
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	go func() {
		for range asked {
			runtime.GC() // twice, to empty the pools, and have what is free given back
			debug.FreeOSMemory()
			var mem runtime.MemStats
			runtime.ReadMemStats(&mem)
			logger.Info("in use", "goroutines", runtime.NumGoroutine(), "heap", mem.HeapAlloc>>10)
		}
	}()
	main()
}

// A child is a server in a process of its own. Its log lacks the lines of requests.
type child struct {
	program
	pid int
}

// startChild executes the server of that name until the test ends.
func startChild(t *testing.T, server string, env map[string]string, args ...string) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "BENCH_SERVER="+server, "ADDR=127.0.0.1:0")
	for name, value := range env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	if _, err := cmd.StdinPipe(); err != nil { // which ends the child, should this process end
		t.Fatal(err)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{program{log: newOutput()}, cmd.Process.Pid}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if !strings.Contains(lines.Text(), `"msg":"request"`) {
				fmt.Fprintln(c.log, lines.Text())
			}
		}
	}()
	c.stop = sync.OnceValue(func() int {
		cmd.Process.Signal(syscall.SIGTERM)
		<-read
		cmd.Wait()
		return cmd.ProcessState.ExitCode()
	})
	t.Cleanup(func() {
		if c.stop(); strings.Contains(c.log.String(), "DATA RACE") {
			t.Errorf("%s has a data race; its log is:\n%s", server, c.log)
		}
	})
	var listening struct{ Addr string }
	if line := <-c.log.lines; json.Unmarshal([]byte(line), &listening) != nil || listening.Addr == "" {
		t.Fatalf("%s does not listen: %s", server, line)
	}
	c.url = "http://" + listening.Addr
	return c
}

// A usage is what a child has in use at rest; heap and rss in KiB.
type usage struct{ goroutines, fds, heap, rss int }

func (c *child) usage(t *testing.T) usage {
	t.Helper()
	syscall.Kill(c.pid, syscall.SIGUSR1)
	told := c.log.next(t, "in use")
	u := usage{goroutines: int(told["goroutines"].(float64)), heap: int(told["heap"].(float64)), fds: c.fds(t)}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.pid))
	_, rss, _ := strings.Cut(string(status), "VmRSS:")
	if _, scanErr := fmt.Sscan(rss, &u.rss); err != nil || scanErr != nil {
		t.Fatal(err, scanErr)
	}
	return u
}

func (c *child) fds(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// The margin is what may stay in use after a load: Go keeps a record of some 450 bytes for
// each of the goroutines that there were at one time. Their number has to be back.
var margin = usage{heap: 10 << 10, rss: 40 << 10}

// How many callers come at once, how long one may wait while others attack, and how many
// come in a second while a base URL fails.
var (
	crowd   = many
	patient = time.Second
	pace    = 300
)

// The race detector allows 8,128 goroutines, gives no memory back and takes its time.
func init() {
	info, _ := debug.ReadBuildInfo()
	if slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		crowd, patient, pace, margin.rss = 1500, 5*time.Second, 100, 1<<20
	}
}

func (u usage) within(limit usage) bool {
	return u.goroutines <= limit.goroutines+margin.goroutines && u.fds <= limit.fds+margin.fds &&
		u.heap <= limit.heap+margin.heap && u.rss <= limit.rss+margin.rss
}

// backTo waits until c has no more in use than at its start.
func (c *child) backTo(t *testing.T, start usage) {
	t.Helper()
	begun := time.Now()
	for last := c.usage(t); !last.within(start); last = c.usage(t) {
		if time.Since(begun) > 2*time.Minute {
			t.Fatalf("got %+v in use after 2 minutes, want the %+v of the start again, give or take %+v", last, start, margin)
		}
		time.Sleep(time.Second)
	}
	t.Logf("in use %v later: %+v, and at the start: %+v", time.Since(begun).Round(time.Second), c.usage(t), start)
}

// await looks every so often whether what is wanted is there.
func await(t *testing.T, limit time.Duration, want string, there func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !there(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("got no such thing within %v, want %s", limit, want)
		}
	}
}

// A call is a request and what came of it: a status with the word of a failure, or an error.
type call struct {
	outcome string
	begun   time.Time
	took    time.Duration
}

type calls []call

// String counts the outcomes, with the median and the longest time of each.
func (cs calls) String() string {
	took := make(map[string][]time.Duration)
	for _, c := range cs {
		took[c.outcome] = append(took[c.outcome], c.took)
	}
	var lines []string
	for outcome, t := range took {
		slices.Sort(t)
		lines = append(lines, fmt.Sprintf("%6d × %s, median %v, longest %v", len(t), outcome, t[len(t)/2], t[len(t)-1]))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// check wants every call to be fit.
func (cs calls) check(t *testing.T, want string, fit func(call) bool) {
	t.Helper()
	t.Logf("calls:\n%v", cs)
	for _, c := range cs {
		if !fit(c) {
			t.Fatalf("got %s after %v, want %s", c.outcome, c.took, want)
		}
	}
}

// outcome is what came of a request: "200", or a status and the word for it, or what went wrong.
func outcome(resp *http.Response, err error) string {
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	var got result
	err = json.NewDecoder(resp.Body).Decode(&got)
	if err != nil || resp.StatusCode == 200 && got.OpenID == "" {
		return fmt.Sprintf("%d without an openid, %v", resp.StatusCode, err)
	}
	return strings.TrimSpace(fmt.Sprint(resp.StatusCode, " ", got.Error))
}

// newCaller is a client with as many connections as it likes.
func newCaller(t *testing.T) *http.Client {
	transport := &http.Transport{MaxIdleConnsPerHost: many, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

func exchange(client *http.Client, url, code string) string {
	return outcome(client.Post(url+"/openid", "", strings.NewReader(`{"code":"`+code+`"}`)))
}

// flow makes calls at a steady rate a second until stop, which waits for the last of them.
func flow(t *testing.T, rate int, do func(i int) (outcome string)) (stop func() calls) {
	var all calls
	var mu sync.Mutex
	var running sync.WaitGroup
	ended := make(chan struct{})
	running.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-ended:
				return
			case <-tick.C:
			}
			running.Go(func() {
				begun := time.Now()
				came := do(i)
				mu.Lock()
				defer mu.Unlock()
				all = append(all, call{came, begun, time.Since(begun)})
			})
		}
	})
	stop = sync.OnceValue(func() calls {
		close(ended)
		running.Wait()
		return all
	})
	t.Cleanup(func() { stop() })
	return stop
}

// occupy opens n connections to c, sends text on each and leaves them open until the test
// ends or letGo is called.
func occupy(t *testing.T, c *child, n int, text string) (conns []net.Conn, letGo func()) {
	t.Helper()
	letGo = func() {
		for _, conn := range conns {
			conn.Close()
		}
	}
	t.Cleanup(func() { letGo() })
	for range n {
		conn, err := net.Dial("tcp", c.addr())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		io.WriteString(conn, text)
	}
	return conns, letGo
}

func TestStress(t *testing.T) {
	if os.Getenv("STRESS") == "" {
		t.Skip("minutes long: make stress runs it, with nginx, haproxy and slowhttptest where they are installed")
	}
	t.Run("load", testLoad)
	t.Run("no descriptors", testNoDescriptors)
	t.Run("slow attackers", testSlowAttackers)
	t.Run("no readers", testNoReaders)
	t.Run("rolling restart", testRollingRestart)
	t.Run("failover", testFailover)
}

// testLoad has far more callers at once than MAX_INFLIGHT, then far more idle connections.
func testLoad(t *testing.T) {
	c := startChild(t, "watched service", nil, "-sandbox")
	start, client := c.usage(t), newCaller(t)
	before := quickness(t, c, client)

	conns, letGo := occupy(t, c, crowd, "")
	all := make(calls, crowd)
	sending, running := make(chan struct{}), sync.WaitGroup{}
	for i, conn := range conns {
		running.Go(func() {
			<-sending
			begun := time.Now()
			conn.SetDeadline(begun.Add(time.Minute))
			io.WriteString(conn, postOf("sandbox:delay=500ms"))
			came := outcome(http.ReadResponse(bufio.NewReader(conn), nil))
			all[i] = call{came, begun, time.Since(begun)}
		})
	}
	close(sending)
	running.Wait()
	all.check(t, "200 or 503 overloaded within 10s", func(c call) bool {
		return (c.outcome == "200" || c.outcome == "503 overloaded") && c.took < 10*time.Second
	})
	t.Logf("%+v in use when the callers have their answers", c.usage(t))
	letGo()
	if after := quickness(t, c, client); after > 3*before+time.Millisecond {
		t.Errorf("got a median of %v after the load, want about the %v before it", after, before)
	}

	_, letGo = occupy(t, c, crowd, "")
	_, letGoToo := occupy(t, c, crowd, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
	t.Logf("median of an exchange beside %d idle connections: %v", 2*crowd, quickness(t, c, client))
	t.Logf("%+v in use then", c.usage(t))
	letGo()
	letGoToo()
	client.CloseIdleConnections()
	c.backTo(t, start)
}

func postOf(code string) string {
	return fmt.Sprintf("POST /openid HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n{\"code\":%q}", len(code)+11, code)
}

// quickness is the median time of an exchange, one after the other.
func quickness(t *testing.T, c *child, client *http.Client) time.Duration {
	t.Helper()
	var took []time.Duration
	for range 500 {
		begun := time.Now()
		if came := exchange(client, c.url, mockCode); came != "200" {
			t.Fatalf("got %s, want 200", came)
		}
		took = append(took, time.Since(begun))
	}
	slices.Sort(took)
	return took[len(took)/2]
}

func testNoDescriptors(t *testing.T) {
	c := startChild(t, "watched service", map[string]string{"NOFILE": "100"}, "-sandbox")
	start := c.usage(t)
	_, letGo := occupy(t, c, 300, postOf("sandbox:delay=1s"))
	await(t, 10*time.Second, "too many open files in the log", func() bool {
		return strings.Contains(c.log.String(), "too many open files")
	})
	letGo()
	client, begun := newCaller(t), time.Now()
	if came := exchange(client, c.url, mockCode); came != "200" || time.Since(begun) > 5*time.Second {
		t.Errorf("got %s %v after the connections went, want 200 within 5s; the log is:\n%s", came, time.Since(begun), c.log)
	}
	client.CloseIdleConnections()
	c.backTo(t, start)
}

// testSlowAttackers has slowhttptest hold connections, each in its way, as long as it can:
// the service has to be rid of them first.
func testSlowAttackers(t *testing.T) {
	tests := []struct {
		name  string
		mode  []string
		limit time.Duration
	}{
		{"slow header", []string{"-H"}, headerTimeout},
		{"slow body", []string{"-B"}, bodyTimeout},
		{"slow read", []string{"-X", "-w", "1", "-y", "64", "-z", "5", "-k", "10"}, keepAlive},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := startChild(t, "watched service", nil, "-sandbox")
			start, client := c.usage(t), newCaller(t)
			stop := flow(t, 50, func(int) string { return exchange(client, c.url, mockCode) })
			execute(t, "slowhttptest", append(test.mode, "-c", "2000", "-r", "1000", "-i", "3", "-l", "240", "-u", c.url+"/openid")...)
			await(t, 10*time.Second, "1000 connections of attackers", func() bool { return c.fds(t) >= 1000 })
			await(t, test.limit+30*time.Second, "attackers' connections closed", func() bool { return c.fds(t) < 100 })
			stop().check(t, fmt.Sprint("200 within ", patient), func(c call) bool { return c.outcome == "200" && c.took < patient })
			client.CloseIdleConnections()
			c.backTo(t, start)
		})
	}
}

// testNoReaders has callers ask without end and read nothing: the service has to end that.
func testNoReaders(t *testing.T) {
	c, client := startChild(t, "watched service", nil, "-sandbox"), newCaller(t)
	stop := flow(t, 50, func(int) string { return exchange(client, c.url, mockCode) })
	conns, _ := occupy(t, c, 10, "")
	endless := strings.Repeat("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 1_000_000)
	var ended sync.WaitGroup
	for _, conn := range conns {
		ended.Go(func() {
			conn.SetDeadline(time.Now().Add(2 * time.Minute))
			_, err := io.WriteString(conn, endless)
			if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("got %v from a caller that does not read, want its connection closed by the service", err)
			}
		})
	}
	ended.Wait()
	stop().check(t, "200 within 5s", func(c call) bool { return c.outcome == "200" && c.took < 5*time.Second })
}

// execute runs a command until the test ends, or skips the test where it is not installed.
func execute(t *testing.T, name string, arg ...string) {
	t.Helper()
	cmd := exec.Command(name, arg...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Skipf("%s cannot be run: %v", name, err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		out.Close()
		if said, _ := os.ReadFile(out.Name()); t.Failed() {
			t.Logf("%s said at last:\n%s", name, said[max(0, len(said)-2000):])
		}
	})
}

// testRollingRestart restarts two copies in turn behind a load balancer.
func testRollingRestart(t *testing.T) {
	site, err := os.ReadFile("deploy/nginx.conf")
	if err != nil {
		t.Fatal(err)
	}
	cert, key := newCertificate(t)
	dir := t.TempDir()
	front, copies := freePort(), []string{freePort(), freePort()}
	nginx := "daemon off; master_process off; error_log stderr; pid " + dir + "/pid; events { worker_connections 4096; } http {" +
		strings.NewReplacer("127.0.0.1:2020", copies[0], "127.0.0.1:2021", copies[1], "listen 443 ", "listen "+front+" ",
			"listen [::]:443 ssl;", "", "20r/s", "2000r/s", "/var/log/nginx", dir,
			"/etc/letsencrypt/live/api.example.com/fullchain.pem", cert,
			"/etc/letsencrypt/live/api.example.com/privkey.pem", key).Replace(string(site)) + "}"
	haproxy := "defaults\n mode http\n timeout connect 2s\n timeout client 30s\n timeout server 8s\n option redispatch 1\n" +
		"listen wxopenid\n bind " + front + "\n server a " + copies[0] + "\n server b " + copies[1] + "\n"
	tests := []struct {
		name, url, config string
		args              []string
	}{
		{"nginx", "https://" + front, nginx, []string{"-p", dir, "-c"}},
		{"haproxy", "http://" + front, haproxy, []string{"-db", "-f"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			running := make([]*child, len(copies))
			for i, addr := range copies {
				running[i] = startChild(t, "watched service", map[string]string{"ADDR": addr}, "-sandbox")
			}
			file := filepath.Join(dir, test.name+".conf")
			writeFile(t, file, test.config)
			execute(t, test.name, append(test.args, file)...)
			client := newCaller(t)
			await(t, 10*time.Second, "200 from "+test.name, func() bool { return exchange(client, test.url, mockCode) == "200" })
			stop := flow(t, 500, func(int) string { return exchange(client, test.url, "sandbox:delay=50ms") })
			for restart := range 24 {
				time.Sleep(time.Second) // of flow through both
				i := restart % len(copies)
				if code := running[i].stop(); code != 0 {
					t.Errorf("got exit code %d of a copy, want 0; its log is:\n%s", code, running[i].log)
				}
				running[i] = startChild(t, "watched service", map[string]string{"ADDR": copies[i]}, "-sandbox")
			}
			stop().check(t, "200 within 5s", func(c call) bool { return c.outcome == "200" && c.took < 5*time.Second })
		})
	}
}

// freePort returns an address that no outgoing connection takes while nobody listens there.
func freePort() string {
	for {
		addr := fmt.Sprint("127.0.0.1:", 20_000+rand.IntN(10_000))
		if listener, err := net.Listen("tcp", addr); err == nil {
			listener.Close()
			return addr
		}
	}
}

// testFailover has the first base URL fail for a while, in two ways, as requests flow.
func testFailover(t *testing.T) {
	t.Run("cut off", func(t *testing.T) { // connections are reset, and others refused
		addr := freePort()
		cut := wechatAt(t, addr)
		failover(t, "http://"+addr, "502 wechat_unreachable", func() { cut() }, func() { wechatAt(t, addr) })
	})
	t.Run("frozen", func(t *testing.T) { // connections stay, others come about, and no byte comes over them
		t.Setenv("SSL_CERT_FILE", filepath.Join(t.TempDir(), "cert.pem"))
		wechat := startChild(t, "WeChat", nil)
		thaw := func() { syscall.Kill(wechat.pid, syscall.SIGCONT) }
		defer thaw() // or it could not end
		failover(t, "https://"+wechat.addr(), "504 wechat_timeout", func() { syscall.Kill(wechat.pid, syscall.SIGSTOP) }, thaw)
	})
}

// failover wants no failure but the one given, and that only of exchanges that were under way.
func failover(t *testing.T, first, failure string, fail, mend func()) {
	t.Helper()
	second := freePort()
	wechatAt(t, second)
	c, client := startChild(t, "watched service", credentials("WX_BASE_URL", first+",http://"+second)), newCaller(t)
	stop := flow(t, pace, func(int) string { return exchange(client, c.url, "20ms") })
	time.Sleep(3 * time.Second) // of flow through the first
	fail()
	failed := time.Now()
	c.log.next(t, "WeChat is out of reach")
	time.Sleep(passOver + 5*time.Second) // with one more try of the first, in vain
	mend()
	await(t, passOver+10*time.Second, "the first base URL taken up again", func() bool {
		return strings.Contains(c.log.String(), "WeChat is within reach again")
	})
	waited := 0
	stop().check(t, "200, or "+failure+" of what was under way", func(c call) bool {
		if c.took > time.Second && c.begun.After(failed.Add(connectTimeout+time.Second)) {
			waited++
		}
		return c.outcome == "200" || c.outcome == failure && c.begun.Before(failed.Add(500*time.Millisecond))
	})
	if waited > 1 {
		t.Errorf("got %d requests that waited for the first base URL later on, want 1 at most; the log is:\n%s", waited, c.log)
	}
	for _, msg := range []string{"out of reach", "within reach again"} {
		if n := strings.Count(c.log.String(), msg); n != 1 {
			t.Errorf("got %q %d times in the log, want it once:\n%s", msg, n, c.log)
		}
	}
}

// wechatAt is a WeChat at addr until the test ends, or until cut resets its connections.
func wechatAt(t *testing.T, addr string) (cut func() error) {
	t.Helper()
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(20 * time.Millisecond)
			io.WriteString(w, `{"openid":"o"}`)
		}),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			conn.(*net.TCPConn).SetLinger(0)
			return ctx
		},
	}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return server.Close
}

// TestAttackers sends what no caller would. It is refused or understood as it has to be, and
// WeChat is asked with what the service asks and no more.
func TestAttackers(t *testing.T) {
	t.Parallel()
	wechat := func(w http.ResponseWriter, r *http.Request) {
		want := url.Values{"appid": {testAppID}, "secret": {testSecret}, "grant_type": {"authorization_code"}, "js_code": {r.FormValue("js_code")}}
		if r.URL.Path != "/sns/jscode2session" || !maps.EqualFunc(r.URL.Query(), want, slices.Equal) {
			t.Errorf("WeChat got %v, want a query of %v", r.URL, want)
		}
		echo(w, r)
	}
	cert, key := newCertificate(t)
	plain, overTLS := startService(t, wechat), startService(t, wechat, "TLS_CERT", cert, "TLS_KEY", key)
	const (
		head    = "POST /openid HTTP/1.1\r\nHost: x\r\n"
		chunked = "Transfer-Encoding: chunked\r\n"
		body    = `{"code":"x"}` // of 12 bytes
		last    = head + "Connection: close\r\nContent-Length: 12\r\n\r\n" + `{"code":"y"}`
	)
	of := func(code string) string { return strings.Replace(postOf(code), "\r\n", "\r\nConnection: close\r\n", 1) }
	tests := []struct{ name, text, answers string }{
		{"two Content-Lengths", head + "Content-Length: 12\r\nContent-Length: 13\r\n\r\n" + body, "400"},
		{"two Content-Lengths in one", head + "Content-Length: 12, 13\r\n\r\n" + body, "400"},
		{"Content-Length with a sign", head + "Content-Length: +12\r\n\r\n" + body, "400"},
		{"no Content-Length", head + "\r\n" + last, "400, 200 y"},
		{"Content-Length too short", head + "Content-Length: 11\r\n\r\n" + body + "\r\n\r\n", "400, 400"},
		{"both lengths", head + chunked + "Content-Length: 4\r\n\r\nc\r\n" + body + "\r\n0\r\n\r\n" + last, "200 x, 200 y"},
		{"chunked twice", head + chunked + chunked + "\r\nc\r\n" + body + "\r\n0\r\n\r\n", "501"},
		{"chunked and not", head + "Transfer-Encoding: chunked, identity\r\n\r\nc\r\n" + body + "\r\n0\r\n\r\n", "501"},
		{"almost chunked", head + "Transfer-Encoding: xchunked\r\n\r\nc\r\n" + body + "\r\n0\r\n\r\n", "501"},
		{"endless chunk size", head + chunked + "\r\nfffffffffffffffff\r\n" + body, "400"},
		{"space before colon", head + "Content-Length : 12\r\n\r\n" + body, "400"},
		{"NUL in header", head + "X: \x00\r\nContent-Length: 12\r\n\r\n" + body, "400"},
		{"two Hosts", head + "Host: y\r\nContent-Length: 12\r\n\r\n" + body, "400"},
		{"huge header", head + "X: " + strings.Repeat("x", 100_000), "431"},
		{"many headers", head + strings.Repeat("X: y\r\n", 10_000), "431"},
		{"HTTP/1.0", "POST /openid HTTP/1.0\r\nContent-Length: 12\r\n\r\n" + body, "200 x"},
		{"HTTP/1.0, chunked", "POST /openid HTTP/1.0\r\n" + chunked + "\r\nc\r\n" + body + "\r\n0\r\n\r\n", "400"},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "404"},
		{"HTTP/9.9", "GET / HTTP/9.9\r\nHost: x\r\n\r\n", "505"},
		{"pipelined", strings.Repeat(postOf("x"), 3) + "GET / HTTP/1.1\r\nHost: x\r\n\r\n" + last, "200 x, 200 x, 200 x, 404, 200 y"},
		{"garbage", "\x00\xff garbage\r\n\r\n", "400"},
		{"TLS", "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00\r\n\r\n", "400"},
		{"proxy request", "CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "404"},
		{"code that ends the query", of("x&appid=y&secret=z#"), "200 x&appid=y&secret=z#"},
		{"code that is escaped", of("x%26secret%3dy+;"), "200 x%26secret%3dy+;"},
		{"code that leaves the path", of("../../x?y /"), "200 ../../x?y /"},
		{"code that ends the request", of("x HTTP/1.1\r\nHost: y"), "400"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := answersTo(t, plain, test.text); got != test.answers {
				t.Errorf("got %s, want %s", got, test.answers)
			}
		})
	}
	if got := answersTo(t, overTLS, last); got != "400" {
		t.Errorf("got %s to plain HTTP over the port for TLS, want 400", got)
	}
	if got := answersTo(t, plain, last); got != "200 y" {
		t.Errorf("got %s after all that, want 200 y", got)
	}
}

// answersTo returns the status of each answer to text, until the connection ends, and the openid.
func answersTo(t *testing.T, p *program, text string) string {
	t.Helper()
	conn, err := net.Dial("tcp", p.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	go io.WriteString(conn, text)
	var answers []string
	for reader := bufio.NewReader(conn); ; {
		resp, err := http.ReadResponse(reader, nil)
		if err != nil {
			return strings.Join(answers, ", ")
		}
		var got user
		json.NewDecoder(resp.Body).Decode(&got)
		io.Copy(io.Discard, resp.Body)
		answers = append(answers, strings.TrimSpace(fmt.Sprint(resp.StatusCode, " ", got.OpenID)))
	}
}

// TestSoak has bursts of every outcome there is, for the time of SOAK, and a rest after each.
// What is in use at the rests must not grow: the least of their later half is no more than the
// most of their first quarter and a margin. In the end it is what it was at the start.
func TestSoak(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("SOAK"))
	if err != nil {
		t.Skip("as long as you like: make soak runs it")
	}
	c := startChild(t, "watched service", map[string]string{"WX_TIMEOUT": "1s"}, "-sandbox")
	start, client := c.usage(t), newCaller(t)
	var rests []usage
	for end, made := time.Now().Add(length), 0; time.Now().Before(end); {
		burst, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		stop := flow(t, 300, func(i int) string { return soakCall(burst, c, client, made+i) })
		<-burst.Done()
		all := stop()
		all.check(t, "what was asked for", func(c call) bool { return c.outcome == asWanted })
		made += len(all)
		client.CloseIdleConnections()
		time.Sleep(2 * time.Second)
		rests = append(rests, c.usage(t))
		t.Logf("%d requests until now, %v to go: %+v in use", made, time.Until(end).Round(time.Second), rests[len(rests)-1])
	}
	c.backTo(t, start)
	for _, test := range []struct {
		name   string
		of     func(usage) int
		margin int
	}{
		{"goroutines", func(u usage) int { return u.goroutines }, 60}, // each connection kept to WeChat has 3
		{"descriptors", func(u usage) int { return u.fds }, 40},       // and 2 of these
		{"KiB of heap", func(u usage) int { return u.heap }, 2 << 10},
		{"KiB of memory", func(u usage) int { return u.rss }, 8 << 10},
	} {
		var figures []int
		for _, u := range rests {
			figures = append(figures, test.of(u))
		}
		first, later := slices.Max(figures[:(len(figures)+3)/4]), slices.Min(figures[len(figures)/2:])
		t.Logf("%s: %d at the most in the first quarter, %d at the least in the later half", test.name, first, later)
		if later > first+test.margin {
			t.Errorf("got at least %d %s in the later half, want %d and %d at the most", later, test.name, first, test.margin)
		}
	}
}

const asWanted = "as wanted"

// soakCall makes the call whose turn it is. What hangs on it hangs until burst is over.
func soakCall(burst context.Context, c *child, client *http.Client, i int) (came string) {
	type exchange struct{ body, want string }
	exchanges := []exchange{
		{fmt.Sprintf(`{"code":"%d"}`, i), "200"},
		{fmt.Sprintf(`{"code":"sandbox:user=%d&unionid=1"}`, i), "200"},
		{`{"code":"the code is a mock one"}`, "200"},
		{`{"code":"sandbox:delay=50ms"}`, "200"},
		{`{"code":"sandbox:delay=3s"}`, "504 wechat_timeout"},
		{`{"code":"sandbox:status=502"}`, "502 wechat_error"},
		{`{"code":"sandbox:errcode=61451"}`, "502 wechat_error"},
		{`{"code":1}`, "400 invalid_request"},
		{`{"code":"`, "400 invalid_request"},
		{strings.Repeat(" ", 5000), "413 body_too_large"},
	}
	for errcode, f := range refusals {
		exchanges = append(exchanges, exchange{fmt.Sprintf(`{"code":"sandbox:errcode=%d"}`, errcode), fmt.Sprint(f.status, " ", f.Word)})
	}
	texts := []string{
		postOf("sandbox:delay=3s"), "POST /openid HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", "GET /openid HTTP/1.1\r\n", "garbage\r\n\r\n", "",
	}
	turn := i % (len(exchanges) + len(texts))
	if turn < len(exchanges) {
		e := exchanges[turn]
		if came := outcome(client.Post(c.url+"/openid", "", strings.NewReader(e.body))); came != e.want {
			return fmt.Sprintf("%s, not %s, for %.50s", came, e.want, e.body)
		}
		return asWanted
	}
	conn, err := net.Dial("tcp", c.addr())
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	io.WriteString(conn, texts[turn-len(exchanges)])
	switch rand.IntN(3) {
	case 0: // hang up at once
	case 1:
		<-burst.Done()
	case 2:
		conn.(*net.TCPConn).CloseWrite()
		conn.SetDeadline(time.Now().Add(25 * time.Second))
		if _, err := io.ReadAll(conn); err != nil {
			return err.Error()
		}
	}
	return asWanted
}
