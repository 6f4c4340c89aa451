package driver

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestProberGivesUp: a question that never ends is asked once, whoever waits.
func TestProberGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProber(5 * time.Second)
		var asked atomic.Int32
		hung := make(chan struct{})
		question := func() (int, error) { asked.Add(1); <-hung; return 42, nil }
		for range 3 {
			start := time.Now()
			_, err := ask(context.Background(), p, "q", question)
			if !errors.Is(err, errNotResponding) || time.Since(start) != 5*time.Second {
				t.Errorf("%v after %s", err, time.Since(start))
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := ask(ctx, p, "q", question); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the context's error", err)
		}
		if n := asked.Load(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		if got, err := ask(context.Background(), p, "other", func() (string, error) { return "ok", nil }); got != "ok" || err != nil {
			t.Errorf("another question: %q, %v", got, err)
		}
		close(hung)
		synctest.Wait()
		if got, err := ask(context.Background(), p, "q", func() (int, error) { return 7, nil }); got != 7 || err != nil {
			t.Errorf("after the answer: %d, %v", got, err)
		}
	})
}

func TestDead(t *testing.T) {
	for err, want := range map[error]bool{
		nil: false,
		&os.PathError{Op: "lstat", Path: "/x", Err: syscall.ENOTCONN}: true,
		&os.PathError{Op: "lstat", Path: "/x", Err: syscall.ESTALE}:   true,
		&os.PathError{Op: "lstat", Path: "/x", Err: syscall.ENOENT}:   false,
		errNotResponding: false,
	} {
		if got := dead(err); got != want {
			t.Errorf("%v: %t, want %t", err, got, want)
		}
	}
}

func TestInflight(t *testing.T) {
	var f inflight
	release, ok := f.acquire("a", "b")
	if !ok {
		t.Fatal("an empty set refused")
	}
	if _, ok := f.acquire("c", "b"); ok {
		t.Error("b was given twice")
	}
	other, ok := f.acquire("c") // the refused call took nothing
	if !ok {
		t.Error("c is taken")
	}
	release()
	release() // once more does no harm
	if _, ok := f.acquire("a", "b"); !ok {
		t.Error("a and b were not given back")
	}
	other()
}
