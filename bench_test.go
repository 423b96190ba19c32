//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"
)

const (
	rounds  = 101                    // of one window for each server
	window  = 200 * time.Millisecond // of load
	callers = 64                     // connections on which one request follows another
	many    = 5000                   // requests in flight, to see what memory each takes
	ramp    = 10 * time.Second       // until so many are in flight
	hold    = 5 * time.Second        // for which so many are
	starts  = 11
)

// The servers that are compared run in processes of their own, which are this test
// binary again: what the kernel says that they took is the truth.
var servers = map[string]func(){"service": main, "lean loop": leanLoop, "tutorial": tutorial, "WeChat": fakeWeChat}

func TestMain(m *testing.M) {
	if serve := servers[os.Getenv("BENCH_SERVER")]; serve != nil {
		go reportCosts()
		serve()
	}
	os.Exit(m.Run())
}

// Costs are what a process has taken so far.
type costs struct {
	CPU         time.Duration // user and system
	Allocations uint64
	Accepted    int64 // connections, by fakeWeChat
}

var accepted atomic.Int64

// reportCosts tells this process's costs for every byte on its standard input, and
// ends it when that is closed.
func reportCosts() {
	for b := make([]byte, 1); ; {
		if _, err := os.Stdin.Read(b); err != nil {
			os.Exit(0)
		}
		var usage syscall.Rusage
		var mem runtime.MemStats
		syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
		runtime.ReadMemStats(&mem)
		cpu := time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
		json.NewEncoder(os.Stdout).Encode(costs{cpu, mem.Mallocs, accepted.Load()})
	}
}

type login struct {
	Code string `json:"code"`
}

// leanLoop is the least that net/http can do: no checks, no timeouts, no log.
func leanLoop() {
	transport := &http.Transport{MaxIdleConnsPerHost: 2 * many}
	base := os.Getenv("WX_BASE_URL") + "/sns/jscode2session?appid=wx&secret=s&grant_type=authorization_code&js_code="
	listenAndServe(func(w http.ResponseWriter, r *http.Request) {
		var l login
		body, _ := io.ReadAll(r.Body)
		json.Unmarshal(body, &l)
		request, _ := http.NewRequest("GET", base+url.QueryEscape(l.Code), nil)
		resp, err := transport.RoundTrip(request)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		var u user
		body, _ = io.ReadAll(resp.Body)
		resp.Body.Close()
		json.Unmarshal(body, &u)
		body, _ = json.Marshal(u)
		w.Header().Set("Content-Type", "application/json")
		w.Write(body)
	})
}

// tutorial does what the tutorials show.
func tutorial() {
	listenAndServe(func(w http.ResponseWriter, r *http.Request) {
		var l login
		json.NewDecoder(r.Body).Decode(&l)
		resp, err := http.Get(os.Getenv("WX_BASE_URL") + "/sns/jscode2session?appid=wx&secret=s&js_code=" + l.Code + "&grant_type=authorization_code")
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		var session struct {
			user
			SessionKey string `json:"session_key"`
			ErrCode    int    `json:"errcode"`
			ErrMsg     string `json:"errmsg"`
		}
		json.NewDecoder(resp.Body).Decode(&session)
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]string{"openid": session.OpenID})
	})
}

func listenAndServe(handler http.HandlerFunc) {
	listener, err := net.Listen("tcp", os.Getenv("ADDR"))
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(os.Stderr, "{\"addr\":%q}\n", listener.Addr())
	panic(http.Serve(listener, handler))
}

// fakeWeChat answers over HTTPS, after the time that the code says, and puts its
// certificate where the others look for authorities.
func fakeWeChat() {
	wechat := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		delay, _ := time.ParseDuration(r.URL.Query().Get("js_code"))
		time.Sleep(delay)
		w.Header().Set("Content-Type", "text/plain")
		io.WriteString(w, `{"session_key":"HyVFkGl5F5OQWJZZaNzBBg==","openid":"oGZUI0egBJY1zhBYw2KhdUfwVJJE"}`)
	}))
	wechat.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			accepted.Add(1)
		}
	}
	wechat.StartTLS()
	block := &pem.Block{Type: "CERTIFICATE", Bytes: wechat.Certificate().Raw}
	if err := os.WriteFile(os.Getenv("SSL_CERT_FILE"), pem.EncodeToMemory(block), 0o600); err != nil {
		panic(err)
	}
	fmt.Fprintf(os.Stderr, "{\"addr\":%q}\n", wechat.Listener.Addr())
	select {}
}

// A process is a server as the benchmark sees it.
type process struct {
	b     *testing.B
	cmd   *exec.Cmd
	addr  string
	stdin io.Writer
	told  *json.Decoder
}

// start executes program as the server of that name, until stop, and returns when it listens.
func start(b *testing.B, program, name, wechat string) *process {
	b.Helper()
	p := &process{b: b, cmd: exec.Command(program)}
	p.cmd.Env = append(os.Environ(), "BENCH_SERVER="+name, "ADDR=127.0.0.1:0", "WX_BASE_URL=https://"+wechat,
		"WX_APPID=wx", "WX_APPSECRET=s", "WX_TIMEOUT=1m", fmt.Sprint("MAX_INFLIGHT=", 2*many))
	p.stdin, _ = p.cmd.StdinPipe()
	stdout, _ := p.cmd.StdoutPipe()
	p.told = json.NewDecoder(stdout)
	stderr, _ := p.cmd.StderrPipe()
	if err := p.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(p.stop)
	log := bufio.NewReader(stderr)
	line, err := log.ReadBytes('\n')
	var listening struct{ Addr string }
	if json.Unmarshal(line, &listening); err != nil || listening.Addr == "" {
		b.Fatalf("%s does not listen: %s", name, line)
	}
	p.addr = listening.Addr
	go io.Copy(io.Discard, log)
	return p
}

func (p *process) stop() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

func (p *process) costs() (c costs) {
	p.b.Helper()
	p.stdin.Write([]byte{'?'})
	if err := p.told.Decode(&c); err != nil {
		p.b.Fatal(err)
	}
	return c
}

// memory returns a figure from the kernel's account of p's memory, in KiB.
func (p *process) memory(name string) (kib float64) {
	p.b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	_, after, _ := strings.Cut(string(status), name+":")
	if _, scanErr := fmt.Sscan(after, &kib); err != nil || scanErr != nil {
		p.b.Fatal(err, scanErr)
	}
	return kib
}

// load asks p without a pause on each of callers connections, which WeChat answers
// after delay, and returns how long the answers took, in order. The connections are
// opened in the time of ramp, at whose end they all are waiting, and used for hold.
func (p *process) load(callers int, ramp, hold, delay time.Duration) (took []time.Duration) {
	p.b.Helper()
	begun := time.Now()
	answers, errs := make(chan []time.Duration), make(chan error, callers)
	for i := range callers {
		go func() {
			time.Sleep(ramp * time.Duration(i) / time.Duration(callers))
			mine, err := p.call(begun.Add(ramp), begun.Add(ramp+hold), delay)
			if err != nil {
				errs <- err
			}
			answers <- mine
		}()
	}
	for range callers {
		took = append(took, <-answers...)
	}
	if len(errs) > 0 {
		p.b.Fatalf("%d of %d callers failed: %v", len(errs), callers, <-errs)
	}
	slices.Sort(took)
	return took
}

// call asks p over one connection until end, once at least.
func (p *process) call(full, end time.Time, delay time.Duration) (took []time.Duration, err error) {
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	reader := bufio.NewReader(conn)
	for begun := time.Now(); len(took) == 0 || begun.Before(end); begun = time.Now() {
		wait := max(delay, full.Sub(begun))
		fmt.Fprintf(conn, "POST /openid HTTP/1.1\r\nHost: %s\r\nUser-Agent: MicroMessenger\r\nContent-Type: application/json\r\n"+
			"Content-Length: 43\r\n\r\n{\"code\":\"%030dms\"}", p.addr, wait.Milliseconds())
		resp, err := http.ReadResponse(reader, nil)
		if err != nil {
			return took, err
		}
		answer, err := io.ReadAll(resp.Body)
		if err != nil || !strings.Contains(string(answer), `"oGZUI0`) {
			return took, fmt.Errorf("%s: %s %v", resp.Status, answer, err)
		}
		took = append(took, time.Since(begun))
	}
	return took, nil
}

// BenchmarkService prints what the service costs, beside the lean loop and the tutorial.
func BenchmarkService(b *testing.B) {
	b.Setenv("SSL_CERT_FILE", filepath.Join(b.TempDir(), "cert.pem"))
	wechat := start(b, os.Args[0], "WeChat", "")
	var t table
	defer func() { fmt.Print("\n", t) }() // with what there is, should the rest fail
	measureLoad(b, &t, wechat)
	measureMemory(b, &t, wechat)
	measureStart(b, &t, wechat)
	b.ReportMetric(0, "ns/op")
}

func measureLoad(b *testing.B, t *table, wechat *process) {
	names := []string{"service", "lean loop", "tutorial"}
	running := make(map[string]*process)
	for _, name := range names {
		running[name] = start(b, os.Args[0], name, wechat.addr)
		running[name].load(callers, 0, window, 0)
	}
	for i := range rounds * len(names) {
		name := names[(i+i/len(names))%len(names)]
		p := running[name]
		before, accepted := p.costs(), wechat.costs().Accepted
		took := p.load(callers, 0, window, 0)
		after, n := p.costs(), float64(len(took))
		t.add("CPU time of a request, µs", name, float64((after.CPU-before.CPU).Nanoseconds())/1e3/n)
		t.add("allocations of a request", name, float64(after.Allocations-before.Allocations)/n)
		t.add("connections to WeChat, per 1,000 requests", name, float64(wechat.costs().Accepted-accepted)*1e3/n)
		t.add("median answer, ms", name, took[len(took)/2].Seconds()*1e3)
		t.add("99th percentile, ms", name, took[len(took)*99/100].Seconds()*1e3)
	}
	for _, p := range running {
		p.stop()
	}
}

func measureMemory(b *testing.B, t *table, wechat *process) {
	for i := range 6 {
		name := []string{"service", "lean loop"}[i%2]
		p := start(b, os.Args[0], name, wechat.addr)
		p.load(1, 0, 0, 0)
		idle := p.memory("VmRSS")
		p.load(many, ramp, hold, 500*time.Millisecond)
		t.add("memory of a request in flight, KiB", name, (p.memory("VmHWM")-idle)/many)
		p.stop()
	}
}

func measureStart(b *testing.B, t *table, wechat *process) {
	program := filepath.Join(b.TempDir(), "wxopenid")
	out, err := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, ".").CombinedOutput()
	if err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	for range starts {
		begun := time.Now()
		p := start(b, program, "", wechat.addr)
		p.load(1, 0, 0, 0)
		t.add("exec to the first openid, ms", "service", time.Since(begun).Seconds()*1e3)
		t.add("memory when idle, MiB", "service", p.memory("VmRSS")/1024)
		p.stop()
	}
	info, err := os.Stat(program)
	if err != nil {
		b.Fatal(err)
	}
	t.add("stripped binary, MiB", "service", float64(info.Size())/(1<<20))
}

// A table is what is printed: measures, and of each its figures for each server.
type table []row

type row struct {
	measure string
	figures map[string][]float64
}

func (t *table) add(measure, server string, figure float64) {
	i := slices.IndexFunc(*t, func(r row) bool { return r.measure == measure })
	if i < 0 {
		i = len(*t)
		*t = append(*t, row{measure, make(map[string][]float64)})
	}
	figures := (*t)[i].figures
	figures[server] = append(figures[server], figure)
}

func (t table) String() string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\tservice\tlean loop\ttutorial\tservice/lean\tservice/tutorial")
	for _, r := range t {
		service, lean, tutorial := r.figures["service"], r.figures["lean loop"], r.figures["tutorial"]
		fmt.Fprintln(w, strings.Join([]string{r.measure, median(service), median(lean), median(tutorial),
			median(ratios(service, lean)), median(ratios(service, tutorial))}, "\t"))
	}
	w.Flush()
	return text.String()
}

// ratios are those of two servers' figures, round by round.
func ratios(of, to []float64) (r []float64) {
	for i := range to {
		r = append(r, of[i]/to[i])
	}
	return r
}

// median is a dash where there is none.
func median(figures []float64) string {
	if len(figures) == 0 || math.IsNaN(figures[0]) {
		return "–"
	}
	sorted := slices.Sorted(slices.Values(figures))
	return fmt.Sprintf("%.3g", sorted[len(sorted)/2])
}
