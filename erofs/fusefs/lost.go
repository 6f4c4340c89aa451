package fusefs

import (
	"errors"
	"fmt"
	"log"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// lostChecks is how often a request that nobody has must be seen, with no moment without
// a request in between, for its connection to be aborted. A request is nobody's for a
// moment when it has been answered and who waits for it has not been scheduled.
const lostChecks = 40

// lostCheck is how often a resumed session is looked at.
var lostCheck = 250 * time.Millisecond

var lost atomic.Int64

// Lost is how many sessions were aborted because the kernel waited for the answer to a
// request that nobody had.
func Lost() int64 { return lost.Load() }

// errLost says that a request was lost.
var errLost = errors.New("a request that the last server had read is lost")

// watch looks after a session that was resumed by its journal, until it is known that
// no request was lost: that the kernel waits for no answer. Whoever waits for a request
// that is lost cannot be killed; so if there is one, the connection is aborted, with all
// its mounts.
func (m *Mount) watch() {
	dir, err := m.control()
	if err != nil {
		log.Printf("cannot tell whether requests of %s were lost: %v", m.dir, err)
		return
	}
	defer func() { _ = dir.Close() }()
	for seen := 0; seen < lostChecks; time.Sleep(lostCheck) {
		n, err := waiting(dir)
		if m.Alive() != nil || err == nil && n == 0 {
			return
		}
		if err != nil {
			log.Printf("cannot tell whether requests of %s were lost: %v", m.dir, err)
			return
		}
		// In this order: what is pending is in the journal next.
		if m.pending() || m.own.journal.busy() {
			continue
		}
		seen++
	}
	lost.Add(1)
	err = m.abort(fmt.Errorf("the FUSE session of %s is aborted: %w", m.dir, errLost))
	log.Print(err)
}

// pending tells whether the kernel has requests that nobody has read.
func (m *Mount) pending() bool {
	fds := []unix.PollFd{{Fd: int32(m.channel.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err != nil || n > 0
}
