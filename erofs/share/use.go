package share

import (
	"sync/atomic"
	"time"
)

// Use is how much of a file the kernel may have in its page cache, as far as its
// server can know: what it asked for since the pages were last dropped. It may
// have less, when it has reclaimed pages, and never more. The zero value is that
// of a file nobody has read. All methods may be called concurrently.
type Use struct {
	// v is when the kernel last asked for bytes, in ticks (32 bits), and how many
	// pages it may hold (32 bits).
	v atomic.Uint64
}

const (
	// usePage is the unit in which pages are counted, in bytes. Of files of 16 TiB
	// and more no more are counted.
	usePage = 4096
	// tickBits makes a tick 2^20 ns, about a millisecond, and the clock turn around
	// after 52 days.
	tickBits = 20
)

// Served notes that the kernel got n bytes, at the time now, of a file of the given
// size. It returns how many more bytes it may hold than before, in whole pages.
func (u *Use) Served(n, size int64, now time.Time) (more int64) {
	tick := uint64(uint32(now.UnixNano() >> tickBits))
	for {
		old := u.v.Load()
		pages := old & (1<<32 - 1)
		held := min(pages+pagesOf(n), pagesOf(size))
		held = max(held, pages)
		if u.v.CompareAndSwap(old, tick<<32|held) {
			return int64(held-pages) * usePage
		}
	}
}

func pagesOf(bytes int64) uint64 {
	return min(uint64(bytes+usePage-1)/usePage, 1<<32-1)
}

// Dropped notes that the pages are about to be dropped, and returns how many bytes
// of them there may have been.
func (u *Use) Dropped() int64 {
	for {
		old := u.v.Load()
		if u.v.CompareAndSwap(old, old>>32<<32) {
			return int64(old&(1<<32-1)) * usePage
		}
	}
}

// Held is at least as many bytes as the kernel holds.
func (u *Use) Held() int64 { return int64(u.v.Load()&(1<<32-1)) * usePage }

// Idle tells for how long, up to 52 days, the kernel has asked for no bytes.
func (u *Use) Idle(now time.Time) time.Duration {
	return time.Duration(uint32(now.UnixNano()>>tickBits)-uint32(u.v.Load()>>32)) << tickBits
}
