package nodecache

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/test/images"
)

var _ io.ReaderAt = (*Blob)(nil)

// mode is a way in which a Blob may have to read.
type mode struct {
	name   string
	adjust func(*Blob) error
}

var modes = []mode{
	{"as the file system says", func(*Blob) error { return nil }},
	{"aligned to 4096", func(b *Blob) error { b.memAlign, b.offAlign = 4096, 4096; return nil }},
	{"probed", func(b *Blob) error {
		var ok bool
		b.memAlign, b.offAlign, ok = probeAlignment(b.file.fd)
		if !ok {
			return errors.New("no alignment works")
		}
		return nil
	}},
	{"buffered", (*Blob).leaveDirect},
}

func openTestBlob(t testing.TB, path string, m mode) *Blob {
	t.Helper()
	b, _, err := openPath(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.close)
	if err := m.adjust(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// alignedBytes is memory of n bytes whose address is shift beyond a multiple
// of 4096.
func alignedBytes(n, shift int) []byte {
	raw := make([]byte, n+shift+4096)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(raw))))&4095 + shift
	return raw[skip : skip+n : skip+n]
}

// TestReadAtMatrix compares reads of all kinds of alignment with the bytes.
func TestReadAtMatrix(t *testing.T) {
	for _, size := range []int{0, 1, 512, 4095, 4096, 4097, 300<<10 + 123, 512 << 10} {
		content := randomBytes(uint64(size), size)
		path := writeFile(t, filepath.Join(t.TempDir(), "image"), content)
		for _, m := range modes {
			t.Run(fmt.Sprintf("%s/%d", m.name, size), func(t *testing.T) {
				b := openTestBlob(t, path, m)
				for _, off := range []int{0, 1, 511, 512, 4096, 100_001, size - 4096, size - 513, size - 1, size, size + 1} {
					if off < 0 {
						continue
					}
					for _, n := range []int{0, 1, 512, 4096, 4097, 65535, 69632, 262145, size} {
						for _, shift := range []int{0, 1, 512} {
							checkRead(t, b, content, off, n, shift)
						}
					}
				}
			})
		}
	}
}

func checkRead(t testing.TB, b *Blob, content []byte, off, n, shift int) {
	t.Helper()
	const guard = 64
	p := alignedBytes(n+guard, shift)
	for i := range p {
		p[i] = 0xa5
	}
	got, err := b.ReadAt(p[:n:n], int64(off))
	want := content[min(off, len(content)):min(off+n, len(content))]
	what := fmt.Sprintf("ReadAt(%d bytes at address+%d, %d)", n, shift, off)
	if got != len(want) || !bytes.Equal(p[:got], want) {
		t.Fatalf("%s: %d bytes (%v), want %d; equal: %v", what, got, err, len(want), bytes.Equal(p[:got], want))
	}
	if got < n && !errors.Is(err, io.EOF) {
		t.Fatalf("%s: short with error %v, want EOF", what, err)
	}
	if got == n && err != nil {
		t.Fatalf("%s: full with error %v", what, err)
	}
	if !bytes.Equal(p[n:], bytes.Repeat([]byte{0xa5}, guard)) {
		t.Fatalf("%s wrote beyond its buffer", what)
	}
}

func TestReadAtNegativeOffset(t *testing.T) {
	b := openTestBlob(t, writeFile(t, filepath.Join(t.TempDir(), "image"), []byte("x")), modes[0])
	if n, err := b.ReadAt(make([]byte, 1), -1); n != 0 || !errors.Is(err, os.ErrInvalid) {
		t.Errorf("%d, %v", n, err)
	}
}

// cachedPages asks cachestat(2), Linux 6.5, how much of a file is in memory.
func cachedPages(t testing.TB, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var span, stat [5]uint64 // offset and length, 0: to the end; nr_cache first
	const sysCachestat = 451
	_, _, errno := unix.Syscall6(sysCachestat, f.Fd(), uintptr(unsafe.Pointer(&span)), uintptr(unsafe.Pointer(&stat)), 0, 0, 0)
	images.Need(t, "cachestat(2)", errno != unix.ENOSYS)
	if errno != 0 {
		t.Fatal(errno)
	}
	return stat[0]
}

func TestReadsLeavePageCacheEmpty(t *testing.T) {
	const size = 5<<20 + 777
	content := randomBytes(1, size)
	for _, m := range modes {
		for _, n := range []int{1 << 20, 4096, 1000, 65536 + 1} {
			t.Run(m.name+"/"+strconv.Itoa(n), func(t *testing.T) {
				path := writeFile(t, filepath.Join(t.TempDir(), "image"), content)
				fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				_ = unix.Fsync(fd)
				_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
				_ = unix.Close(fd)
				if before := cachedPages(t, path); before != 0 {
					t.Fatalf("%d pages cached before the first read", before)
				}
				b := openTestBlob(t, path, m)
				step := n
				if n < 4096 {
					step = 50_001
				}
				p := alignedBytes(n, 0)
				for off := 0; off < size; off += step {
					got, err := b.ReadAt(p, int64(off))
					if err != nil && !errors.Is(err, io.EOF) {
						t.Fatal(err)
					}
					if !bytes.Equal(p[:got], content[off:off+got]) {
						t.Fatalf("other bytes at %d", off)
					}
				}
				if pages := cachedPages(t, path); pages != 0 {
					t.Errorf("%d pages of the image are in the page cache", pages)
				}
			})
		}
	}
}

// TestAlignedReadIsDirect sees in the thread's I/O counters that an aligned
// read is one system call.
func TestAlignedReadIsDirect(t *testing.T) {
	const size = 1 << 20
	path := writeFile(t, filepath.Join(t.TempDir(), "image"), randomBytes(2, size))
	b := openTestBlob(t, path, modes[0])
	images.Need(t, "O_DIRECT on "+path, b.direct.Load())
	p := alignedBytes(size, 0)
	runtime.LockOSThread() // the counters are the thread's
	defer runtime.UnlockOSThread()
	first := syscallsRead(t)
	before := syscallsRead(t) // before - first: what counting costs
	if _, err := b.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if calls := syscallsRead(t) - before - (before - first); calls != 1 {
		t.Errorf("an aligned 1 MiB read took %d system calls, want 1", calls)
	}
}

func syscallsRead(t testing.TB) (calls uint64) {
	t.Helper()
	text, err := os.ReadFile("/proc/thread-self/io")
	images.Need(t, "/proc/thread-self/io", err == nil)
	for _, line := range bytes.Split(text, []byte("\n")) {
		if _, err := fmt.Sscanf(string(line), "syscr: %d", &calls); err == nil {
			return calls
		}
	}
	t.Fatal("no syscr in /proc/thread-self/io")
	return 0
}

// TestNoDirectIO reads from a file system that refuses O_DIRECT.
func TestNoDirectIO(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "ramfs", 0, ""); err != nil {
		images.Need(t, "ramfs: "+err.Error(), false)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	content := randomBytes(3, 300_001)
	b := openTestBlob(t, writeFile(t, filepath.Join(dir, "image"), content), modes[0])
	if b.direct.Load() {
		t.Error("ramfs took O_DIRECT; the test tests nothing")
	}
	for _, off := range []int{0, 1, 4096, 299_999} {
		checkRead(t, b, content, off, 100_000, 0)
	}
}

// TestDirectRefusedLater has a file system that takes the flag but not the read.
func TestDirectRefusedLater(t *testing.T) {
	content := randomBytes(4, 100_000)
	path := writeFile(t, filepath.Join(t.TempDir(), "image"), content)
	b := openTestBlob(t, path, mode{"misjudged", func(b *Blob) error {
		b.memAlign, b.offAlign = 1, 1 // the kernel answers EINVAL
		return nil
	}})
	images.Need(t, "O_DIRECT on "+path, b.direct.Load())
	checkRead(t, b, content, 1, 5000, 1)
	if b.direct.Load() {
		t.Error("direct reads were not given up")
	}
	checkRead(t, b, content, 50_000, 50_000, 1)
}

func TestReadAtConcurrent(t *testing.T) {
	content := randomBytes(5, 3<<20)
	path := writeFile(t, filepath.Join(t.TempDir(), "image"), content)
	b := openTestBlob(t, path, modes[0])
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			p := alignedBytes(200_000, g*64)
			for i := range 40 {
				off := (i*77_777 + g*12_345) % len(content)
				n, err := b.ReadAt(p, int64(off))
				if err != nil && !errors.Is(err, io.EOF) {
					t.Error(err)
					return
				}
				if !bytes.Equal(p[:n], content[off:off+n]) {
					t.Errorf("other bytes at %d", off)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestReadAfterClose(t *testing.T) {
	path := writeFile(t, filepath.Join(t.TempDir(), "image"), []byte("content"))
	b := openTestBlob(t, path, modes[0])
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			p := make([]byte, 7)
			for {
				_, err := b.ReadAt(p, 0)
				if errors.Is(err, os.ErrClosed) {
					return
				}
				if err != nil || string(p) != "content" {
					t.Errorf("%q, %v", p, err)
					return
				}
			}
		})
	}
	time.Sleep(5 * time.Millisecond)
	b.close()
	b.close()
	wg.Wait()
}

func TestChangedInPlace(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"written": func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte("XX"), 100)
			return errors.Join(err, f.Close())
		},
		"truncated": func(path string) error { return os.Truncate(path, 4096) },
		"grown":     func(path string) error { return os.Truncate(path, 1<<20) },
	} {
		for _, m := range modes {
			t.Run(name+"/"+m.name, func(t *testing.T) {
				content := randomBytes(6, 100_000)
				path := writeFile(t, filepath.Join(t.TempDir(), "image"), content)
				past := time.Now().Add(-time.Hour)
				if err := os.Chtimes(path, past, past); err != nil {
					t.Fatal(err)
				}
				b := openTestBlob(t, path, m)
				checkRead(t, b, content, 0, 8192, 0)
				if err := change(path); err != nil {
					t.Fatal(err)
				}
				for _, off := range []int64{0, 50_000} {
					p := make([]byte, 8192)
					n, err := b.ReadAt(p, off)
					if n != 0 {
						t.Errorf("%d bytes were handed out", n)
					}
					if !bytes.Equal(p, make([]byte, len(p))) {
						t.Error("changed bytes are in the buffer")
					}
					wantError(t, err, ErrChanged, path)
				}
			})
		}
	}
}

// TestImageChanged: an image tells of its files without reading them, and hands them
// to others.
func TestImageChanged(t *testing.T) {
	dir := t.TempDir()
	content := randomBytes(3, 20_000)
	a, d := writeFile(t, dir+"/a", content), writeFile(t, dir+"/d", content)
	past := time.Now().Add(-time.Hour)
	if err := errors.Join(os.Chtimes(a, past, past), os.Chtimes(d, past, past)); err != nil {
		t.Fatal(err)
	}
	img := acquire(t, openStore(t, Config{}), a+",device="+d, AcquireOptions{})
	if err := img.Changed(); err != nil {
		t.Error(err)
	}
	if err := os.Remove(a); err != nil { // it has no name any more, and the same bytes
		t.Fatal(err)
	}
	f, err := img.Blob().Reopen()
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(f)
	if flags, ferr := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0); err != nil || !bytes.Equal(got, content) || ferr != nil || flags&(unix.O_DIRECT|unix.O_ACCMODE) != 0 {
		t.Errorf("reopened: %d bytes, %v, flags %#x, %v", len(got), err, flags, ferr)
	}
	if err := errors.Join(f.Close(), img.Changed()); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(d, content[1:], 0o600); err != nil {
		t.Fatal(err)
	}
	wantError(t, img.Changed(), ErrChanged, d)
	img.Release()
	if err := img.Changed(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Release: %v", err)
	}
	if _, err := img.Blob().Reopen(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("reopened after Release: %v", err)
	}
}

// TestUnchangedInPlace: what does not change the bytes is no change.
func TestUnchangedInPlace(t *testing.T) {
	content := randomBytes(7, 10_000)
	path := writeFile(t, filepath.Join(t.TempDir(), "image"), content)
	b := openTestBlob(t, path, modes[0])
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	writeFile(t, path+".new", randomBytes(8, 10_000))
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	checkRead(t, b, content, 0, 10_000, 0)
}

func BenchmarkReadAt(b *testing.B) {
	path := writeFile(b, filepath.Join(b.TempDir(), "image"), randomBytes(9, 8<<20))
	for _, n := range []int{4096, 1 << 20} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			blob := openTestBlob(b, path, modes[0])
			p := alignedBytes(n, 0)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for i := range b.N {
				if _, err := blob.ReadAt(p, int64(i*n%(8<<20))); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
