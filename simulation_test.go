package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
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

var (
	seeds = flag.Int("seeds", 100, "how many worlds TestSimulation runs")
	seed  = flag.Int("seed", 0, "the one world that it runs")
)

// TestSimulation runs worlds, each from its seed: go test -run Simulation -seed 17.
func TestSimulation(t *testing.T) {
	t.Parallel()
	first, last := 1, *seeds
	if *seed > 0 {
		first, last = *seed, *seed
	}
	for n := first; n <= last; n++ {
		t.Run(fmt.Sprint("seed ", n), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { newWorld(t, uint64(n)).run() })
		})
	}
}

// A world is a service in a network with faults. It, each caller and each dial have dice of their own.
type world struct {
	*service
	seed   uint64
	dice   *rand.Rand
	proxy  string // its scheme, or empty
	cert   tls.Certificate
	limit  time.Duration // of connecting
	places []place
	sound  int     // places that never fail
	broken float64 // how many exchanges are, 0 to 1
	logins []login
	next   atomic.Int64 // login
	dials  atomic.Uint64
	open   atomic.Int64 // connections
}

// A place is what a base URL leads to.
type place struct {
	tls   bool
	fails float64 // how many connections do, 0 to 1
	slow  float64 // how much of its limit connecting takes at most
}

// A login is what becomes of a code.
type login struct {
	code    string
	reads   int
	last    failing // what WeChat did when it read the code last
	granted bool    // the client has read the whole reply with the openid
	reused  []bool  // the connections that the code was sent on: out of the pool
	hungUp  bool
	got     result
	took    time.Duration
}

func newWorld(t *testing.T, n uint64) *world {
	dice := rand.New(rand.NewPCG(n, 0))
	w := &world{seed: n, dice: dice, proxy: pick(dice, "", "http", "socks5"), broken: pick(dice, 0, 0.1, 0.4), logins: make([]login, 50)}
	var baseURLs []string
	for i := range 1 + dice.IntN(3) {
		p := place{tls: dice.IntN(2) > 0, fails: pick(dice, 0, 0, 0.2, 0.6, 1), slow: pick(dice, 0.1, 1.5)}
		if p.fails == 0 {
			p.slow, w.sound = 0.9, w.sound+1
		}
		w.places = append(w.places, p)
		baseURLs = append(baseURLs, fmt.Sprintf("%s://wechat%d", map[bool]string{false: "http", true: "https"}[p.tls], i))
	}
	w.service = newService(t, pick[time.Duration](dice, 1, 5, 20)*time.Second, baseURLs...)
	w.limit = w.timeout * 9 / 10 / time.Duration(len(w.places))
	w.slots, w.turns = make(chan struct{}, 8+dice.IntN(20)), make(chan struct{}, 2+dice.IntN(5))
	a := newAuthority(t)
	w.cert = tls.Certificate{Certificate: [][]byte{a.cert.Raw}, PrivateKey: a.key}
	for i, b := range w.bases {
		b.dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return w.dial(ctx, i) }
		b.transport.MaxConnsPerHost = cap(w.turns)
		b.transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
		if w.proxy != "" {
			b.proxy = &url.URL{Scheme: w.proxy, Host: "proxy:1"}
		}
	}
	return w
}

func pick[T any](dice *rand.Rand, from ...T) T { return from[dice.IntN(len(from))] }

func (w *world) diceOf(n uint64) *rand.Rand { return rand.New(rand.NewPCG(w.seed, n)) }

// part is a random part of d.
func part(dice *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(dice.Float64() * float64(d))
}

// run has a storm, and then good weather in which all is well at once.
func (w *world) run() {
	var callers sync.WaitGroup
	for n := range uint64(30) {
		dice := w.diceOf(1 + n)
		if n%5 == 0 {
			time.Sleep(part(w.dice, w.timeout/2))
		}
		callers.Go(func() {
			time.Sleep(part(dice, 10*time.Millisecond))
			ctx, hangUp := context.WithCancel(w.t.Context())
			defer hangUp()
			if dice.IntN(4) == 0 {
				time.AfterFunc(part(dice, w.timeout), hangUp)
			}
			w.login(ctx)
		})
	}
	callers.Wait()
	synctest.Wait()
	for i, b := range w.bases {
		marked := strings.Contains(w.log.String(), `"host":"`+b.url.Host+`"`)
		if until := time.Until(b.passedOver); until > passOverTime || marked && w.places[i].fails == 0 {
			w.t.Errorf("%s is passed over for %v, want 30 s at most, and never if no connection failed", b.url.Host, until)
		}
		w.places[i].fails, w.places[i].slow = 0, 0
	}
	w.broken = 0
	for range cap(w.turns) { // a dial whose caller hung up keeps its place until the limit
		callers.Go(func() { w.want("", w.limit) })
	}
	callers.Wait()
	time.Sleep(passOverTime + time.Second)
	w.want("wechat0", 0)
	w.want("wechat0", 0) // which is passed over no more
	if len(w.places) > 1 {
		w.bases[0].transport.CloseIdleConnections()
		w.places[0].fails = 1
		w.want("", w.limit)
		w.want("", 0)
		w.places[0].fails = 0
		time.Sleep(passOverTime + time.Second)
		w.want("wechat0", 0)
	}
	time.Sleep(idleTimeout + w.timeout)
	synctest.Wait()
	w.check()
}

// want logs in, and wants an openid from a place, or any, after connecting for so long at most.
func (w *world) want(place string, connecting time.Duration) {
	l := w.login(w.t.Context())
	if l.got.status != 200 || !strings.HasSuffix(l.got.OpenID, place) || l.took > connecting+100*time.Millisecond {
		w.t.Errorf("got %s after %v, want an openid from %s after %v", l.got.brief(), l.took, place, connecting)
	}
}

func (w *world) login(ctx context.Context) *login {
	n := w.next.Add(1) - 1
	l, start := &w.logins[n], time.Now()
	l.code = fmt.Sprint(leakCode, n)
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		l.reused = append(l.reused, info.Reused)
	}})
	l.got = answer(w.t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.ServeHTTP(rw, r.WithContext(traced))
	}), asJSON(l.code))
	l.took, l.hungUp = time.Since(start), ctx.Err() != nil
	return l
}

// check checks in the end what holds in each world.
func (w *world) check() {
	checkNoLeak(w.t, "log", w.log.String())
	if w.open.Load() > 0 || len(w.slots) > 0 || len(w.turns) > 0 {
		w.t.Errorf("got %d connections, %d slots and %d turns, want none", w.open.Load(), len(w.slots), len(w.turns))
	}
	if got := strings.Count(w.log.String(), `"msg":"request"`); got != int(w.next.Load()) {
		w.t.Errorf("got %d requests in the log, want %d", got, w.next.Load())
	}
	for _, l := range w.logins[:w.next.Load()] {
		checkNoLeak(w.t, "answer", fmt.Sprint(l.got.header, l.got.body))
		sent, late := len(l.reused), l.took >= w.timeout*19/20
		died := sent > 0 && l.reused[sent-1] && (l.reads == 0 || l.last.name == "no reply") // and no other connection came
		fits := map[string]bool{
			l.last.want:                 true,
			"499 client_closed_request": l.hungUp,
			"503 overloaded":            l.reads == 0 && (l.took == 0 || l.took == w.timeout/2),
			timedOut:                    late,
			breaks: sent == 0 && w.sound == 0 || died && (w.sound < len(w.places) || late) ||
				!died && l.last.want == breaks,
		}[l.got.brief()]
		if again := slices.Index(l.reused, false); !fits || l.took > w.timeout || l.granted != (l.got.status == 200) ||
			l.reads > sent || again >= 0 && again < sent-1 {
			w.t.Errorf("got %s after %v, want %s; %+v", l.got.brief(), l.took, l.last.want, l)
		}
	}
	if w.t.Failed() {
		w.t.Logf("WX_TIMEOUT %v, proxy %q, %d turns, places %+v, log:\n%s", w.timeout, w.proxy, cap(w.turns), w.places, w.log)
	}
}

// dial is the network: a proxy perhaps, TLS perhaps, WeChat.
func (w *world) dial(ctx context.Context, i int) (net.Conn, error) {
	p, dice, trouble := w.places[i], w.diceOf(100+w.dials.Add(1)), -1
	var steps []func(net.Conn) // after TCP
	switch {
	case w.proxy == "socks5":
		steps = append(steps, says("\x05\x00", "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"))
	case w.proxy == "http" && p.tls:
		steps = append(steps, says(ok+"\r\n"))
	}
	if p.tls {
		steps = append(steps, says())
	}
	if dice.Float64() < p.fails {
		trouble = dice.IntN(2 + 3*len(steps))
	}
	pause := func() time.Duration { return part(dice, time.Duration(p.slow*float64(w.limit)/3)) }
	slow := time.After(pause())
	switch trouble {
	case 0:
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	case 1:
		slow = nil
	}
	select {
	case <-slow:
	case <-ctx.Done():
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: ctx.Err()}
	}
	ours, theirs := net.Pipe()
	w.open.Add(1)
	go func() {
		defer w.open.Add(-1)
		defer theirs.Close()
		for n, step := range steps {
			time.Sleep(pause())
			if trouble >= 2 && (trouble-2)/3 == n {
				[]func(net.Conn){untilClosed, says(""), says("SSH-2.0-" + leaks + "\r\n")}[(trouble-2)%3](theirs)
				return
			}
			step(theirs)
		}
		w.serve(theirs, p.tls, fmt.Sprint("wechat", i), dice)
	}()
	return wire{ours}, nil
}

// serve is WeChat.
func (w *world) serve(conn net.Conn, isTLS bool, name string, dice *rand.Rand) {
	if isTLS {
		conn = tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{w.cert}})
	}
	for in := bufio.NewReader(conn); ; {
		conn.SetReadDeadline(time.Now().Add(part(dice, 2*idleTimeout)))
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		conn.SetReadDeadline(time.Time{})
		n, code := 0, r.FormValue("js_code")
		fmt.Sscan(strings.TrimPrefix(code, leakCode), &n)
		l := &w.logins[n]
		if code != l.code || l.reads > 0 && l.last.name != "no reply" {
			w.t.Errorf("WeChat was sent %q after %q", code, l.last.name)
		}
		l.reads++
		delay := part(dice, w.timeout)
		if w.broken == 0 || dice.IntN(2) > 0 {
			delay /= 1000
		}
		if dice.Float64() < w.broken {
			l.last = pick(dice, faults...)
			time.Sleep(delay)
			l.last.answer(conn)
			return
		}
		object := fmt.Sprintf(`{"openid":"%s%d-%s"}`, leakOpenID, n, name)
		l.last = failing{want: "200 " + object}
		time.Sleep(delay)
		_, err = io.WriteString(conn, httpReply(object[:len(object)-1]+`,"session_key":"`+leakKey+`"}`))
		l.granted = err == nil
	}
}

// faults are what WeChat does instead of giving the openid of the code.
var faults = slices.DeleteFunc(slices.Concat(breaking, hanging, nonsense), func(f failing) bool {
	return strings.HasPrefix(f.want, "200")
})
