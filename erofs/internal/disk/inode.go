package disk

// Sizes of inodes; nids count slots of InodeSlotSize bytes.
const (
	InodeSlotSize     = 32 // EROFS_SLOTSIZE
	InodeSlotBits     = 5  // EROFS_ISLOTBITS
	InodeCompactSize  = 32
	InodeExtendedSize = 64
)

// Bits of i_format.
const (
	FormatExtended   = 1 << 0 // version: struct erofs_inode_extended
	FormatLayoutBit  = 1      // EROFS_I_DATALAYOUT_BIT
	FormatLayoutMask = 7      // EROFS_I_DATALAYOUT_MASK
	FormatNlink1     = 1 << 4 // EROFS_I_NLINK_1_BIT: compact, no directory; i_nb is a block number
	FormatDotOmitted = 1 << 4 // EROFS_I_DOT_OMITTED_BIT: directories
	FormatAll        = 1<<5 - 1
)

// Parts of a nid.
const (
	DirentMetaboxBit = 63                      // EROFS_DIRENT_NID_METABOX_BIT: the inode is in the metabox
	DirentNIDMask    = 1<<DirentMetaboxBit - 1 // EROFS_DIRENT_NID_MASK
)

// InodeCompact is struct erofs_inode_compact.
type InodeCompact struct {
	Format     uint16 // 0x00 i_format
	XattrCount uint16 // 0x02 i_xattr_icount
	Mode       uint16 // 0x04 i_mode
	NB         uint16 // 0x06 i_nb: nlink, blocks_hi or startblk_hi
	Size       uint32 // 0x08 i_size
	Mtime      uint32 // 0x0c i_mtime, seconds after the superblock's epoch
	U          uint32 // 0x10 i_u
	Ino        uint32 // 0x14 i_ino
	UID        uint16 // 0x18 i_uid
	GID        uint16 // 0x1a i_gid
	Reserved   uint32 // 0x1c
}

// Decode reads the inode that b starts with.
func (i *InodeCompact) Decode(b []byte) {
	_ = b[InodeCompactSize-1]
	i.Format = le.Uint16(b[0x00:])
	i.XattrCount = le.Uint16(b[0x02:])
	i.Mode = le.Uint16(b[0x04:])
	i.NB = le.Uint16(b[0x06:])
	i.Size = le.Uint32(b[0x08:])
	i.Mtime = le.Uint32(b[0x0c:])
	i.U = le.Uint32(b[0x10:])
	i.Ino = le.Uint32(b[0x14:])
	i.UID = le.Uint16(b[0x18:])
	i.GID = le.Uint16(b[0x1a:])
	i.Reserved = le.Uint32(b[0x1c:])
}

// InodeExtended is struct erofs_inode_extended.
type InodeExtended struct {
	Format     uint16   // 0x00 i_format
	XattrCount uint16   // 0x02 i_xattr_icount
	Mode       uint16   // 0x04 i_mode
	NB         uint16   // 0x06 i_nb: blocks_hi or startblk_hi
	Size       int64    // 0x08 i_size, negative: no file can be so large
	U          uint32   // 0x10 i_u
	Ino        uint32   // 0x14 i_ino
	UID        uint32   // 0x18 i_uid
	GID        uint32   // 0x1c i_gid
	Mtime      int64    // 0x20 i_mtime, seconds since 1970
	MtimeNsec  uint32   // 0x28 i_mtime_nsec
	Nlink      uint32   // 0x2c i_nlink
	Reserved   [16]byte // 0x30
}

// Decode reads the inode that b starts with.
func (i *InodeExtended) Decode(b []byte) {
	_ = b[InodeExtendedSize-1]
	i.Format = le.Uint16(b[0x00:])
	i.XattrCount = le.Uint16(b[0x02:])
	i.Mode = le.Uint16(b[0x04:])
	i.NB = le.Uint16(b[0x06:])
	i.Size = int64At(b[0x08:])
	i.U = le.Uint32(b[0x10:])
	i.Ino = le.Uint32(b[0x14:])
	i.UID = le.Uint32(b[0x18:])
	i.GID = le.Uint32(b[0x1c:])
	i.Mtime = int64At(b[0x20:])
	i.MtimeNsec = le.Uint32(b[0x28:])
	i.Nlink = le.Uint32(b[0x2c:])
	copy(i.Reserved[:], b[0x30:])
}
