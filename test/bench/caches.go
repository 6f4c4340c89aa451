package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dropCaches takes clean pages, dentries and inodes out of memory, all but what is
// in use.
func dropCaches() error {
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return fmt.Errorf("%w: run the bench where the page cache can be dropped", err)
	}
	return nil
}

// coldly drops the caches and makes sure that the image file is not in the page
// cache, nor the start of any of its files.
func (im *image) coldly(sets ...*fileSet) error {
	if err := dropCaches(); err != nil {
		return err
	}
	n, err := cachedBytes(im.path)
	if err != nil {
		return err
	}
	if n > im.size/100 { // the super block and the root may be held
		return fmt.Errorf("%s: %d bytes of the image file stay in the page cache", im.name, n)
	}
	for _, s := range sets {
		if n, err := s.resident(0); n > 0 || err != nil {
			return errors.Join(fmt.Errorf("%s: %d pages of a file are cached after the caches were dropped", im.name, n), err)
		}
	}
	return nil
}

// cachedBytes is how much of a file is in the page cache, by cachestat(2) (Linux
// 6.5), else mincore(2). It is not for files of overlayfs, of which cachestat
// says 0.
func cachedBytes(path string) (int64, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	var stat unix.Cachestat_t
	err = unix.Cachestat(uint(fd), &unix.CachestatRange{}, &stat, 0)
	if err == nil {
		return int64(stat.Cache) * int64(os.Getpagesize()), nil
	}
	if !errors.Is(err, unix.ENOSYS) {
		return 0, &os.PathError{Op: "cachestat", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, &os.PathError{Op: "fstat", Path: path, Err: err}
	}
	n, err := residentPages(fd, st.Size)
	return int64(n) * int64(os.Getpagesize()), err
}

// residentPages counts the pages of a file in the page cache, by mincore(2). A
// mapping of a file of overlayfs is one of the file below it, so that this works
// there too.
func residentPages(fd int, size int64) (n int, err error) {
	if size == 0 {
		return 0, nil
	}
	data, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0, fmt.Errorf("mmap: %w", err)
	}
	defer func() { _ = unix.Munmap(data) }()
	vec := make([]byte, (len(data)+os.Getpagesize()-1)/os.Getpagesize())
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(unsafe.SliceData(data))),
		uintptr(len(data)), uintptr(unsafe.Pointer(unsafe.SliceData(vec))))
	if errno != 0 {
		return 0, fmt.Errorf("mincore: %w", errno)
	}
	for _, v := range vec {
		n += int(v & 1)
	}
	return n, nil
}

// pageCache is the page cache of the whole machine in bytes: Cached + Buffers −
// Shmem of /proc/meminfo, which are the pages of all files, of their directories
// and of file system metadata, but not those of tmpfs. The counters that each CPU
// keeps for itself, up to a megabyte of pages, are folded into the sums before.
func pageCache() (sum int64, err error) {
	_ = os.WriteFile("/proc/sys/vm/stat_refresh", []byte("1"), 0) // Linux 4.7
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for name, sign := range map[string]int64{"Cached:": 1, "Buffers:": 1, "Shmem:": -1} {
		n, err := kilobytes(text, name)
		if err != nil {
			return 0, fmt.Errorf("/proc/meminfo: %w", err)
		}
		sum += sign * n << 10
	}
	return sum, nil
}

// kilobytes finds the value of a line such as "Cached:  123 kB".
func kilobytes(text []byte, name string) (int64, error) {
	for line := range bytes.Lines(text) {
		fields := bytes.Fields(line)
		if len(fields) >= 2 && string(fields[0]) == name {
			return strconv.ParseInt(string(fields[1]), 10, 64)
		}
	}
	return 0, fmt.Errorf("no line %q", name)
}
