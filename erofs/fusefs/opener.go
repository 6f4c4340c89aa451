package fusefs

import (
	"errors"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs/apart"
)

// backingOpen is FUSE_DEV_IOC_BACKING_OPEN, _IOW(229, 1, struct fuse_backing_map).
const backingOpen = 0x4010e501

// openerThreads is how many files are opened at a time.
const openerThreads = 2

// openers open the files of a content mount that this very process serves, and
// register them as backings.
//
// Their threads wait for the process' own server, and so have descriptors of their own:
// none of /dev/fuse but that of the superblock that they register for. See package apart.
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
		o.running.Go(func() {
			err := apart.Run(func() error {
				started <- nil
				o.serve(device)
				return nil
			}, device)
			if err != nil {
				started <- err
			}
		})
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

func (o *openers) serve(device int) {
	for r := range o.requests {
		id, err := registerFile(device, func(flags int) (int, error) {
			return unix.Open(r.path, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		})
		r.done <- openResult{id, err}
	}
}

// readable says that backings must be open for reading: before Linux 6.16.
var readable atomic.Bool

// registerFile registers what open opens with flags for open(2).
func registerFile(device int, open func(flags int) (int, error)) (int32, error) {
	if !readable.Load() {
		id, err := registerOpened(device, open, unix.O_PATH)
		if !errors.Is(err, unix.EBADF) {
			return id, err
		}
	}
	id, err := registerOpened(device, open, unix.O_RDONLY)
	if err == nil {
		readable.Store(true)
	}
	return id, err
}

func registerOpened(device int, open func(flags int) (int, error), flags int) (int32, error) {
	fd, err := open(flags)
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
