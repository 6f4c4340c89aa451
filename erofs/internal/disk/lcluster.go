package disk

// PclusterMaxDecoded bounds the decoded size of a physical cluster in bytes
// (Z_EROFS_PCLUSTER_MAX_DSIZE).
const PclusterMaxDecoded = 12 << 20

// Bits of h_advise in MapHeader. With AdviseExtents the size of the
// records has the place of two others.
const (
	AdviseCompacted2B  = 0x01 // Z_EROFS_ADVISE_COMPACTED_2B, compact indexes only
	AdviseExtents      = 0x01 // Z_EROFS_ADVISE_EXTENTS, full indexes only
	AdviseBigPcluster1 = 0x02 // Z_EROFS_ADVISE_BIG_PCLUSTER_1
	AdviseBigPcluster2 = 0x04 // Z_EROFS_ADVISE_BIG_PCLUSTER_2
	AdviseInline       = 0x08 // Z_EROFS_ADVISE_INLINE_PCLUSTER
	AdviseInterlaced   = 0x10 // Z_EROFS_ADVISE_INTERLACED_PCLUSTER
	AdviseFragment     = 0x20 // Z_EROFS_ADVISE_FRAGMENT_PCLUSTER

	adviseRecordSizeBit  = 1 // Z_EROFS_ADVISE_EXTRECSZ_BIT
	adviseRecordSizeMask = 3 // Z_EROFS_ADVISE_EXTRECSZ_MASK
)

// Parts of h_clusterbits in MapHeader.
const (
	ClusterBitsMask      = 0x0f // log2 of the blocks in a logical cluster
	ClusterBitsFragments = 0x80 // Z_EROFS_FRAGMENT_INODE_BIT: all data in the packed inode
)

// MapHeaderSize is the size of MapHeader, which is aligned to it.
const MapHeaderSize = 8

// MapHeader is struct z_erofs_map_header, in front of the indexes of a
// compressed inode.
type MapHeader struct {
	FragmentOff   uint32 // 0x00 h_fragmentoff, h_idata_size (upper half) or h_extents_lo
	Advise        uint16 // 0x04 h_advise
	AlgorithmType uint8  // 0x06 h_algorithmtype: HEAD1 in bits 0-3, HEAD2 in 4-7
	ClusterBits   uint8  // 0x07 h_clusterbits
}

// Decode reads the header that b starts with.
func (h *MapHeader) Decode(b []byte) {
	_ = b[MapHeaderSize-1]
	h.FragmentOff = le.Uint32(b)
	h.Advise = le.Uint16(b[4:])
	h.AlgorithmType = b[6]
	h.ClusterBits = b[7]
}

// InlineSize is h_idata_size: the bytes of the pcluster behind the indexes.
func (h *MapHeader) InlineSize() uint16 { return uint16(h.FragmentOff >> 16) }

// Extents is the number of extent records, with AdviseExtents and records of
// more than ExtentFixedMax bytes.
func (h *MapHeader) Extents() uint64 {
	return uint64(h.ClusterBits)<<40 | uint64(h.AlgorithmType)<<32 | uint64(h.FragmentOff)
}

// RecordSize is the size of an extent record in bytes: 4, 8, 16 or 32
// (z_erofs_extent_recsize).
func (h *MapHeader) RecordSize() int64 {
	return 4 << (h.Advise >> adviseRecordSizeBit & adviseRecordSizeMask)
}

// WholeFragment is where in the packed inode all of the file's data are, with
// ClusterBitsFragments: the header without that bit.
func (h *MapHeader) WholeFragment() uint64 {
	return uint64(h.ClusterBits&^ClusterBitsFragments)<<56 | uint64(h.AlgorithmType)<<48 |
		uint64(h.Advise)<<32 | uint64(h.FragmentOff)
}

// Types of a logical cluster: bits 0-1 of di_advise.
const (
	LclusterPlain    = 0 // Z_EROFS_LCLUSTER_TYPE_PLAIN
	LclusterHead1    = 1 // Z_EROFS_LCLUSTER_TYPE_HEAD1
	LclusterNonhead  = 2 // Z_EROFS_LCLUSTER_TYPE_NONHEAD
	LclusterHead2    = 3 // Z_EROFS_LCLUSTER_TYPE_HEAD2
	LclusterTypeMask = 3
)

const (
	// LclusterPartialRef in di_advise says that only a part of the physical
	// cluster's data are meant (Z_EROFS_LI_PARTIAL_REF).
	LclusterPartialRef = 1 << 15
	// LclusterHole in di_advise says that the extent is zeros that are stored
	// nowhere (Z_EROFS_LI_HOLE of Linux 7.2).
	LclusterHole = 1 << 14
	// LclusterCblkcnt in delta[0] says that the rest of it is not a distance but
	// the blocks in the physical cluster (Z_EROFS_LI_D0_CBLKCNT).
	LclusterCblkcnt = 1 << 11
	// LclusterLoBitsMin is the least width of the value in a compact index, for
	// LclusterCblkcnt to fit.
	LclusterLoBitsMin = 12
)

// FullIndexGap is the unused space between MapHeader and the first
// LclusterIndex in bytes (Z_EROFS_FULL_INDEX_START).
const FullIndexGap = 8

// LclusterIndexSize is the size of LclusterIndex.
const LclusterIndexSize = 8

// LclusterIndex is struct z_erofs_lcluster_index: a full index.
type LclusterIndex struct {
	Advise     uint16 // 0x00 di_advise
	ClusterOfs uint16 // 0x02 di_clusterofs
	BlkAddr    uint32 // 0x04 di_u.blkaddr, or delta[0] and delta[1]
}

// Decode reads the index that b starts with.
func (l *LclusterIndex) Decode(b []byte) {
	_ = b[LclusterIndexSize-1]
	l.Advise = le.Uint16(b)
	l.ClusterOfs = le.Uint16(b[2:])
	l.BlkAddr = le.Uint32(b[4:])
}

// Delta0 is the distance back to the head, or a block count, of a NONHEAD.
func (l *LclusterIndex) Delta0() uint16 { return uint16(l.BlkAddr) }

// Delta1 is the distance forward to the next head of a NONHEAD.
func (l *LclusterIndex) Delta1() uint16 { return uint16(l.BlkAddr >> 16) }

// Compact indexes come in packs: as many entries as fit in front of a 32-bit
// block address.
const (
	Pack4BSize    = 8  // bytes in a pack of 4-byte entries
	Pack4BEntries = 2  // in such a pack
	Pack2BSize    = 32 // bytes in a pack of 2-byte entries, aligned to its size
	Pack2BEntries = 16 // in such a pack
	PackAddrSize  = 4  // the block address at the end of a pack
	Pack2BMaxBits = 12 // log2 of the largest logical cluster of 2-byte entries
	Pack4BMaxBits = 14 // the same of 4-byte entries
)

// ExtentFixedMax is the size of the largest extent record without a start in
// the file: those extents have the length of a logical cluster each. Records of
// 4 bytes have no address either; before the first there are 8 bytes with its
// address, and each pcluster follows the one before.
const ExtentFixedMax = 8

// Parts of plen in an Extent.
const (
	ExtentSizeMask  = 2*PclusterMaxSize - 1 // Z_EROFS_EXTENT_PLEN_MASK; 0: a hole
	ExtentPartial   = 1 << 27               // Z_EROFS_EXTENT_PLEN_PARTIAL
	ExtentFormatBit = 28                    // Z_EROFS_EXTENT_PLEN_FMT_BIT: 0 plain, else algorithm+1
)

// ExtentSize is the size of the longest Extent record.
const ExtentSize = 32

// Extent is struct z_erofs_extent, or as much of it as its record has.
type Extent struct {
	Plen     uint32   // 0x00 plen, with ExtentPartial and the format
	PstartLo uint32   // 0x04 pstart_lo, bytes
	PstartHi uint32   // 0x08 pstart_hi
	LstartLo uint32   // 0x0c lstart_lo, bytes
	LstartHi uint32   // 0x10 lstart_hi
	Reserved [12]byte // 0x14
}

// Decode reads the record b of 4, 8, 16 or 32 bytes; fields it has not are 0.
func (e *Extent) Decode(b []byte) {
	*e = Extent{Plen: le.Uint32(b)}
	if len(b) >= 8 {
		e.PstartLo = le.Uint32(b[4:])
	}
	if len(b) >= 16 {
		e.PstartHi = le.Uint32(b[8:])
		e.LstartLo = le.Uint32(b[12:])
	}
	if len(b) >= ExtentSize {
		e.LstartHi = le.Uint32(b[16:])
		copy(e.Reserved[:], b[20:])
	}
}
