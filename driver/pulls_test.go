package driver

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/erofs-csi/erofs-csi/nodecache"
)

const imageARef = "registry.example/a:1"

// slowCase is what the tests of slowPull work with.
type slowCase struct {
	*pulls
	store *fakeStore
	short context.Context // has ended
}

// slowPull is a store whose pulls take a minute, and a caller with a second.
func slowPull(t *testing.T, run func(c slowCase)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		store := newFakeStore()
		store.acquire = func(ctx context.Context, _ string, _ nodecache.AcquireOptions) error {
			select {
			case <-time.After(time.Minute):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		p := newPulls(store)
		short, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := p.acquire(short, "v", imageARef, nodecache.AcquireOptions{})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the deadline", err)
		}
		run(slowCase{p, store, short})
		synctest.Wait()
		if len(p.running) != 0 || store.pinned() != 0 {
			t.Errorf("%d pulls, %d pins are left", len(p.running), store.pinned())
		}
	})
}

func TestPullIsJoined(t *testing.T) {
	slowPull(t, func(c slowCase) {
		start := time.Now()
		img, err := c.acquire(context.Background(), "v", imageARef, nodecache.AcquireOptions{})
		if err != nil || time.Since(start) != 59*time.Second || c.store.acquired != 1 {
			t.Fatalf("%v after %s and %d pulls", err, time.Since(start), c.store.acquired)
		}
		img.Release()
	})
}

func TestPullWaitsForTheNextCall(t *testing.T) {
	slowPull(t, func(c slowCase) {
		time.Sleep(time.Minute + pullLinger - 2*time.Second)
		start := time.Now()
		img, err := c.acquire(context.Background(), "v", imageARef, nodecache.AcquireOptions{})
		if err != nil || time.Since(start) != 0 || c.store.acquired != 1 {
			t.Fatalf("%v after %s and %d pulls", err, time.Since(start), c.store.acquired)
		}
		img.Release()
	})
}

func TestPullIsGivenUp(t *testing.T) {
	t.Run("nobody comes", func(t *testing.T) {
		slowPull(t, func(slowCase) { time.Sleep(time.Minute + pullLinger) })
	})
	t.Run("cancelled while it runs", func(t *testing.T) {
		slowPull(t, func(c slowCase) { c.cancel("v") })
	})
	t.Run("cancelled when it is done", func(t *testing.T) {
		slowPull(t, func(c slowCase) {
			time.Sleep(2 * time.Minute)
			c.cancel("v")
		})
	})
	t.Run("another secret", func(t *testing.T) {
		slowPull(t, func(c slowCase) {
			img, err := c.acquire(context.Background(), "v", imageARef, nodecache.AcquireOptions{DockerConfig: []byte("{}")})
			if err != nil || c.store.acquired != 1 {
				t.Fatalf("%v, %d pulls ended well", err, c.store.acquired)
			}
			img.Release()
		})
	})
	t.Run("the late call is late again", func(t *testing.T) {
		slowPull(t, func(c slowCase) {
			if _, err := c.acquire(c.short, "v", imageARef, nodecache.AcquireOptions{}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want the deadline", err)
			}
			time.Sleep(time.Minute + pullLinger)
		})
	})
}

func TestFailedPullIsForgotten(t *testing.T) {
	slowPull(t, func(c slowCase) {
		c.store.set(imageARef, "")
		_, err := c.acquire(context.Background(), "v", imageARef, nodecache.AcquireOptions{})
		if !errors.Is(err, nodecache.ErrNotFound) {
			t.Errorf("got %v", err)
		}
	})
}
