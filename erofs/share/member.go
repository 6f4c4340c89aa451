package share

import (
	"errors"
	"iter"
	"sync"
	"sync/atomic"

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
	fp     atomic.Pointer[fingerprint.Index] // nil: nothing of the image is shared; set once
	failed atomic.Pointer[error]             // why nothing of it is to be read any more
	slot   uint16
	pace   pace

	// gate is held for reading by every use of image and fp, and for writing to
	// leave. Who holds the domain's lock needs it not for a member that is in
	// members.joined.
	gate sync.RWMutex
	left bool // GUARDED_BY(gate)
}

// Key returns the content of a regular file of the given size that may be shared.
// It must not be called after Leave.
func (m *Member) Key(nid uint64, size int64) (Key, bool) {
	fp := m.fp.Load()
	if fp == nil {
		return Key{}, false
	}
	sum, ok := fp.Lookup(nid)
	return Key{Sum: sum, Size: size}, ok
}

// Tag returns what tells this image's private files from those of others.
func (m *Member) Tag() Tag { return m.tag }

// Domain returns the domain it is in.
func (m *Member) Domain() *Domain { return m.domain }

// Ref returns the shared inode of a regular file's content, and counts a reference to
// it, which Domain.Forget takes back. There is none when the file shares with no other.
func (m *Member) Ref(nid uint64, size int64) (Inode, bool) {
	k, ok := m.Key(nid, size)
	if !ok {
		return Inode{}, false
	}
	return m.domain.find(&identity{key: k}, 0)
}

// enter takes the gate for reading, unless the member leaves or has left.
func (m *Member) enter() bool {
	if !m.gate.TryRLock() {
		return false
	}
	if m.left {
		m.gate.RUnlock()
		return false
	}
	return true
}

func (m *Member) exit() { m.gate.RUnlock() }

// Do calls f with the image, which stays open until f returns. The error is f's,
// or one that says that the image has left.
func (m *Member) Do(f func(*erofs.Image) error) error {
	m.gate.RLock()
	defer m.gate.RUnlock()
	if m.left {
		return errLeft
	}
	if err := m.failed.Load(); err != nil {
		return *err
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
// the image or its index any more, and they may be closed; reads under way have
// finished, later ones go to other backings. It returns the inodes that the kernel
// still knows but that no image can supply: their pages are of no more use.
func (m *Member) Leave() []Inode {
	orphans := m.domain.leave(m)
	m.gate.Lock()
	m.left = true
	m.gate.Unlock()
	m.domain.free(m) // only now: who holds the gate reads what the slot says
	return orphans
}

// maxCopies bounds the files of one image that are tried for one content.
const maxCopies = 16

// backings are the files of the image that have a content, or are a private file, the
// cheapest first, at most maxCopies.
func (m *Member) backings(id *identity) iter.Seq[backing] {
	return func(yield func(backing) bool) {
		if id.private {
			if b, ok := m.private(id); ok {
				yield(b)
			}
			return
		}
		fp := m.fp.Load()
		if fp == nil {
			return
		}
		from, end := fp.Find(id.key.Sum, id.key.Size)
		for i := from; i < min(end, from+maxCopies); i++ {
			b := backing{member: m, source: entrySource(m.slot, i), size: id.key.Size, cost: fp.Entry(i).Cost}
			if !yield(b) {
				return
			}
		}
	}
}

// private returns the file of the image that an identity names: a regular file that holds
// data. Whether it shares with others by now is not asked; see Domain.Find.
func (m *Member) private(id *identity) (backing, bool) {
	tag, nid := id.file()
	s, ok := privateSource(m.slot, nid)
	if tag != m.tag || !ok {
		return backing{}, false
	}
	in, err := m.image.Inode(nid)
	if err != nil || !in.IsRegular() || in.Size == 0 {
		return backing{}, false
	}
	return backing{member: m, source: s, size: in.Size, cost: in.DecodeCost()}, true
}

// count returns how many files of the image an inode is, and its size.
func (m *Member) count(id *identity) (files int, size int64) {
	if id.private {
		if b, ok := m.private(id); ok {
			return 1, b.size
		}
		return 0, 0
	}
	fp := m.fp.Load()
	if fp == nil {
		return 0, 0
	}
	from, end := fp.Find(id.key.Sum, id.key.Size)
	return end - from, id.key.Size
}

// leastCost is no more than that of any file of the image.
func (m *Member) leastCost() uint8 {
	fp := m.fp.Load()
	if fp == nil || fp.Len() == 0 {
		return badCost
	}
	return fp.LeastCost()
}
