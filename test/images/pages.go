package images

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// None of these may be called by a process that itself serves the file system the
// file is on: a page fault there could wait for a goroutine of its own for ever.

// PageFrames reads a file whole, maps it and returns the physical page of each of
// its pages. It needs CAP_SYS_ADMIN. Read before mapped, the pages are there; one
// that is evicted in between is read again by the access.
func PageFrames(t testing.TB, path string) []uint64 {
	t.Helper()
	Need(t, "root", os.Getuid() == 0)
	if _, err := os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	data := mapFile(t, path)
	defer func() { _ = unix.Munmap(data) }()
	size := os.Getpagesize()
	frames := make([]uint64, (len(data)+size-1)/size)
	pagemap := openProc(t, "/proc/self/pagemap")
	defer func() { _ = pagemap.Close() }()
	for i := range frames {
		frames[i] = frameOf(t, pagemap, data, i)
	}
	return frames
}

// LockPages reads files and keeps their pages in memory until unlock is called: an idle
// kernel takes page cache away within seconds. It needs CAP_IPC_LOCK.
func LockPages(t testing.TB, paths ...string) (unlock func()) {
	t.Helper()
	var locked [][]byte
	unlock = func() {
		for _, data := range locked {
			_ = unix.Munmap(data)
		}
	}
	for _, path := range paths {
		data := mapFile(t, path)
		locked = append(locked, data)
		if err := unix.Mlock(data); err != nil {
			unlock()
			t.Fatalf("lock %s: %v", path, err)
		}
	}
	return unlock
}

// SamePages tells whether two files have the same physical pages. It fails the test when
// some are the same and others not. Both are locked while they are looked at: the frame
// of a page that is evicted may be that of the next one read. It needs CAP_SYS_ADMIN.
func SamePages(t testing.TB, one, two string) bool {
	t.Helper()
	defer LockPages(t, one, two)()
	a, b := PageFrames(t, one), PageFrames(t, two)
	if slices.Equal(a, b) {
		return true
	}
	if shared := slices.DeleteFunc(b, func(frame uint64) bool { return !slices.Contains(a, frame) }); len(shared) > 0 {
		t.Errorf("%s and %s have %d of %d pages in common", one, two, len(shared), len(a))
	}
	return false
}

// ResidentFrames returns the physical pages of a file that are in the page cache, each
// of which must be a page of a file by the kernel's word. It reads nothing that is not.
// It needs CAP_SYS_ADMIN.
func ResidentFrames(t testing.TB, path string) (frames []uint64) {
	t.Helper()
	Need(t, "root", os.Getuid() == 0)
	data := mapFile(t, path)
	defer func() { _ = unix.Munmap(data) }()
	pagemap, flags := openProc(t, "/proc/self/pagemap"), openProc(t, "/proc/kpageflags")
	defer func() { _, _ = pagemap.Close(), flags.Close() }()
	for i, v := range inCore(t, path, data) {
		if v&1 == 0 {
			continue
		}
		frame := frameOf(t, pagemap, data, i)
		var entry [8]byte
		if _, err := flags.ReadAt(entry[:], int64(frame)*8); err != nil {
			t.Fatal(err)
		}
		const mapped, anon, nopage, zero = 1 << 11, 1 << 12, 1 << 20, 1 << 24
		if f := binary.LittleEndian.Uint64(entry[:]); f&mapped == 0 || f&(anon|nopage|zero) != 0 {
			t.Fatalf("%s: page %d is in frame %d, of flags %#x: no page of a file", path, i, frame, f)
		}
		frames = append(frames, frame)
	}
	return frames
}

func openProc(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// frameOf maps page i of a mapping and returns where it is.
func frameOf(t testing.TB, pagemap *os.File, data []byte, i int) uint64 {
	t.Helper()
	size := os.Getpagesize()
	base := uintptr(unsafe.Pointer(unsafe.SliceData(data)))
	touched := data[i*size] // maps the page
	var entry [8]byte
	if _, err := pagemap.ReadAt(entry[:], int64(base/uintptr(size)+uintptr(i))*8); err != nil {
		t.Fatal(err)
	}
	const present, frameMask = 1 << 63, 1<<55 - 1
	e := binary.LittleEndian.Uint64(entry[:])
	if e&present == 0 || e&frameMask == 0 {
		t.Fatalf("page %d has no frame: %#x (first byte %d)", i, e, touched)
	}
	return e & frameMask
}

func mapFile(t testing.TB, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatalf("mmap %s: %v", path, err)
	}
	return data
}

// ResidentPages returns how many pages of a file are in the page cache.
func ResidentPages(t testing.TB, path string) (n int) {
	t.Helper()
	data := mapFile(t, path)
	defer func() { _ = unix.Munmap(data) }()
	for _, v := range inCore(t, path, data) {
		n += int(v & 1)
	}
	return n
}

// inCore is what mincore(2) says of a mapping.
func inCore(t testing.TB, path string, data []byte) []byte {
	t.Helper()
	vec := make([]byte, (len(data)+os.Getpagesize()-1)/os.Getpagesize())
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(unsafe.SliceData(data))),
		uintptr(len(data)), uintptr(unsafe.Pointer(unsafe.SliceData(vec))))
	if errno != 0 {
		t.Fatalf("mincore %s: %v", path, errno)
	}
	return vec
}

// DropFile writes a file's dirty pages and takes it out of the page cache.
func DropFile(t testing.TB, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)); err != nil {
		t.Fatal(err)
	}
}

// ReadByMmap returns a file's content through a mapping.
func ReadByMmap(t *testing.T, path string) []byte {
	t.Helper()
	data := mapFile(t, path)
	defer func() { _ = unix.Munmap(data) }()
	return append([]byte(nil), data...)
}

// ReadBySendfile returns a file's content through sendfile(2) into a socket.
func ReadBySendfile(t *testing.T, path string) []byte {
	t.Helper()
	return readThrough(t, path, func(out, in int) (int, error) { return unix.Sendfile(out, in, nil, 1<<20) })
}

// ReadBySplice returns a file's content through splice(2) into a pipe.
func ReadBySplice(t *testing.T, path string) []byte {
	t.Helper()
	return readThrough(t, path, func(out, in int) (int, error) {
		n, err := unix.Splice(in, nil, out, nil, 1<<20, 0)
		return int(n), err
	})
}

// readThrough moves a file into a pipe with move until it returns 0.
func readThrough(t *testing.T, path string, move func(out, in int) (int, error)) []byte {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		defer func() { _ = w.Close() }()
		f, err := os.Open(path)
		if err != nil {
			failed <- err
			return
		}
		defer func() { _ = f.Close() }()
		for {
			n, err := move(int(w.Fd()), int(f.Fd()))
			if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
				continue
			}
			if n == 0 || err != nil {
				failed <- err
				return
			}
		}
	}()
	data, err := io.ReadAll(r)
	if err = errors.Join(err, <-failed, r.Close()); err != nil {
		t.Fatal(err)
	}
	return data
}

// ReadDirect returns a file's content through O_DIRECT reads of 64 KiB.
func ReadDirect(t *testing.T, path string) []byte {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open %s with O_DIRECT: %v", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	buf, err := unix.Mmap(-1, 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(buf) }()
	var data []byte
	for {
		n, err := unix.Pread(fd, buf, int64(len(data)))
		if err != nil {
			t.Fatalf("read %s with O_DIRECT at %d: %v", path, len(data), err)
		}
		if n == 0 {
			return data
		}
		data = append(data, buf[:n]...)
	}
}
