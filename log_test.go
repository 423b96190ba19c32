package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// A gate takes nothing until it is open.
type gate struct {
	open chan struct{}
	bytes.Buffer
}

func (g *gate) Write(p []byte) (int, error) {
	<-g.open
	return g.Buffer.Write(p)
}

func TestLogIsWrittenInTheBackground(t *testing.T) {
	t.Parallel()
	out := &gate{open: make(chan struct{})}
	logger, flush := newLogger(out)
	for i := range 500 {
		logger.Info("line", "i", i) // and comes back, though out does not
	}
	close(out.open)
	flush()
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 500 {
		t.Fatalf("got %d lines, want 500", len(lines))
	}
	for i, line := range lines {
		if want := fmt.Sprintf(`"msg":"line","i":%d}`, i); !strings.HasSuffix(line, want) {
			t.Fatalf("got %s as line %d, want %s at its end", line, i, want)
		}
	}
}

func TestLogThatIsNotWrittenIsBounded(t *testing.T) {
	t.Parallel()
	var out, want bytes.Buffer
	w := &logWriter{out: &out, some: make(chan struct{}, 1)} // whose lines nobody else writes
	for i := range 3 * maxWaiting / 100 {
		line := fmt.Appendf(nil, "%0100d\n", i)
		want.Write(line)
		w.Write(line)
		if waiting := want.Len() - out.Len(); waiting > maxWaiting {
			t.Fatalf("got %d bytes that wait, want %d at most", waiting, maxWaiting)
		}
	}
	w.flush()
	if !bytes.Equal(out.Bytes(), want.Bytes()) {
		t.Errorf("got %d bytes in the end, want the %d that were logged, in order", out.Len(), want.Len())
	}
}
