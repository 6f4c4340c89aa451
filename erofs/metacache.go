package erofs

import (
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

	defaultMetaCache = 4 << 20
)

// metaCache is a place of metadata, the primary device or the data of a special
// inode, behind a direct-mapped cache in units of 1<<unitBits bytes, aligned to
// their size. A published unit is immutable, so readers need no lock; two
// readers that miss together both read, and the later one wins.
//
// Memory is at most len(slots) units, len(slots) a power of two.
type metaCache struct {
	place    string // for messages: placeImage, ...
	r        io.ReaderAt
	size     int64
	unitBits uint
	slots    []atomic.Pointer[metaUnit]
}

// The places of metadata.
const (
	placeImage   = "image"
	placeMetabox = "metabox"
	placePacked  = "packed inode"
)

// metaUnit is one aligned unit of the place. data is shorter than the unit
// only at the end of the place.
type metaUnit struct {
	index int64
	data  []byte
}

// newMetaCache makes a cache of about the given number of bytes, at least one
// unit, over a place of size bytes in an image whose block size is 1<<blkBits.
func newMetaCache(place string, r io.ReaderAt, size int64, blkBits uint, bytes int) *metaCache {
	unitBits := max(blkBits, uint(bits.Len(metaUnitMin)-1))
	n := max(bytes>>unitBits, 1)
	n = 1 << (bits.Len(uint(n)) - 1)
	return &metaCache{place: place, r: r, size: size, unitBits: unitBits, slots: make([]atomic.Pointer[metaUnit], n)}
}

// at returns the cached bytes from off to the end of its unit: at least one
// byte, which the caller must not change. The caller has checked
// 0 <= off < size.
func (c *metaCache) at(off int64) ([]byte, error) {
	index := off >> c.unitBits
	slot := &c.slots[int(index)&(len(c.slots)-1)]
	u := slot.Load()
	if u == nil || u.index != index {
		start := index << c.unitBits
		data := make([]byte, min(int64(1)<<c.unitBits, c.size-start))
		if err := readFull(c.r, data, start); err != nil {
			return nil, err
		}
		u = &metaUnit{index: index, data: data}
		slot.Store(u)
	}
	return u.data[off-index<<c.unitBits:], nil
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
