package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const (
	framePresent = 1 << 63
	frameNumber  = 1<<55 - 1
)

// distinctPages maps every file of the first and then of the second tree, all at
// once so that no page is freed in between, and counts the physical pages that
// the kernel mapped: those of the first, and those that only the second has. It
// is told in bytes.
func distinctPages(ctx context.Context, dirs [2]string) (first, second int64, err error) {
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = pagemap.Close() }()
	var maps [][]byte
	defer func() {
		for _, data := range maps {
			_ = unix.Munmap(data)
		}
	}()
	seen := make(map[uint64]bool)
	var counts [2]int64
	for i, dir := range dirs {
		before := len(seen)
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !regular(d) {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			data, err := mapFile(path)
			if err != nil || data == nil {
				return err
			}
			maps = append(maps, data)
			frames, err := framesOf(pagemap, data)
			if err != nil {
				return fmt.Errorf("physical pages of %s: %w", path, err)
			}
			for _, f := range frames {
				seen[f] = true
			}
			return nil
		})
		if err != nil {
			return 0, 0, err
		}
		counts[i] = int64(len(seen)-before) * int64(os.Getpagesize())
	}
	return counts[0], counts[1], nil
}

// mapFile maps a whole file with all its pages; nil of an empty one.
func mapFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() == 0 {
		return nil, nil
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("mmap %s: %w", file, err)
	}
	return data, nil
}

// framesOf returns the physical page number of every page of mapped data. Zero is
// never one of a file.
func framesOf(pagemap *os.File, data []byte) ([]uint64, error) {
	page := os.Getpagesize()
	var touched byte
	for i := 0; i < len(data); i += page {
		touched ^= data[i]
	}
	runtime.KeepAlive(touched)

	entries := make([]byte, 8*((len(data)+page-1)/page))
	start := uintptr(unsafe.Pointer(unsafe.SliceData(data))) / uintptr(page)
	if _, err := pagemap.ReadAt(entries, int64(start)*8); err != nil {
		return nil, err
	}
	found := make([]uint64, len(entries)/8)
	for i := range found {
		entry := binary.NativeEndian.Uint64(entries[8*i:])
		found[i] = entry & frameNumber
		if entry&framePresent == 0 || found[i] == 0 {
			return nil, errors.New("the kernel does not tell: CAP_SYS_ADMIN is needed")
		}
	}
	return found, nil
}
