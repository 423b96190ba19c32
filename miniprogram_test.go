package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"testing"
	"time"
)

// TestMiniProgram runs the page of the sample mini program under Node.js, against services
// that run here. testdata/miniprogram stands in for WeChat and plays the scenarios.
func TestMiniProgram(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("node is not on PATH, and the sample mini program needs Node.js 18 or later to be tested")
	}
	const appID = "wx0123456789abcdef"
	start := func(setting, value string, args ...string) string {
		return startProgram(t, map[string]string{
			"WX_APPID":     appID,
			"WX_APPSECRET": "0123456789abcdef0123456789abcdef",
			setting:        value,
		}, args...).url
	}
	services, err := json.Marshal(map[string]string{
		"appid":   appID,
		"sandbox": start("WX_TIMEOUT", "5s", "-sandbox"),
		"hasty":   start("WX_TIMEOUT", "100ms", "-sandbox"),
		"cutoff":  start("WX_BASE_URL", "http://127.0.0.1:1"),
	})
	if err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, node, "testdata/miniprogram/run.js", string(services))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.Output()
	if err != nil {
		t.Errorf("node: got %v, want exit status 0\n%s", err, &stderr)
	}

	played := 0
	for lines := json.NewDecoder(bytes.NewReader(stdout)); ; played++ {
		var scenario struct{ Name, Problem string }
		if err := lines.Decode(&scenario); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("got output that is not JSON: %v\n%s", err, stdout)
		}
		t.Run(scenario.Name, func(t *testing.T) {
			if scenario.Problem != "" {
				t.Error(scenario.Problem)
			}
		})
	}
	if played == 0 {
		t.Error("got no scenario, want some")
	}
}
