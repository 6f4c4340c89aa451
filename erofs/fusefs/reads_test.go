package fusefs

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// The oldest read is the one that waits the longest, however many others come and go.
func TestOldestRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &readCounter{epoch: time.Now()}
		if got := c.oldest(); got != 0 {
			t.Errorf("%v without a read, want 0", got)
		}
		time.Sleep(time.Second)
		first := c.begin(nil, 0)
		time.Sleep(time.Second)
		second := c.begin(nil, 0)
		for range 3 * readPlaces {
			c.end(c.begin(nil, 0), fuse.ReadResultData([]byte("abc")), fuse.OK)
		}
		time.Sleep(time.Second)
		if got := c.oldest(); got != 2*time.Second {
			t.Errorf("oldest %v, want 2s", got)
		}
		c.end(first, nil, fuse.EIO)
		if got := c.oldest(); got != time.Second {
			t.Errorf("oldest %v, want 1s", got)
		}
		c.end(second, &aheadResult{parts: [][]byte{make([]byte, 3), make([]byte, 4)}}, fuse.OK)
		if got := c.oldest(); got != 0 {
			t.Errorf("%v after the last read, want 0", got)
		}
		if got, want := c.image.count(), (Served{3 * readPlaces, 9 * readPlaces}); got != want {
			t.Errorf("from the image %v, want %v", got, want)
		}
		if got, want := c.ahead.count(), (Served{1, 7}); got != want {
			t.Errorf("read ahead %v, want %v", got, want)
		}
		if got := c.failed.Load(); got != 1 {
			t.Errorf("%d failed, want 1", got)
		}
	})
}

// More reads at once than there are places are served as well, and give back no
// place that is another's.
func TestManyReadsAtOnce(t *testing.T) {
	c := &readCounter{epoch: time.Now()}
	var places []*readPlace
	for range 2 * readPlaces {
		places = append(places, c.begin(nil, 0))
	}
	seen := make(map[*readPlace]bool)
	for _, p := range places {
		if p != nil && seen[p] {
			t.Fatal("two reads have one place")
		}
		seen[p] = true
	}
	var all sync.WaitGroup
	for _, p := range places {
		all.Go(func() { c.end(p, fuse.ReadResultData(nil), fuse.OK) })
	}
	all.Wait()
	if got := c.oldest(); got != 0 {
		t.Errorf("%v after all reads, want 0", got)
	}
	if got := c.image.count().Requests; got != 2*readPlaces {
		t.Errorf("%d reads counted, want %d", got, 2*readPlaces)
	}
}

// BenchmarkCountRead is what counting costs a request.
func BenchmarkCountRead(b *testing.B) {
	c := &readCounter{epoch: time.Now()}
	r := fuse.ReadResultData(make([]byte, 10))
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			c.end(c.begin(nil, 0), r, fuse.OK)
		}
	})
}
