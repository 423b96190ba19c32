//go:build linux

package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// A server is one of those compared. All of them are in front of the same fake WeChat.
type server struct {
	name    string
	command []string
}

// bench compares the service with other ways to do its job, and with other builds of it.
func bench(args []string) bool {
	begun, quick := time.Now(), len(args) > 0 && args[0] == "quick"
	servers := []server{{"service", []string{service}}, {"lean loop", []string{os.Args[0], "lean"}}}
	rounds, latencyRounds, memoryRounds, starts := 101, 7, 3, 11
	if quick {
		args = args[1:]
		rounds, latencyRounds, memoryRounds, starts = 51, 3, 1, 5
	} else {
		servers = append(servers, server{"tutorial", []string{os.Args[0], "tutorial"}})
		if gin := filepath.Join(dir, "gin"); build("measure/gin", gin) != nil {
			fmt.Println("gin with an SDK is left out: measure/gin cannot be built here.")
		} else {
			servers = append(servers, server{"gin, SDK", []string{gin}})
		}
	}
	for _, binary := range args {
		servers = append(servers, server{binary, []string{binary}})
	}
	wechat := start([]string{os.Args[0], "wechat"})
	defer wechat.stop()
	firstAfterQuiet := startQuietTime(wechat.addr)
	var t table
	for _, s := range servers {
		t.columns = append(t.columns, s.name)
	}
	measureLoad(&t, servers, wechat, rounds)
	measureMemory(&t, servers, wechat, memoryRounds)
	measureStart(&t, servers, wechat, starts)
	t.print()
	measureLatency(wechat, latencyRounds)
	firstAfterQuiet()
	fmt.Printf("All that took %v.\n", time.Since(begun).Round(time.Second))
	return true
}

// measureLoad lets the servers take turns at a short load, so that whatever else this machine
// does hits all of them.
func measureLoad(t *table, servers []server, wechat *process, rounds int) {
	running := make(map[string]*process)
	for _, s := range servers {
		running[s.name] = start(s.command, "WX_BASE_URL=https://"+wechat.addr)
	}
	for i := range (rounds + 1) * len(servers) {
		name := servers[(i+i/len(servers))%len(servers)].name
		p := running[name]
		cpu, opened := p.cpu(), count(wechat, "connections")
		all := successful(crowd{addr: p.addr, callers: 64, request: loginOf(0)}.run(200 * time.Millisecond))
		cpu, opened = p.cpu()-cpu, count(wechat, "connections")-opened
		if i < len(servers) {
			continue // in the first round connections are opened
		}
		n := float64(len(all))
		median, high := percentiles(all)
		t.add("CPU time of a request, µs", name, float64(cpu.Nanoseconds())/1e3/n)
		t.add("new connections to WeChat for 1,000 requests", name, opened/n*1000)
		t.add("median answer, ms", name, median)
		t.add("99th percentile, ms", name, high)
	}
	for _, p := range running {
		p.stop()
	}
}

// successful ends the program unless every call had an openid.
func successful(all calls) calls {
	if bad := all.bad(time.Minute, "200"); len(bad) > 0 {
		log.Fatalf("a load that should not fail has failed: %v", bad)
	}
	return all
}

// percentiles are the median and the 99th percentile, in milliseconds.
func percentiles(all calls) (median, high float64) {
	took := all.took("200")
	return milliseconds(took[len(took)/2]), milliseconds(took[len(took)*99/100])
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1e3 }

// measureMemory has many requests in flight, each with a connection to WeChat, and then answered.
func measureMemory(t *table, servers []server, wechat *process, rounds int) {
	const many = 1000
	for range rounds {
		for _, s := range servers {
			p := start(s.command, "WX_BASE_URL=https://"+wechat.addr, "WX_TIMEOUT=1m",
				fmt.Sprint("MAX_INFLIGHT=", 4*many), fmt.Sprint("MAX_CONNS=", 2*many))
			successful(calls{newCaller(p.addr, 0, nil).ask(loginOf(0))})
			idle, before := p.rss(), count(wechat, "requests")
			flood{addr: p.addr, conns: many, ramp: 4 * time.Second, text: loginOf(5 * time.Second)}.run(10 * time.Second)
			if asked := count(wechat, "requests") - before; asked != many {
				log.Fatalf("%s has asked WeChat %v times for %d callers", s.name, asked, many)
			}
			t.add(fmt.Sprintf("memory of a request, %d in flight, KiB", many), s.name, (p.peak()-idle)/many)
			p.stop()
		}
	}
}

func measureStart(t *table, servers []server, wechat *process, starts int) {
	for range starts {
		for _, s := range servers {
			begun := time.Now()
			p := start(s.command, "WX_BASE_URL=https://"+wechat.addr)
			successful(calls{newCaller(p.addr, 0, nil).ask(loginOf(0))})
			t.add("exec to the first openid, ms", s.name, milliseconds(time.Since(begun)))
			t.add("memory when idle, MiB", s.name, p.rss()/1024)
			p.stop()
		}
	}
	info, err := os.Stat(service)
	check(err)
	t.add("stripped binary, MiB", "service", float64(info.Size())/(1<<20))
}

// measureLatency compares a login with asking WeChat directly, when WeChat takes 50 ms and
// 1,000 requests come in a second.
func measureLatency(wechat *process, rounds int) {
	p := start([]string{service}, "WX_BASE_URL=https://"+wechat.addr)
	defer p.stop()
	viaService := crowd{addr: p.addr, callers: 100, every: 100 * time.Millisecond, request: loginOf(50 * time.Millisecond)}
	directly := viaService
	directly.addr, directly.tls = wechat.addr, insecure
	directly.request = "GET /sns/jscode2session?js_code=50ms HTTP/1.1\r\nHost: api.weixin.qq.com\r\n\r\n"
	latency := func(c crowd) (median, high float64) {
		opened := time.Now().Add(time.Second) // connections are by then
		all := successful(c.run(4 * time.Second))
		return percentiles(slices.DeleteFunc(all, func(c call) bool { return c.begun.Before(opened) }))
	}
	t := table{columns: []string{"service", "directly"}}
	for range rounds {
		median, high := latency(viaService)
		directMedian, directHigh := latency(directly)
		t.add("median answer, ms", "service", median)
		t.add("median answer, ms", "directly", directMedian)
		t.add("99th percentile, ms", "service", high)
		t.add("99th percentile, ms", "directly", directHigh)
		t.add("later than directly, median, ms", "service", median-directMedian)
		t.add("later than directly, 99th percentile, ms", "service", high-directHigh)
	}
	fmt.Println("\nAt 1,000 requests a second and 50 ms to WeChat:")
	t.print()
}

// startQuietTime makes the first logins of a service that is 30 ms there and back from WeChat. The
// function that it returns makes another, after the time that has passed until then.
func startQuietTime(wechat string) (finish func()) {
	p := start([]string{service}, "WX_BASE_URL=https://"+slowLink(wechat, 15*time.Millisecond))
	took := func() time.Duration {
		return successful(calls{newCaller(p.addr, 0, nil).ask(loginOf(0))})[0].took.Round(time.Millisecond / 10)
	}
	cold, kept, since := took(), took(), time.Now()
	return func() {
		quiet := time.Since(since).Round(time.Second)
		fmt.Printf("\n30 ms there and back from WeChat, a login takes %v at first, %v right after that, "+
			"and %v after %v without one.\n", cold, kept, took(), quiet)
		p.stop()
	}
}

// slowLink forwards connections to an address, with a delay in either direction.
func slowLink(to string, delay time.Duration) (addr string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	go func() {
		for {
			near, err := listener.Accept()
			check(err)
			far, err := net.Dial("tcp", to)
			check(err)
			// TCP's own handshake would take a round trip before the first byte.
			go forward(far, near, delay, time.Now().Add(2*delay))
			go forward(near, far, delay, time.Now())
		}
	}()
	return listener.Addr().String()
}

func forward(to io.WriteCloser, from io.Reader, delay time.Duration, begin time.Time) {
	type piece struct {
		bytes []byte
		due   time.Time
	}
	way := make(chan piece, 1000)
	go func() {
		defer close(way)
		for {
			buf := make([]byte, 16<<10)
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			due := time.Now().Add(delay)
			if earliest := begin.Add(delay); due.Before(earliest) {
				due = earliest
			}
			way <- piece{buf[:n], due}
		}
	}()
	for p := range way {
		time.Sleep(time.Until(p.due))
		to.Write(p.bytes)
	}
	to.Close()
}
