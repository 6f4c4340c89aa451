package main

import (
	"fmt"
	"math/bits"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Readers are processes, and must be counted also when they can't be asked any more. So
// what they did is in files that they and the harness have mapped.

// control is what the harness tells all readers.
type control struct {
	// outage is odd while the engine is down, and grows by one with each change.
	outage atomic.Uint64
	// lenient counts errors apart: those of a time in which they are to be expected.
	lenient atomic.Uint32
}

// buckets is the number of a histogram's: eight for each power of two of nanoseconds.
const buckets = 64 * 8

// histogram counts durations.
type histogram [buckets]atomic.Uint64

func bucket(d time.Duration) int {
	n := uint64(max(d, 8))
	shift := bits.Len64(n) - 4
	return shift*8 + int(n>>shift)&7
}

// upper is the longest duration of a bucket.
func upper(b int) time.Duration {
	return time.Duration((8+uint64(b&7)+1)<<(b>>3) - 1)
}

// counts is what one reader did.
type counts struct {
	steps  atomic.Uint64 // system calls and faults
	bytes  atomic.Uint64 // compared
	errors atomic.Uint64
	wrong  atomic.Uint64 // bytes, attributes or names that are not those of the image
	// lenient are the errors while errors are to be expected.
	lenient atomic.Uint64
	// since is when the step under way began, CLOCK_MONOTONIC in ns; 0: none is.
	since atomic.Int64

	all    histogram // all steps
	struck histogram // those under way when the engine was killed
	waited histogram // those that were under way or began while it was down
}

// mapFile maps a file as a T that other processes see.
func mapFile[T any](path string, create bool) (*T, error) {
	size := int(unsafe.Sizeof(*new(T)))
	flags := os.O_RDWR
	if create {
		flags |= os.O_CREATE | os.O_EXCL
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if create {
		if err := f.Truncate(int64(size)); err != nil {
			return nil, err
		}
	}
	data, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	return (*T)(unsafe.Pointer(unsafe.SliceData(data))), nil
}

// monotonic is CLOCK_MONOTONIC, which all processes share.
func monotonic() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // it exists
	return time.Duration(ts.Nano())
}

// durations sums histograms.
type durations [buckets]uint64

func (d *durations) add(h *histogram) {
	for i := range h {
		d[i] += h[i].Load()
	}
}

func (d *durations) count() (n uint64) {
	for _, c := range d {
		n += c
	}
	return n
}

// percentile is the duration that a part p of all, from 0 to 1, do not exceed, rounded
// up by an eighth at the most.
func (d *durations) percentile(p float64) time.Duration {
	rest := uint64(p * float64(d.count()))
	for i, c := range d {
		if c > rest {
			return upper(i)
		}
		rest -= c
	}
	return d.longest()
}

func (d *durations) longest() time.Duration {
	for i := buckets - 1; i >= 0; i-- {
		if d[i] > 0 {
			return upper(i)
		}
	}
	return 0
}
