package erofs

import (
	"bytes"
	"errors"
	"io"
	"math/bits"
	"sync/atomic"
)

const (
	// metaUnitMin is the least number of bytes read for metadata at once. An
	// O_DIRECT read of 16 KiB takes as long as one of 4 KiB, and neighbouring
	// inodes are usually wanted next.
	metaUnitMin = 16 << 10

	// metaAhead is how many bytes are read at once when misses follow each other:
	// mkfs.erofs writes inodes and directories about in the order of a walk.
	metaAhead = 128 << 10

	defaultMetaCache = 4 << 20
)

// MetadataCache keeps metadata of images, which may be any number: a direct-mapped
// table of units. A unit that is in it is immutable, so that readers need no lock; two
// readers that miss together both read, and the later one wins.
//
// It holds at most the bytes it was made for, but always one unit.
type MetadataCache struct {
	slots []atomic.Pointer[metaUnit] // a power of two
	most  int64
	bytes atomic.Int64  // of the units in slots
	hand  atomic.Uint64 // where room was made last
}

// NewMetadataCache makes a cache of about the given number of bytes, rounded down to
// a power of two of units.
func NewMetadataCache(size int) *MetadataCache {
	n := max(size/metaUnitMin, 1)
	n = 1 << (bits.Len(uint(n)) - 1)
	return &MetadataCache{slots: make([]atomic.Pointer[metaUnit], n), most: int64(n) * metaUnitMin}
}

// Forget drops what it keeps of an image that is used no more.
func (c *MetadataCache) Forget(im *Image) {
	for i := range c.slots {
		u := c.slots[i].Load()
		if u == nil || u.place != im.meta && (im.metabox == nil || u.place != im.metabox) {
			continue
		}
		if c.slots[i].CompareAndSwap(u, nil) {
			c.bytes.Add(-int64(len(u.data)))
		}
	}
}

// put keeps a unit in its slot, and makes room for it. Only units of blocks larger
// than metaUnitMin need any.
func (c *MetadataCache) put(slot *atomic.Pointer[metaUnit], u *metaUnit) {
	n := int64(len(u.data))
	if old := slot.Swap(u); old != nil {
		n -= int64(len(old.data))
	}
	total := c.bytes.Add(n)
	for range c.slots {
		if total <= c.most {
			return
		}
		other := &c.slots[c.hand.Add(1)%uint64(len(c.slots))]
		if other == slot {
			continue
		}
		if old := other.Swap(nil); old != nil {
			total = c.bytes.Add(-int64(len(old.data)))
		}
	}
}

// metaCache is a place of metadata, the primary device or the data of a special
// inode, behind a cache in units of 1<<unitBits bytes, aligned to their size.
type metaCache struct {
	place    string // for messages: placeImage, ...
	r        io.ReaderAt
	size     int64
	unitBits uint
	cache    *MetadataCache
	first    uint64 // slot of unit 0, modulo their number

	// missed is the unit behind the one read last.
	missed atomic.Int64
}

// The places of metadata.
const (
	placeImage   = "image"
	placeMetabox = "metabox"
	placePacked  = "packed inode"
)

// metaUnit is one aligned unit of a place. data is shorter than the unit only at the
// end of the place.
type metaUnit struct {
	place *metaCache
	index int64
	data  []byte
}

// newMetaCache makes the place of size bytes in an image whose block size is
// 1<<blkBits. Neighbouring units are in neighbouring slots, those of different places
// begin anywhere.
func newMetaCache(place string, r io.ReaderAt, size int64, blkBits uint, cache *MetadataCache) *metaCache {
	unitBits := max(blkBits, uint(bits.Len(metaUnitMin)-1))
	return &metaCache{
		place: place, r: r, size: size, unitBits: unitBits,
		cache: cache, first: places.Add(1) * 0x9e3779b97f4a7c15 >> 32,
	}
}

// places counts the places made.
var places atomic.Uint64

// at returns the cached bytes from off to the end of its unit: at least one
// byte, which the caller must not change. The caller has checked
// 0 <= off < size.
func (c *metaCache) at(off int64) ([]byte, error) {
	index := off >> c.unitBits
	u := c.slot(index).Load()
	if u == nil || u.index != index || u.place != c {
		var err error
		if u, err = c.load(index); err != nil {
			return nil, err
		}
	}
	return u.data[off-index<<c.unitBits:], nil
}

func (c *metaCache) slot(index int64) *atomic.Pointer[metaUnit] {
	return &c.cache.slots[(c.first+uint64(index))&uint64(len(c.cache.slots)-1)]
}

// load reads a unit, and some behind it if it is itself behind the last one read.
func (c *metaCache) load(index int64) (*metaUnit, error) {
	unit := int64(1) << c.unitBits
	units := int64(1)
	if c.missed.Load() == index && index > 0 {
		units = min(metaAhead>>c.unitBits, int64(len(c.cache.slots)))
	}
	start := index << c.unitBits
	data := make([]byte, min(units<<c.unitBits, c.size-start))
	err := readFull(c.r, data, start)
	if err != nil && units > 1 { // what is wrong may be behind what is wanted
		data = data[:min(unit, int64(len(data)))]
		err = readFull(c.r, data, start)
	}
	if err != nil {
		return nil, err
	}
	c.missed.Store(index + (int64(len(data))+unit-1)>>c.unitBits)
	if int64(len(data)) <= unit {
		u := &metaUnit{place: c, index: index, data: data}
		c.cache.put(c.slot(index), u)
		return u, nil
	}
	var wanted *metaUnit
	for i := index; len(data) > 0; i++ {
		n := min(unit, int64(len(data)))
		u := &metaUnit{place: c, index: i, data: bytes.Clone(data[:n])} // each goes alone
		c.cache.put(c.slot(i), u)
		if wanted == nil {
			wanted = u
		}
		data = data[n:]
	}
	return wanted, nil
}

// readFull reads exactly len(p) bytes. Fewer, from a reader that is shorter
// than it said, is io.ErrUnexpectedEOF.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// check makes sure that n bytes at off are in the place.
func (c *metaCache) check(op string, nid uint64, off int64, n int) error {
	if off < 0 || off > c.size || int64(n) > c.size-off {
		return fail(ErrCorrupt, op, nid, off, "%d bytes reach beyond the end of the %s (%d bytes)", n, c.place, c.size)
	}
	return nil
}

// read fills p with the metadata at byte address off. A range that leaves the
// place is ErrCorrupt.
func (c *metaCache) read(op string, nid uint64, p []byte, off int64) error {
	if err := c.check(op, nid, off, len(p)); err != nil {
		return err
	}
	for len(p) > 0 {
		b, err := c.at(off)
		if err != nil {
			return readError(op, nid, off, err)
		}
		n := copy(p, b)
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// view returns n bytes of metadata at byte address off, from the cache without
// a copy where they lie in one unit, which they always do when the range lies
// in one block. The caller must not change them. n is bounded by the caller,
// not by the image.
func (c *metaCache) view(op string, nid uint64, off int64, n int) ([]byte, error) {
	if err := c.check(op, nid, off, n); err != nil || n == 0 {
		return nil, err
	}
	b, err := c.at(off)
	if err != nil {
		return nil, readError(op, nid, off, err)
	}
	if len(b) >= n {
		return b[:n:n], nil
	}
	p := make([]byte, n)
	if err := c.read(op, nid, p, off); err != nil {
		return nil, err
	}
	return p, nil
}

// readError classifies a failed read: one that ended early is ErrCorrupt,
// anything else an I/O error, or one of a special inode, kept as it is.
func readError(op string, nid uint64, off int64, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fail(ErrCorrupt, op, nid, off, "the device ends early")
	}
	return &FormatError{Op: op, NID: nid, Off: off, Err: err}
}
