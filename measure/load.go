//go:build linux

package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A call is a request and what came of it: "200", another status and the "error" of the answer,
// or why there was no answer.
type call struct {
	outcome string
	begun   time.Time
	took    time.Duration
}

type calls []call

// took are the times of the calls that had this outcome, in order.
func (cs calls) took(outcome string) (took []time.Duration) {
	for _, c := range cs {
		if c.outcome == outcome {
			took = append(took, c.took)
		}
	}
	slices.Sort(took)
	return took
}

// bad are the calls that ended in none of the outcomes, or took longer than limit.
func (cs calls) bad(limit time.Duration, outcomes ...string) (bad calls) {
	for _, c := range cs {
		if !slices.Contains(outcomes, c.outcome) || c.took > limit {
			bad = append(bad, c)
		}
	}
	return bad
}

// String counts the outcomes, with the median and the longest time of each.
func (cs calls) String() string {
	count := make(map[string]int)
	for _, c := range cs {
		count[c.outcome]++
	}
	var parts []string
	for outcome, n := range count {
		took := cs.took(outcome)
		parts = append(parts, fmt.Sprintf("%d × %s (median %v, longest %v)", n, outcome,
			took[n/2].Round(time.Millisecond/10), took[n-1].Round(time.Millisecond/10)))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// login is a request with that code.
func login(code string) string {
	return fmt.Sprintf("POST /openid HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: MicroMessenger\r\n"+
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n{\"code\":%q}", len(code)+11, code)
}

// loginOf is a request that the fake WeChat answers after that time.
func loginOf(delay time.Duration) string { return login(fmt.Sprintf("%030dms", delay.Milliseconds())) }

// outcome reads an answer.
func outcome(resp *http.Response, err error) string {
	if err != nil {
		if op := (*net.OpError)(nil); errors.As(err, &op) {
			return op.Err.Error() // without the addresses
		}
		return err.Error()
	}
	defer resp.Body.Close()
	var answer struct{ OpenID, Error string }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Sprintf("%d without JSON", resp.StatusCode)
	}
	io.Copy(io.Discard, resp.Body)
	if resp.StatusCode == http.StatusOK && answer.OpenID == "" {
		return "200 without an openid"
	}
	return strings.TrimSpace(fmt.Sprint(resp.StatusCode, " ", answer.Error))
}

// A caller has a connection, on which one request follows another.
type caller struct {
	addr   string
	from   net.IP // one address has not the ports for a flood
	tls    *tls.Config
	conn   net.Conn // nil before dial, and after an error
	reader *bufio.Reader
}

func newCaller(addr string, i int, config *tls.Config) *caller {
	return &caller{addr: addr, from: net.IPv4(127, 0, 0, byte(1+i%8)), tls: config}
}

func (c *caller) dial() error {
	dialer := net.Dialer{Timeout: time.Minute, LocalAddr: &net.TCPAddr{IP: c.from}}
	conn, err := dialer.Dial("tcp", c.addr)
	if err != nil {
		return err
	}
	conn.(*net.TCPConn).SetLinger(0) // leaves nothing in TIME_WAIT
	if c.tls != nil {
		conn = tls.Client(conn, c.tls) // shakes hands at the first write, even of nothing
	}
	c.conn, c.reader = conn, bufio.NewReader(conn)
	return nil
}

func (c *caller) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

func (c *caller) ask(request string) call {
	begun := time.Now()
	if c.conn == nil {
		if err := c.dial(); err != nil {
			time.Sleep(10 * time.Millisecond) // or this would be a busy loop
			return call{outcome(nil, err), begun, time.Since(begun)}
		}
	}
	c.conn.SetDeadline(time.Now().Add(time.Minute))
	io.WriteString(c.conn, request)
	resp, err := http.ReadResponse(c.reader, nil)
	came := outcome(resp, err)
	if err != nil || resp.Close {
		c.close()
	}
	return call{came, begun, time.Since(begun)}
}

// A crowd is a number of callers, who make the same request again and again.
type crowd struct {
	addr    string
	tls     *tls.Config // nil for plain HTTP
	callers int
	request string
	every   time.Duration // each caller makes one; 0 is one upon the answer to the other, all at once
}

// start connects the callers and sets them off, until stop, which waits for their last answers.
func (c crowd) start() (stop func() calls) {
	callers := make([]*caller, c.callers)
	for i := range callers {
		callers[i] = newCaller(c.addr, i, c.tls)
		callers[i].dial() // fails in ask again, if it does here
	}
	var all calls
	var mu sync.Mutex
	var running sync.WaitGroup
	var stopped atomic.Bool
	begun := time.Now()
	for i, caller := range callers {
		running.Go(func() {
			defer caller.close()
			var mine calls
			next := begun.Add(c.every * time.Duration(i) / time.Duration(c.callers))
			for ; !stopped.Load(); next = next.Add(c.every) {
				time.Sleep(time.Until(next))
				mine = append(mine, caller.ask(c.request))
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, mine...)
		})
	}
	return func() calls {
		stopped.Store(true)
		running.Wait()
		return all
	}
}

func (c crowd) run(length time.Duration) calls {
	stop := c.start()
	time.Sleep(length)
	return stop()
}

// A flood is a number of connections on which something is sent, and nothing or next to nothing
// after it.
type flood struct {
	addr  string
	tls   *tls.Config
	conns int
	ramp  time.Duration // in which they are opened
	text  string
	drip  string // is sent every second, if there is any
}

// run ends when the service has closed all connections, or after length. It returns how many were
// still open then.
func (f flood) run(length time.Duration) int {
	var running sync.WaitGroup
	var held atomic.Int64
	end := time.Now().Add(length)
	for i := range f.conns {
		running.Go(func() {
			time.Sleep(f.ramp * time.Duration(i) / time.Duration(f.conns))
			c := newCaller(f.addr, i, f.tls)
			if c.dial() != nil {
				return
			}
			defer c.close()
			c.conn.SetDeadline(end)
			_, err := io.WriteString(c.conn, f.text)
			for err == nil && f.drip != "" {
				time.Sleep(time.Second)
				_, err = io.WriteString(c.conn, f.drip)
			}
			if err == nil {
				time.Sleep(time.Until(end))
			}
			if time.Now().After(end) {
				held.Add(1)
			}
		})
	}
	running.Wait()
	return int(held.Load())
}
