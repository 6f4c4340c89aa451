package fusefs

import (
	"errors"
	"reflect"
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// prefaulted is how much of a buffer for requests is in memory before one is read into
// it: no request of a read-only file system is longer, but BATCH_FORGET.
const prefaulted = 16 << 10

// errNoPool says that another release of go-fuse has its buffers elsewhere.
var errNoPool = errors.New("go-fuse has no pool of buffers where this program looks for it")

// prefault has a server that does not serve yet read requests into memory that is there.
//
// A process that is killed still takes requests: a thread that slept in read(2) looks for
// one before it looks for signals (fuse_dev_do_read, ___wait_event of Linux 6.18). If it
// has to fault its buffer in to copy the request, that fails, since the thread is to die,
// and the kernel answers the request with EIO; if the buffer is there, the request waits
// for an answer, and the next process gets it again. So a reader would see an error of
// some kills under load, one in fifteen. New buffers are never there: the allocator has
// them from the kernel, untouched.
//
// The pool of buffers is not exported; a test tells when it is not found any more.
func prefault(server *fuse.Server) error {
	field := reflect.ValueOf(server).Elem().FieldByName("readPool")
	if !field.IsValid() || field.Type() != reflect.TypeFor[sync.Pool]() {
		return errNoPool
	}
	pool := (*sync.Pool)(unsafe.Pointer(field.UnsafeAddr()))
	alloc := pool.New
	if alloc == nil {
		return errNoPool
	}
	pool.New = func() any {
		buf := alloc()
		if b, ok := buf.([]byte); ok {
			for i := 0; i < min(len(b), prefaulted); i += 4096 {
				b[i] = 0
			}
		}
		return buf
	}
	return nil
}
