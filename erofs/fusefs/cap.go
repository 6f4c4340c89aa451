package fusefs

import (
	"cmp"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/erofs-csi/erofs-csi/erofs/share"
)

// cacheCap keeps the page cache of the superblock below a limit. The server cannot
// see the page cache, but every page in it was a reply: what was served since the
// last drop is no less than what is there.
type cacheCap struct {
	limit atomic.Int64  // bytes; 0: none
	held  atomic.Int64  // sum of what the kernel may hold, bytes
	over  chan struct{} // wakes keepCap, capacity 1
}

// SetCacheLimit bounds the page cache of all files, in bytes; 0 takes the bound away.
// When more was served, the files that the kernel has not asked for the longest are
// dropped from it, whole, until an eighth of the limit is free. Pages that a process
// has mapped go as well, and come back when it touches them. Requests under way may
// exceed the limit for the moment.
func (f *FS) SetCacheLimit(bytes int64) {
	f.cap.limit.Store(bytes)
	f.wakeCap()
}

// CacheLimit is the limit set, 0 without one.
func (f *FS) CacheLimit() int64 { return f.cap.limit.Load() }

// served notes a reply of n bytes of a file of the given size.
func (f *FS) served(u *share.Use, n int, size int64) {
	held := f.cap.held.Add(u.Served(int64(n), size, time.Now()))
	if limit := f.cap.limit.Load(); limit > 0 && held > limit {
		f.wakeCap()
	}
}

// gone takes back what was counted of a file.
func (c *cacheCap) gone(u *share.Use) { c.held.Add(-u.Dropped()) }

func (f *FS) wakeCap() {
	select {
	case f.cap.over <- struct{}{}:
	default: // it is awake
	}
}

// keepCap drops what is beyond the limit, until ended is closed. It runs in a
// goroutine of its own: a notification waits for pages that are being read.
func (f *FS) keepCap(ended <-chan struct{}) {
	for {
		select {
		case <-f.cap.over:
			f.enforceCap()
		case <-ended:
			return
		}
	}
}

func (f *FS) enforceCap() {
	limit := f.cap.limit.Load()
	if limit == 0 || f.cap.held.Load() <= limit {
		return
	}
	type node struct {
		id   nodeID
		use  *share.Use
		idle time.Duration
	}
	var nodes []node
	now := time.Now()
	f.eachInUse(nil, func(id nodeID, use *share.Use) bool {
		nodes = append(nodes, node{id, use, use.Idle(now)})
		return true
	})
	slices.SortFunc(nodes, func(a, b node) int { return cmp.Compare(b.idle, a.idle) })
	for _, n := range nodes {
		if f.cap.held.Load() <= limit-limit/8 {
			return
		}
		_ = f.dropPages(n.id, n.use) // what is gone already is no error, and there is nobody to tell of another
	}
}

// dropPages makes the kernel drop a file's pages, but keep the file. It must not be
// called from a request.
func (f *FS) dropPages(id nodeID, u *share.Use) error {
	s := f.server.Load()
	if s == nil {
		return nil
	}
	f.cap.gone(u) // first: pages that come meanwhile are counted, whether they stay or not
	if st := s.InodeNotify(uint64(id), 0, 0); st != fuse.OK && st != fuse.ENOENT {
		return syscall.Errno(st)
	}
	return nil
}
