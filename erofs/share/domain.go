package share

import (
	"fmt"
	"hash/maphash"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/fingerprint"
	"github.com/erofs-csi/erofs-csi/erofs/internal/ledger"
)

// Domain is a set of images whose equal files are one file in memory.
// The zero value is not usable; see NewDomain.
//
// For every record that is in use its source is a file of a member that has not left,
// or it is the orphan and its identity is in orphans.
type Domain struct {
	name      string
	onFailure func(Inode, error)
	seed      maphash.Seed

	members atomic.Pointer[members] // replaced by writers that hold mu
	records records                 // its writers hold mu
	bad     badFiles
	account atomic.Pointer[Account] // the last one made

	mu      sync.Mutex
	names   names               // GUARDED_BY(mu)
	orphans map[uint64]identity // GUARDED_BY(mu)
	kept    *ledger.Ledger      // of the records, for another process; entries: GUARDED_BY(mu)
}

// members are the images of a domain at a time. It does not change.
type members struct {
	joined []*Member // those that can be read, in the order they joined
	slots  []*Member // by slot; a member keeps its slot until nobody reads from it
}

// NewDomain makes an empty domain. The name is for people, not for identity:
// two domains of one name share nothing.
func NewDomain(name string) *Domain {
	d := &Domain{name: name, seed: maphash.MakeSeed(), orphans: make(map[uint64]identity)}
	d.members.Store(&members{slots: make([]*Member, 1)}) // no member has slot 0
	return d
}

// OnFailure has fn called when a file of one image can't be read and that of another
// takes its place: once for each; and once each time that an image does not answer and
// another takes its place. It must be set before an image joins, and fn must
// not wait for a read of the domain.
func (d *Domain) OnFailure(fn func(in Inode, err error)) { d.onFailure = fn }

// Name returns the name given to NewDomain.
func (d *Domain) Name() string { return d.name }

// String names the domain in messages.
func (d *Domain) String() string { return fmt.Sprintf("domain %q", d.name) }

// Join adds an image. A file whose fingerprint fp knows is the shared inode of that
// content; any other file, and every file when fp is nil, has an inode that nothing
// else is. fp must stay open until the member has left.
//
// tag tells the image's private files from those of other images in the domain:
// it must be unique to the image's bytes.
//
// It fails when the domain has 65534 images.
func (d *Domain) Join(im *erofs.Image, tag Tag, fp *fingerprint.Index) (*Member, error) {
	m := &Member{domain: d, image: im, tag: tag}
	m.fp.Store(fp)
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.members.Load()
	now := &members{joined: append(slices.Clone(old.joined), m), slots: slices.Clone(old.slots)}
	slot := slices.Index(now.slots[1:], nil) + 1
	if slot == 0 {
		if len(now.slots) == maxSlot {
			return nil, fmt.Errorf("%s has %d images: no more can join", d, maxSlot-1)
		}
		slot = len(now.slots)
		now.slots = append(now.slots, nil)
	}
	m.slot = uint16(slot)
	now.slots[slot] = m
	d.members.Store(now)
	d.offer(m)
	return m, nil
}

// offer makes m the source of the inodes that it can supply and that have none, or
// one that costs more. d.mu is held.
func (d *Domain) offer(m *Member) {
	for index, id := range d.orphans {
		if r := d.records.get(index); r != nil && d.choose(r, &id, []*Member{m}) {
			delete(d.orphans, index)
		}
	}
	least := m.leastCost()
	d.records.each(func(index uint64, r *record) bool {
		if r.cost > least && r.load() != orphan {
			if id, ok := d.identity(index, r); ok {
				if b, ok := d.best(&id, []*Member{m}); ok && b.cost < r.cost && !b.bad {
					r.cost = b.cost
					r.store(b.source)
				}
			}
		}
		return true
	})
}

// leave takes the member's files from every inode and returns the inodes that nothing
// can supply any more. Its slot stays taken.
func (d *Domain) leave(m *Member) (orphans []Inode) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.members.Load()
	now := &members{slots: old.slots}
	now.joined = slices.DeleteFunc(slices.Clone(old.joined), func(o *Member) bool { return o == m })
	d.members.Store(now)
	d.bad.forget(m.slot)
	d.records.each(func(index uint64, r *record) bool {
		if s := r.load(); s == orphan || s.slot() != m.slot {
			return true
		}
		id, ok := d.identity(index, r)
		if !ok || !d.choose(r, &id, now.joined) {
			d.orphans[index] = id
			r.store(orphan)
			orphans = append(orphans, Inode{d, index, r})
		}
		return true
	})
	return orphans
}

// free gives the slot of a member that has left to the next one.
func (d *Domain) free(m *Member) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := *d.members.Load()
	now.slots = slices.Clone(now.slots)
	now.slots[m.slot] = nil
	d.members.Store(&now)
}

// choose sets the source of an inode to the best file of some members. d.mu is held,
// and the members have not left.
func (d *Domain) choose(r *record, id *identity, of []*Member) bool {
	b, ok := d.best(id, of)
	if ok {
		r.set(b)
	}
	return ok
}

func (r *record) set(b backing) {
	r.cost = b.cost
	if b.bad {
		r.cost = badCost
	}
	r.store(b.source)
}

// best returns the file to read an inode from: one that has not failed before others,
// then the cheapest, then that of the image that joined first.
func (d *Domain) best(id *identity, of []*Member) (best backing, ok bool) {
	for _, m := range of {
		for b := range m.backings(id) {
			if b.bad = d.bad.has(b.source); !ok || b.before(best) {
				best, ok = b, true
			}
			if !b.bad {
				break // the others of this image cost no less
			}
		}
		if ok && !best.bad && best.cost == 0 {
			break // none is better
		}
	}
	return best, ok
}

// identity tells what an inode is. d.mu is held. It is not known when the index of
// its image can't be read any more.
func (d *Domain) identity(index uint64, r *record) (identity, bool) {
	s := r.load()
	if s == orphan {
		id, ok := d.orphans[index]
		return id, ok && id != identity{}
	}
	m := d.members.Load().slots[s.slot()]
	if s.private() {
		return privateIdentity(m.tag, s.nid()), true
	}
	e := m.fp.Load().Entry(s.entry())
	return identity{key: Key{Sum: e.Sum, Size: e.Size}}, e.Size > 0
}

func (d *Domain) hash(id *identity) uint64 { return maphash.Comparable(d.seed, *id) }

// known returns the inode with an identity, if the kernel knows it. d.mu is held.
func (d *Domain) known(id *identity, hash uint64) (Inode, bool) {
	var r *record
	index, ok := d.names.find(hash, func(index uint64) bool {
		r = d.records.get(index)
		other, ok := d.identity(index, r)
		return ok && other == *id
	})
	return Inode{d, index, r}, ok
}

// Find returns the shared inode that a path in the content mount names, and
// counts one kernel reference to it, which Forget takes back. There is none
// when no file of the domain has this name.
//
// The private name of a file that has a fingerprint, which it had not when it was named,
// is one of its shared inode.
//
// unique is the number of the request that asks, if the kernel asks, else 0: one that is
// sent again is counted once. See Keep.
func (d *Domain) Find(path string, unique uint64) (Inode, bool) {
	id, ok := parsePath(path)
	if !ok {
		return Inode{}, false
	}
	if id.private {
		if k, ok := d.identified(&id); ok {
			id = identity{key: k}
		}
	}
	return d.find(&id, unique)
}

func (d *Domain) find(id *identity, unique uint64) (Inode, bool) {
	hash := d.hash(id)
	for {
		if in, ok := d.refKnown(id, hash, unique); ok {
			return in, true
		}
		// The search in the indexes holds nobody up.
		members := d.members.Load()
		b, ok := d.bestOpen(id, members.joined)
		if !ok {
			if d.members.Load() != members {
				continue
			}
			return Inode{}, false
		}
		if in, ok, done := d.add(id, hash, unique, b, members); done {
			return in, ok
		}
	}
}

// bestOpen is best without d.mu: members that are leaving are passed over.
func (d *Domain) bestOpen(id *identity, of []*Member) (best backing, ok bool) {
	for _, m := range of {
		if !m.enter() {
			continue
		}
		if b, has := d.best(id, []*Member{m}); has && (!ok || b.before(best)) {
			best, ok = b, true
		}
		m.exit()
		if ok && !best.bad && best.cost == 0 {
			break // none is better
		}
	}
	return best, ok
}

// refKnown counts a reference to an inode that the kernel knows.
func (d *Domain) refKnown(id *identity, hash, unique uint64) (Inode, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	in, ok := d.known(id, hash)
	if ok {
		d.ref(in, unique)
	}
	return in, ok
}

// ref counts a reference, once for each request. d.mu is held.
func (d *Domain) ref(in Inode, unique uint64) {
	if d.kept == nil {
		in.rec.ref()
		return
	}
	in.rec.loaded = false // the kernel may be about to know it, also by an answer that was counted before
	e := d.kept.Get(in.index)
	if !seenBy(&e).Counted(unique) {
		in.rec.ref()
		putLookups(&e, in.rec.nlookup)
		d.kept.Put(in.index, &e)
	}
}

// add makes the inode with an identity that is read from b, unless it was made, or
// members came or went, since b was found; then it is to be done again.
func (d *Domain) add(id *identity, hash, unique uint64, b backing, since *members) (in Inode, ok, done bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.members.Load() != since {
		return Inode{}, false, false
	}
	if in, ok := d.known(id, hash); ok {
		d.ref(in, unique)
		return in, true, true
	}
	if d.names.count >= maxNames || d.records.next >= maxIndex {
		return Inode{}, false, true
	}
	index, r := d.records.add()
	r.size = b.size
	r.nlookup = 1
	d.names.add(hash, index)
	r.set(b)
	d.note(index, id, r, unique)
	return Inode{d, index, r}, true, true
}

// ref counts a reference. At 2^32-1 it stays: the inode is not forgotten any more.
func (r *record) ref() {
	r.loaded = false
	if r.nlookup < math.MaxUint32 {
		r.nlookup++
	}
}

// Inode returns the shared inode of an index. There is none when it is forgotten or
// was never given out. It takes no lock.
func (d *Domain) Inode(index uint64) (Inode, bool) {
	r := d.records.get(index)
	return Inode{d, index, r}, r != nil
}

// Ref counts one more kernel reference to an inode found by its index, for a request as
// of Find. It answers false when the inode was forgotten meanwhile.
func (d *Domain) Ref(in Inode, unique uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if in.rec.load() == 0 {
		return false
	}
	d.ref(in, unique)
	return true
}

// Known tells whether the kernel knows the inode that a path names.
func (d *Domain) Known(path string) bool {
	id, ok := parsePath(path)
	if !ok {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok = d.known(&id, d.hash(&id))
	return ok
}

// Forget takes back n kernel references. An inode without any is gone; its index
// stays unused. It returns the inode when the kernel has no reference left, and with
// it no pages.
func (d *Domain) Forget(index, n uint64) (Inode, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.records.get(index)
	if r == nil {
		return Inode{}, false
	}
	r.loaded = false
	if r.nlookup < math.MaxUint32 {
		r.nlookup -= uint32(min(n, uint64(r.nlookup)))
	}
	if r.nlookup > 0 {
		d.noteLookups(index, r)
		return Inode{}, false
	}
	return d.remove(index, r), true
}

// remove takes out an inode that the kernel has forgotten. d.mu is held.
func (d *Domain) remove(index uint64, r *record) Inode {
	if id, ok := d.identity(index, r); ok {
		d.names.remove(d.hash(&id), index)
	} else {
		d.names.removeIndex(index)
	}
	delete(d.orphans, index)
	d.kept.Clear(index)
	if d.records.remove(index, r) {
		d.kept.Free(index/pageRecords*pageRecords, pageRecords)
	}
	return Inode{d, index, r}
}

// Len returns how many inodes the kernel knows and how many images are joined.
func (d *Domain) Len() (inodes, images int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.records.count, len(d.members.Load().joined)
}

// Inodes calls f with the inodes that the kernel knows, in the order of their
// indexes, until it answers false. Some may come or go meanwhile. It takes no lock.
func (d *Domain) Inodes(f func(Inode) bool) {
	d.records.each(func(index uint64, r *record) bool { return f(Inode{d, index, r}) })
}

// Files lists the images that have files which are the inode that a path names, and
// tells its size. There is none when the list is empty.
func (d *Domain) Files(path string) (list []MemberFiles, size int64) {
	id, ok := parsePath(path)
	if !ok {
		return nil, 0
	}
	return d.files(&id)
}

func (d *Domain) files(id *identity) (list []MemberFiles, size int64) {
	for _, m := range d.members.Load().joined {
		if !m.enter() {
			continue
		}
		n, bytes := m.count(id)
		m.exit()
		if n > 0 {
			list, size = append(list, MemberFiles{m, n}), bytes
		}
	}
	return list, size
}
