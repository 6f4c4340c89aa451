package disk

// Where the superblock is and what it begins with.
const (
	Magic            = 0xE0F5E1E2 // EROFS_SUPER_MAGIC_V1
	SuperBlockOffset = 1024       // EROFS_SUPER_OFFSET
	SuperBlockSize   = 128        // without extension slots
	ExtSlotSize      = 16         // EROFS_SB_EXTSLOT_SIZE
	SuperBlockMax    = 144        // with the extension slots that have a meaning
	MinBlockBits     = 9
	MaxBlockBits     = 16
)

// Bits of SuperBlock.FeatureCompat: a reader may ignore them.
const (
	CompatSBChecksum        = 0x01 // EROFS_FEATURE_COMPAT_SB_CHKSUM
	CompatMtime             = 0x02 // EROFS_FEATURE_COMPAT_MTIME
	CompatXattrFilter       = 0x04 // EROFS_FEATURE_COMPAT_XATTR_FILTER
	CompatSharedEAInMetabox = 0x08 // EROFS_FEATURE_COMPAT_SHARED_EA_IN_METABOX
	CompatPlainXattrPrefix  = 0x10 // EROFS_FEATURE_COMPAT_PLAIN_XATTR_PFX
	CompatIshareXattrs      = 0x20 // EROFS_FEATURE_COMPAT_ISHARE_XATTRS
)

// Bits of SuperBlock.FeatureIncompat: a reader must know every one. Three bits
// have two names, because the features came into the format together.
const (
	IncompatLZ4ZeroPadding        = 0x001 // EROFS_FEATURE_INCOMPAT_LZ4_0PADDING
	IncompatComprCfgs             = 0x002 // EROFS_FEATURE_INCOMPAT_COMPR_CFGS, ..._BIG_PCLUSTER
	IncompatChunkedFile           = 0x004 // EROFS_FEATURE_INCOMPAT_CHUNKED_FILE
	IncompatDeviceTable           = 0x008 // EROFS_FEATURE_INCOMPAT_DEVICE_TABLE, ..._COMPR_HEAD2
	IncompatZtailpacking          = 0x010 // EROFS_FEATURE_INCOMPAT_ZTAILPACKING
	IncompatFragments             = 0x020 // EROFS_FEATURE_INCOMPAT_FRAGMENTS, ..._DEDUPE
	IncompatXattrPrefixes         = 0x040 // EROFS_FEATURE_INCOMPAT_XATTR_PREFIXES
	Incompat48Bit                 = 0x080 // EROFS_FEATURE_INCOMPAT_48BIT
	IncompatMetabox               = 0x100 // EROFS_FEATURE_INCOMPAT_METABOX
	IncompatAll            uint32 = IncompatMetabox<<1 - 1
)

// SuperBlock is struct erofs_super_block. Its last two fields are the first
// extension slot; without it they are zero.
type SuperBlock struct {
	Magic           uint32   // 0x00 magic
	Checksum        uint32   // 0x04 checksum
	FeatureCompat   uint32   // 0x08 feature_compat
	BlockBits       uint8    // 0x0c blkszbits
	ExtSlots        uint8    // 0x0d sb_extslots
	RB              uint16   // 0x0e rb: rootnid_2b, or blocks_hi with RootNID8
	Inodes          uint64   // 0x10 inos
	Epoch           int64    // 0x18 epoch
	FixedNsec       uint32   // 0x20 fixed_nsec
	Blocks          uint32   // 0x24 blocks_lo
	MetaBlkAddr     uint32   // 0x28 meta_blkaddr
	XattrBlkAddr    uint32   // 0x2c xattr_blkaddr
	UUID            [16]byte // 0x30 uuid
	VolumeName      [16]byte // 0x40 volume_name
	FeatureIncompat uint32   // 0x50 feature_incompat
	ComprAlgs       uint16   // 0x54 u1: available_compr_algs or lz4_max_distance
	ExtraDevices    uint16   // 0x56 extra_devices
	DevtSlotOff     uint16   // 0x58 devt_slotoff
	DirBlockBits    uint8    // 0x5a dirblkbits
	PrefixCount     uint8    // 0x5b xattr_prefix_count
	PrefixStart     uint32   // 0x5c xattr_prefix_start
	PackedNID       uint64   // 0x60 packed_nid
	FilterReserved  uint8    // 0x68 xattr_filter_reserved
	IsharePrefixID  uint8    // 0x69 ishare_xattr_prefix_id
	Reserved        [2]byte  // 0x6a
	BuildTime       uint32   // 0x6c build_time
	RootNID8        uint64   // 0x70 rootnid_8b, with the 48bit feature
	Reserved2       uint64   // 0x78
	MetaboxNID      uint64   // 0x80 metabox_nid
	Reserved3       uint64   // 0x88
}

// Decode reads the superblock that b starts with, and of b as much of the
// first extension slot as it has.
func (s *SuperBlock) Decode(b []byte) {
	_ = b[SuperBlockSize-1]
	s.Magic = le.Uint32(b[0x00:])
	s.Checksum = le.Uint32(b[0x04:])
	s.FeatureCompat = le.Uint32(b[0x08:])
	s.BlockBits = b[0x0c]
	s.ExtSlots = b[0x0d]
	s.RB = le.Uint16(b[0x0e:])
	s.Inodes = le.Uint64(b[0x10:])
	s.Epoch = int64At(b[0x18:])
	s.FixedNsec = le.Uint32(b[0x20:])
	s.Blocks = le.Uint32(b[0x24:])
	s.MetaBlkAddr = le.Uint32(b[0x28:])
	s.XattrBlkAddr = le.Uint32(b[0x2c:])
	copy(s.UUID[:], b[0x30:])
	copy(s.VolumeName[:], b[0x40:])
	s.FeatureIncompat = le.Uint32(b[0x50:])
	s.ComprAlgs = le.Uint16(b[0x54:])
	s.ExtraDevices = le.Uint16(b[0x56:])
	s.DevtSlotOff = le.Uint16(b[0x58:])
	s.DirBlockBits = b[0x5a]
	s.PrefixCount = b[0x5b]
	s.PrefixStart = le.Uint32(b[0x5c:])
	s.PackedNID = le.Uint64(b[0x60:])
	s.FilterReserved = b[0x68]
	s.IsharePrefixID = b[0x69]
	copy(s.Reserved[:], b[0x6a:])
	s.BuildTime = le.Uint32(b[0x6c:])
	s.RootNID8 = le.Uint64(b[0x70:])
	s.Reserved2 = le.Uint64(b[0x78:])
	s.MetaboxNID, s.Reserved3 = 0, 0
	if len(b) >= SuperBlockMax {
		s.MetaboxNID = le.Uint64(b[0x80:])
		s.Reserved3 = le.Uint64(b[0x88:])
	}
}
