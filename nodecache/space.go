package nodecache

import (
	"errors"
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// maxReserve is the default limit of what pulls leave free, in bytes: enough
// for kubelet, whose eviction of pods starts near a full disk, to write.
const maxReserve = 256 << 20

// blockSize is what sizes are rounded up to before they are compared with what
// files take on a disk.
const blockSize = 4096

// makeRoom creates a temporary file for size bytes, reserved on the disk and
// within the limit of the store. Images that nobody uses are evicted for it. If
// it can't fit, nothing is evicted and nothing left; the error wraps ErrNoSpace
// and says what holds the space.
//
// The room is the file's until publish or discard.
func (s *Store) makeRoom(what string, size int64) (*os.File, error) {
	s.space.Lock()
	defer s.space.Unlock()
	if err := s.fit(what, size); err != nil {
		return nil, err
	}
	f, err := s.createTemp()
	if err != nil {
		return nil, s.diskError("room for "+what, err)
	}
	s.claim(f.Name(), size)
	for {
		err := s.disk.allocate(f, size)
		if err == nil {
			return f, nil
		}
		// A quota of the file system, which statfs(2) does not tell of.
		if full(err) {
			if freed, _ := s.evictBytes(size, 0); freed > 0 {
				s.settle()
				continue
			}
		}
		s.discard(f)
		if errors.Is(err, unix.EFBIG) {
			return nil, fmt.Errorf("%w: %s needs %d bytes, more than a file may have in %s", ErrNoSpace, what, size, s.dir.root)
		}
		return nil, s.diskError(fmt.Sprintf("room for %s (%d bytes)", what, size), err)
	}
}

// growRoom makes the room of a file, which has its name and may be one of
// makeRoom, at least size bytes in all. It is for files whose size is not known
// before they are written; call it before the writes, with as much as they may
// take. Errors are those of makeRoom.
func (s *Store) growRoom(what, path string, size int64) error {
	s.space.Lock()
	defer s.space.Unlock()
	s.mu.Lock()
	had := s.claims[path]
	s.mu.Unlock()
	if info, err := os.Lstat(path); err == nil {
		had = max(had, onDisk(info))
	}
	if size <= had {
		return nil
	}
	if err := s.fit(what, size-had); err != nil {
		return err
	}
	s.claim(path, size)
	return nil
}

// claim says how many bytes a file may come to take on the disk, from now on
// until unclaim.
func (s *Store) claim(path string, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.claims[path] = roundUp(size)
}

func (s *Store) unclaim(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.claims, path)
}

// shortage is how many bytes are missing, 0 or less if none.
type shortage struct {
	size        int64 // that are wanted
	used, limit int64 // of the store with what is promised; limit 0: none
	free, keep  int64 // of the disk without what is promised
	disk, quota int64 // missing there
}

func (x shortage) bytes() int64 { return max(x.disk, x.quota) }

// shortage tells how many bytes are missing for size more. s.space is held.
func (s *Store) shortage(size int64) (x shortage, err error) {
	size = roundUp(size)
	now, promised, err := s.used()
	if err != nil {
		return x, err
	}
	free, keep, err := s.free()
	if err != nil {
		return x, err
	}
	x = shortage{size: size, used: promised, limit: s.limit, free: free - (promised - now), keep: keep}
	x.disk = size - (x.free - keep)
	if s.limit > 0 {
		x.quota = size - (s.limit - promised)
	} else {
		x.quota = math.MinInt64
	}
	return x, nil
}

// fit makes room for size more bytes, by eviction if need be. s.space is held.
func (s *Store) fit(what string, size int64) error {
	unsettled := false // something was evicted, and the disk may not know
	for {
		x, err := s.shortage(size)
		if err != nil {
			return fmt.Errorf("room for %s: %w", what, err)
		}
		if x.bytes() <= 0 {
			return nil
		}
		if unsettled && x.disk > 0 {
			s.settle()
			unsettled = false
			continue
		}
		if s.limit == 0 || size <= s.limit {
			freed, err := s.evictBytes(x.bytes(), 0)
			if freed > 0 {
				unsettled = true
				continue
			}
			if err != nil {
				return s.diskError("room for "+what, err)
			}
		}
		return s.noRoom(what, size, x)
	}
}

// settle waits until the disk knows that removed files are gone, which some file
// systems put off until a transaction ends. It waits for what others have written as
// well, so it is for when that is all that is left.
func (s *Store) settle() { _ = unix.Syncfs(int(s.lock.Fd())) }

// noRoom is the error of what does not fit.
func (s *Store) noRoom(what string, size int64, x shortage) error {
	held := s.holders()
	switch {
	case x.limit > 0 && roundUp(size) > x.limit:
		return fmt.Errorf("%w: %s needs %d bytes, more than the limit of %d bytes of %s; raise the limit", ErrNoSpace, what, size, x.limit, s.dir.root)
	case x.quota > 0 && x.quota >= x.disk:
		return fmt.Errorf("%w: %s needs %d bytes, %s holds %d of at most %d%s; raise the limit, or end what holds them",
			ErrNoSpace, what, size, s.dir.root, x.used, x.limit, held)
	}
	return fmt.Errorf("%w: %s needs %d bytes, %d are free in %s and %d of them are kept free%s; make room or use another disk",
		ErrNoSpace, what, size, max(x.free, 0), s.dir.root, x.keep, held)
}

// holders says what of the store can't be evicted.
func (s *Store) holders() string {
	list, _, err := s.entries()
	if err != nil {
		return ""
	}
	var used, pinned, writing int64
	for _, e := range list {
		switch {
		case s.inUse(e.id):
			used += e.allocated
		case e.pinned:
			pinned += e.allocated
		}
	}
	s.mu.Lock()
	for _, size := range s.claims {
		writing += size
	}
	s.mu.Unlock()
	if used+pinned+writing == 0 {
		return ""
	}
	return fmt.Sprintf(" (images in use hold %d bytes, pinned ones %d, running pulls %d)", used, pinned, writing)
}

func (s *Store) keepFree(total int64) int64 {
	switch {
	case s.reserve > 0:
		return s.reserve
	case s.reserve < 0:
		return 0
	}
	return min(total/100, maxReserve)
}

func bytesOf(blocks, unit uint64) int64 {
	if unit != 0 && blocks > math.MaxInt64/unit {
		return math.MaxInt64
	}
	return int64(blocks * unit) //nolint:gosec // checked above
}

func roundUp(size int64) int64 {
	if size > math.MaxInt64-blockSize {
		return size
	}
	return (size + blockSize - 1) &^ (blockSize - 1)
}
