package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ReadStatus asks every engine of a state directory for its status, and the kernel
// for the page cache of its domains. It must not be called by a process that
// serves one of them.
//
// An engine that does not answer is an error, joined with those of the others,
// beside the status of those that did.
func ReadStatus(ctx context.Context, stateDir string) ([]Status, error) {
	sockets, err := filepath.Glob(filepath.Join(stateDir, instancesDir, "*", statusSocket))
	if err != nil {
		return nil, err
	}
	var list []Status
	var errs []error
	for _, path := range sockets {
		s, err := readStatus(ctx, path)
		switch {
		case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
			// Its engine is dead, and the next one will remove it.
		case err != nil:
			errs = append(errs, fmt.Errorf("status of %s: %w", path, err))
		default:
			list = append(list, s)
		}
	}
	return list, errors.Join(errs...)
}

func readStatus(ctx context.Context, path string) (s Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return s, err
	}
	defer func() { _ = conn.Close() }()
	if t, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(t)
	}
	if err := json.NewDecoder(conn).Decode(&s); err != nil {
		return s, err
	}
	for i := range s.Domains {
		d := &s.Domains[i]
		for _, n := range d.Nodes {
			if ctx.Err() != nil {
				return s, ctx.Err()
			}
			pages, err := residentPages(d.ContentMount + n.Path)
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) {
				continue // forgotten meanwhile, with its pages
			}
			if err != nil {
				return s, fmt.Errorf("page cache of %s: %w", n.Path, err)
			}
			bytes := int64(pages) * int64(os.Getpagesize())
			d.BytesResident += bytes
			d.BytesSaved += bytes * int64(max(n.Files-1, 0))
		}
		d.Nodes = nil
	}
	return s, nil
}

// residentPages returns how many pages of a file are in the page cache. It opens
// with bare system calls: os.Open would ask the file system for poll(2).
func residentPages(path string) (uint64, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	var whole struct{ off, len uint64 } // struct cachestat_range; 0, 0: the whole file
	var stat struct{ cache, dirty, writeback, evicted, recentlyEvicted uint64 }
	_, _, errno := unix.Syscall6(unix.SYS_CACHESTAT, uintptr(fd),
		uintptr(unsafe.Pointer(&whole)), uintptr(unsafe.Pointer(&stat)), 0, 0, 0)
	if errno == unix.ENOSYS {
		return mincorePages(fd)
	}
	if errno != 0 {
		return 0, errno
	}
	return stat.cache, nil
}

// mincorePages does without cachestat(2), before Linux 6.5.
func mincorePages(fd int) (pages uint64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Size == 0 {
		return 0, err
	}
	data, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Munmap(data) }()
	vec := make([]byte, (len(data)+os.Getpagesize()-1)/os.Getpagesize())
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(unsafe.SliceData(data))), uintptr(len(data)),
		uintptr(unsafe.Pointer(unsafe.SliceData(vec))))
	if errno != 0 {
		return 0, errno
	}
	for _, v := range vec {
		pages += uint64(v & 1)
	}
	return pages, nil
}
