package main

import (
	"io"
	"log/slog"
	"os"
	"sync"
)

// maxWaiting bounds the lines that wait to be written, in bytes.
const maxWaiting = 256 << 10

// newLogger logs text to a terminal, and JSON to anything else, in the background.
// What it has logged is written when flush returns.
func newLogger(stderr io.Writer) (logger *slog.Logger, flush func()) {
	file, _ := stderr.(*os.File)
	if info, err := file.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		return slog.New(slog.NewTextHandler(stderr, nil)), func() {}
	}
	w := &logWriter{out: stderr, some: make(chan struct{}, 1)}
	go func() {
		for range w.some {
			w.flush()
		}
	}()
	return slog.New(slog.NewJSONHandler(w, nil)), w.flush
}

// A logWriter writes lines as soon as it can, all that have come by then at once: a
// write for each would cost more, and no request is to wait while the log is slow.
type logWriter struct {
	some chan struct{} // there are lines

	mu    sync.Mutex
	lines []byte

	writing sync.Mutex
	out     io.Writer
	spare   []byte // the lines before, to be overwritten
}

func (w *logWriter) Write(line []byte) (int, error) {
	w.mu.Lock()
	w.lines = append(w.lines, line...)
	waiting := len(w.lines)
	w.mu.Unlock()
	if waiting > maxWaiting {
		w.flush()
	} else if waiting == len(line) {
		select {
		case w.some <- struct{}{}:
		default: // they are as good as seen
		}
	}
	return len(line), nil
}

func (w *logWriter) flush() {
	w.writing.Lock()
	defer w.writing.Unlock()
	w.mu.Lock()
	lines := w.lines
	w.lines = w.spare[:0]
	w.mu.Unlock()
	if len(lines) > 0 {
		w.out.Write(lines)
	}
	w.spare = lines
}
