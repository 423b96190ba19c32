package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

var seed = flag.String("seed", "1-100", "the seeds of the worlds of TestSimulation, or the one")

// TestSimulation runs worlds, each from its seed: go test -run Simulation -seed 17.
func TestSimulation(t *testing.T) {
	t.Parallel()
	var first, last uint64
	fmt.Sscanf(*seed, "%d-%d", &first, &last)
	for n := first; n <= max(first, last); n++ {
		t.Run(fmt.Sprint("seed ", n), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { newWorld(t, n).run() })
		})
	}
}

const soon = 100 * time.Millisecond

// A world is a service in a network with faults.
type world struct {
	*service
	t      *testing.T
	seed   uint64
	proxy  string        // its scheme, or empty
	tls    *tls.Config   // of both ends
	limit  time.Duration // of connecting
	fails  []float64     // how many connections to a base URL fail in a storm, 0 to 1
	broken float64       // how many exchanges do
	storm  bool          // or all is well, but that
	down   bool          // the first base URL is out of reach
	logins []login
	next   atomic.Uint64 // login
}

// A login is what becomes of a code.
type login struct {
	host            string        // from where an openid has to come, or empty
	within, took    time.Duration // and when, or 0
	reused          []bool        // of each connection that the code was sent on: it is out of the pool
	reads           int           // by WeChat
	reply, want     string        // what WeChat replied when it read the code last, and what comes of it
	granted, hungUp bool          // the client has read the whole reply with the openid; the caller has hung up
	got             result
}

// dice returns new dice: the world, each caller and each dial have their own.
func (w *world) dice(n uint64) *rand.Rand { return rand.New(rand.NewPCG(w.seed, n)) }

func pick[T any](dice *rand.Rand, from ...T) T { return from[dice.IntN(len(from))] }

func part(dice *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(dice.Float64() * float64(d))
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, seed: seed, logins: make([]login, 50)}
	dice, baseURLs := w.dice(0), []string{}
	for i := range 1 + dice.IntN(3) {
		w.fails = append(w.fails, pick(dice, 0, 0, 0.2, 0.6, 1))
		baseURLs = append(baseURLs, fmt.Sprint("https://wechat", i))
	}
	w.proxy, w.broken = pick(dice, "", "http", "socks5"), pick(dice, 0, 0.1, 0.4)
	timeout := pick(dice, time.Second, 5*time.Second, 20*time.Second)
	w.service, w.limit = newService(timeout, strings.Join(baseURLs, ",")), timeout*9/10/time.Duration(len(baseURLs))
	w.slots, w.turns = make(chan struct{}, 8+dice.IntN(20)), make(chan struct{}, 2+dice.IntN(5))
	a := newAuthority(t)
	pair := tls.Certificate{Certificate: [][]byte{a.cert.Raw}, PrivateKey: a.key}
	w.tls = &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true}
	for i, b := range w.bases {
		b.dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, w.end(i)) }
		b.transport.MaxConnsPerHost, b.transport.TLSClientConfig = cap(w.turns), w.tls
		if w.proxy != "" {
			b.proxy = &url.URL{Scheme: w.proxy, Host: "proxy:1"}
		}
	}
	return w
}

// run has a storm, good weather in which all is well at once, and an outage of the first base URL.
func (w *world) run() {
	w.inStorm()
	for i, b := range w.bases {
		marked := !b.passedOver.IsZero() || strings.Contains(w.log.String(), `"host":"`+b.url.Host+`"`)
		same(w.t, b.url.Host+" is passed over although no connection failed", marked && w.fails[i] == 0, false)
		same(w.t, b.url.Host+" is passed over for long", time.Until(b.passedOver) > 30*time.Second, false)
	}
	ctx, wait := w.t.Context(), w.limit+soon
	var callers sync.WaitGroup
	for range cap(w.turns) { // a dial whose caller hung up keeps its place until the limit
		callers.Go(func() { w.login(ctx, "", wait) })
	}
	callers.Wait()
	time.Sleep(31 * time.Second)
	w.login(ctx, "wechat0", soon)
	w.login(ctx, "wechat0", soon) // which is passed over no more
	if len(w.bases) > 1 {
		w.bases[0].transport.CloseIdleConnections()
		w.down = true
		w.login(ctx, "", wait) // and no wait for 30 s
		time.Sleep(29 * time.Second)
		w.login(ctx, "", soon)
		time.Sleep(2 * time.Second)
		callers.Go(func() { w.login(ctx, "", wait) }) // tries wechat0, and no other does
		time.Sleep(soon / 10)
		w.login(ctx, "", soon)
		callers.Wait()
		w.down = false
		time.Sleep(31 * time.Second)
		gone, hangUp := context.WithCancel(ctx)
		hangUp()
		w.login(gone, "", 0)
		time.Sleep(w.timeout)
		w.login(ctx, "wechat0", soon)
	}
	time.Sleep(50*time.Second + w.timeout)
	synctest.Wait()
	w.check()
}

// inStorm has thirty callers in bursts, some of whom hang up.
func (w *world) inStorm() {
	w.storm = true
	var callers sync.WaitGroup
	for n := range uint64(30) {
		dice := w.dice(1 + n)
		time.Sleep(part(dice, pick(dice, soon/100, soon/100, soon/100, soon/100, w.timeout/2)))
		callers.Go(func() {
			ctx, hangUp := context.WithCancel(w.t.Context())
			time.AfterFunc(pick(dice, part(dice, w.timeout), time.Hour, time.Hour, time.Hour), hangUp)
			w.login(ctx, "", 0)
		})
	}
	callers.Wait()
	synctest.Wait()
	w.storm = false
}

func (w *world) login(ctx context.Context, host string, within time.Duration) {
	n := w.next.Add(1) - 1
	l, start := &w.logins[n], time.Now()
	l.host, l.within = host, within
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		l.reused = append(l.reused, info.Reused)
	}})
	l.got = answer(w.t, traced, w, asJSON(fmt.Sprint(leakCode, n)))
	l.took, l.hungUp = time.Since(start), ctx.Err() != nil
}

// check wants a fitting answer for each login, in time; no code sent again that may be used; no leak, and nothing left.
func (w *world) check() {
	checkNoLeak(w.t, "log", w.log.String())
	logins := w.logins[:w.next.Load()]
	same(w.t, "logins in the log", strings.Count(w.log.String(), `"request"`), len(logins))
	same(w.t, "slots and turns", len(w.slots)+len(w.turns), 0)
	for _, l := range logins {
		sent, took := len(l.reused), l.took
		is := func(answer string) bool { return strings.HasPrefix(l.got.said(), answer) }
		late, fits := took >= w.timeout*19/20, is(l.want) && l.want != ""
		switch {
		case is("499 client_closed_request"):
			fits = l.hungUp
		case is("503 overloaded"):
			fits = l.reads == 0 && (took == 0 || took == w.timeout/2)
		case is(timedOut):
			fits = late
		case is(breaks) && sent == 0:
			fits = !slices.Contains(w.fails, 0)
		case is(breaks) && l.reused[sent-1] && l.reply == "": // and no other came
			fits = slices.Max(w.fails) > 0 || late
		}
		granted, fresh := l.got.status == 200, slices.Index(l.reused, false) // a new connection is the last
		if !fits || took > w.timeout || l.granted != granted || l.reads > sent || fresh >= 0 && fresh < sent-1 ||
			l.within > 0 && (!granted || took > l.within || !strings.HasSuffix(l.got.OpenID, l.host)) {
			w.t.Errorf("got %s after %v, want %s; %+v", l.got.said(), took, l.want, l)
		}
	}
	if w.t.Failed() {
		w.t.Logf("proxy %q, %d turns, %d base URLs, log:\n%s", w.proxy, cap(w.turns), len(w.bases), w.log)
	}
}

// end is where a dial leads: to an error, or to a proxy perhaps, TLS, WeChat.
func (w *world) end(i int) any {
	dice := w.dice(uint64(3*time.Now().UnixNano() + int64(i)))
	steps := map[string][]string{ // of the proxy
		"http":   {ok + "\r\n"},
		"socks5": {"\x05\x00" + next + "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"},
	}[w.proxy]
	fails, faulty := w.storm && dice.Float64() < w.fails[i] || w.down && i == 0, dice.IntN(3)
	if fails && faulty > len(steps) {
		return pick[error](dice, syscall.ECONNREFUSED, context.DeadlineExceeded)
	} else if fails {
		steps = append(steps[:faulty], pick(dice, hold, "", "SSH-2.0-"+leaks+"\r\n"))
	}
	wait := part(dice, w.limit*9/10)
	if !w.storm {
		wait = 0
	}
	return func(conn net.Conn) {
		time.Sleep(wait)
		for _, step := range steps {
			play(conn, step)
		}
		if !fails {
			w.serve(tls.Server(conn, w.tls), i, dice)
		}
	}
}

// serve is WeChat.
func (w *world) serve(conn net.Conn, i int, dice *rand.Rand) {
	for in := bufio.NewReader(conn); ; {
		conn.SetReadDeadline(time.Now().Add(part(dice, 100*time.Second)))
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		conn.SetReadDeadline(time.Time{})
		n, code := 0, r.FormValue("js_code")
		fmt.Sscan(strings.TrimPrefix(code, leakCode), &n)
		l, delay, v := &w.logins[n], part(dice, w.timeout), pick(dice, faults...)
		if code != fmt.Sprint(leakCode, n) || l.reads > 0 && l.reply != "" {
			w.t.Errorf("WeChat was sent %q after %q", code, l.reply)
		}
		l.reads, l.reply, l.want = l.reads+1, pick(dice, v.replies...), v.want
		grants := !w.storm || dice.Float64() >= w.broken
		if grants {
			object := fmt.Sprintf(`{"openid":"%s%d-wechat%d"}`, leakOpenID, n, i)
			l.reply, l.want = reply(object), "200 "+object
		}
		if !w.storm || w.broken == 0 || dice.IntN(2) > 0 {
			delay /= 1000
		}
		time.Sleep(delay)
		if err := write(conn, l.reply); err != nil || !grants {
			return
		}
		l.granted = true
	}
}

// faults are what WeChat does instead of giving the openid of the code.
var faults = slices.DeleteFunc(slices.Clone(verdicts), func(v verdict) bool { return v.want[:3] == "200" })
