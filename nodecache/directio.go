package nodecache

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// maxAlign is the strictest O_DIRECT alignment that is used, in bytes; a file
// that wants more (64 KiB sectors do not exist on the disks Linux mounts) is
// read buffered.
const maxAlign = 64 << 10

// newBlob takes over fd, a regular file open for reading, with O_DIRECT if
// direct is set. It closes fd when it fails.
func newBlob(fd int, path string, direct, watch bool) (*Blob, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, &os.PathError{Op: "fstat", Path: path, Err: err}
	}
	b := &Blob{path: path, size: st.Size, mtime: st.Mtim, watch: watch}
	b.file.init(fd)
	b.memAlign, b.offAlign = 1, 1
	if direct {
		b.memAlign, b.offAlign, direct = dioAlignment(fd)
	}
	b.direct.Store(direct)
	if !direct {
		if err := b.leaveDirect(); err != nil {
			b.close()
			return nil, &os.PathError{Op: "fcntl", Path: path, Err: err}
		}
	}
	return b, nil
}

// openDirect opens name for reading with O_DIRECT, or without where the file
// system refuses that flag (EINVAL, open(2)).
func openDirect(name string, flags int) (fd int, direct bool, err error) {
	flags |= unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK
	for _, direct = range []bool{true, false} {
		f := flags
		if direct {
			f |= unix.O_DIRECT
		}
		for {
			fd, err = unix.Open(name, f, 0)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if !errors.Is(err, unix.EINVAL) {
			return fd, direct, err
		}
	}
	return fd, false, err
}

// dioAlignment returns the alignment in bytes that O_DIRECT reads of fd need
// for memory and for offset and length. statx(2) says so from Linux 6.1 on
// (STATX_DIOALIGN); where it does not, the smallest of 512 and 4096 with which
// a read succeeds. ok is false when direct reads can't be done.
func dioAlignment(fd int) (mem, off int64, ok bool) {
	var stx unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &stx)
	if err == nil && stx.Mask&unix.STATX_DIOALIGN != 0 {
		mem, off = int64(stx.Dio_mem_align), int64(stx.Dio_offset_align)
		return mem, off, validAlign(mem) && validAlign(off)
	}
	return probeAlignment(fd)
}

func probeAlignment(fd int) (mem, off int64, ok bool) {
	buf := bouncePool.Get().(*bounceBuffer)
	defer bouncePool.Put(buf)
	for _, align := range []int64{512, 4096} {
		// A buffer that is aligned to no more than what is probed.
		if _, err := pread(fd, buf.aligned[align:2*align], align); err == nil {
			return align, align, true
		}
	}
	return 1, 1, false
}

func validAlign(a int64) bool { return a > 0 && a <= maxAlign && a&(a-1) == 0 }
