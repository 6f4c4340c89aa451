package share

import "sync/atomic"

// record is an inode that the kernel knows: 32 bytes, without pointers. What it is,
// is known through its source, a file of an image that has joined; of an inode
// without one, Domain.orphans has it.
type record struct {
	// source is where the bytes are read from. 0: the record is not in use.
	source atomic.Uint64
	// size is set before source is for the first time, and stays.
	size int64
	use  Use

	nlookup uint32 // the kernel's references, at the most; GUARDED_BY(Domain.mu)
	cost    uint8  // of decoding source, badCost when it has failed; GUARDED_BY(Domain.mu)
	loaded  bool   // by Load, and its references did not change since; GUARDED_BY(Domain.mu)
}

// badCost is above every fingerprint.File.Cost.
const badCost = 255

// source names a file by its member's slot and, within the member, by the number of
// its entry in the index or, with privateBit, by its nid.
//
//	bits 48-63  slot, not 0
//	bit  47     privateBit
//	bits 0-46   entry; or nid, of which bit 63 is in bit 46
type source uint64

const (
	slotBit           = 48
	privateBit source = 1 << 47
	refMask           = privateBit - 1
	metaboxBit        = 46

	// orphan is the source of an inode that no image can supply.
	orphan source = 1

	maxSlot = 1<<16 - 1
)

func entrySource(slot uint16, entry int) source {
	return source(slot)<<slotBit | source(entry)
}

// privateSource names a file by its nid. ok is false for one that is beyond the
// 2^51st byte of its image.
func privateSource(slot uint16, nid uint64) (s source, ok bool) {
	ref := nid&(1<<metaboxBit-1) | nid>>63<<metaboxBit
	s = source(slot)<<slotBit | privateBit | source(ref)
	return s, s.nid() == nid
}

func (s source) slot() uint16  { return uint16(s >> slotBit) }
func (s source) private() bool { return s&privateBit != 0 }
func (s source) entry() int    { return int(s & refMask) }

func (s source) nid() uint64 {
	ref := uint64(s & refMask)
	return ref&(1<<metaboxBit-1) | ref>>metaboxBit<<63
}

func (r *record) load() source   { return source(r.source.Load()) }
func (r *record) store(s source) { r.source.Store(uint64(s)) }

// pageRecords is how many records are made at a time: 8 KiB.
const pageRecords = 256

type recordPage [pageRecords]record

// records is the table of known inodes by index. Writers hold Domain.mu.
//
// A page is there from the time its first index is given out until all of them were
// and all their inodes are forgotten.
type records struct {
	// pages is replaced when it is full. Pages of an old one are those of the new,
	// or nobody's any more.
	pages atomic.Pointer[[]atomic.Pointer[recordPage]]
	alive []uint16 // in use, by page; GUARDED_BY(Domain.mu)
	next  uint64   // the index to give out next; GUARDED_BY(Domain.mu)
	count int      // in use; GUARDED_BY(Domain.mu)
}

// maxIndex bounds the indexes given out; see names.
const maxIndex = 1<<indexBits - 1

// get returns the record of an index that is in use, else nil. It needs no lock.
func (t *records) get(index uint64) *record {
	pages := t.pages.Load()
	if pages == nil || index/pageRecords >= uint64(len(*pages)) {
		return nil
	}
	page := (*pages)[index/pageRecords].Load()
	if page == nil {
		return nil
	}
	if r := &page[index%pageRecords]; r.load() != 0 {
		return r
	}
	return nil
}

// add makes the record of the next index, which is not in use before its source is
// set.
func (t *records) add() (uint64, *record) {
	index := t.next
	t.next++
	t.count++
	n := int(index / pageRecords)
	if n == len(t.alive) {
		t.alive = append(t.alive, 0)
		t.grow(n + 1)
	}
	slot := &(*t.pages.Load())[n]
	if slot.Load() == nil {
		slot.Store(new(recordPage))
	}
	t.alive[n]++
	return index, &slot.Load()[index%pageRecords]
}

// grow makes room for n pages.
func (t *records) grow(n int) {
	var old []atomic.Pointer[recordPage]
	if p := t.pages.Load(); p != nil {
		old = *p
	}
	if n <= len(old) {
		return
	}
	pages := make([]atomic.Pointer[recordPage], max(2*len(old), n, 4))
	for i := range old {
		pages[i].Store(old[i].Load())
	}
	t.pages.Store(&pages)
}

// restore makes the record of an index that was given out before. It must be free, and
// extend be called before the next add.
func (t *records) restore(index uint64) *record {
	t.extend(index + 1)
	t.count++
	n := index / pageRecords
	slot := &(*t.pages.Load())[n]
	if slot.Load() == nil {
		slot.Store(new(recordPage))
	}
	t.alive[n]++
	return &slot.Load()[index%pageRecords]
}

// extend makes next at least so much.
func (t *records) extend(next uint64) {
	if next <= t.next {
		return
	}
	t.next = next
	n := int((next + pageRecords - 1) / pageRecords)
	t.alive = append(t.alive, make([]uint16, max(n-len(t.alive), 0))...)
	t.grow(n)
}

// remove takes a record out of use, and tells whether its page went with it.
func (t *records) remove(index uint64, r *record) bool {
	r.store(0)
	t.count--
	n := index / pageRecords
	t.alive[n]--
	if t.alive[n] > 0 || t.next < (n+1)*pageRecords {
		return false
	}
	(*t.pages.Load())[n].Store(nil)
	return true
}

// each calls f with every record in use, in the order of their indexes, until it
// answers false. With Domain.mu held none comes or goes meanwhile.
func (t *records) each(f func(index uint64, r *record) bool) {
	pages := t.pages.Load()
	if pages == nil {
		return
	}
	for n := range *pages {
		page := (*pages)[n].Load()
		if page == nil {
			continue
		}
		for i := range page {
			if r := &page[i]; r.load() != 0 && !f(uint64(n*pageRecords+i), r) {
				return
			}
		}
	}
}
