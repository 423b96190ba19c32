package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A process is a binary that runs, with the client of its callers.
type process struct {
	*exec.Cmd
	addr   string
	client http.Client
}

// start executes a binary, in the cgroup if there is one, and returns when it accepts connections.
func start(binary string) *process {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	listener.Close() // the binary takes its place
	p := &process{addr: listener.Addr().String()}
	p.client = http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 10_000}}
	p.Cmd = exec.Command("sh", "-c", `if [ "$GROUP" ]; then echo $$ >"$GROUP/cgroup.procs"; fi; exec "$0"`, binary)
	p.Env = append(os.Environ(), "ADDR="+p.addr)
	p.Stderr = io.Discard // by a pipe, as from a supervisor
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	check(p.Start())
	for range 500 {
		if conn, err := net.Dial("tcp", p.addr); err == nil {
			conn.Close()
			return p
		}
		time.Sleep(20 * time.Millisecond)
	}
	check(fmt.Errorf("%v does not listen at ADDR=%s", binary, p.addr))
	return nil
}

func (p *process) kill() {
	p.Process.Kill()
	p.Wait()
}

// cpu is the processor time that p has taken. /proc/PID/stat has it in hundredths of a second only.
func (p *process) cpu() (sum time.Duration) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.Process.Pid))
	check(err)
	for _, thread := range threads {
		sum += time.Duration(number(thread, ""))
	}
	return sum
}

// peak is the most memory that p ever had, in KiB, or 0 if it is dead.
func (p *process) peak() int { return number(fmt.Sprintf("/proc/%d/status", p.Process.Pid), "VmHWM:") }

// number returns the first number after a word in a file, or 0.
func number(file, word string) (n int) {
	text, _ := os.ReadFile(file)
	_, after, _ := strings.Cut(string(text), word)
	fmt.Sscan(after, &n)
	return n
}

// A login gave "openid", or what came instead.
type login struct {
	end     time.Time
	took    time.Duration
	outcome string
}

// count is the number of logins for each outcome.
func count(all []login) map[string]int {
	outcomes := make(map[string]int)
	for _, l := range all {
		outcomes[l.outcome]++
	}
	return outcomes
}

// logins has each caller make one login, or one after the other for a time, while WeChat takes delay.
func (p *process) logins(callers int, delay, length time.Duration) (all []login) {
	body := fmt.Sprintf(`{"code":"%030dms"}`, delay.Milliseconds()) // a code as long as WeChat's
	var running sync.WaitGroup
	var mu sync.Mutex
	for last := time.Now().Add(length); callers > 0; callers-- {
		running.Go(func() {
			for again := true; again; again = time.Now().Before(last) {
				begin := time.Now()
				outcome := p.login(body)
				mu.Lock()
				all = append(all, login{time.Now(), time.Since(begin), outcome})
				mu.Unlock()
			}
		})
	}
	running.Wait()
	return all
}

func (p *process) login(body string) (outcome string) {
	resp, err := p.client.Post("http://"+p.addr+"/openid", "application/json", strings.NewReader(body))
	if os.IsTimeout(err) {
		return "no answer"
	} else if err != nil {
		words := strings.Split(err.Error(), ": ")
		return words[len(words)-1] // without addresses
	}
	defer resp.Body.Close()
	var answer struct{ OpenID, Error string }
	json.NewDecoder(resp.Body).Decode(&answer)
	io.Copy(io.Discard, resp.Body) // or the connection is not kept
	if resp.StatusCode == http.StatusOK && answer.OpenID != "" {
		return "openid"
	}
	return fmt.Sprint(resp.StatusCode, " ", answer.Error)
}

// fakeWeChat answers over HTTPS, after the time that the code says.
func fakeWeChat() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		delay, _ := time.ParseDuration(r.URL.Query().Get("js_code"))
		time.Sleep(delay)
		w.Header().Set("Content-Type", "text/plain")
		io.WriteString(w, `{"session_key":"HyVFkGl5F5OQWJZZaNzBBg==","openid":"oGZUI0egBJY1zhBYw2KhdUfwVJJE"}`)
	})
	pem := os.Getenv("SSL_CERT_FILE")
	check(http.ListenAndServeTLS(os.Getenv("ADDR"), pem, pem, nil))
}

// leanLoop does the service's job with as little as net/http allows: no checks, no limits, no log.
func leanLoop() {
	base, err := url.Parse(os.Getenv("WX_BASE_URL") + "/sns/jscode2session")
	check(err)
	query := "appid=" + os.Getenv("WX_APPID") + "&secret=" + os.Getenv("WX_APPSECRET") +
		"&grant_type=authorization_code&js_code="
	transport := &http.Transport{MaxIdleConnsPerHost: 10_000, DisableCompression: true}
	noHeader, contentType := http.Header{}, []string{"application/json"}
	buffers := sync.Pool{New: func() any { return new([4096]byte) }}
	check(http.ListenAndServe(os.Getenv("ADDR"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		buf := buffers.Get().(*[4096]byte)
		defer buffers.Put(buf)
		var login struct {
			Code string `json:"code"`
		}
		n, _ := io.ReadFull(r.Body, buf[:])
		json.Unmarshal(buf[:n], &login)
		u := *base
		u.RawQuery = query + url.QueryEscape(login.Code)
		resp, err := transport.RoundTrip(&http.Request{Method: "GET", URL: &u, Host: u.Host, Header: noHeader})
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		var user struct {
			OpenID string `json:"openid"`
		}
		n, _ = io.ReadFull(resp.Body, buf[:])
		resp.Body.Close()
		json.Unmarshal(buf[:n], &user)
		w.Header()["Content-Type"] = contentType
		w.Write(append(strconv.AppendQuote(append(buf[:0], `{"openid":`...), user.OpenID), '}'))
	})))
}
