package holder

import (
	"context"
	"fmt"
	"io"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"
)

// Settings of a process that is nothing but a holder, so that it stays small: its heap
// has some MiB at most, and what it does needs no second CPU.
const (
	gcPercent   = 20
	memoryLimit = 16 << 20
)

// DefaultAbandonAfter is how long a name may be without a client, by default.
const DefaultAbandonAfter = 5 * time.Minute

// Run is the whole of a holder's process: it serves at path until SIGTERM or SIGINT,
// writes "ready" on a line of its own to stdout when it listens, and its log to stderr.
// Nobody has to read the log: lines that can't be written are dropped. What has had no
// client for abandonAfter that put or deleted anything is let go of; 0: nothing is.
//
// Errors: those of Serve; that ready can't be written.
func Run(ctx context.Context, path string, abandonAfter time.Duration, stdout, stderr io.Writer) error {
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP) // neither a reader nor a terminal that goes may end it
	l := startLogger(stderr)
	defer l.end()
	var readyErr error
	err := serve(ctx, path, abandonAfter, l.log, func() {
		if _, err := fmt.Fprintln(stdout, "ready"); err != nil {
			readyErr = fmt.Errorf("nobody reads ready: %w: keep stdout open", err)
			stop()
		}
	})
	if err == nil {
		err = readyErr
	}
	return err
}

// logger writes lines from a goroutine of its own, so that nobody waits for their
// reader.
type logger struct {
	lines chan string
	done  chan struct{}

	mu      sync.Mutex
	ended   bool // GUARDED_BY(mu)
	dropped int  // GUARDED_BY(mu); lines, since the last that was not
}

func startLogger(out io.Writer) *logger {
	l := &logger{lines: make(chan string, 64), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		for line := range l.lines {
			_, _ = io.WriteString(out, line) // there is no other place to tell
		}
	}()
	return l
}

func (l *logger) log(format string, args ...any) {
	line := time.Now().UTC().Format("2006-01-02T15:04:05.000Z ") + fmt.Sprintf(format, args...)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	if l.dropped > 0 {
		line += fmt.Sprintf(" (%d lines before this one could not be written)", l.dropped)
	}
	select {
	case l.lines <- line + "\n":
		l.dropped = 0
	default:
		l.dropped++
	}
}

// end waits for the last lines to be written, if somebody reads them.
func (l *logger) end() {
	l.mu.Lock()
	l.ended = true
	close(l.lines)
	l.mu.Unlock()
	select {
	case <-l.done:
	case <-time.After(100 * time.Millisecond):
	}
}
