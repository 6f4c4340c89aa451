package erofs

import (
	"sync/atomic"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// zState is what the map header of a compressed inode says, checked. It is
// made at the first read and never changes.
//
// Logical clusters (lclusters) cut the decoded file in equal parts. Physical
// clusters (pclusters) are runs of bytes in the image, whole blocks but with
// encoded extents. An extent is what one pcluster decodes to.
//
// With full and compact indexes there is one index for each lcluster. An extent
// starts anywhere in the lcluster called its head and ends where the next
// extent starts, or with the file; so an lcluster has at most one head in it.
// Encoded extents have a record for each extent; see zRecords.
type zState struct {
	encoded    bool     // there are records, not indexes
	lbits      uint     // log2 of an lcluster's bytes, 9 <= lbits <= 31
	count      int64    // lclusters in the file, at least 1
	index      int64    // byte address of the first index or record
	algorithms [2]uint8 // of HEAD1 and HEAD2
	big1, big2 bool     // HEAD1, or HEAD2 and PLAIN, may have more than one block
	interlaced bool     // of plain pclusters, see plainPart

	// The last extent, where it is not among the blocks: behind the indexes
	// (ztailpacking) or in the packed inode (fragments). Then tailHead is its
	// head, else -1. Whatever indexes there are behind it do not count.
	tail     zExtent
	tailHead int64

	// Compact indexes: initial entries of 4 bytes, packed of 2 bytes, a multiple
	// of 16 from a 32-byte boundary on, then of 4 bytes to the end.
	initial, packed int64

	records zRecords // encoded extents

	// Long extents that were mapped lately: to find the ends of one takes an
	// index for each lcluster. Each is at the place that its offset says.
	recent [zRecent]atomic.Pointer[zMapped]
}

const (
	zRecent     = 4
	zRecentBits = 20 // log2 of the bytes in a file that have the same place
	zRecentMin  = 16 // lclusters that make an extent long
)

// zMapped is an extent with what zMapper needs to go on behind it.
type zMapped struct {
	extent zExtent
	lcn    int64
	next   lcluster
}

// compression returns the checked map header of in, whose size is not 0.
// Concurrent first calls may each read it and find the same.
//
// Errors: ErrUnsupported for a feature by its name, ErrCorrupt, or what the
// device returned.
//
// Source: z_erofs_fill_inode in fs/erofs/zmap.c of Linux 7.2.
func (in *Inode) compression() (*zState, error) {
	if z := in.z.Load(); z != nil {
		return z, nil
	}
	pos := roundUp(in.bodyAddr(), disk.MapHeaderSize)
	b, err := in.area.view("compression header", in.NID, pos, disk.MapHeaderSize)
	if err != nil {
		return nil, err
	}
	var h disk.MapHeader
	h.Decode(b)
	z := &zState{tailHead: -1}
	switch {
	case h.ClusterBits&disk.ClusterBitsFragments != 0:
		z.tail = zExtent{end: in.Size, pa: int64(h.WholeFragment()), kind: zPacked}
		z.tailHead = 0
		err = in.checkFragment(&z.tail)
	case in.Layout == CompressedFull && h.Advise&disk.AdviseExtents != 0:
		err = z.loadRecords(in, &h, pos+disk.MapHeaderSize)
	default:
		err = z.loadIndexes(in, &h, pos+disk.MapHeaderSize)
	}
	if err != nil {
		return nil, err
	}
	in.z.Store(z)
	return z, nil
}

// lclusters sets the size and number of lclusters that h says.
func (z *zState) lclusters(in *Inode, h *disk.MapHeader) {
	z.lbits = in.im.blkBits + uint(h.ClusterBits&disk.ClusterBitsMask) // at most 16+15
	z.count = (in.Size-1)>>z.lbits + 1
}

// loadIndexes sets up full or compact indexes, which begin behind byte address
// pos.
func (z *zState) loadIndexes(in *Inode, h *disk.MapHeader, pos int64) error {
	z.lclusters(in, h)
	z.index = pos
	z.algorithms = [2]uint8{h.AlgorithmType & 15, h.AlgorithmType >> 4}
	z.big1 = h.Advise&disk.AdviseBigPcluster1 != 0
	z.big2 = h.Advise&disk.AdviseBigPcluster2 != 0
	z.interlaced = h.Advise&disk.AdviseInterlaced != 0
	if err := z.checkHeader(in, h, pos); err != nil {
		return err
	}
	if in.Layout == CompressedFull {
		z.index += disk.FullIndexGap
		if err := z.checkSpan(in, z.count, disk.LclusterIndexSize); err != nil {
			return err
		}
	} else {
		// Linux counts blocks here, which lclusters nearly always are.
		total := (in.Size-1)>>in.im.blkBits + 1
		z.initial = (-z.index & (disk.Pack2BSize - 1)) / (disk.Pack4BSize / disk.Pack4BEntries)
		if h.Advise&disk.AdviseCompacted2B != 0 && z.initial < total {
			z.packed = (total - z.initial) &^ (disk.Pack2BEntries - 1)
		}
		if err := z.checkSpan(in, z.count, disk.Pack2BSize/disk.Pack2BEntries); err != nil {
			return err
		}
	}
	return z.findTail(in, h)
}

// checkHeader refuses what Linux does and what contradicts itself.
func (z *zState) checkHeader(in *Inode, h *disk.MapHeader, pos int64) error {
	const op = "compression header"
	for i, alg := range z.algorithms {
		if alg >= disk.AlgEnd {
			return in.unsupported(op, "compression algorithm %d (of HEAD%d)", alg, i+1)
		}
	}
	switch {
	case (z.big1 || z.big2) && in.im.sb.FeatureIncompat&disk.IncompatComprCfgs == 0:
		return in.corrupt(op, pos, "big pclusters in an image without that feature")
	case in.Layout == CompressedFull:
		return nil
	case z.big1 != z.big2:
		return in.corrupt(op, pos, "big pclusters for only one of the two kinds of head")
	case z.lbits > disk.Pack4BMaxBits:
		return in.unsupported(op, "compact indexes of logical clusters of 2^%d bytes", z.lbits)
	case h.Advise&disk.AdviseCompacted2B != 0 && z.lbits > disk.Pack2BMaxBits:
		return in.unsupported(op, "2-byte indexes of logical clusters of 2^%d bytes", z.lbits)
	}
	return nil
}

// checkSpan makes sure that n indexes of at least size bytes can be in the
// inode's area, so that no address of one overflows.
func (z *zState) checkSpan(in *Inode, n, size int64) error {
	if z.index > in.area.size || n > (in.area.size-z.index)/size {
		return in.corrupt("compression header", z.index, "%d indexes do not fit in the %s", n, in.area.place)
	}
	return nil
}

// findTail finds the last extent if it is inline or a fragment.
func (z *zState) findTail(in *Inode, h *disk.MapHeader) error {
	fragment, size := h.Advise&disk.AdviseFragment != 0, int64(h.InlineSize())
	if !fragment && (h.Advise&disk.AdviseInline == 0 || size == 0) {
		return nil
	}
	m := zMapper{in: in, z: z}
	if err := m.seek(in.Size-1, in.Size); err != nil {
		return err
	}
	head := m.next
	e := zExtent{la: m.lcn<<z.lbits + int64(head.ofs), end: in.Size, kind: z.kind(&head), partial: head.partial}
	if fragment {
		e.kind, e.partial, e.pa = zPacked, false, int64(h.FragmentOff)
		if in.Layout == CompressedFull { // its index has room for 32 bits more
			e.pa |= int64(head.blk) << 32
		}
		if m.lcn == 0 {
			e.la = 0
		}
		if err := in.checkFragment(&e); err != nil {
			return err
		}
	} else {
		last, err := z.load(in, z.count-1)
		if err != nil {
			return err
		}
		e.inline, e.pa, e.plen = true, last.behind, size
		if e.kind == zInterlaced {
			e.kind = zShifted
		}
		if e.pa&(in.im.blkSize-1)+e.plen > in.im.blkSize {
			return in.corrupt("compression header", e.pa, "the inline pcluster of %d bytes crosses a block boundary", e.plen)
		}
	}
	z.tail, z.tailHead = e, m.lcn
	return m.check(&e)
}

// kind is how the data of the extent with the given head are stored.
func (z *zState) kind(head *lcluster) zKind {
	switch head.kind {
	case disk.LclusterHead1:
		return zKind(z.algorithms[0])
	case disk.LclusterHead2:
		return zKind(z.algorithms[1])
	default:
		if z.interlaced {
			return zInterlaced
		}
		return zShifted
	}
}

// checkFragment makes sure that the part of the packed inode that e is can be
// there, and that in is not the packed inode itself.
func (in *Inode) checkFragment(e *zExtent) error {
	const op = "fragment"
	packed, n := in.im.packed, e.end-e.la
	switch {
	case packed == nil:
		return in.corrupt(op, noOffset, "the image has no packed inode")
	case in.NID == packed.NID:
		return in.corrupt(op, noOffset, "the packed inode has a part in itself")
	case e.pa < 0 || e.pa > packed.Size || n > packed.Size-e.pa:
		return in.corrupt(op, e.pa, "%d bytes reach beyond the end of the packed inode (%d bytes)", n, packed.Size)
	}
	return nil
}
