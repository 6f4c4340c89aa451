// Package apart runs system calls on threads that have none of the process'
// descriptors: those that may ask a FUSE mount which the process itself serves, or
// keeps alive.
//
// A process that is killed while a thread of it waits for its own server is dangerous:
// the thread waits for an answer that nobody gives, and so the process keeps its
// descriptors, and with them the connection that would have to end for the thread to
// end, and the locks and sockets by whose end its successor knows that it is gone. When
// the thread has no part in them, they are closed: the connection ends, or the successor
// takes it over, and the thread gets its answer, and goes.
package apart

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Run runs f on a thread of its own that has, of the process' descriptors, those up to 2
// and keep. It takes some 100 µs more than f, and returns f's error. f may use bare
// descriptors that it opens itself, and no os.File.
func Run(f func() error, keep ...int) (err error) {
	onOtherThread(func() {
		if err = ownDescriptors(keep); err == nil {
			err = f()
		}
	})
	return err
}

// onOtherThread runs f on a thread that nothing else ever runs on, and that ends with
// it. It is not the process' first, whose descriptors are what /proc/self/fd shows.
func onOtherThread(f func()) {
	var done sync.WaitGroup
	locked := make(chan struct{})
	var run func()
	run = func() {
		runtime.LockOSThread() // never unlocked but on the first thread
		if unix.Gettid() == unix.Getpid() {
			done.Go(run) // on another, for this one is taken
			<-locked
			runtime.UnlockOSThread()
			return
		}
		close(locked)
		f()
	}
	done.Go(run)
	done.Wait()
}

// ownDescriptors gives the calling thread a table of descriptors of its own, with
// those up to 2, keep, and those of Go's network poller, which its scheduler may use
// on any thread.
func ownDescriptors(keep []int) error {
	time.Sleep(time.Nanosecond) // starts the poller, if nothing has done it: not later, with descriptors that this thread has not
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		return fmt.Errorf("a thread's own descriptors: %w", err)
	}
	const dir = "/proc/thread-self/fd"
	list, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("a thread's own descriptors: %w", err)
	}
	for _, d := range list {
		fd, err := strconv.Atoi(d.Name())
		if err != nil || fd <= 2 || slices.Contains(keep, fd) {
			continue
		}
		switch link, _ := os.Readlink(filepath.Join(dir, d.Name())); link {
		case "anon_inode:[eventpoll]", "anon_inode:[eventfd]":
		default:
			_ = unix.Close(fd) // that of the listing is closed already
		}
	}
	return nil
}
