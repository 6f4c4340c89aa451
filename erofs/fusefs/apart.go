package fusefs

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Apart runs f on a thread that has none of the process' descriptors but those up to 2,
// for system calls that may ask a mount which the process itself serves. It takes some
// 100 µs more than f. f may use bare descriptors that it opens itself, and no os.File.
//
// A process that is killed while a thread of it waits for its own server is dangerous:
// the thread waits for an answer that nobody gives, and so the process keeps its
// descriptors, and with them the connection that would have to end for the thread to
// end, and the locks and sockets by whose end its successor knows that it is gone. When
// the thread has no part in them, they are closed: the connection ends, or the successor
// takes it over, and the thread gets its answer, and goes.
func Apart(f func() error) (err error) {
	onOtherThread(func() {
		if err = ownDescriptors(none); err == nil {
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

// none is no descriptor.
const none = -1

// ownDescriptors gives the calling thread a table of descriptors of its own, with
// those up to 2, device, and those of Go's network poller, which its scheduler may use
// on any thread.
func ownDescriptors(device int) error {
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
		if err != nil || fd <= 2 || fd == device {
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
