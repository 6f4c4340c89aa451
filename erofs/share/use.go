package share

import "sync/atomic"

// Use is how much of a file the kernel may have in its page cache, as far as its
// server can know: what it asked for since the pages were last dropped. It may
// have less, when it has reclaimed pages, and never more. The zero value is that
// of a file nobody has read. All methods may be called concurrently.
type Use struct {
	held atomic.Int64 // bytes
	last atomic.Int64 // nanoseconds since 1970
}

// Served notes that the kernel got n bytes, at the time now, of a file of the given
// size. It returns how many more it may hold than before.
func (u *Use) Served(n, size, now int64) (more int64) {
	u.last.Store(now)
	for {
		old := u.held.Load()
		held := min(old+n, size)
		if held <= old {
			return 0
		}
		if u.held.CompareAndSwap(old, held) {
			return held - old
		}
	}
}

// Dropped notes that the pages are about to be dropped, and returns how many bytes
// of them there may have been.
func (u *Use) Dropped() int64 { return u.held.Swap(0) }

// Held is at least as many bytes as the kernel holds.
func (u *Use) Held() int64 { return u.held.Load() }

// Last is when the kernel last asked for bytes, in nanoseconds since 1970; 0: never.
func (u *Use) Last() int64 { return u.last.Load() }
