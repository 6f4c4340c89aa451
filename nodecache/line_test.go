package nodecache

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"
)

// narrow is a line of so many bytes a second, which all answers share.
type narrow struct {
	rate int64
	mu   sync.Mutex
	free time.Time // GUARDED_BY(mu)
}

func (l *narrow) send(n int) {
	l.mu.Lock()
	if now := time.Now(); l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(n) * time.Second / time.Duration(l.rate))
	until := l.free
	l.mu.Unlock()
	time.Sleep(time.Until(until))
}

// overLine is a registry behind a narrow line, 20 ms away.
func overLine(t *testing.T, p pushed, rate int64) *proxy {
	front, line := newProxy(t, openRegistry(t)), &narrow{rate: rate}
	front.set(func(w http.ResponseWriter, r *http.Request) bool {
		lo, hi := rangeOf(r)
		if hi == 0 {
			return false
		}
		time.Sleep(20 * time.Millisecond)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", lo, hi-1, len(p.content)))
		w.WriteHeader(http.StatusPartialContent)
		for lo < hi && r.Context().Err() == nil {
			n := min(hi-lo, 16<<10)
			line.send(n)
			if _, err := w.Write(p.content[lo : lo+n]); err != nil {
				break
			}
			lo += n
		}
		return true
	})
	return front
}

// TestLazyBringsOnce reads an image, of another place first, while it comes over a line
// that is slower than the reader: what it reads comes from the streams, which go ahead
// of it, and nothing comes twice.
func TestLazyBringsOnce(t *testing.T) {
	const size = 24 << 20
	p := pushImage(t, 1, size)
	front := overLine(t, p, 10<<20)
	s := openStore(t, Config{})
	s.lazySpan = lazySpan
	img := acquire(t, s, front.through(p), AcquireOptions{Lazy: true})
	if lo, hi := rangeOf(front.seen("/blobs/")[0]); lo != 0 || hi > 1<<20 {
		t.Errorf("the first request is for bytes %d to %d", lo, hi)
	}
	wantRead(t, img.Blob(), p.content, 20<<20, 1000)
	var wg sync.WaitGroup
	for g := range 3 { // as many reads at once as are made for one reader of a file
		wg.Go(func() {
			for off := g << 20; off < size; off += 3 << 20 {
				wantRead(t, img.Blob(), p.content, off, 1<<20)
			}
		})
	}
	wg.Wait()
	settle(t, img)
	if n := front.blobBytes.Load(); n > size+2*chunkSize {
		t.Errorf("%d bytes were sent of a blob of %d", n, size)
	}
}

// TestLazyStreamsGoOn: while readers' requests are under way, for however long, the
// streams bring the rest.
func TestLazyStreamsGoOn(t *testing.T) {
	const size = 24 << 20
	p := pushImage(t, 1, size)
	front := newProxy(t, openRegistry(t))
	hold := make(chan struct{})
	release := sync.OnceFunc(func() { close(hold) })
	defer release()
	front.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if lo, hi := rangeOf(r); hi-lo == chunkSize { // a reader's
			select {
			case <-hold:
			case <-r.Context().Done():
			}
		}
		return false
	})
	s := openStore(t, Config{})
	img := acquire(t, s, front.through(p), AcquireOptions{Lazy: true})
	read := make(chan struct{})
	go func() {
		defer close(read)
		wantRead(t, img.Blob(), p.content, size-10, 10)
	}()
	const want = size - chunkSize
	start := time.Now()
	for have, _ := img.Progress(); have < want; have, _ = img.Progress() {
		if time.Since(start) > 10*time.Second {
			t.Fatalf("%d bytes of %d are there", have, want)
		}
		time.Sleep(time.Millisecond)
	}
	release()
	<-read
	settle(t, img)
}
