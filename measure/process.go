package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A process is a build that runs, with the client of its callers.
type process struct {
	*exec.Cmd
	addr   string
	client http.Client
}

// start executes a build, in the cgroup if there is one, and returns when it accepts connections.
func start(b build) *process {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	listener.Close() // the build takes its place
	p := &process{addr: listener.Addr().String()}
	p.client = http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 10_000}}
	inGroup := `if [ "$GROUP" ]; then echo $$ >"$GROUP/cgroup.procs"; fi; exec "$0" "$@"`
	p.Cmd = exec.Command("sh", append([]string{"-c", inGroup}, b...)...)
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
	check(fmt.Errorf("%v does not listen at ADDR=%s", b, p.addr))
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
	begin, end time.Time
	outcome    string
}

func (l login) took() time.Duration { return l.end.Sub(l.begin) }

type logins []login

func (ls logins) count(outcome string) (n int) {
	for _, l := range ls {
		if l.outcome == outcome {
			n++
		}
	}
	return n
}

func (ls logins) String() string {
	outcomes := make(map[string]int)
	for _, l := range ls {
		outcomes[l.outcome]++
	}
	return fmt.Sprint(outcomes)
}

// logins has each caller make one login, or one after the other for a time, while WeChat takes delay.
func (p *process) logins(callers int, delay, length time.Duration) (all logins) {
	body := fmt.Sprintf(`{"code":"%030dms"}`, delay.Milliseconds()) // a code as long as WeChat's
	var running sync.WaitGroup
	var mu sync.Mutex
	for last := time.Now().Add(length); callers > 0; callers-- {
		running.Go(func() {
			for again := true; again; again = time.Now().Before(last) {
				begin := time.Now()
				outcome := p.login(body)
				mu.Lock()
				all = append(all, login{begin, time.Now(), outcome})
				mu.Unlock()
			}
		})
	}
	running.Wait()
	return all
}

func (p *process) login(body string) (outcome string) {
	resp, err := p.client.Post("http://"+p.addr+"/openid", "application/json", strings.NewReader(body))
	if err != nil {
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
