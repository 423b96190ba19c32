//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	appID  = "wx0123456789abcdef"
	secret = "0123456789abcdef0123456789abcdef"
)

// A process is a server that runs beside this program.
type process struct {
	cmd   *exec.Cmd
	addr  string
	said  strings.Builder // its standard error without the lines of requests; complete after ended
	ended chan struct{}
}

// start executes a server and returns when it listens. Settings are NAME=value.
func start(command []string, settings ...string) *process {
	p := &process{cmd: exec.Command(command[0], command[1:]...), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "ADDR=127.0.0.1:0", "WX_APPID="+appID, "WX_APPSECRET="+secret)
	p.cmd.Env = append(p.cmd.Env, settings...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := p.cmd.StderrPipe()
	check(err)
	check(p.cmd.Start())
	listens := make(chan string, 1)
	go func() {
		defer close(p.ended)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if strings.Contains(lines.Text(), `"msg":"request"`) || p.said.Len() > 10_000 {
				continue
			}
			fmt.Fprintln(&p.said, lines.Text())
			var line struct{ Addr string }
			if json.Unmarshal(lines.Bytes(), &line); line.Addr != "" {
				listens <- line.Addr
			}
		}
		p.cmd.Wait()
	}()
	select {
	case p.addr = <-listens:
	case <-p.ended:
		log.Fatalf("%v does not listen: %s", p.cmd, &p.said)
	}
	return p
}

// stop asks p to end, and returns its exit status.
func (p *process) stop() int {
	p.cmd.Process.Signal(syscall.SIGTERM)
	<-p.ended
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) proc(name string) string {
	return fmt.Sprintf("/proc/%d/%s", p.cmd.Process.Pid, name)
}

// cpu is the processor time that p has taken so far. /proc/PID/stat has it in
// hundredths of a second, this in nanoseconds.
func (p *process) cpu() (sum time.Duration) {
	threads, err := filepath.Glob(p.proc("task/*/schedstat"))
	check(err)
	for _, thread := range threads {
		sum += time.Duration(number(thread, ""))
	}
	return sum
}

// rss is the memory that p has now, and peak the most that it ever had, in KiB.
func (p *process) rss() float64  { return float64(number(p.proc("status"), "VmRSS:")) }
func (p *process) peak() float64 { return float64(number(p.proc("status"), "VmHWM:")) }

// fds is the number of p's file descriptors.
func (p *process) fds() int {
	fds, err := os.ReadDir(p.proc("fd"))
	check(err)
	return len(fds)
}

// number returns the first number after a word in a file.
func number(file, word string) (n int64) {
	text, err := os.ReadFile(file)
	check(err)
	_, after, _ := strings.Cut(string(text), word)
	_, err = fmt.Sscan(after, &n)
	check(err)
	return n
}

// A cgroup is the directory of one that has a limit.
type cgroup string

// newCgroup returns an error where none can be made. The two versions of cgroups have other names
// for the same things.
func newCgroup(controller string, limit int) (cgroup, error) {
	parent, file := "/sys/fs/cgroup", controller+".max"
	if _, err := os.Stat(parent + "/cgroup.controllers"); err != nil { // version 1
		parent += "/" + controller
		file = map[string]string{"cpu": "cpu.cfs_quota_us", "memory": "memory.limit_in_bytes"}[controller]
	}
	group := fmt.Sprintf("%s/measure-%d", parent, os.Getpid())
	if err := os.Mkdir(group, 0o755); err != nil {
		return "", err
	}
	return cgroup(group), os.WriteFile(group+"/"+file, fmt.Append(nil, limit), 0)
}

// command executes a command in the cgroup.
func (g cgroup) command(command ...string) []string {
	return append([]string{"sh", "-c", `echo $$ > "$0/cgroup.procs" && exec "$@"`, string(g)}, command...)
}

// peak is the most memory that was in use at a time, the kernel's for connections included, in MiB.
func (g cgroup) peak() int64 {
	file := string(g) + "/memory.peak"
	if _, err := os.Stat(file); err != nil { // version 1
		file = string(g) + "/memory.max_usage_in_bytes"
	}
	return number(file, "") >> 20
}

// remove works when the processes in it have ended.
func (g cgroup) remove() { os.Remove(string(g)) }
