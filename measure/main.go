// Measure is run by measure.sh. It has the loads that no known tool makes, and servers to compare the service with.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"slices"
	"strings"
	"time"
)

// A build is the command of a server that is measured: first the service, then the lean loop, then other binaries.
type build []string

func (b build) String() string { return b[len(b)-1] }

var failed bool

func main() {
	log.SetFlags(0)
	log.SetOutput(os.Stdout)
	builds := []build{{os.Getenv("SERVICE")}, {os.Args[0], "lean loop"}}
	for _, binary := range os.Args[2:] {
		builds = append(builds, build{binary})
	}
	switch os.Args[1] {
	case "wechat":
		fakeWeChat()
	case "lean loop":
		leanLoop()
	case "bench":
		bench(builds)
	case "burst":
		burst(builds)
	case "starved":
		starved(builds)
	case "flood":
		flood(builds[0])
	}
	if failed {
		os.Exit(1)
	}
}

// bench compares the processor time of a login. The builds take turns at a short load, so that whatever else this
// machine does hits all of them.
func bench(builds []build) {
	var processes []*process
	for _, b := range builds {
		processes = append(processes, start(b))
	}
	costs, ratios := make([][]float64, len(builds)), make([][]float64, len(builds)) // of each round
	for round := range 101 {
		cost := make([]float64, len(builds)) // µs
		for turn := range builds {
			i := (round + turn) % len(builds)
			before := processes[i].cpu()
			all := processes[i].logins(64, 0, 200*time.Millisecond)
			cost[i] = float64((processes[i].cpu() - before).Microseconds()) / float64(len(all))
			if all.count("openid") < len(all) {
				log.Fatalf("%v should give only openids: %v", builds[i], all)
			}
		}
		if round == 0 { // in which connections were opened
			continue
		}
		for i, b := range builds {
			costs[i], ratios[i] = append(costs[i], cost[i]), append(ratios[i], cost[i]/cost[1])
			if round%25 == 0 {
				log.Printf("after %d rounds, %v: %s µs of CPU for a login, %s of the lean loop's", round, b,
					quartiles(costs[i]), quartiles(ratios[i]))
			}
		}
	}
}

func quartiles(figures []float64) string {
	sorted := slices.Sorted(slices.Values(figures))
	n := len(sorted)
	return fmt.Sprintf("%.3g (%.3g to %.3g)", sorted[n/2], sorted[n/4], sorted[n*3/4])
}

// burst has 1,000 callers make one login each, while all cores are free and no connection to WeChat is open.
func burst(builds []build) {
	const runs = 5
	log.Printf("1,000 callers with one login each, 100 ms to WeChat. The p99 of %d runs:", runs)
	p99s := make([][]time.Duration, len(builds))
	for range runs {
		for i, b := range builds {
			p := start(b)
			all := p.logins(1000, 100*time.Millisecond, 0)
			p.kill()
			slices.SortFunc(all, func(a, b login) int { return int(a.took() - b.took()) })
			p99s[i] = append(p99s[i], all[989].took().Round(time.Millisecond))
			promise(all.count("openid") == 1000, "%v: %v", b, all)
		}
	}
	for i, b := range builds {
		slices.Sort(p99s[i])
		log.Printf("%v: %v", b, p99s[i])
		if i > 1 { // a tenth is noise
			promise(p99s[0][runs/2]*10 <= p99s[i][runs/2]*11, "the service's median is no longer than this one's")
		}
	}
}

// starved has 1,000 callers wait 10 s for an answer and come again at once, with a tenth of a core.
func starved(builds []build) {
	const from, to = 8 * time.Second, 18 * time.Second
	log.Printf("A tenth of a core, 1,000 callers who come again, 50 ms to WeChat. From %v to %v they get:", from, to)
	for run := range 3 {
		got := make([]logins, len(builds))
		for i, b := range builds {
			p, begin := start(b), time.Now()
			time.AfterFunc(to, p.kill)
			got[i] = slices.DeleteFunc(p.logins(1000, 50*time.Millisecond, to), func(l login) bool {
				return l.end.Before(begin.Add(from)) || l.end.After(begin.Add(to))
			})
			log.Printf("run %d, %v: %v", run+1, b, got[i])
		}
		openids := got[0].count("openid")
		others := len(got[0]) - openids - got[0].count("503 overloaded")
		promise(others*20 < len(got[0]), "under 5 %% of the service's are neither openid nor overloaded")
		promise(openids >= got[1].count("openid"), "at least the openids of the lean loop")
		for i, b := range builds[2:] {
			promise(openids >= 3*got[i+2].count("openid"), "at least three times the openids of %v", b)
		}
	}
}

// flood shows that the service survives in the memory and with the settings that deploy/kubernetes.yaml gives it.
func flood(service build) {
	p := start(service)
	all := p.logins(4000, 500*time.Millisecond, 5*time.Second)
	log.Printf("4,000 callers for 5 s: %v; peak %d MiB", all, p.peak()>>10)
	promise(all.count("openid")+all.count("503 overloaded") == len(all), "each gets an openid or overloaded")
	p.kill()
	header := "POST /openid HTTP/1.1\r\nHost: x\r\nContent-Length: 4096\r\nCookie: " + strings.Repeat("x", 7000)
	silence(service, "nothing", "")
	silence(service, "half a header", header)
	silence(service, "half a body", header+"\r\n\r\n{"+strings.Repeat(" ", 4000))
	os.Setenv("MAX_INFLIGHT", "4096")
	p = start(service)
	p.logins(1, 0, 0)
	before := p.peak()
	all = p.logins(1000, 4*time.Second, 0)
	log.Printf("1,000 logins under way, each with a connection to WeChat: %d KiB each; %v", (p.peak()-before)/1000, all)
}

// silence opens 12,000 connections that send no more than text.
func silence(service build, name, text string) {
	p := start(service)
	p.logins(1, 0, 0)
	before, each := p.peak(), 0.0
	var conns []net.Conn
	for len(conns) < 12_000 {
		conn, err := net.DialTimeout("tcp", p.addr, 10*time.Second)
		check(err)
		conn.(*net.TCPConn).SetLinger(0) // closing it keeps no port busy
		io.WriteString(conn, text)
		if conns = append(conns, conn); len(conns) == 5000 {
			time.Sleep(time.Second)
			each = float64(p.peak()-before) / 5000
		}
	}
	time.Sleep(3 * time.Second)
	log.Printf("12,000 connections with %s: %.1f KiB for each of the first 5,000; peak %d MiB", name, each, p.peak()>>10)
	for _, conn := range conns {
		conn.Close()
	}
	after := p.logins(1, 0, 0)
	promise(after.count("openid") == 1 && after[0].took() < time.Second, "an openid within 1 s of their end: %v", after)
	p.kill()
}

// promise prints what was promised, and whether it held.
func promise(held bool, format string, args ...any) {
	word := "  held: "
	if !held {
		word, failed = "  NOT HELD: ", true
	}
	log.Printf(word+format, args...)
}

// check ends the program if something fails that has to work.
func check(err error) {
	if err != nil {
		log.Fatal("measure: ", err)
	}
}
