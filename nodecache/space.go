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

// makeRoom creates a temporary file for size bytes, reserved on the disk. If
// they do not fit beside what is to stay free it fails with ErrNoSpace and
// leaves nothing.
func (s *Store) makeRoom(what string, size int64) (*os.File, error) {
	s.space.Lock()
	defer s.space.Unlock()
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir.tmp, &st); err != nil {
		return nil, fmt.Errorf("room for %s: statfs %s: %w", what, s.dir.tmp, err)
	}
	unit := uint64(st.Frsize) //nolint:gosec // a block size
	free, keep := bytesOf(st.Bavail, unit), s.keepFree(bytesOf(st.Blocks, unit))
	if size > free-keep {
		return nil, fmt.Errorf("%w: %s needs %d bytes, %d are free in %s and %d of them are kept free; make room or use another disk",
			ErrNoSpace, what, size, free, s.dir.root, keep)
	}
	f, err := s.createTemp()
	if err != nil {
		return nil, s.diskError("room for "+what, err)
	}
	if err := s.disk.allocate(f, size); err != nil {
		s.discard(f)
		if errors.Is(err, unix.EFBIG) {
			return nil, fmt.Errorf("%w: %s needs %d bytes, more than a file may have in %s", ErrNoSpace, what, size, s.dir.root)
		}
		return nil, s.diskError(fmt.Sprintf("room for %s (%d bytes, %d free)", what, size, free), err)
	}
	return f, nil
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
