package main

import (
	"context"
	"encoding/json"
	"os/exec"
	"testing"
	"time"
)

// TestMiniProgram runs testdata/miniprogram/test.js, which tests the sample mini program with
// Node.js against services that run here.
func TestMiniProgram(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("node is not on PATH, and testing the sample mini program needs Node.js 18 or later")
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
	output, err := exec.CommandContext(ctx, node, "testdata/miniprogram/test.js", string(services)).CombinedOutput()
	t.Logf("%s", output)
	if err != nil {
		t.Errorf("node: %v", err)
	}
}
