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

// A world is a service in a network with faults.
type world struct {
	*service
	seed         uint64
	proxy        string // its scheme, or empty
	cert         tls.Certificate
	limit        time.Duration // of connecting
	fails        []float64     // how many connections to a base URL do, 0 to 1
	some, all    bool          // base URLs are sound: no connection to them fails
	slow, broken float64       // how much of its limit connecting takes at most; how many exchanges are broken
	logins       []login
	next         atomic.Uint64 // login
	open         atomic.Int64  // connections
}

// A login is what becomes of a code.
type login struct {
	code            string
	host            string        // from where an openid has to come, or empty
	within, took    time.Duration // and when, or 0
	reused          []bool        // of each connection that the code was sent on: it is out of the pool
	reads           int           // by WeChat
	last            failing       // what WeChat did when it read the code last
	granted, hungUp bool          // the client has read the whole reply with the openid; the caller has hung up
	got             result
}

// dice returns new dice: the world, each caller and each dial have their own.
func (w *world) dice(n uint64) *rand.Rand      { return rand.New(rand.NewPCG(w.seed, n)) }
func pick[T any](dice *rand.Rand, from ...T) T { return from[dice.IntN(len(from))] }

// part is a random part of d.
func part(dice *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(dice.Float64() * float64(d))
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{seed: seed, slow: 0.9, logins: make([]login, 50)}
	dice, baseURLs := w.dice(0), []string{}
	for i := range 1 + dice.IntN(3) {
		w.fails = append(w.fails, pick(dice, 0, 0, 0.2, 0.6, 1))
		baseURLs = append(baseURLs, fmt.Sprintf("%s://wechat%d", pick(dice, "http", "https"), i))
	}
	w.some, w.all = slices.Contains(w.fails, 0), slices.Max(w.fails) == 0
	w.proxy, w.broken = pick(dice, "", "http", "socks5"), pick(dice, 0, 0.1, 0.4)
	w.service = newService(t, pick(dice, time.Second, 5*time.Second, 20*time.Second), baseURLs...)
	w.limit = w.timeout * 9 / 10 / time.Duration(len(w.bases))
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

// run has a storm, and then good weather in which all is well at once.
func (w *world) run() {
	const soon = 100 * time.Millisecond
	var callers sync.WaitGroup
	for n := range uint64(30) {
		dice := w.dice(1 + n)
		if n%5 == 0 {
			time.Sleep(part(dice, w.timeout/2))
		}
		callers.Go(func() {
			time.Sleep(part(dice, soon/10))
			ctx, hangUp := context.WithCancel(w.t.Context())
			defer hangUp()
			if dice.IntN(4) == 0 {
				time.AfterFunc(part(dice, w.timeout), hangUp)
			}
			w.login(ctx, "", 0)
		})
	}
	callers.Wait()
	synctest.Wait()
	for i, b := range w.bases {
		marked := !b.passedOver.IsZero() || strings.Contains(w.log.String(), `"host":"`+b.url.Host+`"`)
		if until := time.Until(b.passedOver); until > 30*time.Second || marked && w.fails[i] == 0 {
			w.t.Errorf("%s is passed over for %v, want 30 s, or never if no connection failed", b.url.Host, until)
		}
		w.fails[i] = 0
	}
	w.slow, w.broken = 0, 0
	wait, ctx := w.limit+soon, w.t.Context()
	for range cap(w.turns) { // a dial whose caller hung up keeps its place until the limit
		callers.Go(func() { w.login(ctx, "", wait) })
	}
	callers.Wait()
	time.Sleep(31 * time.Second)
	w.login(ctx, "wechat0", soon)
	w.login(ctx, "wechat0", soon) // which is passed over no more
	if len(w.bases) > 1 {
		w.bases[0].transport.CloseIdleConnections()
		w.fails[0] = 1 // which costs one wait, and 30 s later one more
		w.login(ctx, "", wait)
		time.Sleep(29 * time.Second)
		w.login(ctx, "", soon)
		time.Sleep(2 * time.Second)
		callers.Go(func() { w.login(ctx, "", wait) }) // tries wechat0, and no other does
		time.Sleep(soon / 10)
		w.login(ctx, "", soon)
		callers.Wait()
		w.fails[0] = 0
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

func (w *world) login(ctx context.Context, host string, within time.Duration) {
	n := w.next.Add(1) - 1
	l, start := &w.logins[n], time.Now()
	l.code, l.host, l.within = fmt.Sprint(leakCode, n), host, within
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		l.reused = append(l.reused, info.Reused)
	}})
	h := func(rw http.ResponseWriter, r *http.Request) { w.ServeHTTP(rw, r.WithContext(traced)) }
	l.got = answer(w.t, http.HandlerFunc(h), asJSON(l.code))
	l.took, l.hungUp = time.Since(start), ctx.Err() != nil
}

// check wants a fitting answer for each login, in time; no code sent again that may be used; no leak, and nothing left.
func (w *world) check() {
	checkNoLeak(w.t, "log", w.log.String())
	logins := w.logins[:w.next.Load()]
	n, lines := int(w.open.Load())+len(w.slots)+len(w.turns), strings.Count(w.log.String(), `"request"`)
	if n != 0 || lines != len(logins) {
		w.t.Errorf("got %d connections, slots and turns, %d logins in the log, want 0 and %d", n, lines, len(logins))
	}
	for _, l := range logins {
		checkNoLeak(w.t, "answer", fmt.Sprint(l.got.header, l.got.body))
		brief, sent, took := l.got.brief(), len(l.reused), l.took
		late, fits := took >= w.timeout*19/20, brief == l.last.want
		switch {
		case brief == "499 client_closed_request":
			fits = l.hungUp
		case brief == "503 overloaded":
			fits = l.reads == 0 && (took == 0 || took == w.timeout/2)
		case brief == timedOut:
			fits = late
		case brief == breaks && sent == 0:
			fits = !w.some
		case brief == breaks && l.reused[sent-1] && (l.reads == 0 || l.last.name == "closed"): // and no other came
			fits = !w.all || late
		}
		granted, fresh := l.got.status == 200, slices.Index(l.reused, false) // a new connection is the last
		if !fits || took > w.timeout || l.granted != granted || l.reads > sent || fresh >= 0 && fresh < sent-1 ||
			l.within > 0 && (!granted || took > l.within || !strings.HasSuffix(l.got.OpenID, l.host)) {
			w.t.Errorf("got %s after %v, want %s; %+v", brief, took, l.last.want, l)
		}
	}
	if w.t.Failed() {
		w.t.Logf("proxy %q, %d turns, %d base URLs, log:\n%s", w.proxy, cap(w.turns), len(w.bases), w.log)
	}
}

// dial is the network: a proxy perhaps, TLS perhaps, WeChat.
func (w *world) dial(ctx context.Context, i int) (net.Conn, error) {
	dice, https := w.dice(uint64(3*time.Now().UnixNano()+int64(i))), w.bases[i].url.Scheme == "https"
	var steps []string // after TCP, but for TLS
	if w.proxy == "socks5" {
		steps = append(steps, "\x05\x00"+next+"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
	} else if w.proxy == "http" && https {
		steps = append(steps, ok+"\r\n")
	}
	var err error
	most := time.Duration(w.slow * float64(w.limit) / 2) // as the weather is when the dial begins
	wait, then, fails, faulty := part(dice, most), part(dice, most), dice.Float64() < w.fails[i], dice.IntN(3)
	if fails && faulty < len(steps) || fails && faulty == len(steps) && https {
		steps = append(steps[:faulty], pick(dice, hold, "", "SSH-2.0-"+leaks+"\r\n"))
	} else if fails {
		wait, err = pick(dice, 0, time.Hour), syscall.ECONNREFUSED
	}
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
	}
	ours, theirs := net.Pipe()
	w.open.Add(1)
	go func() {
		defer w.open.Add(-1)
		defer theirs.Close()
		time.Sleep(then)
		for _, step := range steps {
			play(theirs, step)
		}
		if https && !fails {
			w.serve(tls.Server(theirs, &tls.Config{Certificates: []tls.Certificate{w.cert}}), i, dice)
		} else if !fails {
			w.serve(theirs, i, dice)
		}
	}()
	return wire{ours}, nil
}

// faults are what WeChat answers instead of the openid of the code.
var faults = slices.DeleteFunc(slices.Clone(failings), func(f failing) bool { return f.want[:3] == "200" })

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
		l, delay, fault := &w.logins[n], part(dice, w.timeout), pick(dice, faults...)
		if code != l.code || l.reads > 0 && l.last.name != "closed" {
			w.t.Errorf("WeChat was sent %q after %q", code, l.last.name)
		}
		object := fmt.Sprintf(`{"openid":"%s%d-wechat%d"}`, leakOpenID, n, i)
		if dice.Float64() >= w.broken {
			fault = failing{want: "200 " + object, answer: reply(object)}
		}
		if w.broken == 0 || dice.IntN(2) > 0 {
			delay /= 1000
		}
		l.reads, l.last = l.reads+1, fault
		time.Sleep(delay)
		if err := write(conn, fault.answer); err != nil || fault.name != "" {
			return
		}
		l.granted = true
	}
}
