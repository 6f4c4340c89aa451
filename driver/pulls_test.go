package driver

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

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
		if !errors.Is(err, errPulling) {
			t.Errorf("got %v, want errPulling", err)
		}
		<-short.Done()
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
			if _, err := c.acquire(c.short, "v", imageARef, nodecache.AcquireOptions{}); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, errPulling) {
				t.Errorf("got %v, want the deadline", err)
			}
			time.Sleep(time.Minute + pullLinger)
		})
	})
}

// TestLateAnswer: a call is answered while the caller listens, the image's name and how far
// the pull is in the answer; one that is given up sooner ends at once.
func TestLateAnswer(t *testing.T) {
	for patience, want := range map[time.Duration]time.Duration{
		2 * time.Minute:  2*time.Minute - answerMargin,
		10 * time.Second: 9 * time.Second,
	} {
		synctest.Test(t, func(t *testing.T) {
			store := newFakeStore()
			store.acquire = func(ctx context.Context, _ string, opts nodecache.AcquireOptions) error {
				if opts.Progress == nil {
					t.Error("nobody is told how far it is")
				}
				<-ctx.Done()
				return ctx.Err()
			}
			p := newPulls(store)
			defer p.cancel("v")
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			start := time.Now()
			_, err := p.acquire(ctx, "v", imageARef, nodecache.AcquireOptions{})
			if took := time.Since(start); took != want || codeOf(ctx, err) != codes.DeadlineExceeded ||
				!strings.Contains(err.Error(), imageARef) || !strings.Contains(err.Error(), "has not been asked yet") {
				t.Errorf("after %s of %s: %v", took, patience, err)
			}
		})
	}
	slowPull(t, func(c slowCase) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		if _, err := c.acquire(ctx, "v", imageARef, nodecache.AcquireOptions{}); !errors.Is(err, context.Canceled) || time.Since(start) != time.Second {
			t.Errorf("%v after %s", err, time.Since(start))
		}
		c.cancel("v")
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
