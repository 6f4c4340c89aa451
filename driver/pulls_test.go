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

// slowPull is a store whose pulls take a minute, and a caller with a second.
func slowPull(t *testing.T, run func(p *pulls, store *fakeStore, short context.Context)) {
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
		run(p, store, short)
		synctest.Wait()
		if len(p.running) != 0 || store.pinned() != 0 {
			t.Errorf("%d pulls, %d pins are left", len(p.running), store.pinned())
		}
	})
}

func TestPullIsJoined(t *testing.T) {
	slowPull(t, func(p *pulls, store *fakeStore, _ context.Context) {
		start := time.Now()
		img, err := p.acquire(context.Background(), "v", imageARef, nodecache.AcquireOptions{})
		if err != nil || time.Since(start) != 59*time.Second || store.acquired != 1 {
			t.Fatalf("%v after %s and %d pulls", err, time.Since(start), store.acquired)
		}
		img.Release()
	})
}

func TestPullWaitsForTheNextCall(t *testing.T) {
	slowPull(t, func(p *pulls, store *fakeStore, _ context.Context) {
		time.Sleep(time.Minute + pullLinger - 2*time.Second)
		start := time.Now()
		img, err := p.acquire(context.Background(), "v", imageARef, nodecache.AcquireOptions{})
		if err != nil || time.Since(start) != 0 || store.acquired != 1 {
			t.Fatalf("%v after %s and %d pulls", err, time.Since(start), store.acquired)
		}
		img.Release()
	})
}

func TestPullIsGivenUp(t *testing.T) {
	t.Run("nobody comes", func(t *testing.T) {
		slowPull(t, func(*pulls, *fakeStore, context.Context) { time.Sleep(time.Minute + pullLinger) })
	})
	t.Run("cancelled while it runs", func(t *testing.T) {
		slowPull(t, func(p *pulls, _ *fakeStore, _ context.Context) { p.cancel("v") })
	})
	t.Run("cancelled when it is done", func(t *testing.T) {
		slowPull(t, func(p *pulls, _ *fakeStore, _ context.Context) {
			time.Sleep(2 * time.Minute)
			p.cancel("v")
		})
	})
	t.Run("another secret", func(t *testing.T) {
		slowPull(t, func(p *pulls, store *fakeStore, _ context.Context) {
			img, err := p.acquire(context.Background(), "v", imageARef, nodecache.AcquireOptions{DockerConfig: []byte("{}")})
			if err != nil || store.acquired != 1 {
				t.Fatalf("%v, %d pulls ended well", err, store.acquired)
			}
			img.Release()
		})
	})
	t.Run("the late call is late again", func(t *testing.T) {
		slowPull(t, func(p *pulls, _ *fakeStore, short context.Context) {
			if _, err := p.acquire(short, "v", imageARef, nodecache.AcquireOptions{}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want the deadline", err)
			}
			time.Sleep(time.Minute + pullLinger)
		})
	})
}

func TestFailedPullIsForgotten(t *testing.T) {
	slowPull(t, func(p *pulls, store *fakeStore, _ context.Context) {
		store.set(imageARef, "")
		_, err := p.acquire(context.Background(), "v", imageARef, nodecache.AcquireOptions{})
		if !errors.Is(err, nodecache.ErrNotFound) {
			t.Errorf("got %v", err)
		}
	})
}
