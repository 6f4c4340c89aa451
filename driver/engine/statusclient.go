package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
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
	list, err := askAll(ctx, stateDir, query{})
	errs := []error{err}
	for i := range list {
		for k := range list[i].Domains {
			d := &list[i].Domains[k]
			errs = append(errs, d.eachFile(ctx, func(fd int, n node) error {
				bytes, err := residentBytes(fd)
				d.BytesResident += bytes
				d.BytesSaved += bytes * int64(max(n.Files-1, 0))
				return err
			}))
			d.Nodes = nil
		}
	}
	return list, errors.Join(errs...)
}

// DropFilter says whose pages are to be dropped; the zero value: everybody's.
type DropFilter struct {
	Domain string // only of this domain
	Volume string // only of the files that this volume shows, whoever shares them
}

// Dropped is what DropCaches has done.
type Dropped struct {
	Images  int   `json:"images"` // idle ones that were let go of, with their pages
	Domains int   `json:"domains"`
	Files   int   `json:"files"`       // that had pages
	Before  int64 `json:"bytesBefore"` // in the page cache
	After   int64 `json:"bytesAfter"`  // mapped by a process, or just being read
}

// DropCaches drops the page cache of the engines of a state directory, and lets go
// of their images that no volume shows. Pages that a process has mapped stay. It
// must not be called by a process that serves one of them.
//
// Errors: a filter that nothing answers to, and those of ReadStatus.
func DropCaches(ctx context.Context, stateDir string, filter DropFilter) (Dropped, error) {
	q := query{Forget: true}
	if filter.Domain != "" {
		q.Domain = &filter.Domain
	}
	if filter.Volume != "" {
		q.Volume = &filter.Volume
	}
	var sum Dropped
	list, err := askAll(ctx, stateDir, q)
	errs := []error{err}
	for _, s := range list {
		sum.Images += s.Forgotten
		sum.Domains += len(s.Domains)
		for k := range s.Domains {
			errs = append(errs, s.Domains[k].eachFile(ctx, func(fd int, _ node) error {
				before, err := residentBytes(fd)
				if err != nil || before == 0 {
					return err
				}
				if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
					return err
				}
				after, err := residentBytes(fd)
				sum.Files++
				sum.Before += before
				sum.After += after
				return err
			}))
		}
	}
	if sum.Domains == 0 && sum.Images == 0 && errors.Join(errs...) == nil && (q.Domain != nil || q.Volume != nil) {
		return sum, fmt.Errorf("%w: %s (state directory %s)", ErrNotMounted, filter, stateDir)
	}
	return sum, errors.Join(errs...)
}

// ErrNotMounted says that no engine has what was asked for.
var ErrNotMounted = errors.New("nothing is mounted")

// String names what the filter picks.
func (f DropFilter) String() string {
	var parts []string
	if f.Domain != "" {
		parts = append(parts, fmt.Sprintf("domain %q", f.Domain))
	}
	if f.Volume != "" {
		parts = append(parts, fmt.Sprintf("volume %q", f.Volume))
	}
	return strings.Join(parts, ", ")
}

// askAll asks every living engine of a state directory.
func askAll(ctx context.Context, stateDir string, q query) ([]Status, error) {
	sockets, err := filepath.Glob(filepath.Join(stateDir, instancesDir, "*", statusSocket))
	if err != nil {
		return nil, err
	}
	var list []Status
	var errs []error
	for _, path := range sockets {
		s, err := askOne(ctx, path, q)
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

func askOne(ctx context.Context, path string, q query) (s Status, err error) {
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
	if err := json.NewEncoder(conn).Encode(q); err != nil {
		return s, err
	}
	return s, json.NewDecoder(conn).Decode(&s)
}

// eachFile calls fn with each of the domain's Nodes, open. It opens with bare system
// calls: os.Open would ask the file system for poll(2).
func (d *DomainStatus) eachFile(ctx context.Context, fn func(fd int, n node) error) error {
	one := func(n node) error {
		fd, err := unix.Open(n.Path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) {
			return nil // forgotten meanwhile, with its pages
		}
		if err == nil {
			err = fn(fd, n)
			_ = unix.Close(fd)
		}
		if err != nil {
			return fmt.Errorf("page cache of %s: %w", n.Path, err)
		}
		return nil
	}
	for _, n := range d.Nodes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := one(n); err != nil {
			return err
		}
	}
	return nil
}

// residentBytes returns how much of an open file is in the page cache.
func residentBytes(fd int) (int64, error) {
	pages, err := residentPages(fd)
	return int64(pages) * int64(os.Getpagesize()), err
}

func residentPages(fd int) (uint64, error) {
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
