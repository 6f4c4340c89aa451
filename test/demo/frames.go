package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const (
	framePresent = 1 << 63
	frameNumber  = 1<<55 - 1
)

// mapFrames maps the file and asks the kernel, by /proc/self/pagemap, which
// physical pages it mapped. Zero is never one of a file.
func mapFrames(file string) (found []uint64, unmap func(), err error) {
	data, err := mapFile(file)
	if err != nil {
		return nil, nil, err
	}
	unmap = func() { _ = unix.Munmap(data) }
	if found, err = framesOf(data); err != nil {
		unmap()
		return nil, nil, fmt.Errorf("physical pages of %s: %w", file, err)
	}
	return found, unmap, nil
}

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
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("mmap %s: %w", file, err)
	}
	return data, nil
}

func framesOf(data []byte) ([]uint64, error) {
	page := os.Getpagesize()
	var touched byte
	for i := 0; i < len(data); i += page {
		touched ^= data[i]
	}
	runtime.KeepAlive(touched)

	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil, err
	}
	defer func() { _ = pagemap.Close() }()
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
