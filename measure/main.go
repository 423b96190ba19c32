// Measure is run by measure.sh, under the name of what it has to be: a load that no known tool makes, or a server to
// compare the service with.
//
//go:debug http2server=0
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

var (
	builds = os.Args[1:] // binaries: the service, the lean loop, and others
	failed bool
)

func main() {
	log.SetFlags(0)
	log.SetOutput(os.Stdout)
	map[string]func(){"bench": bench, "burst": burst, "starved": starved, "flood": flood, "wechat": fakeWeChat,
		"lean": leanLoop}[filepath.Base(os.Args[0])]()
	if failed {
		os.Exit(1)
	}
}

// bench compares the processor time of a login. The builds take turns at a short load, so that whatever else this
// machine does hits all of them.
func bench() {
	var processes []*process
	for _, b := range builds {
		p := start(b)
		p.logins(64, 0, 200*time.Millisecond) // opens the connections
		processes = append(processes, p)
	}
	costs, ratios := make([][]float64, len(builds)), make([][]float64, len(builds)) // of each round
	for round := 1; round <= 100; round++ {
		cost := make([]float64, len(builds)) // µs
		for turn := range builds {
			i := (round + turn) % len(builds)
			before := processes[i].cpu()
			all := processes[i].logins(64, 0, 200*time.Millisecond)
			cost[i] = float64((processes[i].cpu() - before).Microseconds()) / float64(len(all))
			if outcomes := count(all); outcomes["openid"] < len(all) {
				log.Fatalf("%s should give only openids: %v", builds[i], outcomes)
			}
		}
		for i, b := range builds {
			costs[i], ratios[i] = append(costs[i], cost[i]), append(ratios[i], cost[i]/cost[1])
			if round%25 == 0 {
				log.Printf("after %d rounds, %s: %s µs of CPU for a login, %s of the lean loop's; %.0f logins a second on a core",
					round, filepath.Base(b), quartiles(costs[i]), quartiles(ratios[i]), 1e6/median(costs[i]))
			}
		}
	}
}

func median(figures []float64) float64 { return slices.Sorted(slices.Values(figures))[len(figures)/2] }

func quartiles(figures []float64) string {
	sorted, n := slices.Sorted(slices.Values(figures)), len(figures)
	return fmt.Sprintf("%.3g (%.3g to %.3g)", sorted[n/2], sorted[n/4], sorted[n*3/4])
}

// burst has 1,000 callers make one login each, while all cores are free and no connection to WeChat is open.
func burst() {
	const runs = 5
	log.Printf("1,000 callers with one login each, 100 ms to WeChat. The p99 of %d runs:", runs)
	p99s := make([][]time.Duration, len(builds))
	for range runs {
		for i, b := range builds {
			p := start(b)
			all := p.logins(1000, 100*time.Millisecond, 0)
			p.kill()
			slices.SortFunc(all, func(a, b login) int { return int(a.took - b.took) })
			p99s[i] = append(p99s[i], all[989].took.Round(time.Millisecond))
			if outcomes := count(all); outcomes["openid"] < len(all) {
				log.Printf("%s: %v", filepath.Base(b), outcomes)
			}
		}
	}
	for i, b := range builds {
		slices.Sort(p99s[i])
		log.Printf("%s: %v", filepath.Base(b), p99s[i])
		if i > 1 { // a tenth is noise
			promise(p99s[0][runs/2]*10 <= p99s[i][runs/2]*11, "the service's median is no longer than this one's")
		}
	}
}

// starved has 1,000 callers wait 10 s for an answer and come again at once, with a fifth of a core.
func starved() {
	const from, to = 8 * time.Second, 18 * time.Second
	log.Printf("A fifth of a core, 1,000 callers who come again, 50 ms to WeChat. From %v to %v they get:", from, to)
	for run := range 3 {
		openids := make([]int, len(builds))
		for i, b := range builds {
			p, begin := start(b), time.Now()
			time.AfterFunc(to, p.kill)
			all := slices.DeleteFunc(p.logins(1000, 50*time.Millisecond, to), func(l login) bool {
				return l.end.Before(begin.Add(from)) || l.end.After(begin.Add(to))
			})
			outcomes := count(all)
			log.Printf("run %d, %s: %v", run+1, filepath.Base(b), outcomes)
			openids[i] = outcomes["openid"]
			if others := len(all) - openids[i] - outcomes["503 overloaded"]; i == 0 {
				promise(others*100 < len(all), "under 1 %% are neither openid nor overloaded")
			}
		}
		promise(openids[0]*10 >= openids[1]*7, "the service gives at least 0.7 times as many openids as the lean loop")
	}
}

// flood shows that the service survives in the memory and with the settings that deploy/kubernetes.yaml gives it.
func flood() {
	p := start(builds[0])
	all := p.logins(4000, 500*time.Millisecond, 5*time.Second)
	outcomes := count(all)
	log.Printf("4,000 callers for 5 s: %v; peak %d MiB", outcomes, p.peak()>>10)
	promise(outcomes["openid"]+outcomes["503 overloaded"] == len(all), "each gets an openid or overloaded")
	p.kill()
	header := "POST /openid HTTP/1.1\r\nHost: x\r\nContent-Length: 4096\r\nCookie: " + strings.Repeat("x", 7000)
	silence("nothing", "")
	silence("half a header", header)
	silence("half a body", header+"\r\n\r\n{"+strings.Repeat(" ", 4000))
	p = start(builds[0])
	p.logins(1, 0, 0)
	before := p.peak()
	all = p.logins(1000, 500*time.Millisecond, 0)
	log.Printf("1,000 logins under way: %d KiB each; %v", (p.peak()-before)/1000, count(all))
}

// silence opens 12,000 connections that send no more than text.
func silence(name, text string) {
	p := start(builds[0])
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
	after := p.logins(1, 0, 0)[0]
	answers := after.outcome == "openid" && after.took < time.Second
	promise(answers, "an openid within 1 s of their end: %s after %v", after.outcome, after.took)
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
