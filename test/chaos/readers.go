package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// roleEnv makes this program something else than the harness.
const roleEnv = "EROFS_CSI_CHAOS_ROLE"

const (
	roleReader = "reader"
	roleInside = "inside" // the harness, in a mount namespace of its own
)

// readerProcess is a reader that was started.
type readerProcess struct {
	*process
	dir    string
	counts *counts
	said   string // its stderr
}

// startReader starts a reader of a mount, which ends after limit operations, if it is not 0.
func (w *world) startReader(im *image, dir string, limit int, pause time.Duration) (*readerProcess, error) {
	name := fmt.Sprintf("reader-%d", w.serial.Add(1))
	r := &readerProcess{dir: dir, said: w.path("readers", name+".log")}
	counts, err := mapFile[counts](w.path("readers", name), true)
	if err != nil {
		return nil, err
	}
	r.counts = counts
	log, err := os.Create(r.said)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command("/proc/self/exe", "-dir", dir, "-truth", im.truth, "-control", w.path("control"), "-counts", w.path("readers", name),
		"-limit", fmt.Sprint(limit), "-seed", fmt.Sprint(w.serial.Load()), "-pause", pause.String())
	cmd.Env = append(os.Environ(), roleEnv+"="+roleReader, "GOMAXPROCS=2")
	cmd.Stderr = log
	r.process, err = follow(name, cmd)
	return r, err
}

// verify has a reader read some of a mount and returns what was wrong.
func (w *world) verify(ctx context.Context, im *image, dir string, operations int) error {
	r, err := w.startReader(im, dir, operations, 0)
	if err != nil {
		return err
	}
	select {
	case <-r.gone:
	case <-ctx.Done():
		return errors.Join(ctx.Err(), r.kill())
	case <-time.After(patience):
		return errors.Join(fmt.Errorf("a reader of %s hangs: %s", dir, stackOf(r.pid())), r.kill())
	}
	if r.err != nil || r.counts.errors.Load()+r.counts.wrong.Load()+r.counts.lenient.Load() > 0 {
		return errors.Join(r.err, fmt.Errorf("reader of %s: %d errors, %d wrong: %s", dir,
			r.counts.errors.Load()+r.counts.lenient.Load(), r.counts.wrong.Load(), r.words()))
	}
	return nil
}

// words is what the reader said, not too long.
func (r *readerProcess) words() string {
	text, _ := os.ReadFile(r.said)
	lines := strings.SplitN(string(text), "\n", 9)
	return strings.Join(lines[:min(len(lines), 8)], "\n")
}

// stopReaders ends all readers: half by SIGKILL, in the middle of what they do.
func (w *world) stopReaders(res *result) {
	for i, r := range w.readers {
		if i%2 == 0 {
			_ = r.cmd.Process.Signal(syscall.SIGTERM)
		}
	}
	for i, r := range w.readers {
		if i%2 == 0 {
			select {
			case <-r.gone:
			case <-time.After(unkillable):
				res.failf("a reader of %s does not end: %s", r.dir, stackOf(r.pid()))
			}
		}
		if err := r.kill(); err != nil {
			res.unkillable++
			res.fail(err)
		}
		res.count(r)
	}
	w.readers = nil
}

// stuck names a reader that waits for one thing longer than stuckLimit.
func (w *world) stuck() error {
	for _, r := range w.readers {
		if since := r.counts.since.Load(); since > 0 && monotonic()-time.Duration(since) > stuckLimit {
			return fmt.Errorf("a reader of %s waits for %v: %s", r.dir, monotonic()-time.Duration(since), stackOf(r.pid()))
		}
	}
	return nil
}
