package erofs

import "github.com/erofs-csi/erofs-csi/erofs/internal/disk"

// zExtent is an extent of a compressed file: bytes [la, end) of the file, held
// by the pcluster [pa, pa+plen) of the device.
//
//	la < end, end-la <= disk.PclusterMaxDecoded
//	0 < plen <= disk.PclusterMaxSize, pa and plen multiples of the block size
type zExtent struct {
	la, end  int64
	pa, plen int64
	plain    bool // stored as it is, not LZ4
	whole    bool // end is the extent's; else that of the range mapped
}

// zMapper goes over the extents of a range of a file in order. It reads each
// index of the range once, and those that lead back to the range's first head.
type zMapper struct {
	in  *Inode
	z   *zState
	end int64 // of the range; end <= in.Size

	lcn  int64 // of the next extent's head
	next lcluster
}

// first returns the extent that holds offset off, 0 <= off < m.end.
//
// Errors: ErrCorrupt, ErrUnsupported, or what the device returned. Source:
// z_erofs_map_blocks_fo and z_erofs_extent_lookback in fs/erofs/zmap.c of
// Linux 6.18.
func (m *zMapper) first(off int64) (zExtent, error) {
	lsize := int64(1) << m.z.lbits
	lcn := off >> m.z.lbits
	l, err := m.z.load(m.in, lcn)
	if err != nil {
		return zExtent{}, err
	}
	back := l.back
	if l.head() {
		back = 0
		if off&(lsize-1) < int64(l.ofs) {
			back = 1
		}
	} else if back == 0 {
		return zExtent{}, m.corrupt(lcn, "it is 0 lclusters behind its head")
	}
	for at := lcn; back > 0; {
		if back > at {
			return zExtent{}, m.corrupt(at, "its head is %d lclusters back, before the file", back)
		}
		at -= back
		if (lcn-at-1)<<m.z.lbits > disk.PclusterMaxDecoded {
			return zExtent{}, m.corrupt(lcn, "its head is more than %d bytes back", disk.PclusterMaxDecoded)
		}
		if l, err = m.z.load(m.in, at); err != nil {
			return zExtent{}, err
		}
		if l.head() {
			lcn = at
			break
		}
		if back = l.back; back == 0 {
			return zExtent{}, m.corrupt(at, "it is 0 lclusters behind its head")
		}
	}
	m.lcn, m.next = lcn, l
	e, err := m.extent()
	if err == nil && e.end <= off {
		err = m.corrupt(off>>m.z.lbits, "the distance to its head passes another head")
	}
	return e, err
}

// extent returns the extent whose head is m.next and goes on to the one
// behind it, if that starts before m.end. The caller calls it again only then:
// after a whole extent with end < m.end.
//
// The end is looked for lcluster by lcluster. The distances to the next head
// that indexes also have are not needed, and were wrong in images of mkfs.erofs
// before 1.0.
func (m *zMapper) extent() (zExtent, error) {
	in, z, head := m.in, m.z, m.lcn
	e := zExtent{
		la:    head<<z.lbits + int64(m.next.ofs),
		pa:    int64(m.next.blk) << in.im.blkBits,
		plain: m.next.kind == disk.LclusterPlain,
	}
	big := z.big2
	if m.next.kind == disk.LclusterHead1 {
		big = z.big1
	}
	blocks := int64(1)
	for lcn := head + 1; ; lcn++ {
		start := lcn << z.lbits
		switch {
		case lcn >= z.count:
			e.end, e.whole = in.Size, true
		case start >= m.end && (lcn > head+1 || !big):
			e.end = m.end
		}
		if e.end != 0 {
			break
		}
		l, err := z.load(in, lcn)
		if err != nil {
			return e, err
		}
		if l.head() {
			// The last lcluster may have a head at the end of the file or behind it:
			// mkfs.erofs puts it there to end the last extent.
			e.end, e.whole = min(start+int64(l.ofs), in.Size), true
			m.lcn, m.next = lcn, l
			break
		}
		if l.back < 1 || l.back > lcn-head {
			return e, m.corrupt(lcn, "it is %d lclusters behind its head and %d behind the last head", l.back, lcn-head)
		}
		if lcn == head+1 && big {
			if blocks = l.blocks; blocks == 0 {
				return e, m.corrupt(lcn, "it has not the pcluster's size")
			}
		}
		if start-e.la > disk.PclusterMaxDecoded {
			return e, m.corrupt(head, "its pcluster decodes to more than %d bytes", disk.PclusterMaxDecoded)
		}
	}
	e.plen = blocks << in.im.blkBits
	return e, m.check(&e, head)
}

// check refuses an extent that does not keep the invariants of zExtent.
func (m *zMapper) check(e *zExtent, head int64) error {
	switch {
	case e.la >= e.end:
		return m.corrupt(head, "its extent starts behind the end of the file")
	case e.end-e.la > disk.PclusterMaxDecoded:
		return m.corrupt(head, "its pcluster decodes to more than %d bytes", disk.PclusterMaxDecoded)
	case e.plen > disk.PclusterMaxSize:
		return m.corrupt(head, "its pcluster has %d bytes", e.plen)
	case e.plain && e.end-e.la > e.plen:
		return m.corrupt(head, "%d bytes are plain in a pcluster of %d", e.end-e.la, e.plen)
	}
	return nil
}

// corrupt reports what is wrong with lcluster lcn; the offset is that in the
// file.
func (m *zMapper) corrupt(lcn int64, format string, args ...any) error {
	return m.in.corrupt("compression index", lcn<<m.z.lbits, "lcluster %d: "+format, append([]any{lcn}, args...)...)
}
