package fusefs

import (
	"fmt"
	"hash/maphash"
	"io"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/erofs-csi/erofs-csi/erofs/share"
)

const (
	// aheadSlots bounds what is read ahead by the process, and the memory for it,
	// in requests.
	aheadSlots = 16
	// aheadDepth is how many requests are read ahead of one reader. A cloud disk
	// gives its bandwidth to several large reads at once: measured on a virtio disk
	// 0.6-0.9 GB/s to one of 1 MiB, 1.0-1.6 to two, 1.2-1.5 to four.
	aheadDepth = 3
)

// largeRequest is the size from which a buffer in huge pages is worth a lock.
const largeRequest = 64 << 10

// readAhead reads the next requests of a sequential reader while the kernel takes
// in the last one. The kernel has one window of readahead under way at a time: it
// asks for the next when its reader comes to the last, so that disk (or decoder)
// and copying would take turns. More readahead in the kernel overlaps them, too,
// but costs page cache around every fault of a mapping; this costs none.
//
// It begins with a full-size request at the start of a file or behind another one.
// A slot is taken by exchanging its pointer, and nobody waits but who needs the
// bytes. What no request came for stays in its slot until another takes it.
type readAhead struct {
	slots [aheadSlots]atomic.Pointer[ahead]
	// ends are where the last reads of inodes ended: the hashes of (inode, end), at
	// a place by the inode. Two readers whose files have one place only miss that
	// they are sequential.
	ends [endSlots]atomic.Uint64
}

// endSlots is how many sequential readers are told apart: 8 KiB.
const endSlots = 1024

var endSeed = maphash.MakeSeed()

// follows tells whether a read at off goes on where the last one of the inode ended,
// and notes that this one ends at end.
func (r *readAhead) follows(in share.Inode, off, end int64) bool {
	hash := func(at int64) uint64 {
		return maphash.Comparable(endSeed, struct {
			in share.Inode
			at int64
		}{in, at}) | 1 // not 0, a place that is free
	}
	place := &r.ends[maphash.Comparable(endSeed, in)%endSlots]
	return place.Swap(hash(end)) == hash(off) || off == 0
}

// sequential is the one readAhead of the process: it bounds memory for all domains.
var sequential readAhead

// ahead is a request read before it came. n and err are set when done is closed.
type ahead struct {
	inode share.Inode
	off   int64
	buf   []byte
	done  chan struct{}
	n     int
	err   error
}

// read answers a READ of a shared inode. buf is the kernel's to fill; the bytes may
// be in another buffer, which the result gives back.
func (r *readAhead) read(in share.Inode, buf []byte, off int64) (fuse.ReadResult, error) {
	end := off + int64(len(buf))
	full := len(buf) == requestSize
	var mine *ahead
	if full || end >= in.Size() {
		mine = r.take(in, off)
	}
	if r.follows(in, off, end) && full {
		for i := range int64(aheadDepth) {
			if next := end + i*requestSize; next < in.Size() {
				r.start(in, next)
			}
		}
	}
	if mine != nil {
		<-mine.done
		if mine.err == nil {
			return &aheadResult{pooledResult{bytes: mine.buf[:mine.n], buf: mine.buf}}, nil
		}
		buffers.put(mine.buf)
	}
	var own []byte // for large requests, see bufferPool
	if len(buf) >= largeRequest {
		if own = buffers.get(); own != nil {
			buf = own[:len(buf)]
		}
	}
	n, err := in.ReadAt(buf, off)
	if err != nil && err != io.EOF { //nolint:errorlint // io.EOF is returned bare by contract
		if own != nil {
			buffers.put(own)
		}
		return nil, err
	}
	if own != nil {
		return &pooledResult{bytes: own[:n], buf: own}, nil
	}
	return fuse.ReadResultData(buf[:n]), nil
}

// slot is where a request is kept. Requests that follow each other have different
// ones.
func (r *readAhead) slot(in share.Inode, off int64) *atomic.Pointer[ahead] {
	return &r.slots[(in.Index()*(aheadDepth+1)+uint64(off)/requestSize)%aheadSlots]
}

// take returns the request read ahead, if it was.
func (r *readAhead) take(in share.Inode, off int64) *ahead {
	slot := r.slot(in, off)
	a := slot.Load()
	if a == nil || a.inode != in || a.off != off || !slot.CompareAndSwap(a, nil) {
		return nil
	}
	return a
}

// start begins to read a request ahead, unless it is under way already or its slot
// holds another that is.
func (r *readAhead) start(in share.Inode, off int64) {
	slot := r.slot(in, off)
	old := slot.Load()
	if old != nil {
		if old.inode == in && old.off == off {
			return
		}
		select {
		case <-old.done:
		default:
			return
		}
	}
	a := &ahead{inode: in, off: off, done: make(chan struct{})}
	buf := buffers.get()
	if buf == nil {
		return
	}
	a.buf = buf
	if !slot.CompareAndSwap(old, a) {
		buffers.put(buf)
		return
	}
	if old != nil {
		buffers.put(old.buf)
	}
	go func() {
		defer close(a.done)
		defer func() {
			if r := recover(); r != nil { // whoever needs the bytes will meet it in its own request
				a.err = fmt.Errorf("read ahead: panic: %v", r)
			}
		}()
		a.n, a.err = in.ReadAt(buf, off)
		if a.err == io.EOF { //nolint:errorlint // io.EOF is returned bare by contract
			a.err = nil
		}
	}()
}

// aheadResult is a reply that was read ahead.
type aheadResult struct{ pooledResult }
