package fusefs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// backingOpen is FUSE_DEV_IOC_BACKING_OPEN, _IOW(229, 1, struct fuse_backing_map).
const backingOpen = 0x4010e501

// openerThreads is how many files are opened at a time.
const openerThreads = 2

// openers open the files of a content mount that this very process serves, and
// register them as backings.
//
// A process that is killed while a thread of it waits for its own server is dangerous:
// the thread waits for an answer that nobody gives, and so the process keeps its
// descriptors, and with them the connection that would have to end for the thread to
// end. Readers of the mount would hang with it until somebody aborts the connection. So
// the threads that open have descriptors of their own (unshare(2) with CLONE_FILES),
// and none of /dev/fuse but that of the superblock that they register for: when the
// rest of the process dies, the content mount's connection ends, the thread gets its
// error, and goes. Nor have they any other of the process', which would stay open
// when that closes them.
type openers struct {
	requests chan openRequest
	running  sync.WaitGroup
}

// openRequest asks for a file to be registered. The answer comes on done.
type openRequest struct {
	path string
	done chan openResult
}

type openResult struct {
	id  int32
	err error // a bare errno
}

// startOpeners starts threads that register files with the connection of device, a
// descriptor of /dev/fuse. stop ends them.
func startOpeners(device int) (*openers, error) {
	o := &openers{requests: make(chan openRequest)}
	started := make(chan error, openerThreads)
	for range openerThreads {
		o.running.Go(func() { onOtherThread(func() { o.serve(device, started) }) })
	}
	for range openerThreads {
		if err := <-started; err != nil {
			o.stop()
			return nil, err
		}
	}
	return o, nil
}

// stop ends the threads, whose requests must have been answered.
func (o *openers) stop() {
	close(o.requests)
	o.running.Wait()
}

// register opens a file and registers it. Errors are bare errnos.
func (o *openers) register(path string) (int32, error) {
	r := openRequest{path: path, done: make(chan openResult, 1)}
	o.requests <- r
	res := <-r.done
	return res.id, res.err
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

func (o *openers) serve(device int, started chan<- error) {
	if err := ownDescriptors(device); err != nil {
		started <- err
		return
	}
	started <- nil
	flags := unix.O_PATH
	for r := range o.requests {
		id, err := registerFile(device, r.path, flags)
		if errors.Is(err, unix.EBADF) && flags == unix.O_PATH { // before Linux 6.16
			if id, err = registerFile(device, r.path, unix.O_RDONLY); err == nil {
				flags = unix.O_RDONLY
			}
		}
		r.done <- openResult{id, err}
	}
}

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

func registerFile(device int, path string, flags int) (int32, error) {
	fd, err := unix.Open(path, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	m := fuse.BackingMap{Fd: int32(fd)}
	id, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(device), backingOpen, uintptr(unsafe.Pointer(&m)))
	if errno != 0 {
		return 0, errno
	}
	return int32(id), nil
}
