package engine

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// thing records its life: at most one of a key may be alive at a time.
type thing struct{ alive *atomic.Int32 }

func TestPoolOneOfAKeyIsAliveWhileHeld(t *testing.T) {
	var alive [4]atomic.Int32
	var made, unmade atomic.Int32
	p := newPool[int](func(v thing) error {
		unmade.Add(1)
		if v.alive.Add(-1) != 0 {
			t.Error("unmade twice, or two of a key were alive")
		}
		return nil
	})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 500 {
				key := rand.IntN(len(alive))
				ctx, cancel := context.WithCancel(context.Background())
				if rand.IntN(3) == 0 {
					cancel() // gives up at once if it has to wait
				}
				it, err := p.acquire(ctx, key, func() (thing, error) {
					if rand.IntN(4) == 0 {
						return thing{}, errors.New("can't be made")
					}
					made.Add(1)
					if alive[key].Add(1) != 1 {
						t.Error("two of a key are alive")
					}
					return thing{&alive[key]}, nil
				})
				cancel()
				if err != nil {
					continue
				}
				if alive[key].Load() != 1 {
					t.Error("held but not alive")
				}
				if err := p.release(it); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	// Who gave up lets go in the background.
	left := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.items)
	}
	for deadline := time.Now().Add(time.Minute); left() > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if left() != 0 || made.Load() != unmade.Load() || made.Load() == 0 {
		t.Errorf("%d items left, %d made, %d unmade", left(), made.Load(), unmade.Load())
	}
}

func TestPoolReturnsTheErrorOfDestroyToTheLast(t *testing.T) {
	boom := errors.New("boom")
	p := newPool[string](func(int) error { return boom })
	var items []*item[string, int]
	for range 2 {
		it, err := p.acquire(t.Context(), "k", func() (int, error) { return 1, nil })
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, it)
	}
	if got := p.snapshot(); len(got) != 1 || got[0] != 1 {
		t.Errorf("snapshot = %+v, want the one thing", got)
	}
	if err := p.release(items[0]); err != nil {
		t.Errorf("the first of two releases: %v", err)
	}
	if err := p.release(items[1]); !errors.Is(err, boom) {
		t.Errorf("the last release: %v, want %v", err, boom)
	}
	if len(p.items) != 0 {
		t.Error("an item stays in the pool after its destruction failed")
	}
}
