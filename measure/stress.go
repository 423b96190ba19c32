//go:build linux

package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const halfSecond = 500 * time.Millisecond

var (
	sandboxLogin = login("sandbox:delay=50ms")
	insecure     = &tls.Config{InsecureSkipVerify: true}
)

// stress runs the scenarios that are named, or all, and returns whether they went as promised.
func stress(names []string) bool {
	scenarios := []struct {
		name, promise string
		run           func()
	}{
		{"collapse", "with a tenth of a core and 1,000 callers at once, it answers as many as the lean loop", collapse},
		{"death", "with the memory that deploy/kubernetes.yaml gives it, no flood kills it", func() { death(false) }},
		{"death-tls", "nor where it serves HTTPS itself, with MAX_CONNS=5000", func() { death(true) }},
		{"memory", "what a caller can make it hold", memory},
		{"slow", "slow callers are cut off within a minute, and others do not notice them", slow},
		{"descriptors", "it survives having no descriptors left", descriptors},
		{"nginx", "copies restarted in turn behind nginx with deploy/nginx.conf lose no login", rollingNginx},
		{"haproxy", "nor behind haproxy", rollingHAProxy},
		{"failover-cut", "when a base URL dies, only logins under way there are lost", func() { failover(syscall.SIGKILL) }},
		{"failover-frozen", "nor more when it freezes", func() { failover(syscall.SIGSTOP) }},
	}
	for _, s := range scenarios {
		if len(names) == 0 || slices.Contains(names, s.name) {
			fmt.Printf("%s: %s\n", s.name, s.promise)
			s.run()
		}
	}
	fmt.Printf("%d failures\n", failures.Load())
	return failures.Load() == 0
}

var failures atomic.Int64

func saw(format string, args ...any) { fmt.Printf("  "+format+"\n", args...) }

func want(ok bool, format string, args ...any) {
	if !ok {
		failures.Add(1)
		fmt.Printf("  FAILED: want "+format+"\n", args...)
	}
}

// end stops a service, which has to exit with 0. With a data race the race detector makes it 66.
func (p *process) end() {
	code := p.stop()
	want(code == 0, "exit code 0, not %d: %s", code, &p.said)
}

func collapse() {
	var answers [2]int
	for i, command := range [][]string{{service}, {os.Args[0], "lean"}} {
		group, err := newCgroup("cpu", 10_000) // µs of each 100,000
		if err != nil {
			saw("skipped: %v", err)
			return
		}
		wechat := start([]string{os.Args[0], "wechat"})
		p := start(group.command(command...), "WX_BASE_URL=https://"+wechat.addr)
		all := crowd{addr: p.addr, callers: 1000, request: loginOf(50 * time.Millisecond)}.run(15 * time.Second)
		answers[i] = len(all.took("200"))
		saw("%s: %v", []string{"service", "lean loop"}[i], all)
		want(i > 0 || len(all)-answers[i] < len(all)/100, "under 1 %% of the logins to fail")
		p.stop()
		wechat.stop()
		group.remove()
	}
	want(answers[0] >= answers[1], "as many answers as from the lean loop")
}

// A silence is what a caller sends before it says nothing more.
type silence struct {
	name, text string
	tls        *tls.Config
}

const head = "POST /openid HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 4096\r\n"

// silences are all kinds. A header is nearly as long as the service takes, and so is a body.
func silences(https bool) []silence {
	halfHeader := head + "Cookie: " + strings.Repeat("x", 7000)
	all := []silence{
		{name: "nothing"},
		{name: "half a header", text: halfHeader},
		{name: "half a body", text: halfHeader + "\r\n\r\n{" + strings.Repeat(" ", 4000)},
	}
	if https {
		for i := range all {
			all[i].name, all[i].tls = "over TLS "+all[i].name, insecure
		}
		all = append(all, silence{name: "no TLS handshake"},
			silence{name: "half a TLS handshake", text: "\x16\x03\x01\x02\x00\x01"})
	}
	return all
}

// shortLines are header lines that take most memory for their 7 KB.
func shortLines() (text string) {
	for i := 0; len(text) < 7000; i++ {
		text += fmt.Sprintf("%x:\n", i)
	}
	return text
}

// kubernetesLimits are the memory limit and the settings about it in deploy/kubernetes.yaml.
func kubernetesLimits() (mebibytes int, settings []string) {
	manifest, err := os.ReadFile("deploy/kubernetes.yaml")
	check(err)
	limit := regexp.MustCompile(`limits: {.*memory: (\d+)Mi`).FindSubmatch(manifest)
	if limit == nil {
		check(errors.New("deploy/kubernetes.yaml has no limits: {memory: …Mi}"))
	}
	mebibytes, _ = strconv.Atoi(string(limit[1]))
	for _, s := range regexp.MustCompile(`{name: (GOMEMLIMIT|MAX_\w+), value: "?(\w+)`).FindAllSubmatch(manifest, -1) {
		settings = append(settings, fmt.Sprintf("%s=%s", s[1], s[2]))
	}
	return mebibytes, settings
}

func death(https bool) {
	mebibytes, settings := kubernetesLimits()
	group, err := newCgroup("memory", mebibytes<<20)
	if err != nil {
		saw("skipped: %v", err)
		return
	}
	defer group.remove()
	saw("limit %d MiB, %s", mebibytes, strings.Join(settings, ", "))
	wechat := start([]string{os.Args[0], "wechat"})
	defer wechat.stop()
	hold, config := 5*time.Second, (*tls.Config)(nil)
	if https {
		hold, config = 20*time.Second, insecure // time for so many handshakes
		settings = append(append(settings, "MAX_CONNS=5000"), certificate()...)
	}
	p := start(group.command(service), append(settings, "WX_BASE_URL=https://"+wechat.addr)...)
	usage := func() string {
		if _, err := os.Stat(p.proc("status")); err != nil {
			return "dead"
		}
		return fmt.Sprintf("peak %.0f MiB, with the kernel's %d", p.peak()/1024, group.peak())
	}
	all := crowd{addr: p.addr, tls: config, callers: 4000, request: loginOf(halfSecond)}.run(10 * time.Second)
	saw("4,000 callers at once: %v; %s", all, usage())
	want(len(all.bad(time.Minute, "200", "503 overloaded")) == 0, "200 or 503 overloaded")
	for _, s := range silences(https) {
		stop := crowd{addr: p.addr, tls: config, callers: 20, request: loginOf(halfSecond)}.start()
		flood{addr: p.addr, tls: s.tls, conns: 12_000, text: s.text}.run(hold)
		after := newCaller(p.addr, 0, config).ask(loginOf(0))
		others := stop()
		saw("12,000 callers send %s: others got %v, and after it %v; %s", s.name, others, calls{after}, usage())
		want(after.outcome == "200" && after.took < time.Second, "200 within a second of the flood's end")
		want(len(others.bad(time.Minute, "200")) == 0, "200 during the flood")
		if usage() == "dead" {
			return
		}
	}
	p.end()
}

func memory() {
	wechat := start([]string{os.Args[0], "wechat"})
	defer wechat.stop()
	show := func(s silence, conns int, settings ...string) {
		p := start([]string{service}, append(settings, "WX_BASE_URL=https://"+wechat.addr)...)
		newCaller(p.addr, 0, s.tls).ask(loginOf(0))
		idle := p.rss()
		flood{addr: p.addr, tls: s.tls, conns: conns, text: s.text}.run(8 * time.Second)
		saw("%5.1f KiB for each of %d callers who send %s", (p.peak()-idle)/float64(conns), conns, s.name)
		p.stop()
	}
	exchange := silence{"a login and wait for WeChat", loginOf(4 * time.Second), nil}
	show(exchange, 1000)
	exchange.name += ", with a connection for each"
	show(exchange, 1000, "MAX_INFLIGHT=4096")
	for _, s := range append(silences(false), silence{name: "half a header of short lines", text: head + shortLines()}) {
		show(s, 5000)
	}
	for _, s := range silences(true) {
		show(s, 5000, certificate()...)
	}
}

func slow() {
	p := start([]string{service, "-sandbox"})
	stop := crowd{addr: p.addr, callers: 50, every: time.Second, request: sandboxLogin}.start()
	for name, attack := range map[string]flood{
		"headers, a line a second": {conns: 1000, text: head, drip: "A: b\r\n"},
		"bodies, a byte a second":  {conns: 1000, text: head + "\r\n{", drip: " "},
		"never read":               {conns: 10, drip: strings.Repeat("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 100_000)},
	} {
		attack.addr = p.addr
		begun := time.Now()
		held := attack.run(time.Minute)
		saw("%d × %s: gone after %v", attack.conns, name, time.Since(begun).Round(time.Second))
		want(held == 0, "all of them gone by then")
	}
	others := stop()
	saw("others got %v", others)
	want(len(others.bad(time.Second, "200")) == 0, "200 within a second")
	p.end()
}

func descriptors() {
	p := start([]string{"sh", "-c", `ulimit -n 100 && exec "$0" -sandbox`, service})
	before, ended := p.fds(), make(chan int)
	go func() {
		ended <- flood{addr: p.addr, conns: 300, text: login("sandbox:delay=1s")}.run(5 * time.Second)
	}()
	time.Sleep(3 * time.Second)
	saw("of 100 descriptors %d are in use at first, %d with 300 callers", before, p.fds())
	want(p.fds() > 90, "none left")
	<-ended
	after := calls{newCaller(p.addr, 0, nil).ask(sandboxLogin)}
	saw("after that a login gets %v", after)
	want(len(after.bad(5*time.Second, "200")) == 0, "200 within 5s")
	p.end()
}

func rollingNginx() {
	site, err := os.ReadFile("deploy/nginx.conf")
	check(err)
	certificate()
	front, copies := freeAddr(), []string{freeAddr(), freeAddr()}
	config := strings.NewReplacer("127.0.0.1:2020", copies[0], "127.0.0.1:2021", copies[1],
		"listen 443 ", "listen "+front+" ", "listen [::]:443 ssl;", "", "20r/s", "2000r/s", "/var/log/nginx", dir,
		"/etc/letsencrypt/live/api.example.com/fullchain.pem", dir+"/cert.pem",
		"/etc/letsencrypt/live/api.example.com/privkey.pem", dir+"/key.pem").Replace(string(site))
	file := filepath.Join(dir, "nginx.conf")
	check(os.WriteFile(file, []byte("daemon off; master_process off; error_log stderr; pid "+dir+"/pid;\n"+
		"events { worker_connections 4096; }\nhttp {"+config+"}"), 0o600))
	rolling(exec.Command("nginx", "-p", dir, "-c", file), front, insecure, copies)
}

func rollingHAProxy() {
	front, copies := freeAddr(), []string{freeAddr(), freeAddr()}
	file := filepath.Join(dir, "haproxy.conf")
	check(os.WriteFile(file, []byte("defaults\n mode http\n timeout connect 2s\n timeout client 30s\n timeout server 8s\n"+
		" option redispatch 1\nlisten wxopenid\n bind "+front+"\n server a "+copies[0]+"\n server b "+copies[1]+"\n"), 0o600))
	rolling(exec.Command("haproxy", "-db", "-f", file), front, nil, copies)
}

// rolling restarts two copies in turn behind a load balancer.
func rolling(balancer *exec.Cmd, front string, config *tls.Config, copies []string) {
	balancer.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := balancer.Start(); err != nil {
		saw("skipped: %v", err)
		return
	}
	running := make([]*process, len(copies))
	for i, addr := range copies {
		running[i] = start([]string{service, "-sandbox"}, "ADDR="+addr)
	}
	first := newCaller(front, 0, config)
	for begun := time.Now(); first.ask(sandboxLogin).outcome != "200"; time.Sleep(halfSecond) {
		if time.Since(begun) > 10*time.Second {
			check(fmt.Errorf("%v gives no openid within 10s", balancer))
		}
	}
	first.close()
	stop := crowd{addr: front, tls: config, callers: 50, every: 100 * time.Millisecond, request: sandboxLogin}.start()
	for i := range 24 {
		time.Sleep(time.Second) // with both copies
		turn := i % len(copies)
		running[turn].end()
		running[turn] = start([]string{service, "-sandbox"}, "ADDR="+copies[turn])
	}
	all := stop()
	saw("24 restarts: %v", all)
	want(len(all.bad(5*time.Second, "200")) == 0, "200 within 5s")
	for _, p := range running {
		p.end()
	}
	balancer.Process.Kill()
	balancer.Wait()
}

// failover sends the server of the first base URL a signal, and has it work again 35 seconds later.
func failover(signal syscall.Signal) {
	addr := freeAddr()
	first, second := start([]string{os.Args[0], "wechat"}, "ADDR="+addr), start([]string{os.Args[0], "wechat"})
	p := start([]string{service}, "WX_BASE_URL=https://"+addr+",https://"+second.addr)
	stop := crowd{addr: p.addr, callers: 300, every: time.Second, request: loginOf(20 * time.Millisecond)}.start()
	time.Sleep(3 * time.Second)
	lost := time.Now()
	check(first.cmd.Process.Signal(signal))
	time.Sleep(35 * time.Second) // in which it is tried once more
	if signal == syscall.SIGSTOP {
		check(first.cmd.Process.Signal(syscall.SIGCONT))
	} else {
		first = start([]string{os.Args[0], "wechat"}, "ADDR="+addr)
	}
	back, before := time.Now(), count(first, "requests")
	for count(first, "requests") < before+100 && time.Since(back) < time.Minute {
		time.Sleep(time.Second)
	}
	all, waited := stop(), 0
	saw("callers got %v; the first base URL is used again %v after its return", all, time.Since(back).Round(time.Second))
	want(time.Since(back) < 45*time.Second, "it to be used again after 45s at most")
	for _, c := range all.bad(time.Second, "200") {
		want(c.outcome == "200" || c.begun.Before(lost.Add(halfSecond)), "no %s %v later", c.outcome, c.begun.Sub(lost))
		if c.begun.After(lost.Add(5 * time.Second)) {
			waited++
		}
	}
	want(waited <= 1, "one login at most to wait for it later on, not %d", waited)
	p.end()
	first.stop()
	second.stop()
}

// freeAddr returns an address that no outgoing connection takes while nobody listens there.
func freeAddr() string {
	for {
		addr := fmt.Sprint("127.0.0.1:", 20_000+rand.IntN(10_000))
		if listener, err := net.Listen("tcp", addr); err == nil {
			listener.Close()
			return addr
		}
	}
}

// certificate makes one of the kind that Let's Encrypt gives, and returns the settings for it.
func certificate() []string {
	cert, key := dir+"/cert.pem", dir+"/key.pem"
	out, err := exec.Command("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
		"-subj", "/CN=api.example.com", "-out", cert, "-keyout", key).CombinedOutput()
	if err != nil {
		check(fmt.Errorf("openssl: %v: %s", err, out))
	}
	return []string{"TLS_CERT=" + cert, "TLS_KEY=" + key}
}
