package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs/build"
)

// addDirectory adds the tree at root, of which links are not followed.
func addDirectory(b *build.Builder, root string) error {
	links := map[[2]uint64]string{} // files with several names, by device and inode
	return filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if path == root {
			err = unix.Stat(path, &st) // the argument may be a link
		} else {
			err = unix.Lstat(path, &st)
		}
		if err != nil {
			return &os.PathError{Op: "stat", Path: path, Err: err}
		}
		id := [2]uint64{st.Dev, st.Ino}
		if first, ok := links[id]; ok {
			return b.Link(name, first)
		}
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			links[id] = name
		}
		return addFile(b, name, path, &st)
	})
}

// addFile adds one file, which is at path and whose status is st.
func addFile(b *build.Builder, name, path string, st *unix.Stat_t) error {
	e := build.Entry{
		Path: name, Mode: st.Mode, UID: st.Uid, GID: st.Gid,
		Mtime: time.Unix(st.Mtim.Unix()),
		Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev),
	}
	var err error
	if e.Xattrs, err = xattrsOf(path); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		if e.Target, err = os.Readlink(path); err != nil {
			return err
		}
	case unix.S_IFREG:
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		e.Size, e.Content = st.Size, f
	}
	return b.Add(&e)
}

// xattrsOf returns the attributes of a file, not followed.
func xattrsOf(path string) (map[string]string, error) {
	list, err := grow(func(p []byte) (int, error) { return unix.Llistxattr(path, p) })
	if err == unix.ENOTSUP { //nolint:errorlint // as the system call returned it
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: path, Err: err}
	}
	var all map[string]string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value, err := grow(func(p []byte) (int, error) { return unix.Lgetxattr(path, name, p) })
		if err != nil {
			return nil, &os.PathError{Op: "getxattr " + name, Path: path, Err: err}
		}
		if all == nil {
			all = map[string]string{}
		}
		all[name] = string(value)
	}
	return all, nil
}

// grow calls a system call that fills a buffer, with one that is large enough.
func grow(call func(p []byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 4 {
		buf := make([]byte, size)
		n, err := call(buf)
		if err == nil {
			return buf[:n], nil
		}
		if err != unix.ERANGE || size > 1<<20 { //nolint:errorlint // likewise
			return nil, fmt.Errorf("%w", err)
		}
	}
}
