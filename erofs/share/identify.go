package share

import (
	"slices"

	"github.com/erofs-csi/erofs-csi/erofs/fingerprint"
)

// Identify gives an image that joined without fingerprints those that its files turned
// out to have. From then on its files are the shared inodes of their content:
//
//   - one that the kernel does not know, by whichever of its names it asks for it;
//   - one that it does know becomes the shared inode itself, with its pages, if the
//     domain has none yet of its content;
//   - any other that it knows stays the image's own, until the kernel forgets it.
//
// It must be called once, and all that was read of the image's files must have been of
// the bytes that the fingerprints are of. fp must stay open until the member has left.
func (m *Member) Identify(fp *fingerprint.Index) {
	d := m.domain
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.members.Load()
	if !slices.Contains(old.joined, m) {
		return
	}
	m.fp.Store(fp)
	d.members.Store(&members{joined: old.joined, slots: old.slots}) // searches under way are to be done again
	d.offer(m)
	d.records.each(func(index uint64, r *record) bool {
		if s := r.load(); s != orphan && s.slot() == m.slot && s.private() {
			d.adopt(m, index, r, s.nid())
		}
		return true
	})
}

// adopt makes a private inode that of its content, unless there is one. d.mu is held.
func (d *Domain) adopt(m *Member, index uint64, r *record, nid uint64) {
	k, ok := m.Key(nid, r.size)
	if !ok {
		return
	}
	id := identity{key: k}
	hash := d.hash(&id)
	if _, ok := d.known(&id, hash); ok {
		return
	}
	b, ok := d.best(&id, d.members.Load().joined)
	if !ok {
		return
	}
	old := privateIdentity(m.tag, nid)
	d.names.remove(d.hash(&old), index)
	d.names.add(hash, index)
	r.set(b)
	d.noteIdentity(index, &id)
}

// identified returns the content of a private file whose image knows it by now.
func (d *Domain) identified(id *identity) (Key, bool) {
	tag, nid := id.file()
	for _, m := range d.members.Load().joined {
		if m.tag != tag || !m.enter() {
			continue
		}
		k, ok := m.identified(nid)
		m.exit()
		if ok {
			return k, true
		}
	}
	return Key{}, false
}

func (m *Member) identified(nid uint64) (Key, bool) {
	if m.fp.Load() == nil {
		return Key{}, false
	}
	in, err := m.image.Inode(nid)
	if err != nil || !in.IsRegular() {
		return Key{}, false
	}
	return m.Key(nid, in.Size)
}

// Private is how many inodes that the kernel knows are files of this image which have a
// fingerprint, but were known before they had one, beside the shared inode of their
// content.
func (m *Member) Private() (n int) {
	m.domain.records.each(func(_ uint64, r *record) bool {
		if s := r.load(); s != orphan && s.slot() == m.slot && s.private() {
			if _, ok := m.Key(s.nid(), r.size); ok {
				n++
			}
		}
		return true
	})
	return n
}

// Fail makes all later reads of the image's files fail with err, unless another image
// of the domain supplies the bytes.
func (m *Member) Fail(err error) { m.failed.Store(&err) }
