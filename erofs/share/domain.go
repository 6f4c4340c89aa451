package share

import (
	"fmt"
	"slices"
	"sync"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/fingerprint"
)

// Domain is a set of images whose equal files are one file in memory.
// The zero value is not usable; see NewDomain.
type Domain struct {
	name      string
	onFailure func(*Inode, error)

	mu sync.RWMutex
	// byKey and private find an inode by its identity, inodes by its index.
	// For every inode: inodes[in.Index()] == in until it is forgotten, then nil.
	byKey   map[Key]*Inode        // GUARDED_BY(mu)
	private map[privateKey]*Inode // GUARDED_BY(mu)
	inodes  []*Inode              // GUARDED_BY(mu)
	members map[*Member]struct{}  // GUARDED_BY(mu)
}

// privateKey names a file that is shared with no other: its image's tag and its nid.
type privateKey struct {
	tag Tag
	nid uint64
}

// NewDomain makes an empty domain. The name is for people, not for identity:
// two domains of one name share nothing.
func NewDomain(name string) *Domain {
	return &Domain{
		name:    name,
		byKey:   make(map[Key]*Inode),
		private: make(map[privateKey]*Inode),
		members: make(map[*Member]struct{}),
	}
}

// OnFailure has fn called when a file of one image can't be read and that of another
// takes its place: once for each. It must be set before an image joins, and fn must
// not wait for a read of the domain.
func (d *Domain) OnFailure(fn func(in *Inode, err error)) { d.onFailure = fn }

// Name returns the name given to NewDomain.
func (d *Domain) Name() string { return d.name }

// Join adds an image with its files. A file whose fingerprint fp knows joins the
// shared inode of that content; any other file, and every file when fp is nil,
// gets an inode that nothing else joins.
//
// tag tells the image's private files from those of other images in the domain:
// it must be unique to the image's bytes.
func (d *Domain) Join(im *erofs.Image, tag Tag, files []fingerprint.File, fp *fingerprint.Index) *Member {
	m := &Member{domain: d, image: im, tag: tag, fp: fp}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.members[m] = struct{}{}
	for _, f := range files {
		var in *Inode
		if k, ok := m.Key(f.NID, f.Size); ok {
			if in = d.byKey[k]; in == nil {
				in = d.newInode(f.Size)
				in.key, in.shared = k, true
				d.byKey[k] = in
			}
		} else {
			k := privateKey{tag, f.NID}
			if in = d.private[k]; in == nil {
				in = d.newInode(f.Size)
				in.private = k
				d.private[k] = in
			}
		}
		in.addBacking(backing{member: m, nid: f.NID, cost: f.Cost})
	}
	return m
}

// newInode gives out the next index. d.mu is held.
func (d *Domain) newInode(size int64) *Inode {
	in := &Inode{domain: d, index: uint64(len(d.inodes)), size: size}
	d.inodes = append(d.inodes, in)
	return in
}

// Inode returns the shared inode of an index, or nil when it is forgotten or
// was never given out.
func (d *Domain) Inode(index uint64) *Inode {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if index >= uint64(len(d.inodes)) {
		return nil
	}
	return d.inodes[index]
}

// Find returns the shared inode that a path in the content mount names, and
// counts one kernel reference to it, which Forget takes back. It returns nil
// when no file of the domain has this name.
func (d *Domain) Find(path string) *Inode {
	d.mu.Lock()
	defer d.mu.Unlock()
	in := d.find(path)
	if in != nil {
		in.nlookup++
	}
	return in
}

// Get is Find without a reference.
func (d *Domain) Get(path string) *Inode {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.find(path)
}

// find does without the lock; d.mu is held.
func (d *Domain) find(path string) *Inode {
	key, priv, ok := parsePath(path)
	switch {
	case !ok:
		return nil
	case priv != privateKey{}:
		return d.private[priv]
	}
	return d.byKey[key]
}

// Ref counts one more kernel reference to an inode found by its index.
func (d *Domain) Ref(in *Inode) {
	d.mu.Lock()
	defer d.mu.Unlock()
	in.nlookup++
}

// Known tells whether the kernel knows the inode.
func (in *Inode) Known() bool {
	in.domain.mu.RLock()
	defer in.domain.mu.RUnlock()
	return in.nlookup > 0
}

// Forget takes back n kernel references. An inode without any, and without a
// backing, is gone; its index stays unused. It returns the inode when the kernel
// has no reference left, and with it no pages.
func (d *Domain) Forget(index, n uint64) *Inode {
	d.mu.Lock()
	defer d.mu.Unlock()
	if index >= uint64(len(d.inodes)) || d.inodes[index] == nil {
		return nil
	}
	in := d.inodes[index]
	in.nlookup -= min(n, in.nlookup)
	d.reap(in)
	if in.nlookup > 0 {
		return nil
	}
	return in
}

// reap drops an inode that nothing can reach. d.mu is held.
func (d *Domain) reap(in *Inode) {
	if in.nlookup != 0 || len(in.loadBackings()) != 0 || d.inodes[in.index] == nil {
		return
	}
	d.inodes[in.index] = nil
	if in.shared {
		delete(d.byKey, in.key)
	} else {
		delete(d.private, in.private)
	}
}

// leave takes the member's files out of every inode and returns the inodes that
// the kernel still knows and that nothing can supply any more.
func (d *Domain) leave(m *Member) []*Inode {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.members, m)
	var orphans []*Inode
	for _, in := range d.inodes {
		if in == nil || !in.removeBackings(m) || len(in.loadBackings()) != 0 {
			continue
		}
		if in.nlookup != 0 {
			orphans = append(orphans, in)
		}
		d.reap(in)
	}
	return orphans
}

// Len returns how many shared inodes are alive and how many images are joined.
func (d *Domain) Len() (inodes, images int) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return len(d.byKey) + len(d.private), len(d.members)
}

// Inodes returns the live inodes, in the order of their indexes.
func (d *Domain) Inodes() []*Inode {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return slices.DeleteFunc(slices.Clone(d.inodes), func(in *Inode) bool { return in == nil })
}

// String names the domain in messages.
func (d *Domain) String() string { return fmt.Sprintf("domain %q", d.name) }
