//go:build linux

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const sandboxDelay = "sandbox:delay=50ms" // a code for -sandbox

var scenarios = []struct {
	name, promise string
	run           func()
}{
	{"collapse", "with a tenth of a core and 1,000 callers at once, it answers as many as the lean loop", collapse},
	{"death", "with the memory of deploy/kubernetes.yaml, no flood kills it or cuts off what is under way", func() { death(nil) }},
	{"death-tls", "neither does one where it serves HTTPS itself", func() { death(insecure) }},
	{"memory", "what a caller can make it hold", memory},
	{"slow", "it is rid of slow callers within a minute, and others do not notice them", slow},
	{"descriptors", "without descriptors it waits, and goes on when there are some again", descriptors},
	{"nginx", "copies restarted in turn behind nginx with deploy/nginx.conf lose nothing", rollingNginx},
	{"haproxy", "nor do they behind haproxy", rollingHAProxy},
	{"failover-cut", "when a base URL is cut off, only what is under way there is lost", func() { failover(syscall.SIGKILL) }},
	{"failover-frozen", "nor when it freezes", func() { failover(syscall.SIGSTOP) }},
}

var failed []string // what was promised and does not hold

// stress runs the scenarios that are named, or all.
func stress(names []string) bool {
	for _, s := range scenarios {
		if len(names) == 0 || slices.Contains(names, s.name) {
			fmt.Printf("%s: %s\n", s.name, s.promise)
			before := len(failed)
			s.run()
			for _, what := range failed[before:] {
				fmt.Println("  FAILED:", what)
			}
		}
	}
	fmt.Printf("%d promises broken\n", len(failed))
	return len(failed) == 0
}

func saw(format string, args ...any) { fmt.Printf("  "+format+"\n", args...) }

// want notes a failure unless ok.
func want(ok bool, format string, args ...any) {
	if !ok {
		failed = append(failed, fmt.Sprintf(format, args...))
	}
}

// end stops a service, which has to exit with 0. The race detector's status is 66.
func (p *process) end() {
	code := p.stop()
	want(code == 0, "it exits with %d: %s", code, &p.said)
}

func collapse() {
	var answers [2]int
	for i, command := range [][]string{{service}, {os.Args[0], "lean"}} {
		group, err := newCgroup("cpu", 10_000) // µs in each 100,000
		if err != nil {
			saw("skipped: %v", err)
			return
		}
		wechat := start([]string{os.Args[0], "wechat"})
		p := start(group.command(command...), "WX_BASE_URL=https://"+wechat.addr)
		all := crowd{addr: p.addr, callers: 1000, length: 15 * time.Second, delay: 50 * time.Millisecond}.run()
		answers[i] = len(all.took("200"))
		saw("%s: %v", filepath.Base(command[len(command)-1]), all)
		if i == 0 {
			errors := len(all) - answers[0]
			want(errors*100 < len(all), "%d of %d logins fail", errors, len(all))
		}
		p.stop()
		wechat.stop()
		group.remove()
	}
	want(answers[0] >= answers[1], "it answers %d logins, and the lean loop %d", answers[0], answers[1])
}

// What a caller may send and then be silent. 8 KiB is the most that a header may have.
const head = "POST /openid HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 4096\r\n"

var (
	oneLine     = head + "Cookie: " + strings.Repeat("x", 7000)
	manyLines   = head + lines(7000)
	halfBody    = oneLine + "\r\n\r\n{" + strings.Repeat(" ", 4000)
	clientHello = "\x16\x03\x01\x02\x00\x01" // the begin of one
)

// lines are header lines of the shortest kind, which need the most memory for a byte.
func lines(size int) string {
	var b strings.Builder
	for i := 0; b.Len() < size; i++ {
		fmt.Fprintf(&b, "%s:\n", strconv.FormatInt(int64(i), 36))
	}
	return b.String()
}

var insecure = &tls.Config{InsecureSkipVerify: true}

// A flood is a number of connections on which something is sent and nothing after it.
type flood struct {
	addr   string
	tls    *tls.Config
	conns  int
	text   string
	length time.Duration
}

// run returns when the connections have been closed.
func (f flood) run() {
	var open sync.WaitGroup
	end := time.Now().Add(f.length)
	for i := range f.conns {
		open.Go(func() {
			c := newCaller(f.addr, i, f.tls)
			if c.dial() != nil {
				return
			}
			defer c.close()
			c.conn.SetDeadline(end)
			if overTLS, ok := c.conn.(*tls.Conn); ok {
				overTLS.Handshake()
			}
			io.WriteString(c.conn, f.text)
			time.Sleep(time.Until(end))
		})
	}
	open.Wait()
}

func death(config *tls.Config) {
	manifest, err := os.ReadFile("deploy/kubernetes.yaml")
	check(err)
	limit := regexp.MustCompile(`limits: {.*memory: (\d+)Mi`).FindSubmatch(manifest)
	goLimit := regexp.MustCompile(`GOMEMLIMIT, value: "?(\w+)`).FindSubmatch(manifest)
	if limit == nil || goLimit == nil {
		check(errors.New("deploy/kubernetes.yaml names no limits: {memory: …Mi} or no GOMEMLIMIT"))
	}
	mib, _ := strconv.Atoi(string(limit[1]))
	group, err := newCgroup("memory", mib<<20)
	if err != nil {
		saw("skipped: %v", err)
		return
	}
	defer group.remove()
	wechat := start([]string{os.Args[0], "wechat"})
	defer wechat.stop()
	settings := []string{"WX_BASE_URL=https://" + wechat.addr, "GOMEMLIMIT=" + string(goLimit[1])}
	hold := 5 * time.Second
	floods := []struct {
		name string
		tls  *tls.Config
		text string
	}{
		{"idle", config, ""}, {"half a header", config, oneLine}, {"half a header of many lines", config, manyLines},
		{"half a body", config, halfBody},
	}
	if config != nil {
		settings = append(settings, certificate()...)
		hold = 20 * time.Second // for so many handshakes
		floods = append(floods, floods[0], floods[0])
		floods[4].name, floods[4].tls = "no handshake", nil
		floods[5].name, floods[5].tls, floods[5].text = "half a handshake", nil, clientHello
	}
	p := start(group.command(service), settings...)
	defer func() {
		saw("limit %d MiB, GOMEMLIMIT %s; peak of the cgroup %d MiB", mib, goLimit[1], group.peak())
		p.end()
	}()
	all := crowd{addr: p.addr, tls: config, callers: 4000, length: 10 * time.Second, delay: 500 * time.Millisecond}.run()
	saw("4,000 callers at once: %v; peak %s", all, p.peakOrEnd())
	want(len(all.bad(time.Minute, "200", "503 overloaded")) == 0, "callers at once get %v", all.bad(time.Minute, "200", "503 overloaded"))
	for _, f := range floods {
		underWay := make(chan calls)
		go func() {
			underWay <- crowd{addr: p.addr, tls: config, callers: 20, length: hold, delay: 500 * time.Millisecond}.run()
		}()
		time.Sleep(time.Second)
		flood{addr: p.addr, tls: f.tls, conns: 12_000, text: f.text, length: hold}.run()
		begun := time.Now()
		came := newCaller(p.addr, 0, config).login(codeFor(0))
		took := time.Since(begun)
		others := <-underWay
		saw("12,000 connections, %s: others got %v; a login after it %s in %v; peak %s", f.name, others, came, took.Round(time.Millisecond), p.peakOrEnd())
		want(came == "200" && took < time.Second, "after the flood (%s) a login gets %s in %v", f.name, came, took)
		want(len(others.bad(time.Minute, "200")) == 0, "during the flood (%s) others get %v", f.name, others)
	}
}

// peakOrEnd is the most memory that p ever had.
func (p *process) peakOrEnd() string {
	select {
	case <-p.ended:
		return fmt.Sprint("not known: it has ended, ", p.cmd.ProcessState)
	default:
		return fmt.Sprintf("%.0f MiB", p.peak()/1024)
	}
}

func memory() {
	certificate := certificate()
	wechat := start([]string{os.Args[0], "wechat"})
	defer wechat.stop()
	tests := []struct {
		name     string
		n        int
		settings []string
		tls      *tls.Config
		text     string
	}{
		{"a login that waits for WeChat", 1000, []string{"MAX_INFLIGHT=4096"}, nil, request(codeFor(4 * time.Second))},
		{"a login, at most 256 with a connection to WeChat", 1000, nil, nil, request(codeFor(4 * time.Second))},
		{"an idle connection", 5000, nil, nil, ""},
		{"half a header, one line of 7 KB", 5000, nil, nil, oneLine},
		{"half a header, many lines", 5000, nil, nil, manyLines},
		{"half a body after such a line", 5000, nil, nil, halfBody},
		{"TLS, before the handshake", 5000, certificate, nil, ""},
		{"TLS, half a handshake", 5000, certificate, nil, clientHello},
		{"TLS, idle", 5000, certificate, insecure, ""},
		{"TLS, half a body", 5000, certificate, insecure, halfBody},
	}
	for _, test := range tests {
		p := start([]string{service}, append(test.settings, "WX_BASE_URL=https://"+wechat.addr)...)
		newCaller(p.addr, 0, test.tls).login(codeFor(0))
		idle := p.rss()
		flood{p.addr, test.tls, test.n, test.text, 8 * time.Second}.run()
		saw("%-48s %5.1f KiB (%d of them)", test.name, (p.peak()-idle)/float64(test.n), test.n)
		p.stop()
	}
}

// slow has attackers hold connections with as little as they can, each in its way.
func slow() {
	attackers := []struct {
		name, first, drip string // what is sent at first, and every second
		n                 int
	}{
		{"slow headers", head, "X-A: b\r\n", 1000},
		{"slow bodies", head + "\r\n{", " ", 1000},
		{"no reading", "", strings.Repeat("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 100_000), 10},
	}
	p, client := start([]string{service, "-sandbox"}), newClient()
	stop := flow(50, func(int) string { return post(client, "http://"+p.addr, sandboxDelay) })
	const limit = time.Minute
	for _, a := range attackers {
		var running sync.WaitGroup
		var held atomic.Int64
		begun := time.Now()
		for i := range a.n {
			running.Go(func() {
				c := newCaller(p.addr, i, nil)
				check(c.dial())
				defer c.close()
				c.conn.SetDeadline(begun.Add(limit))
				_, err := io.WriteString(c.conn, a.first)
				for err == nil {
					time.Sleep(time.Second)
					_, err = io.WriteString(c.conn, a.drip)
				}
				if errors.Is(err, os.ErrDeadlineExceeded) {
					held.Add(1)
				}
			})
		}
		running.Wait()
		saw("%d × %s: gone after %v", a.n, a.name, time.Since(begun).Round(time.Second))
		want(held.Load() == 0, "%d × %s hold on for %v", held.Load(), a.name, limit)
	}
	others := stop()
	saw("others got %v", others)
	want(len(others.bad(time.Second, "200")) == 0, "meanwhile others got %v", others.bad(time.Second, "200"))
	p.end()
}

func descriptors() {
	p := start([]string{"sh", "-c", `ulimit -n 100 && exec "$0" -sandbox`, service})
	before := p.fds()
	done := make(chan struct{})
	go func() {
		flood{addr: p.addr, conns: 300, text: request("sandbox:delay=1s"), length: 5 * time.Second}.run()
		close(done)
	}()
	time.Sleep(3 * time.Second)
	saw("%d descriptors at first, %d with 300 callers", before, p.fds())
	want(p.fds() > 90, "it has only %d descriptors in use with 300 callers", p.fds())
	<-done
	begun := time.Now()
	came := newCaller(p.addr, 0, nil).login(sandboxDelay)
	took := time.Since(begun).Round(time.Millisecond)
	saw("a login when they are gone: %s in %v", came, took)
	want(came == "200" && took < 5*time.Second, "a login when they are gone gets %s in %v", came, took)
	p.end()
}

// rolling restarts two copies in turn behind a load balancer.
func rolling(balancer []string, url string, copies []string) {
	if _, err := exec.LookPath(balancer[0]); err != nil {
		saw("skipped: %v", err)
		return
	}
	running := make([]*process, len(copies))
	for i, addr := range copies {
		running[i] = start([]string{service, "-sandbox"}, "ADDR="+addr)
	}
	cmd := exec.Command(balancer[0], balancer[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	check(cmd.Start())
	client := newClient()
	for begun := time.Now(); post(client, url, sandboxDelay) != "200"; time.Sleep(100 * time.Millisecond) {
		if time.Since(begun) > 10*time.Second {
			check(errors.New(balancer[0] + " gives no openid within 10s"))
		}
	}
	stop := flow(500, func(int) string { return post(client, url, sandboxDelay) })
	const restarts = 24
	for i := range restarts {
		time.Sleep(time.Second) // of both copies
		turn := i % len(copies)
		running[turn].end()
		running[turn] = start([]string{service, "-sandbox"}, "ADDR="+copies[turn])
	}
	all := stop()
	saw("%d restarts: %v", restarts, all)
	want(len(all.bad(5*time.Second, "200")) == 0, "callers get %v", all.bad(5*time.Second, "200"))
	cmd.Process.Kill()
	cmd.Wait()
	for _, p := range running {
		p.end()
	}
}

func rollingNginx() {
	site, err := os.ReadFile("deploy/nginx.conf")
	check(err)
	front, copies := freeAddr(), []string{freeAddr(), freeAddr()}
	certificate()
	config := strings.NewReplacer("127.0.0.1:2020", copies[0], "127.0.0.1:2021", copies[1], "listen 443 ", "listen "+front+" ",
		"listen [::]:443 ssl;", "", "20r/s", "2000r/s", "/var/log/nginx", dir,
		"/etc/letsencrypt/live/api.example.com/fullchain.pem", filepath.Join(dir, "cert.pem"),
		"/etc/letsencrypt/live/api.example.com/privkey.pem", filepath.Join(dir, "key.pem")).Replace(string(site))
	file := writeFile("nginx.conf", "daemon off; master_process off; error_log stderr; pid "+dir+"/pid;\n"+
		"events { worker_connections 4096; }\nhttp {"+config+"}")
	rolling([]string{"nginx", "-p", dir, "-c", file}, "https://"+front, copies)
}

func rollingHAProxy() {
	front, copies := freeAddr(), []string{freeAddr(), freeAddr()}
	file := writeFile("haproxy.conf", "defaults\n mode http\n timeout connect 2s\n timeout client 30s\n timeout server 8s\n"+
		" option redispatch 1\nlisten wxopenid\n bind "+front+"\n server a "+copies[0]+"\n server b "+copies[1]+"\n")
	rolling([]string{"haproxy", "-db", "-f", file}, "http://"+front, copies)
}

// failover sends the first base URL's server a signal, and lets it work again 35 seconds later.
func failover(signal syscall.Signal) {
	addr := freeAddr()
	first, second := start([]string{os.Args[0], "wechat"}, "ADDR="+addr), start([]string{os.Args[0], "wechat"})
	p := start([]string{service}, "WX_BASE_URL=https://"+addr+",https://"+second.addr)
	client := newClient()
	stop := flow(300, func(int) string { return post(client, "http://"+p.addr, codeFor(20*time.Millisecond)) })
	time.Sleep(3 * time.Second)
	first.signal(signal)
	lost := time.Now()
	time.Sleep(35 * time.Second) // in which it is tried once more
	if signal == syscall.SIGSTOP {
		first.signal(syscall.SIGCONT)
	} else {
		first = start([]string{os.Args[0], "wechat"}, "ADDR="+addr)
	}
	mended, before := time.Now(), count(first, "requests")
	for count(first, "requests") < before+100 && time.Since(mended) < 45*time.Second {
		time.Sleep(time.Second)
	}
	saw("used again %v after its return", time.Since(mended).Round(time.Second))
	want(time.Since(mended) < 45*time.Second, "it is not used again within 45s")
	all := stop()
	saw("callers got %v", all)
	var waited int
	for _, c := range all.bad(time.Second, "200") {
		underWay := c.begun.Before(lost.Add(500 * time.Millisecond))
		want(c.outcome == "200" || underWay, "%s %v after the end of the first base URL", c.outcome, c.begun.Sub(lost))
		if c.begun.After(lost.Add(5 * time.Second)) {
			waited++
		}
	}
	want(waited <= 1, "%d callers had to wait for it later on, and not just one", waited)
	p.end()
	first.stop()
	second.stop()
}

// freeAddr returns an address that no outgoing connection takes while nobody listens there.
func freeAddr() string {
	for {
		addr := fmt.Sprint("127.0.0.1:", 20_000+mrand.IntN(10_000))
		if listener, err := net.Listen("tcp", addr); err == nil {
			listener.Close()
			return addr
		}
	}
}

// certificate returns the settings for HTTPS with a new certificate, of the kind that Let's
// Encrypt gives, in cert.pem and key.pem.
func certificate() (settings []string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().AddDate(1, 0, 0), DNSNames: []string{"api.example.com"}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	check(err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	check(err)
	return []string{
		"TLS_CERT=" + writeFile("cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))),
		"TLS_KEY=" + writeFile("key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))),
	}
}

func writeFile(name, text string) (path string) {
	path = filepath.Join(dir, name)
	check(os.WriteFile(path, []byte(text), 0o600))
	return path
}
