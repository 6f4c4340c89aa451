package erofs

import "github.com/erofs-csi/erofs-csi/erofs/internal/disk"

// lcluster is one decoded index.
type lcluster struct {
	kind    uint8  // disk.LclusterPlain, ...
	partial bool   // heads: the extent is only the first part of the pcluster's data
	hole    bool   // heads: the extent is zeros that are stored nowhere
	ofs     uint32 // heads: where the extent starts in the lcluster, below its size
	blk     uint32 // heads: first block of the pcluster
	back    int64  // NONHEAD: distance to an earlier lcluster of the extent, at least 1
	blocks  int64  // NONHEAD: blocks of the pcluster; 0: not given here
	ahead   int64  // NONHEAD: distance to the next head or to an earlier lcluster; 0: not given here
	behind  int64  // byte address behind the index, or behind its pack
}

func (l *lcluster) head() bool { return l.kind != disk.LclusterNonhead }

// load reads the index of lcluster lcn, 0 <= lcn < z.count.
//
// Errors: ErrCorrupt, ErrUnsupported, or what the device returned.
func (z *zState) load(in *Inode, lcn int64) (lcluster, error) {
	if in.Layout == CompressedFull {
		return z.loadFull(in, lcn)
	}
	return z.loadCompact(in, lcn)
}

// loadFull reads an index of 8 bytes. Source: z_erofs_load_full_lcluster in
// fs/erofs/zmap.c of Linux 7.2.
func (z *zState) loadFull(in *Inode, lcn int64) (lcluster, error) {
	pos := z.index + lcn*disk.LclusterIndexSize
	b, err := in.area.view("compression index", in.NID, pos, disk.LclusterIndexSize)
	if err != nil {
		return lcluster{}, err
	}
	var li disk.LclusterIndex
	li.Decode(b)
	l := lcluster{kind: uint8(li.Advise & disk.LclusterTypeMask), behind: pos + disk.LclusterIndexSize}
	if !l.head() {
		l.ahead = int64(li.Delta1())
		return l, z.nonhead(in, &l, uint32(li.Delta0()), pos)
	}
	l.partial, l.hole = li.Advise&disk.LclusterPartialRef != 0, li.Advise&disk.LclusterHole != 0
	l.ofs, l.blk = uint32(li.ClusterOfs), li.BlkAddr
	return l, z.checkHead(in, &l, pos)
}

// loadCompact reads an index from its pack of 2 or 16. Source:
// z_erofs_load_compact_lcluster in fs/erofs/zmap.c of Linux 7.2.
func (z *zState) loadCompact(in *Inode, lcn int64) (lcluster, error) {
	const entry4B, entry2B = disk.Pack4BSize / disk.Pack4BEntries, disk.Pack2BSize / disk.Pack2BEntries
	pos := z.index
	size, i := int64(disk.Pack4BSize), int64(0) // of the pack, and the entry in it
	switch {
	case lcn < z.initial:
		i = lcn & 1
		pos += (lcn - i) * entry4B
	case lcn < z.initial+z.packed:
		size = disk.Pack2BSize
		n := lcn - z.initial
		i = n & (disk.Pack2BEntries - 1)
		pos += z.initial*entry4B + (n-i)*entry2B
	default:
		n := lcn - z.initial - z.packed
		i = n & 1
		pos += z.initial*entry4B + z.packed*entry2B + (n-i)*entry4B
	}
	b, err := in.area.view("compression index", in.NID, pos, int(size))
	if err != nil {
		return lcluster{}, err
	}
	p := pack{b: b, loBits: max(z.lbits, disk.LclusterLoBitsMin), width: 16}
	if size == disk.Pack2BSize {
		p.width = 14
	}

	kind, lo := p.entry(int(i))
	l := lcluster{kind: kind, behind: pos + size}
	if !l.head() {
		last := disk.Pack4BEntries - 1
		if size == disk.Pack2BSize {
			last = disk.Pack2BEntries - 1
		}
		if int(i) == last && lo&disk.LclusterCblkcnt == 0 {
			// The last entry has the distance forward; the one back is one more
			// than that of the entry before.
			l.ahead = int64(lo)
			kind, lo = p.entry(last - 1)
			switch {
			case kind != disk.LclusterNonhead:
				lo = 0
			case lo&disk.LclusterCblkcnt != 0:
				lo = 1
			}
			l.back = int64(lo) + 1
			return l, nil
		}
		return l, z.nonhead(in, &l, lo, pos)
	}
	blocks, ok := p.blocksBefore(int(i), z.big1)
	if !ok {
		return l, in.corrupt("compression index", pos, "a distance of 1 to a pcluster without a size")
	}
	l.ofs, l.blk = lo, p.base()+blocks
	return l, z.checkHead(in, &l, pos)
}

// nonhead decodes delta[0] of a NONHEAD lcluster at byte address pos.
func (z *zState) nonhead(in *Inode, l *lcluster, delta uint32, pos int64) error {
	l.back = int64(delta)
	if delta&disk.LclusterCblkcnt != 0 {
		if !z.big1 && !z.big2 {
			return in.corrupt("compression index", pos, "a pcluster's size in a file without big pclusters")
		}
		l.back, l.blocks = 1, int64(delta&^disk.LclusterCblkcnt)
	}
	return nil
}

func (z *zState) checkHead(in *Inode, l *lcluster, pos int64) error {
	if l.ofs >= 1<<z.lbits {
		return in.corrupt("compression index", pos, "an extent starts %d bytes into its lcluster of %d", l.ofs, 1<<z.lbits)
	}
	return nil
}

// pack is a pack of compact indexes: entries of width bits, each a value of
// loBits with two bits of type above, then a block address.
type pack struct {
	b      []byte // disk.Pack4BSize or disk.Pack2BSize bytes
	loBits uint   // 12 <= loBits <= 14
	width  uint   // 16 or 14: loBits+2 <= width
}

// entry decodes entry i. The four bytes read are in the pack: the address at
// its end is as long.
func (p *pack) entry(i int) (kind uint8, lo uint32) {
	bit := uint(i) * p.width
	v := le.Uint32(p.b[bit/8:]) >> (bit & 7)
	return uint8(v>>p.loBits) & disk.LclusterTypeMask, v & (1<<p.loBits - 1)
}

// base is the block address from which the pack counts.
func (p *pack) base() uint32 { return le.Uint32(p.b[len(p.b)-disk.PackAddrSize:]) }

// blocksBefore is how many blocks behind base the pcluster of the head at
// entry i starts: the sum of the pclusters whose heads are earlier in the
// pack, or whose rest is. Without big pclusters each has one block and base is
// one too low.
func (p *pack) blocksBefore(i int, big bool) (blocks uint32, ok bool) {
	if !big {
		blocks = 1
	}
	for i--; i >= 0; i-- {
		kind, lo := p.entry(i)
		switch {
		case kind != disk.LclusterNonhead:
			blocks++
		case !big:
			// Its head is lo entries before, in the pack or in an earlier one.
			if i -= int(lo); i >= 0 {
				blocks++
			}
		case lo&disk.LclusterCblkcnt != 0:
			blocks += lo &^ disk.LclusterCblkcnt
			i-- // its head
		case lo <= 1:
			return 0, false
		default:
			i -= int(lo) - 2 // to the entry behind the one with the size
		}
	}
	return blocks, true
}
