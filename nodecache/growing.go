package nodecache

import (
	"os"

	"golang.org/x/sys/unix"
)

// growStep is how much room is taken at a time for a file whose size is not known,
// in bytes.
const growStep = 64 << 20

// growing is a temporary file whose size is not known before it is written. It takes
// its room as it grows, and sends its bytes to the disk meanwhile.
type growing struct {
	store  *Store
	what   string
	file   *os.File
	room   int64 // taken
	size   int64 // written
	pushed int64 // sent to the disk

	nameless bool
}

func (s *Store) newGrowing(what string) (*growing, error) {
	f, err := s.createTemp()
	if err != nil {
		return nil, s.diskError("room for "+what, err)
	}
	return &growing{store: s, what: what, file: f}, nil
}

// newScratch is newGrowing for a file that is never published. It has no name any
// more, so that nothing is left of it whatever happens.
func (s *Store) newScratch(what string) (*growing, error) {
	g, err := s.newGrowing(what)
	if err != nil {
		return nil, err
	}
	if err := s.disk.remove(g.file.Name()); err != nil {
		g.discard()
		return nil, s.diskError("room for "+what, err)
	}
	g.nameless = true
	return g, nil
}

func (g *growing) ReadAt(p []byte, off int64) (int, error) { return g.file.ReadAt(p, off) }

// WriteAt fails with ErrNoSpace before the write if there is no room for it.
func (g *growing) WriteAt(p []byte, off int64) (int, error) {
	end := off + int64(len(p))
	if end > g.room {
		step := max(end, g.room+growStep)
		err := g.store.growRoom(g.what, g.file.Name(), step)
		if err != nil {
			step = end
			err = g.store.growRoom(g.what, g.file.Name(), step)
		}
		if err != nil {
			return 0, err
		}
		g.room = step
	}
	if err := g.store.disk.writeAt(g.file, p, off); err != nil {
		return 0, g.store.diskError("write the "+g.what, err)
	}
	g.size = max(g.size, end)
	if g.size-g.pushed >= windowSize {
		// No fsync, and the pages stay: they are read again to be hashed.
		_ = unix.SyncFileRange(int(g.file.Fd()), g.pushed, g.size-g.pushed, unix.SYNC_FILE_RANGE_WRITE)
		g.pushed = g.size
	}
	return len(p), nil
}

func (g *growing) Truncate(size int64) error {
	if err := g.store.disk.truncate(g.file, size); err != nil {
		return g.store.diskError("write the "+g.what, err)
	}
	g.size, g.pushed = size, min(g.pushed, size)
	return nil
}

// forget drops the file's pages, which are on the disk by then.
func (g *growing) forget() {
	fd := int(g.file.Fd())
	_ = unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
}

func (g *growing) discard() {
	if g.nameless {
		_ = g.file.Close()
		g.store.unclaim(g.file.Name())
		return
	}
	g.store.discard(g.file)
}
