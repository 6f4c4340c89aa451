package nodecache

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// bounceSize is the length of a pooled bounce buffer in bytes: long enough
	// that a misaligned 1 MiB read costs four requests, and a multiple of
	// every alignment accepted by dioAlignment.
	bounceSize = 256 << 10
	// splitSize: a read of at least so many bytes that is aligned but for its
	// ends goes straight into the caller's memory, with one extra request for
	// each ragged end; below it one request and a copy are cheaper.
	splitSize = 64 << 10
)

// Blob is one file of an [Image], read past the page cache: with O_DIRECT where
// the file system can, else buffered with the pages dropped behind each read.
//
// A read goes straight into the caller's memory if its address, offset and
// length are multiples of the file's alignment (at most 4096 on common disks),
// or if it is long and only its ends are not; else through a pooled buffer.
// Any number of goroutines may read at once; no lock is taken.
//
// A file used in place is checked by fstat(2) after each read: if its size or
// modification time is not what it was when opened, the read returns no bytes
// and an error that wraps [ErrChanged]. Before Linux 6.13 a write in the same
// clock tick (4 ms) as the write before the open escapes this check, and on all
// kernels a store through an mmap does until the kernel writes it back.
//
// A read of a lazy image waits until the bytes are on the node; see [AcquireOptions].
//
// After [Image.Release] reads return [os.ErrClosed].
type Blob struct {
	path   string
	size   int64
	mtime  unix.Timespec
	watch  bool      // check for changes: the file is not ours
	lazy   *lazyBlob // nil: all of it was there when it was opened
	file   handle
	direct atomic.Bool
	// memAlign and offAlign are powers of two <= bounceSize.
	memAlign, offAlign int64
}

// Size is the length in bytes when it was opened.
func (b *Blob) Size() int64 { return b.size }

// Path is the absolute path of the file, symbolic links resolved; of a lazy image the
// one that it has when it is complete.
func (b *Blob) Path() string { return b.path }

func (b *Blob) unlinked() bool {
	if b.file.acquire() != nil {
		return false
	}
	defer b.file.release()
	var st unix.Stat_t
	return unix.Fstat(b.file.fd, &st) == nil && st.Nlink == 0
}

// ReadAt implements [io.ReaderAt] for the Size bytes of the blob. A blob that
// became shorter is [io.ErrUnexpectedEOF], or [ErrChanged] if used in place.
func (b *Blob) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, &os.PathError{Op: "read", Path: b.path, Err: os.ErrInvalid}
	}
	if err := b.file.acquire(); err != nil {
		return 0, &os.PathError{Op: "read", Path: b.path, Err: err}
	}
	defer b.file.release()
	if len(p) == 0 {
		return 0, nil
	}
	if off >= b.size {
		return 0, io.EOF
	}
	want := min(int64(len(p)), b.size-off)
	if b.lazy != nil {
		if err := b.lazy.ready(off, want); err != nil {
			return 0, &os.PathError{Op: "read", Path: b.path, Err: err}
		}
	}
	var n int64
	var err error
	if b.direct.Load() {
		n, err = b.readDirect(p, want, off)
		if errors.Is(err, unix.EINVAL) {
			// The file system took the open flag but not the request.
			if err = b.leaveDirect(); err == nil {
				n, err = b.readBuffered(p, want, off)
			}
		}
	} else {
		n, err = b.readBuffered(p, want, off)
	}
	if b.watch {
		if cerr := b.checkUnchanged(); cerr != nil {
			clear(p[:n])
			return 0, cerr
		}
	}
	if err != nil {
		return int(n), &os.PathError{Op: "read", Path: b.path, Err: err}
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// readDirect reads p[:want] at off. want <= len(p); bytes of p beyond want may
// be overwritten, as io.ReaderAt allows.
func (b *Blob) readDirect(p []byte, want, off int64) (n int64, err error) {
	mask := b.offAlign - 1
	for n < want {
		cur, rest := off+n, want-n
		if cur&mask == 0 && b.memAligned(p[n:]) {
			length := rest &^ mask
			if up := (rest + mask) &^ mask; cur+rest == b.size && n+up <= int64(len(p)) {
				length = up // the kernel stops at the end of the file
			}
			if length >= rest || length >= splitSize {
				m, err := pread(b.file.fd, p[n:n+length], cur)
				n += min(int64(m), rest)
				if err != nil {
					return n, err
				}
				if int64(m) < min(length, rest) && int64(m)&mask != 0 || m == 0 {
					return n, io.ErrUnexpectedEOF
				}
				continue
			}
		}
		m, err := b.readBounced(p[n:want], cur)
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// readBounced reads a first part, at least one byte, of p at off through a
// pooled buffer: all of it, as much as the buffer holds, or only up to the next
// aligned offset when a long rest can go straight into p from there.
func (b *Blob) readBounced(p []byte, off int64) (int64, error) {
	mask := b.offAlign - 1
	start := off &^ mask
	end := min((off+int64(len(p))+mask)&^mask, start+bounceSize)
	if next := start + b.offAlign; off > start && off+int64(len(p))-next >= splitSize && b.memAligned(p[next-off:]) {
		end = next
	}
	buf := bouncePool.Get().(*bounceBuffer)
	defer bouncePool.Put(buf)
	m, err := pread(b.file.fd, buf.aligned[:end-start], start)
	if err != nil {
		return 0, err
	}
	if int64(m) <= off-start {
		return 0, io.ErrUnexpectedEOF
	}
	return int64(copy(p, buf.aligned[off-start:m])), nil
}

// readBuffered reads p[:want] at off through the page cache and drops the pages
// it touched. The cache may have been filled by others: theirs go as well.
func (b *Blob) readBuffered(p []byte, want, off int64) (n int64, err error) {
	for n < want {
		m, err := pread(b.file.fd, p[n:want], off+n)
		n += int64(m)
		if err != nil {
			return n, err
		}
		if m == 0 {
			return n, io.ErrUnexpectedEOF
		}
	}
	page := int64(os.Getpagesize()) - 1
	start := off &^ page
	end := (off + want + page) &^ page // a part of a page would be kept
	_ = unix.Fadvise(b.file.fd, start, end-start, unix.FADV_DONTNEED)
	return n, nil
}

// leaveDirect makes all later reads buffered ones.
func (b *Blob) leaveDirect() error {
	b.direct.Store(false)
	flags, err := unix.FcntlInt(uintptr(b.file.fd), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(b.file.fd), unix.F_SETFL, flags&^unix.O_DIRECT)
	}
	_ = unix.Fadvise(b.file.fd, 0, 0, unix.FADV_RANDOM)
	return err
}

func (b *Blob) checkUnchanged() error {
	var st unix.Stat_t
	if err := unix.Fstat(b.file.fd, &st); err != nil {
		return &os.PathError{Op: "fstat", Path: b.path, Err: err}
	}
	if st.Size != b.size || st.Mtim != b.mtime {
		return fmt.Errorf("%w: %s; mount it again, and replace images by rename instead of writing into them", ErrChanged, b.path)
	}
	return nil
}

func (b *Blob) memAligned(p []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(p)))&uintptr(b.memAlign-1) == 0 //nolint:gosec // a power of two, at least 1
}

func (b *Blob) close() { b.file.close() }

func pread(fd int, p []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(fd, p, off)
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0), err
		}
	}
}

// bounceBuffer is memory whose aligned part starts at a multiple of maxAlign.
type bounceBuffer struct{ aligned []byte }

var bouncePool = sync.Pool{New: func() any {
	raw := make([]byte, bounceSize+maxAlign)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(raw)))) & (maxAlign - 1)
	return &bounceBuffer{aligned: raw[skip : skip+bounceSize : skip+bounceSize]}
}}
