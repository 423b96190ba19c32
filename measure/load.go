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

// A call is a login and what came of it: "200", a status and the error of the answer, or an
// error of this side.
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

// request is a login as sent over a connection.
func request(code string) string {
	return fmt.Sprintf("POST /openid HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: MicroMessenger\r\n"+
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n{\"code\":%q}", len(code)+11, code)
}

// codeFor is a code that the fake WeChat answers after that time.
func codeFor(delay time.Duration) string { return fmt.Sprintf("%030dms", delay.Milliseconds()) }

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

// A caller has a connection, on which one login follows another.
type caller struct {
	addr   string
	from   net.IP      // of one address there is not the ports for a flood
	tls    *tls.Config // nil without
	conn   net.Conn    // nil before dial, and after an error
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

func (c *caller) login(code string) (came string) {
	if c.conn == nil {
		if err := c.dial(); err != nil {
			return outcome(nil, err)
		}
	}
	c.conn.SetDeadline(time.Now().Add(time.Minute))
	io.WriteString(c.conn, request(code))
	resp, err := http.ReadResponse(c.reader, nil)
	came = outcome(resp, err)
	if err != nil || resp.Close {
		c.close()
	}
	return came
}

// A crowd is a number of callers that log in again and again.
type crowd struct {
	addr    string
	tls     *tls.Config
	callers int
	ramp    time.Duration // in which they begin, and at whose end all are waiting; 0 is all at once
	length  time.Duration // for which they go on
	delay   time.Duration // of WeChat
}

// run ends with the last answer, and returns all calls.
func (c crowd) run() (all calls) {
	callers := make([]*caller, c.callers)
	for i := range callers {
		callers[i] = newCaller(c.addr, i, c.tls)
		check(callers[i].dial())
	}
	var mu sync.Mutex
	var running sync.WaitGroup
	full := time.Now().Add(c.ramp)
	for i, caller := range callers {
		running.Go(func() {
			defer caller.close()
			time.Sleep(c.ramp * time.Duration(i) / time.Duration(c.callers))
			var mine calls
			for begun := time.Now(); len(mine) == 0 || begun.Before(full.Add(c.length)); begun = time.Now() {
				came := caller.login(codeFor(max(c.delay, full.Sub(begun))))
				mine = append(mine, call{came, begun, time.Since(begun)})
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, mine...)
		})
	}
	running.Wait()
	return all
}

// A flood is a number of connections on which something is sent, and nothing or next to nothing
// after it.
type flood struct {
	addr   string
	tls    *tls.Config
	conns  int
	text   string
	drip   string // is sent every second, if there is any
	length time.Duration
}

// run ends when the connections have been closed by the service or at the end of length. Those
// were held for so long.
func (f flood) run() (held int) {
	var open sync.WaitGroup
	var lasted atomic.Int64
	end := time.Now().Add(f.length)
	for i := range f.conns {
		open.Go(func() {
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
				lasted.Add(1)
			}
		})
	}
	open.Wait()
	return int(lasted.Load())
}

// flow makes calls at a steady rate a second until stop, which waits for the last of them.
// Unlike a crowd, it does not come slower when answers do.
func flow(rate int, login func(i int) (outcome string)) (stop func() calls) {
	var all calls
	var mu sync.Mutex
	var running sync.WaitGroup
	ended := make(chan struct{})
	running.Go(func() {
		begun := time.Now()
		for i := 0; ; i++ {
			select {
			case <-ended:
				return
			case <-time.After(time.Until(begun.Add(time.Second * time.Duration(i) / time.Duration(rate)))):
			}
			running.Go(func() {
				begun := time.Now()
				came := login(i)
				mu.Lock()
				defer mu.Unlock()
				all = append(all, call{came, begun, time.Since(begun)})
			})
		}
	})
	return func() calls {
		close(ended)
		running.Wait()
		return all
	}
}

// newClient is a client for a flow, with as many connections as it likes, on whom a certificate
// makes no impression.
func newClient() *http.Client {
	transport := &http.Transport{MaxIdleConnsPerHost: 10_000, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

func post(client *http.Client, url, code string) (came string) {
	return outcome(client.Post(url+"/openid", "application/json", strings.NewReader(`{"code":"`+code+`"}`)))
}
