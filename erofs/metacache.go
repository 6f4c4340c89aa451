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

// metaCache is a direct-mapped cache of the primary device's metadata in units
// of 1<<unitBits bytes, aligned to their size. A published unit is immutable,
// so readers need no lock; two readers that miss together both read, and the
// later one wins.
//
// Memory is at most len(slots) units, len(slots) a power of two.
type metaCache struct {
	r        io.ReaderAt
	size     int64
	unitBits uint
	slots    []atomic.Pointer[metaUnit]
}

// metaUnit is one aligned unit of the device. data is shorter than the unit
// only at the end of the device.
type metaUnit struct {
	index int64
	data  []byte
}

// newMetaCache makes a cache of about the given number of bytes, at least one
// unit, over a device of size bytes whose block size is 1<<blkBits.
func newMetaCache(r io.ReaderAt, size int64, blkBits uint, bytes int) *metaCache {
	unitBits := max(blkBits, uint(bits.Len(metaUnitMin)-1))
	n := max(bytes>>unitBits, 1)
	n = 1 << (bits.Len(uint(n)) - 1)
	return &metaCache{r: r, size: size, unitBits: unitBits, slots: make([]atomic.Pointer[metaUnit], n)}
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

// metaRead fills p with the metadata at byte address off of the primary
// device. A range that leaves the device is ErrCorrupt.
func (im *Image) metaRead(op string, nid uint64, p []byte, off int64) error {
	if off < 0 || off > im.size || int64(len(p)) > im.size-off {
		return fail(ErrCorrupt, op, nid, off, "%d bytes reach beyond the end of the image (%d bytes)", len(p), im.size)
	}
	for len(p) > 0 {
		b, err := im.meta.at(off)
		if err != nil {
			return im.readError(op, nid, off, err)
		}
		n := copy(p, b)
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// metaView returns n bytes of metadata at byte address off, from the cache
// without a copy where they lie in one unit, which they always do when the
// range lies in one block. The caller must not change them. n is bounded by
// the caller, not by the image.
func (im *Image) metaView(op string, nid uint64, off int64, n int) ([]byte, error) {
	if off < 0 || off > im.size || int64(n) > im.size-off {
		return nil, fail(ErrCorrupt, op, nid, off, "%d bytes reach beyond the end of the image (%d bytes)", n, im.size)
	}
	if n == 0 {
		return nil, nil
	}
	b, err := im.meta.at(off)
	if err != nil {
		return nil, im.readError(op, nid, off, err)
	}
	if len(b) >= n {
		return b[:n:n], nil
	}
	p := make([]byte, n)
	if err := im.metaRead(op, nid, p, off); err != nil {
		return nil, err
	}
	return p, nil
}

// readError classifies a failed read of a device: one that ended early is
// ErrCorrupt, anything else an I/O error kept as it is.
func (im *Image) readError(op string, nid uint64, off int64, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fail(ErrCorrupt, op, nid, off, "the device ends early")
	}
	return &FormatError{Op: op, NID: nid, Off: off, Err: err}
}
