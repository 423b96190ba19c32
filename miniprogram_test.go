package main

import (
	"context"
	"encoding/json"
	"os/exec"
	"testing"
	"time"
)

// TestMiniProgram runs the sample mini program against services that run here.
func TestMiniProgram(t *testing.T) {
	t.Parallel()
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("node is not on PATH, and testing the sample mini program needs Node.js 18 or later")
	}
	services := must(json.Marshal(map[string]string{
		"appid":   testAppID,
		"sandbox": startProgram(t, credentials(), "-sandbox").url,
		"hasty":   startProgram(t, credentials("WX_TIMEOUT", "100ms"), "-sandbox").url,
		"cutoff":  startProgram(t, credentials("WX_BASE_URL", nobody)).url,
	}))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	output, err := exec.CommandContext(ctx, node, "testdata/miniprogram/test.js", string(services)).CombinedOutput()
	t.Logf("%s", output)
	if err != nil {
		t.Fatalf("node: %v", err)
	}
}
