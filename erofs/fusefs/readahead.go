package fusefs

import (
	"fmt"
	"hash/maphash"
	"io"
	"slices"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/erofs-csi/erofs-csi/erofs/share"
)

const (
	// windowSize is how much the kernel reads at once for a sequential reader, and
	// around a fault of a mapping: as much as for other file systems. More costs page
	// cache around each fault, and running programs is faults: with 1 MiB two servers
	// of a kind took more memory shared than the kernel's EROFS unshared.
	windowSize = 128 << 10

	// aheadSlots bounds what is read ahead by the process, and the memory for it, in
	// chunks of requestSize.
	aheadSlots = 16
	// aheadDepth is how many chunks are read ahead of one reader. A cloud disk
	// gives its bandwidth to several large reads at once: measured on a virtio disk
	// 0.6-0.9 GB/s to one of 1 MiB, 1.0-1.6 to two, 1.2-1.5 to four.
	aheadDepth = 3
)

// largeRequest is the size from which a buffer in huge pages is worth a lock.
const largeRequest = 64 << 10

// readAhead reads on for a sequential reader while the kernel takes in what it asked
// for: in larger pieces than the kernel's windows, several at a time, and without
// bringing anything into the page cache that was not asked for.
//
// It begins with the second window in a row. What is read ahead are the chunks of a
// file, those of requestSize bytes that begin at its multiples; the first one of a
// reader is the rest of the one that it is in. A slot is taken by exchanging its
// pointer, and nobody waits but who needs the bytes. A chunk leaves its slot when all
// of it was asked for, or when another one needs the slot.
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
	return place.Swap(hash(end)) == hash(off)
}

// sequential is the one readAhead of the process: it bounds memory for all domains.
var sequential readAhead

// ahead is a chunk that is being read before it was asked for, or was.
type ahead struct {
	inode    share.Inode
	off, end int64 // of its bytes in the file
	buf      []byte
	done     chan struct{} // closed when err is set
	err      error

	// refs is 1 for the slot and 1 for each request and reply that uses buf. At 0 buf
	// is the pool's again.
	refs atomic.Int32
	left atomic.Int64 // bytes that nobody has asked for
}

// ref counts a user, unless the buffer is gone already.
func (a *ahead) ref() bool {
	for {
		n := a.refs.Load()
		if n == 0 {
			return false
		}
		if a.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (a *ahead) unref() {
	if a.refs.Add(-1) == 0 {
		buffers.put(a.buf)
	}
}

// read answers a READ of a shared inode. buf is the kernel's to fill; the bytes may
// be in another buffer, which the result gives back.
func (r *readAhead) read(in share.Inode, buf []byte, off int64) (fuse.ReadResult, error) {
	end := off + int64(len(buf))
	mine := r.take(in, off, min(end, in.Size()))
	// Two windows that are under way at once may come in either order.
	if (r.follows(in, off, end) || mine != nil) && len(buf) >= windowSize {
		r.startFrom(in, end)
	}
	if mine != nil {
		if mine.wait() {
			return mine, nil
		}
		mine.Done()
	}
	var own []byte // for large requests, see bufferPool
	if len(buf) >= largeRequest {
		if own = buffers.get(); own != nil {
			buf = own[:len(buf)]
		}
	}
	if own != nil {
		back := own
		defer func() { // after a panic, too
			if back != nil {
				buffers.put(back)
			}
		}()
		n, err := in.ReadAt(buf, off)
		if err != nil && err != io.EOF { //nolint:errorlint // io.EOF is returned bare by contract
			return nil, err
		}
		back = nil
		return &pooledResult{bytes: own[:n], buf: own}, nil
	}
	n, err := in.ReadAt(buf, off)
	if err != nil && err != io.EOF { //nolint:errorlint // io.EOF is returned bare by contract
		return nil, err
	}
	return fuse.ReadResultData(buf[:n]), nil
}

// slot is where a chunk is kept. Chunks that follow each other have different ones.
func (r *readAhead) slot(in share.Inode, off int64) *atomic.Pointer[ahead] {
	return &r.slots[(in.Index()*(aheadDepth+1)+uint64(off)/requestSize)%aheadSlots]
}

// chunkEnd is the end of the chunk that off is in.
func chunkEnd(off int64) int64 { return off&^(requestSize-1) + requestSize }

// take returns the bytes from off to end, which are not beyond the file's, if all of
// them are being read ahead, or were.
func (r *readAhead) take(in share.Inode, off, end int64) *aheadResult {
	if a := r.slot(in, off).Load(); a == nil || a.inode != in {
		return nil // nearly always, and without allocating
	}
	res := new(aheadResult)
	for off < end {
		to := min(end, chunkEnd(off))
		slot := r.slot(in, off)
		a := slot.Load()
		if a == nil || a.inode != in || a.off > off || a.end < to || !a.ref() {
			res.Done()
			return nil
		}
		if a.left.Add(off-to) <= 0 && slot.CompareAndSwap(a, nil) {
			a.unref()
		}
		res.chunks = append(res.chunks, a)
		res.parts = append(res.parts, a.buf[off-a.off:to-a.off])
		off = to
	}
	return res
}

// startFrom begins to read what comes after a request that ended at off.
func (r *readAhead) startFrom(in share.Inode, off int64) {
	last := off + aheadDepth*requestSize
	for off < min(last, in.Size()) {
		end := chunkEnd(off)
		r.start(in, off, min(end, in.Size()))
		off = end
	}
}

// start begins to read a chunk, or the rest of one, ahead, unless it is under way
// already or its slot holds another that is.
func (r *readAhead) start(in share.Inode, off, end int64) {
	slot := r.slot(in, off)
	old := slot.Load()
	if old != nil {
		if old.inode == in && chunkEnd(old.off) == chunkEnd(off) {
			return
		}
		select {
		case <-old.done:
		default:
			return
		}
	}
	a := &ahead{inode: in, off: off, end: end, done: make(chan struct{})}
	if a.buf = buffers.get(); a.buf == nil {
		return
	}
	a.left.Store(end - off)
	a.refs.Store(2) // the slot's, and that of the read
	if !slot.CompareAndSwap(old, a) {
		buffers.put(a.buf)
		return
	}
	if old != nil {
		old.unref()
	}
	go func() {
		defer a.unref()
		defer close(a.done)
		defer func() {
			if r := recover(); r != nil { // whoever needs the bytes will meet it in its own request
				a.err = fmt.Errorf("read ahead: panic: %v", r)
			}
		}()
		n, err := in.ReadAt(a.buf[:end-off], off)
		if int64(n) < end-off && err == nil {
			err = io.ErrUnexpectedEOF
		}
		if err != io.EOF || int64(n) < end-off { //nolint:errorlint // io.EOF is returned bare by contract
			a.err = err
		}
	}()
}

// aheadResult is a reply that was read ahead: parts of one chunk or two. It has Slices
// for the reason that pooledResult has.
type aheadResult struct {
	parts  [][]byte
	chunks []*ahead
}

// wait returns when the chunks are read, and tells whether they could be.
func (r *aheadResult) wait() (ok bool) {
	for _, a := range r.chunks {
		<-a.done
		if a.err != nil {
			return false
		}
	}
	return true
}

// Slices returns the reply.
func (r *aheadResult) Slices() ([][]byte, fuse.Status) { return r.parts, fuse.OK }

// Bytes copies the reply, for a caller that sends no slices.
func (r *aheadResult) Bytes(buf []byte) ([]byte, fuse.Status) {
	return append(buf[:0], slices.Concat(r.parts...)...), fuse.OK
}

// Size is the length of the reply.
func (r *aheadResult) Size() (n int) {
	for _, p := range r.parts {
		n += len(p)
	}
	return n
}

// Done lets go of the chunks.
func (r *aheadResult) Done() {
	for _, a := range r.chunks {
		a.unref()
	}
	r.chunks = nil
}
