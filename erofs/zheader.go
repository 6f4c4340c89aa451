package erofs

import "github.com/erofs-csi/erofs-csi/erofs/internal/disk"

// zState is what the map header of a compressed inode says, checked. It is
// made at the first read and never changes.
//
// Logical clusters (lclusters) cut the decoded file in equal parts of a block
// each; there is one index for each. Physical clusters (pclusters) are runs of
// whole blocks. An extent is what one pcluster decodes to: it starts anywhere
// in the lcluster called its head and ends where the next extent starts, or
// with the file; so an lcluster has at most one head in it.
type zState struct {
	lbits      uint  // log2 of an lcluster's bytes, 9 <= lbits <= 16; that of a block
	count      int64 // lclusters in the file, at least 1
	index      int64 // byte address of the first index
	big1, big2 bool  // HEAD1, or HEAD2 and PLAIN, may have more than one block
	interlaced bool  // of plain pclusters, see plainPart
	head2      bool  // HEAD2 is LZ4 as well

	// Compact indexes: initial entries of 4 bytes, packed of 2 bytes, a multiple
	// of 16 from a 32-byte boundary on, then of 4 bytes to the end.
	initial, packed int64
}

// compression returns the checked map header of in. Concurrent first calls may
// each read it and find the same.
//
// Errors: ErrUnsupported for a feature by its name, ErrCorrupt. Source:
// z_erofs_fill_inode in fs/erofs/zmap.c of Linux 6.18.
func (in *Inode) compression() (*zState, error) {
	if z := in.z.Load(); z != nil {
		return z, nil
	}
	pos := roundUp(in.bodyAddr(), disk.MapHeaderSize)
	b, err := in.im.metaView("compression header", in.NID, pos, disk.MapHeaderSize)
	if err != nil {
		return nil, err
	}
	var h disk.MapHeader
	h.Decode(b)
	if err := in.checkMapHeader(&h, pos); err != nil {
		return nil, err
	}
	z := &zState{
		lbits:      in.im.blkBits,
		count:      int64((uint64(in.Size) + uint64(in.im.blkSize) - 1) >> in.im.blkBits),
		index:      pos + disk.MapHeaderSize,
		big1:       h.Advise&disk.AdviseBigPcluster1 != 0,
		big2:       h.Advise&disk.AdviseBigPcluster2 != 0,
		interlaced: h.Advise&disk.AdviseInterlaced != 0,
		head2:      h.AlgorithmType>>4 == disk.AlgLZ4,
	}
	if in.Layout == CompressedFull {
		z.index += disk.FullIndexGap
		err = z.checkSpan(in, z.count, disk.LclusterIndexSize)
	} else {
		z.initial = (-z.index & (disk.Pack2BSize - 1)) / (disk.Pack4BSize / disk.Pack4BEntries)
		if h.Advise&disk.AdviseCompacted2B != 0 && z.initial < z.count {
			z.packed = (z.count - z.initial) &^ (disk.Pack2BEntries - 1)
		}
		err = z.checkSpan(in, z.count, disk.Pack2BSize/disk.Pack2BEntries)
	}
	if err != nil {
		return nil, err
	}
	in.z.Store(z)
	return z, nil
}

// checkMapHeader refuses what this package does not decode and what
// contradicts itself.
func (in *Inode) checkMapHeader(h *disk.MapHeader, pos int64) error {
	const op = "compression header"
	bits := in.im.blkBits
	switch {
	case h.ClusterBits&disk.ClusterBitsFragments != 0, h.Advise&disk.AdviseFragment != 0:
		return in.unsupported(op, "fragments (data in the packed inode)")
	case in.Layout == CompressedFull && h.Advise&disk.AdviseExtents != 0:
		return in.unsupported(op, "encoded extents (48-bit indexes)")
	case h.Advise&disk.AdviseInline != 0:
		return in.unsupported(op, "ztailpacking (compressed data behind the inode)")
	case h.AlgorithmType&15 != disk.AlgLZ4:
		return in.unsupported(op, "%s", algorithmName(h.AlgorithmType&15))
	case h.ClusterBits&disk.ClusterBitsMask != 0:
		return in.unsupported(op, "logical clusters of %d blocks", 1<<(h.ClusterBits&disk.ClusterBitsMask))
	case in.Layout == CompressedFull:
		return nil
	case (h.Advise&disk.AdviseBigPcluster1 != 0) != (h.Advise&disk.AdviseBigPcluster2 != 0):
		return in.corrupt(op, pos, "big pclusters for only one of the two kinds of head")
	case bits > disk.Pack4BMaxBits:
		return in.unsupported(op, "compact indexes of logical clusters of 2^%d bytes", bits)
	case h.Advise&disk.AdviseCompacted2B != 0 && bits > disk.Pack2BMaxBits:
		return in.unsupported(op, "2-byte indexes of logical clusters of 2^%d bytes", bits)
	}
	return nil
}

// checkSpan makes sure that n indexes of at least size bytes can be in the
// image, so that no address of one overflows: n <= image size.
func (z *zState) checkSpan(in *Inode, n, size int64) error {
	if n > (in.im.size-z.index)/size {
		return in.corrupt("compression header", z.index, "%d indexes do not fit in the image", n)
	}
	return nil
}

func algorithmName(alg uint8) string {
	if int(alg) < len(algorithmNames) {
		return algorithmNames[alg] + " compression"
	}
	return "an unknown compression algorithm"
}
