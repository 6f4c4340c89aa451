package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// listSize is how much libc's readdir(3) asks for at a time.
const listSize = 32 << 10

// walker does what `find -ls` does: it lists every directory, asks lstat(2) of
// every name, and reads every symbolic link.
type walker struct {
	entries, links int
	list           [listSize]byte // of getdents64(2)
	st             unix.Stat_t
	link           [4096]byte

	meta  *metadata // nil: attributes are not asked for
	attrs [64 << 10]byte
	value [64 << 10]byte
}

// walk walks the tree at dir. It returns how many names there are.
func walk(dir string) (p pass, entries int, err error) {
	w := new(walker)
	name := append([]byte(dir), 0)
	p, err = timed(func() error { return w.dir(unix.AT_FDCWD, name) })
	if err != nil {
		err = fmt.Errorf("walk %s: %w", dir, err)
	}
	return p, w.entries, err
}

func (w *walker) dir(parent int, name []byte) error {
	fd, errno := rawOpen(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
	if errno != 0 {
		return w.fail("open", name, errno)
	}
	defer rawClose(fd)
	if w.meta != nil {
		if err := unix.Fchdir(int(fd)); err != nil {
			return &os.PathError{Op: "fchdir", Path: string(name), Err: err}
		}
	}
	var dirs [][]byte
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_GETDENTS64, fd, uintptr(unsafe.Pointer(&w.list)), uintptr(len(w.list)))
		if errno != 0 {
			return w.fail("getdents64", name, errno)
		}
		if n == 0 {
			break
		}
		// struct linux_dirent64: u64 ino, s64 off, u16 reclen, u8 type, name, 0.
		const reclen, typ, nameAt = 16, 18, 19
		for rest := w.list[:n]; len(rest) > 0; {
			size := int(binary.NativeEndian.Uint16(rest[reclen:]))
			end := nameAt + bytes.IndexByte(rest[nameAt:size], 0) + 1
			entry := rest[nameAt:end]
			kind := rest[typ]
			rest = rest[size:]
			if s := string(entry); s == ".\x00" || s == "..\x00" {
				continue
			}
			if err := w.entry(fd, entry, kind); err != nil {
				return err
			}
			if w.st.Mode&unix.S_IFMT == unix.S_IFDIR {
				dirs = append(dirs, bytes.Clone(entry))
			}
		}
	}
	for _, d := range dirs {
		if err := w.dir(int(fd), d); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) entry(dir uintptr, name []byte, kind byte) error {
	w.entries++
	_, _, errno := unix.RawSyscall6(unix.SYS_NEWFSTATAT, dir, uintptr(unsafe.Pointer(unsafe.SliceData(name))),
		uintptr(unsafe.Pointer(&w.st)), unix.AT_SYMLINK_NOFOLLOW, 0, 0)
	if errno != 0 {
		return w.fail("lstat", name, errno)
	}
	if w.meta != nil {
		return w.attributes(name)
	}
	if kind != unix.DT_LNK {
		return nil
	}
	w.links++
	_, _, errno = unix.RawSyscall6(unix.SYS_READLINKAT, dir, uintptr(unsafe.Pointer(unsafe.SliceData(name))),
		uintptr(unsafe.Pointer(&w.link)), uintptr(len(w.link)), 0, 0)
	if errno != 0 {
		return w.fail("readlink", name, errno)
	}
	return nil
}

// attributes reads the extended attributes of a name in the working directory that
// was just statted.
func (w *walker) attributes(name []byte) error {
	m := w.meta
	m.names++
	m.mtime += w.st.Mtim.Sec
	if w.st.Mode&unix.S_IFMT != unix.S_IFDIR {
		m.bytes += w.st.Size
	}
	n, _, errno := unix.RawSyscall(unix.SYS_LLISTXATTR, uintptr(unsafe.Pointer(unsafe.SliceData(name))),
		uintptr(unsafe.Pointer(&w.attrs)), uintptr(len(w.attrs)))
	if errno != 0 {
		return w.fail("llistxattr", name, errno)
	}
	for rest := w.attrs[:n]; len(rest) > 0; {
		end := bytes.IndexByte(rest, 0) + 1
		size, _, errno := unix.RawSyscall6(unix.SYS_LGETXATTR, uintptr(unsafe.Pointer(unsafe.SliceData(name))),
			uintptr(unsafe.Pointer(unsafe.SliceData(rest))), uintptr(unsafe.Pointer(&w.value)), uintptr(len(w.value)), 0, 0)
		if errno != 0 {
			return w.fail("lgetxattr", name, errno)
		}
		m.attrs++
		m.values += int(size)
		rest = rest[end:]
	}
	return nil
}

func (w *walker) fail(op string, name []byte, errno unix.Errno) error {
	return &os.PathError{Op: op, Path: string(name[:len(name)-1]), Err: errno}
}
