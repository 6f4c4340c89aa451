package erofs

import (
	"math"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// zKind says how an extent's data are stored. Those below disk.AlgEnd are
// compression algorithms.
type zKind uint8

const (
	zShifted    zKind = disk.AlgEnd + iota // plain, from the start of the pcluster on
	zInterlaced                            // plain, each byte at its place in a block; see plainPart
	zHole                                  // zeros that are stored nowhere
	zPacked                                // in the packed inode, a fragment
)

// zExtent is an extent of a compressed file: bytes [la, end) of the file, held
// by the pcluster [pa, pa+plen) of the unified address space, or of the inode's
// area for an inline one, or by [pa, pa+end-la) of the packed inode.
//
//	la < end
//	compressed: end-la <= disk.PclusterMaxDecoded
//	plain:      end-la <= plen
//	both:       0 < plen <= disk.PclusterMaxSize, pa+plen < 2^48 blocks
//
// What byte of the image a byte of the file comes from depends on the inode
// alone, never on where a read starts or ends: files are shared by what one
// reader has hashed.
type zExtent struct {
	la, end  int64
	pa, plen int64
	kind     zKind
	inline   bool // the pcluster is behind the indexes
	partial  bool // the pcluster may decode to more than the extent
}

func (e *zExtent) compressed() bool { return e.kind < disk.AlgEnd }
func (e *zExtent) plain() bool      { return e.kind == zShifted || e.kind == zInterlaced }
func (e *zExtent) stored() bool     { return e.kind < zHole }

// zMapper goes over the extents of a file in order.
type zMapper struct {
	in *Inode
	z  *zState

	at   int64    // where the next extent starts
	lcn  int64    // its head; full and compact indexes only
	next lcluster // the index of it
}

// first returns the extent that holds offset off, 0 <= off < in.Size.
//
// Errors: ErrCorrupt, ErrUnsupported, or what the device returned.
func (m *zMapper) first(off int64) (zExtent, error) {
	z := m.z
	if z.tailHead >= 0 && off >= z.tail.la {
		return z.tail, nil
	}
	if z.encoded {
		m.at = off
		return m.extent()
	}
	for i := range z.recent {
		if r := z.recent[i].Load(); r != nil && r.extent.la <= off && off < r.extent.end {
			m.at, m.lcn, m.next = r.extent.end, r.lcn, r.next
			return r.extent, nil
		}
	}
	if err := m.seek(off, disk.PclusterMaxDecoded); err != nil {
		return zExtent{}, err
	}
	e, err := m.extent()
	if err != nil {
		return e, err
	}
	if e.end <= off {
		return e, m.corrupt(off>>z.lbits, "the distance to its head passes another head")
	}
	if (e.end-e.la)>>z.lbits >= zRecentMin {
		z.recent[e.la>>zRecentBits%zRecent].Store(&zMapped{extent: e, lcn: m.lcn, next: m.next})
	}
	return e, nil
}

// extent returns the extent behind the last one. The caller makes sure that
// that did not end with the file.
func (m *zMapper) extent() (e zExtent, err error) {
	if m.z.encoded {
		e, err = m.z.records.extent(m.in, m.z, m.at)
	} else {
		e, err = m.indexed()
	}
	if err != nil {
		return e, err
	}
	m.at = e.end
	return e, m.check(&e)
}

// maxShortSteps bounds the steps back to a head that are shorter than an index
// allows and yet do not reach it: mkfs.erofs needs none.
const maxShortSteps = 16

// seek goes to the head of the extent that holds off, at most most bytes back,
// if the distances to it in the indexes are right.
//
// Source: z_erofs_map_blocks_fo and z_erofs_extent_lookback in fs/erofs/zmap.c
// of Linux 7.2.
func (m *zMapper) seek(off, most int64) error {
	lsize := int64(1) << m.z.lbits
	lcn := off >> m.z.lbits
	l, err := m.z.load(m.in, lcn)
	if err != nil {
		return err
	}
	back := l.back
	if l.head() {
		back = 0
		if off&(lsize-1) < int64(l.ofs) {
			back = 1
		}
	} else if back == 0 {
		return m.corrupt(lcn, "it is 0 lclusters behind its head")
	}
	short := 0
	for at := lcn; back > 0; {
		if back > at {
			return m.corrupt(at, "its head is %d lclusters back, before the file", back)
		}
		at -= back
		if (lcn-at-1)<<m.z.lbits > most {
			return m.corrupt(lcn, "its head is more than %d bytes back", most)
		}
		if l, err = m.z.load(m.in, at); err != nil {
			return err
		}
		if l.head() {
			lcn = at
			break
		}
		if back < disk.LclusterCblkcnt-1 {
			short++
		}
		if back = l.back; back == 0 || short > maxShortSteps {
			return m.corrupt(at, "the way to its head is wrong")
		}
	}
	m.lcn, m.next = lcn, l
	return nil
}

// indexed returns the extent whose head is m.next and goes on to the one behind
// it.
//
// The end is looked for lcluster by lcluster. The distances to the next head
// that indexes also have are not needed, and were wrong in images of mkfs.erofs
// before 1.0.
func (m *zMapper) indexed() (zExtent, error) {
	in, z, head, l := m.in, m.z, m.lcn, m.next
	if head == z.tailHead {
		return z.tail, nil
	}
	e := zExtent{
		la: head<<z.lbits + int64(l.ofs), pa: int64(l.blk) << in.im.blkBits,
		kind: z.kind(&l), partial: l.partial,
	}
	big := z.big2
	if l.kind == disk.LclusterHead1 {
		big = z.big1
	}
	blocks := int64(1)
	for lcn := head + 1; ; lcn++ {
		start := lcn << z.lbits
		if lcn >= z.count {
			e.end = in.Size
			break
		}
		if start-e.la > disk.PclusterMaxDecoded {
			return e, m.corrupt(head, "its extent has more than %d bytes", disk.PclusterMaxDecoded)
		}
		next, err := z.load(in, lcn)
		if err != nil {
			return e, err
		}
		if next.head() {
			// The last lcluster may have a head at the end of the file or behind it:
			// mkfs.erofs puts it there to end the last extent.
			e.end = min(start+int64(next.ofs), in.Size)
			m.lcn, m.next = lcn, next
			break
		}
		if next.back < 1 || next.back > lcn-head {
			return e, m.corrupt(lcn, "it is %d lclusters behind its head and %d behind the last head", next.back, lcn-head)
		}
		if lcn == head+1 && big && !l.hole {
			// mkfs.erofs writes a size of 0 for pclusters of 2048 blocks, which is
			// one too many. Linux 7.2 takes it for a hole and shows zeros.
			if blocks = next.blocks; blocks <= 0 {
				return e, m.corrupt(lcn, "it has not the pcluster's size")
			}
		}
	}
	if l.hole {
		e.kind, e.pa, e.partial = zHole, 0, false
		return e, nil
	}
	e.plen = blocks << in.im.blkBits
	return e, nil
}

// partialMin is how many bytes a part of a pcluster that is an encoded extent
// must have, unless it ends the file: as many as the smallest lcluster. It
// bounds the work that a read of few bytes can cause.
const partialMin = 1 << disk.MinBlockBits

// check refuses an extent that does not keep the invariants of zExtent.
//
// Source: z_erofs_map_sanity_check in fs/erofs/zmap.c of Linux 7.2.
func (m *zMapper) check(e *zExtent) error {
	n, im := e.end-e.la, m.in.im
	if n <= 0 {
		return m.badExtent(e, "it starts behind its end or the file's")
	}
	if !e.stored() {
		return nil
	}
	if e.plen > disk.PclusterMaxSize {
		return m.badExtent(e, "its pcluster has %d bytes", e.plen)
	}
	if e.pa < 0 || e.pa > math.MaxInt64-e.plen || (e.pa+e.plen)>>im.blkBits > addr48 {
		return m.badExtent(e, "its pcluster is at %d, beyond any device", e.pa)
	}
	if e.plain() {
		if n > e.plen {
			return m.badExtent(e, "%d bytes are plain in a pcluster of %d", n, e.plen)
		}
		return nil
	}
	last := e.end == m.in.Size
	switch {
	case !im.hasAlgorithm(uint8(e.kind)):
		return m.badExtent(e, "it uses %s, which the superblock does not announce", algorithmNames[e.kind])
	case n > disk.PclusterMaxDecoded:
		return m.badExtent(e, "its pcluster decodes to more than %d bytes", disk.PclusterMaxDecoded)
	case last || !m.z.encoded:
		return nil // indexes of mkfs.erofs 1.5 have pclusters with less data than bytes
	case !e.partial && n < e.plen:
		return m.badExtent(e, "its pcluster has %d bytes but decodes to %d", e.plen, n)
	case e.partial && n < partialMin:
		return m.in.unsupported("compression index", "an extent of %d bytes, a part of a larger pcluster", n)
	}
	return nil
}

// corrupt reports what is wrong with lcluster lcn; the offset is that in the
// file.
func (m *zMapper) corrupt(lcn int64, format string, args ...any) error {
	return m.in.corrupt("compression index", lcn<<m.z.lbits, "lcluster %d: "+format, append([]any{lcn}, args...)...)
}

// badExtent reports what is wrong with an extent.
func (m *zMapper) badExtent(e *zExtent, format string, args ...any) error {
	return m.in.corrupt("compression index", e.la, "extent: "+format, args...)
}
