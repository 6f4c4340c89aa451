package share

import (
	"errors"
	"sync"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/fingerprint"
)

// errLeft says that the member has left: its image may be closed.
var errLeft = errors.New("image has left the domain")

// Member is an image in a domain.
type Member struct {
	domain *Domain
	image  *erofs.Image
	tag    Tag
	fp     *fingerprint.Index // nil: nothing of the image is shared

	// gate is held for reading by every use of image, and for writing to leave.
	gate sync.RWMutex
	left bool // GUARDED_BY(gate)
}

// Key returns the content of a regular file of the given size that may be shared.
func (m *Member) Key(nid uint64, size int64) (Key, bool) {
	if m.fp == nil {
		return Key{}, false
	}
	sum, ok := m.fp.Lookup(nid)
	return Key{Sum: sum, Size: size}, ok
}

// Tag returns what tells this image's private files from those of others.
func (m *Member) Tag() Tag { return m.tag }

// Domain returns the domain it is in.
func (m *Member) Domain() *Domain { return m.domain }

// Shared returns the shared inode of a regular file's content, or nil when the
// file shares with no other.
func (m *Member) Shared(nid uint64, size int64) *Inode {
	k, ok := m.Key(nid, size)
	if !ok {
		return nil
	}
	m.domain.mu.RLock()
	defer m.domain.mu.RUnlock()
	return m.domain.byKey[k]
}

// Do calls f with the image, which stays open until f returns. The error is f's,
// or one that says that the image has left.
func (m *Member) Do(f func(*erofs.Image) error) error {
	m.gate.RLock()
	defer m.gate.RUnlock()
	if m.left {
		return errLeft
	}
	return f(m.image)
}

// ReadAt reads a regular file of the image, with the contract of io.ReaderAt.
func (m *Member) ReadAt(nid uint64, p []byte, off int64) (n int, err error) {
	err = m.Do(func(im *erofs.Image) error {
		in, err := im.Inode(nid)
		if err != nil {
			return err
		}
		n, err = in.ReadAt(p, off)
		return err
	})
	return n, err
}

// Leave takes the image out of its domain. When it returns nothing reads from
// the image any more, and it may be closed; reads under way have finished, later
// ones go to other backings. It returns the inodes that the kernel still knows
// but that no image can supply: their pages are of no more use.
func (m *Member) Leave() []*Inode {
	orphans := m.domain.leave(m)
	m.gate.Lock()
	defer m.gate.Unlock()
	m.left = true
	return orphans
}
