package nodecache

import (
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// handle is a file descriptor that is closed once nobody reads from it: a read
// that races with close either finishes on the right file or says
// [os.ErrClosed], and never sees a descriptor that was given to another file.
// It is one atomic addition a read, where os.File would also allocate to fstat.
//
// Invariant: while users > 0 the descriptor is open. The open handle itself
// counts as one user.
type handle struct {
	fd     int
	users  atomic.Int64
	closed atomic.Bool
}

func (h *handle) init(fd int) {
	h.fd = fd
	h.users.Store(1)
}

func (h *handle) acquire() error {
	for {
		n := h.users.Load()
		// closed as well: readers that overlap could keep users up for ever.
		if n <= 0 || h.closed.Load() {
			return os.ErrClosed
		}
		if h.users.CompareAndSwap(n, n+1) {
			return nil
		}
	}
}

func (h *handle) release() {
	if h.users.Add(-1) == 0 {
		_ = unix.Close(h.fd) // read-only: nothing to lose
	}
}

func (h *handle) close() {
	if h.closed.CompareAndSwap(false, true) {
		h.release()
	}
}
