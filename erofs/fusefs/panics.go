package fusefs

import (
	"log"
	"runtime"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
)

var panics atomic.Int64

// Panics is how many requests of the process' file systems ended in a panic. Each was
// answered with EIO, and the stack is in the log.
func Panics() int64 { return panics.Load() }

// panicked answers a request whose handler panicked: one image that meets a bug of the
// reader must not take down the node's other volumes.
func panicked(what any) fuse.Status {
	panics.Add(1)
	stack := make([]byte, 64<<10)
	log.Printf("panic in a FUSE request: %v\n%s", what, stack[:runtime.Stack(stack, false)])
	return fuse.EIO
}
