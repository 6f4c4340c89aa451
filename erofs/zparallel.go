package erofs

import (
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// zHelpers are the goroutines that may help others to decode: one for each CPU
// but one, as the runtime counted them before the program asked for more.
var zHelpers = make(chan struct{}, max(runtime.GOMAXPROCS(0)-1, 0))

// zCost is about how many nanoseconds a codec takes for 16 bytes of output.
var zCost = [disk.AlgEnd]int64{disk.AlgLZ4: 12, disk.AlgLZMA: 160, disk.AlgDeflate: 50, disk.AlgZstd: 30}

// zShare is the work, in nanoseconds, that it pays to give to another goroutine.
const zShare = 50_000

// zParallel calls fn for each extent of a batch, with the help of idle CPUs if
// there is enough to do. After an error the rest may be left out; failed is the
// first extent with one. A panic of fn is one of zParallel.
func zParallel(batch []zExtent, fn func(*zExtent) error) (failed int, err error) {
	helpers := getHelpers(batch)
	if helpers == 0 {
		for i := range batch {
			if err := fn(&batch[i]); err != nil {
				return i, err
			}
		}
		return 0, nil
	}
	w := zWork{batch: batch, fn: fn, failed: len(batch)}
	var wg sync.WaitGroup
	for range helpers {
		wg.Go(func() {
			defer func() { <-zHelpers }()
			w.run()
		})
	}
	w.run()
	wg.Wait()
	if w.panicked != nil {
		panic(w.panicked)
	}
	return w.failed, w.err
}

// getHelpers takes as many helpers as are free and of use.
func getHelpers(batch []zExtent) (n int) {
	if len(batch) < 2 {
		return 0
	}
	var work int64
	for i := range batch {
		if e := &batch[i]; e.compressed() {
			work += (e.end - e.la) * zCost[e.kind] / 16
		}
	}
	for most := min(work/zShare-1, int64(len(batch)-1)); int64(n) < most; n++ {
		select {
		case zHelpers <- struct{}{}:
		default:
			return n
		}
	}
	return n
}

// zWork is a batch that several goroutines decode.
type zWork struct {
	batch []zExtent
	fn    func(*zExtent) error
	next  atomic.Int64

	mu       sync.Mutex
	failed   int   // GUARDED_BY(mu)
	err      error // GUARDED_BY(mu)
	panicked any   // GUARDED_BY(mu)
}

// run decodes extents until there are none left.
func (w *zWork) run() {
	defer func() {
		if r := recover(); r != nil {
			w.next.Store(int64(len(w.batch)))
			w.mu.Lock()
			defer w.mu.Unlock()
			w.panicked = r
		}
	}()
	for {
		i := int(w.next.Add(1) - 1)
		if i >= len(w.batch) {
			return
		}
		if err := w.fn(&w.batch[i]); err != nil {
			w.next.Store(int64(len(w.batch))) // those before i are taken already
			w.mu.Lock()
			if i < w.failed {
				w.failed, w.err = i, err
			}
			w.mu.Unlock()
			return
		}
	}
}
