package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// readSize is what a reader asks for at a time.
const readSize = 1 << 20

// fileSet is the regular files of a mounted tree, ready to be read without
// allocating: the names are relative to root and end with a 0.
type fileSet struct {
	dir   string
	root  int // O_PATH
	names [][]byte
	sizes []int64
	total int64
	dirs  [][]byte // where the files are; each once when the files are in order
	buf   []byte   // of readSize, page aligned
}

// openSet lists the files of an image mounted at dir, in the order of their names.
func openSet(im *image, dir string) (_ *fileSet, err error) {
	names, err := regularFiles(dir)
	if err != nil {
		return nil, err
	}
	return openNames(im, dir, names)
}

// openNames is openSet for files whose names are known.
func openNames(im *image, dir string, names []string) (_ *fileSet, err error) {
	s := &fileSet{dir: dir}
	for _, name := range names {
		s.names = append(s.names, append([]byte(name), 0))
		s.sizes = append(s.sizes, im.want[name].size)
		s.total += im.want[name].size
		if dir := append([]byte(filepath.Dir(name)), 0); len(s.dirs) == 0 || !bytes.Equal(s.dirs[len(s.dirs)-1], dir) {
			s.dirs = append(s.dirs, dir)
		}
	}
	if s.buf, err = unix.Mmap(-1, 0, readSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_POPULATE); err != nil {
		return nil, err
	}
	if s.root, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		_ = unix.Munmap(s.buf)
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return s, nil
}

func (s *fileSet) close() { _ = errors.Join(unix.Close(s.root), unix.Munmap(s.buf)) }

// pass is what one reading of a set took.
type pass struct {
	wall, cpu time.Duration // cpu: of the reading thread, user and system
}

// timed runs f on a thread of its own without the garbage collector.
func timed(f func() error) (p pass, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	before, err := threadCPU()
	if err != nil {
		return p, err
	}
	start := time.Now()
	err = f()
	p.wall = time.Since(start)
	after, err2 := threadCPU()
	p.cpu = after - before
	return p, errors.Join(err, err2)
}

func threadCPU() (time.Duration, error) {
	var u unix.Rusage
	err := unix.Getrusage(unix.RUSAGE_THREAD, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}

// read opens, reads from the start to the end, and closes each file.
func (s *fileSet) read() (pass, error) { return s.readIn(readSize) }

// readIn is read in reads of a size, at most readSize.
func (s *fileSet) readIn(step int) (pass, error) {
	return timed(func() error {
		for i, name := range s.names {
			fd, errno := rawOpen(s.root, name, unix.O_RDONLY|unix.O_CLOEXEC)
			if errno != 0 {
				return s.fail("open", i, errno)
			}
			for left := s.sizes[i]; left > 0; {
				n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(s.buf))), uintptr(step))
				if errno == unix.EINTR {
					continue
				}
				if errno != 0 || n == 0 || int64(n) > left {
					rawClose(fd)
					return s.fail(fmt.Sprintf("read %d of %d bytes left", int64(n), left), i, errno)
				}
				left -= int64(n)
			}
			rawClose(fd)
		}
		return nil
	})
}

// readMapped maps each file and copies it out of the mapping, so much at a time, at
// most readSize.
func (s *fileSet) readMapped(step int) (pass, error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // a read error is a SIGBUS
	return timed(func() (err error) {
		at := 0
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("%s: read of a mapping: %v", s.path(at), r)
			}
		}()
		for i, name := range s.names {
			if at = i; s.sizes[i] == 0 {
				continue
			}
			fd, errno := rawOpen(s.root, name, unix.O_RDONLY|unix.O_CLOEXEC)
			if errno != 0 {
				return s.fail("open", i, errno)
			}
			data, err := unix.Mmap(int(fd), 0, int(s.sizes[i]), unix.PROT_READ, unix.MAP_SHARED)
			rawClose(fd)
			if err != nil {
				return &os.PathError{Op: "mmap", Path: s.path(i), Err: err}
			}
			for rest := data; len(rest) > 0; {
				rest = rest[copy(s.buf[:step], rest):]
			}
			if err := unix.Munmap(data); err != nil {
				return err
			}
		}
		return nil
	})
}

// readHeld reads each file as read does and then locks its pages in memory, until
// release is called, so that the kernel cannot take them away before they are
// counted. The lock needs CAP_IPC_LOCK; without it, and when they are smaller than
// least bytes, the files are just read.
func (s *fileSet) readHeld(least int64) (release func(), err error) {
	var held [][]byte
	release = func() {
		for _, data := range held {
			_ = unix.Munmap(data)
		}
	}
	one := *s
	for i := range s.names {
		one.names, one.sizes = s.names[i:i+1], s.sizes[i:i+1]
		if _, err := one.read(); err != nil {
			return release, err
		}
		if s.sizes[i] < max(least, 1) {
			continue
		}
		fd, errno := rawOpen(s.root, s.names[i], unix.O_RDONLY|unix.O_CLOEXEC)
		if errno != 0 {
			return release, s.fail("open", i, errno)
		}
		data, err := unix.Mmap(int(fd), 0, int(s.sizes[i]), unix.PROT_READ, unix.MAP_SHARED)
		rawClose(fd)
		if err != nil {
			return release, &os.PathError{Op: "mmap", Path: s.path(i), Err: err}
		}
		held = append(held, data)
		_ = unix.Mlock(data)
	}
	return release, nil
}

// readRandom opens all files and reads count pages of them, anywhere; the same ones
// for the same seed.
func (s *fileSet) readRandom(count int, seed uint64) (p pass, err error) {
	fds := make([]uintptr, 0, len(s.names))
	defer func() {
		for _, fd := range fds {
			rawClose(fd)
		}
	}()
	for i, name := range s.names {
		fd, errno := rawOpen(s.root, name, unix.O_RDONLY|unix.O_CLOEXEC)
		if errno != 0 {
			return p, s.fail("open", i, errno)
		}
		fds = append(fds, fd)
	}
	random := rand.New(rand.NewPCG(seed, 0))
	return timed(func() error {
		for range count {
			i := random.IntN(len(fds))
			at := random.Int64N((s.sizes[i]+page-1)/page) * page
			n, _, errno := unix.RawSyscall6(unix.SYS_PREAD64, fds[i], uintptr(unsafe.Pointer(unsafe.SliceData(s.buf))), page, uintptr(at), 0, 0)
			if want := min(page, s.sizes[i]-at); errno != 0 || int64(n) != want {
				return s.fail("pread", i, errno)
			}
		}
		return nil
	})
}

// stat asks stat(2) of each file.
func (s *fileSet) stat() (pass, error) {
	var st unix.Stat_t
	return timed(func() error {
		for i, name := range s.names {
			_, _, errno := unix.RawSyscall6(unix.SYS_NEWFSTATAT, uintptr(s.root), uintptr(unsafe.Pointer(unsafe.SliceData(name))),
				uintptr(unsafe.Pointer(&st)), unix.AT_SYMLINK_NOFOLLOW, 0, 0)
			if errno != 0 {
				return s.fail("stat", i, errno)
			}
			if st.Size != s.sizes[i] {
				return s.fail("stat: another size", i, 0)
			}
		}
		return nil
	})
}

// list opens, lists and closes each directory that files are in.
func (s *fileSet) list() (pass, error) {
	return timed(func() error {
		for i, name := range s.dirs {
			fd, errno := rawOpen(s.root, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
			if errno != 0 {
				return s.fail("open the directory", i, errno)
			}
			for {
				n, _, errno := unix.RawSyscall(unix.SYS_GETDENTS64, fd, uintptr(unsafe.Pointer(unsafe.SliceData(s.buf))), listSize)
				if errno != 0 {
					rawClose(fd)
					return s.fail("getdents64", i, errno)
				}
				if n == 0 {
					break
				}
			}
			rawClose(fd)
		}
		return nil
	})
}

// maxHeld is how many files can be locked in memory at a time: of the 65,530 mappings
// that Linux allows a process unless it is told otherwise, some are left for others.
const maxHeld = 50_000

// heldFrom is the size from which on files can be held, of several sets together.
func heldFrom(sets []*fileSet) int64 {
	var sizes []int64
	for _, s := range sets {
		sizes = append(sizes, s.sizes...)
	}
	if len(sizes) <= maxHeld {
		return 0
	}
	slices.Sort(sizes)
	return sizes[len(sizes)-maxHeld] + 1
}

// resident counts the pages of a file in the page cache.
func (s *fileSet) resident(i int) (int, error) {
	fd, errno := rawOpen(s.root, s.names[i], unix.O_RDONLY|unix.O_CLOEXEC)
	if errno != 0 {
		return 0, s.fail("open", i, errno)
	}
	defer rawClose(fd)
	return residentPages(int(fd), s.sizes[i])
}

func (s *fileSet) path(i int) string {
	return filepath.Join(s.dir, string(s.names[i][:len(s.names[i])-1]))
}

func (s *fileSet) fail(op string, i int, errno unix.Errno) error {
	if errno == 0 {
		return fmt.Errorf("%s: %s: unexpected end or too much data", s.path(i), op)
	}
	return &os.PathError{Op: op, Path: s.path(i), Err: errno}
}

// rawOpen is openat(2) of a name that ends with a 0.
func rawOpen(dir int, name []byte, flags int) (uintptr, unix.Errno) {
	fd, _, errno := unix.RawSyscall6(unix.SYS_OPENAT, uintptr(dir), uintptr(unsafe.Pointer(unsafe.SliceData(name))), uintptr(flags), 0, 0, 0)
	return fd, errno
}

func rawClose(fd uintptr) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0) }
