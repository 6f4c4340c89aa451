package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ReadStatus asks every engine of a state directory for its status, and the kernel
// for the page cache of its domains: of every file, or of a sample where they are
// more than some thousands. It must not be called by a process that serves one of them.
//
// An engine that does not answer is an error, joined with those of the others,
// beside the status of those that did.
func ReadStatus(ctx context.Context, stateDir string) ([]Status, error) {
	return askAll(ctx, stateDir, query{}, func(d *DomainStatus, fd int, n node) error {
		bytes, err := n.residentBytes(fd)
		d.count(n, bytes)
		return err
	})
}

// count adds a file of which so many bytes are in the page cache.
func (d *DomainStatus) count(n node, resident int64) {
	if n.Weight > 0 {
		resident = int64(float64(resident)*n.Weight + 0.5)
	}
	d.BytesResident += resident
	shown := 0 // files that volumes show
	for _, f := range n.Files {
		image, files := f[0], f[1]
		if image < 0 || image >= len(d.Images) {
			continue
		}
		im := &d.Images[image]
		im.BytesResident += resident
		if len(n.Files) == 1 {
			im.BytesAlone += resident
		}
		if !im.Idle {
			shown += files
		}
	}
	d.BytesSaved += resident * int64(max(shown-1, 0))
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
	q := query{Forget: true, All: true}
	if filter.Domain != "" {
		q.Domain = &filter.Domain
	}
	if filter.Volume != "" {
		q.Volume = &filter.Volume
	}
	var sum Dropped
	list, err := askAll(ctx, stateDir, q, func(_ *DomainStatus, fd int, n node) error {
		before, err := n.residentBytes(fd)
		if err != nil || before == 0 {
			return err
		}
		if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
			return err
		}
		after, err := n.residentBytes(fd)
		sum.Files++
		sum.Before += before
		sum.After += after
		return err
	})
	for _, s := range list {
		sum.Images += s.Forgotten
		sum.Domains += len(s.Domains)
	}
	if sum.Domains == 0 && sum.Images == 0 && err == nil && (q.Domain != nil || q.Volume != nil) {
		return sum, fmt.Errorf("%w: %s (state directory %s)", ErrNotMounted, filter, stateDir)
	}
	return sum, err
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

// eachFile is called with a file that may have pages, open.
type eachFile func(d *DomainStatus, fd int, n node) error

// askAll asks every living engine of a state directory.
func askAll(ctx context.Context, stateDir string, q query, fn eachFile) ([]Status, error) {
	sockets, err := statusSockets(stateDir)
	if err != nil {
		return nil, err
	}
	var list []Status
	var errs []error
	for _, path := range sockets {
		s, err := askOne(ctx, path, q, fn)
		if gone(err) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("status of %s: %w", path, err))
		}
		if s.PID != 0 {
			list = append(list, s)
		}
	}
	return list, errors.Join(errs...)
}

// statusSockets are those of all engines of a state directory, dead ones included.
func statusSockets(stateDir string) ([]string, error) {
	return filepath.Glob(filepath.Join(stateDir, instancesDir, "*", statusSocket))
}

// gone tells of an error that the engine is dead; the next one will remove its socket.
func gone(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, os.ErrNotExist)
}

// askOne asks one engine. A status without a PID has no meaning.
func askOne(ctx context.Context, path string, q query, fn eachFile) (s Status, err error) {
	dial, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(dial, "unix", path)
	if err != nil {
		return s, err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := json.NewEncoder(patient{conn}).Encode(q); err != nil {
		return s, err
	}
	lines := json.NewDecoder(patient{conn})
	if err := lines.Decode(&s); err != nil {
		return Status{}, err
	}
	for {
		var n node
		err := lines.Decode(&n)
		if errors.Is(err, io.EOF) {
			return s, ctx.Err()
		}
		if err != nil {
			return s, errors.Join(ctx.Err(), err)
		}
		if n.Domain < 0 || n.Domain >= len(s.Domains) {
			return s, fmt.Errorf("file of domain %d, there are %d", n.Domain, len(s.Domains))
		}
		if err := n.open(func(fd int) error { return fn(&s.Domains[n.Domain], fd, n) }); err != nil {
			return s, err
		}
	}
}

// open calls fn with the file, unless it is gone. It opens with bare system calls:
// os.Open would ask the file system for poll(2).
func (n node) open(fn func(fd int) error) error {
	fd, err := unix.Open(n.Path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) {
		return nil // forgotten meanwhile, with its pages
	}
	if err == nil {
		err = fn(fd)
		_ = unix.Close(fd)
	}
	if err != nil {
		return fmt.Errorf("page cache of %s: %w", n.Path, err)
	}
	return nil
}

// residentBytes returns how much of an open file is in the page cache.
func (n node) residentBytes(fd int) (int64, error) {
	count := residentPages
	if n.Behind {
		count = mincorePages
	}
	pages, err := count(fd)
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
