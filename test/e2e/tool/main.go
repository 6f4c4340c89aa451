// Command tool is the program in the images of the end-to-end tests: pods execute it from
// the volume, with nothing else there.
//
//	tool ls DIR          the names in DIR, one a line
//	tool frames FILE...  the physical pages of files as a line of JSON; they stay in
//	                     memory until stdin ends. It needs CAP_SYS_ADMIN and CAP_IPC_LOCK
package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"unsafe"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "tool:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "ls":
		entries, err := os.ReadDir(args[1])
		for _, e := range entries {
			fmt.Println(e.Name())
		}
		return err
	case len(args) > 1 && args[0] == "frames":
		all := make(map[string][]uint64)
		for _, path := range args[1:] {
			frames, err := lockedFrames(path)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			all[path] = frames
		}
		if err := json.NewEncoder(os.Stdout).Encode(all); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	}
	return errors.New("usage: tool ls DIR | tool frames FILES")
}

// lockedFrames maps a file, locks its pages for as long as the process lives, and returns
// their numbers. A page that is not there, or whose number the kernel hides, is an error.
func lockedFrames(path string) ([]uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data, err := syscall.Mmap(int(f.Fd()), 0, int(info.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	if err := syscall.Mlock(data); err != nil {
		return nil, fmt.Errorf("mlock: %w", err)
	}
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil, err
	}
	defer func() { _ = pagemap.Close() }()
	size := os.Getpagesize()
	first := uint64(uintptr(unsafe.Pointer(&data[0]))) / uint64(size)
	raw := make([]byte, 8*((len(data)+size-1)/size))
	if _, err := pagemap.ReadAt(raw, int64(first)*8); err != nil {
		return nil, err
	}
	frames := make([]uint64, len(raw)/8)
	for i := range frames {
		entry := binary.NativeEndian.Uint64(raw[8*i:])
		frames[i] = entry & (1<<55 - 1) // Documentation/admin-guide/mm/pagemap.rst
		if entry>>63 == 0 || frames[i] == 0 {
			return nil, fmt.Errorf("page %d has the entry %#x: not present, or hidden from this process", i, entry)
		}
	}
	return frames, nil
}
