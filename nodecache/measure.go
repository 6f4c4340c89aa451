package nodecache

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// onDisk is what a file takes on the disk, in bytes, as du(1) counts it.
func onDisk(info os.FileInfo) int64 {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return st.Blocks * 512 // stat(2): whatever the file system's block is
}

// eachFile calls fn with path and everything below it, directories included. What
// vanishes meanwhile is left out.
func eachFile(path string, fn func(path string, info os.FileInfo)) error {
	return filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			fn(path, info)
		}
		return err
	})
}

// used is what the store takes on the disk now, in bytes, and will take when all
// files that are being written have what was promised to them.
func (s *Store) used() (now, promised int64, err error) {
	s.disk.moving.Lock()
	defer s.disk.moving.Unlock()
	s.mu.Lock()
	claims := make(map[string]int64, len(s.claims))
	for path, size := range s.claims {
		claims[path] = size
	}
	s.mu.Unlock()
	for _, name := range s.dir.top() {
		err := eachFile(filepath.Join(s.dir.root, name), func(path string, info os.FileInfo) {
			n := onDisk(info)
			now += n
			promised += max(n, claims[path])
		})
		if err != nil {
			return 0, 0, err
		}
	}
	return now, promised, nil
}

// others is what is on the disk in the store's directory that is none of the
// store's, the directory itself included.
func (s *Store) others() (n int64, err error) {
	top := s.dir.top()
	entries, err := os.ReadDir(s.dir.root)
	if err != nil {
		return 0, err
	}
	count := func(_ string, info os.FileInfo) { n += onDisk(info) }
	root, err := os.Lstat(s.dir.root)
	if err != nil {
		return 0, err
	}
	count("", root)
	for _, e := range entries {
		if !slices.Contains(top, e.Name()) {
			if err := eachFile(filepath.Join(s.dir.root, e.Name()), count); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

// free is how much of the disk is free, and how much of that is to stay so.
func (s *Store) free() (free, keep int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir.root, &st); err != nil {
		return 0, 0, &os.PathError{Op: "statfs", Path: s.dir.root, Err: err}
	}
	unit := uint64(st.Frsize) //nolint:gosec // a block size
	return bytesOf(st.Bavail, unit), s.keepFree(bytesOf(st.Blocks, unit)), nil
}
