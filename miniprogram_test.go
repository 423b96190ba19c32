package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os/exec"
	"testing"
	"time"
)

// runNode runs a program of testdata/miniprogram with the addresses of services, and returns what it prints.
func runNode(t *testing.T, script string, services map[string]string) []byte {
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("node is not on PATH, and testing the sample mini program needs Node.js 18 or later")
	}
	services["appid"] = testAppID
	arg, err := json.Marshal(services)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	output, err := exec.CommandContext(ctx, node, "testdata/miniprogram/"+script, string(arg)).CombinedOutput()
	t.Logf("%s", output)
	if err != nil {
		t.Fatalf("node: %v", err)
	}
	return output
}

// TestMiniProgram runs the sample mini program against services that run here.
func TestMiniProgram(t *testing.T) {
	runNode(t, "test.js", map[string]string{
		"sandbox": startProgram(t, credentials(), "-sandbox").url,
		"hasty":   startProgram(t, credentials("WX_TIMEOUT", "100ms"), "-sandbox").url,
		"cutoff":  startProgram(t, credentials("WX_BASE_URL", nobody)).url,
	})
}

// TestOwnBackEnd runs the back end of the READMEs, and finds the ids of its log in the service's.
func TestOwnBackEnd(t *testing.T) {
	service := startProgram(t, credentials(), "-sandbox")
	output := runNode(t, "backend.js", map[string]string{"sandbox": service.url})
	lines := bytes.Split(bytes.TrimSpace(output), []byte("\n"))
	if len(lines) != 4 {
		t.Fatalf("got %d lines from the back end, want 4", len(lines))
	}
	for _, line := range lines {
		want, _, _ := bytes.Cut(line, []byte(" "))
		if got := service.log.next(t, "request")["request_id"]; got != string(want) {
			t.Errorf("the service logged request id %v, want the back end's %s", got, want)
		}
	}
}
