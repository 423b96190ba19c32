package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// A program is run, under test in this process.
type program struct {
	url  string            // http://127.0.0.1:port
	log  *output           // its standard error
	stop func() (code int) // sends it the signal to stop and returns its exit code
}

// startProgram runs the program in this process until the test ends.
func startProgram(t *testing.T, env map[string]string, args ...string) *program {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &program{log: &output{lines: make(chan string, 100_000)}}
	exit := make(chan int, 1)
	go func() {
		exit <- run(ctx, args, getenv(env), io.Discard, p.log)
	}()
	p.stop = sync.OnceValue(func() int {
		cancel()
		return <-exit
	})
	t.Cleanup(func() { p.stop() })

	scheme := "http://"
	if env["TLS_CERT"] != "" {
		scheme = "https://"
	}
	p.url = scheme + p.log.next(t, "listening")["addr"].(string)
	return p
}

// getenv looks variables up in env, with a free port for ADDR by default.
func getenv(env map[string]string) func(string) string {
	return func(name string) string {
		if value, ok := env[name]; ok || name != "ADDR" {
			return value
		}
		return "127.0.0.1:0"
	}
}

// An output collects what is written to it and hands it out line by line.
type output struct {
	mu    sync.Mutex
	all   bytes.Buffer
	lines chan string
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all.Write(p)
	o.lines <- string(p) // slog writes a line at once
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.all.String()
}

// next waits for the next line whose msg is the one given, and returns it parsed.
func (o *output) next(t *testing.T, msg string) map[string]any {
	t.Helper()
	for {
		select {
		case line := <-o.lines:
			var record map[string]any
			if json.Unmarshal([]byte(line), &record) == nil && record["msg"] == msg {
				return record
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no log line %q came; the log is:\n%s", msg, o)
		}
	}
}

func TestSandboxFromStartToStop(t *testing.T) {
	p := startProgram(t, nil, "-sandbox")
	resp, err := http.Post(p.url+"/openid", "", strings.NewReader(`{"code":"the code is a mock one"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got user
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || resp.StatusCode != 200 || len(got.OpenID) != 28 {
		t.Errorf("got %d %+v %v, want 200 and an openid of 28 characters", resp.StatusCode, got, err)
	}
	if code := p.stop(); code != 0 {
		t.Errorf("got exit code %d, want 0; the log is:\n%s", code, p.log)
	}
}
