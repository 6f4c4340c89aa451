// Package encode has what writers of EROFS images share: the superblock, inodes,
// directory blocks and extended attributes as bytes, and where inodes go.
//
// Limits. 4 KiB blocks, 32-bit block addresses (16 TiB), extended inodes. All that
// is written is understood by EROFS of Linux 5.15, unless the caller asks for more.
// It checks no value: what does not fit is the caller's to refuse.
package encode

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// Sizes and addresses of the format (fs/erofs/erofs_fs.h of Linux 6.18).
const (
	BlockBits  = 12 // every architecture has pages of at least this
	BlockSize  = 1 << BlockBits
	InodeSize  = disk.InodeExtendedSize
	SlotSize   = disk.InodeSlotSize // the unit of nids
	DirentSize = 12
	// SuperEnd is the first address behind the superblock.
	SuperEnd = disk.SuperBlockOffset + disk.SuperBlockSize

	MaxName = 255
	// MaxTarget is what Linux takes for a link's target, in bytes.
	MaxTarget = 4095
)

// The file types of st_mode.
const (
	ModeFmt     = 0o170000
	ModeFIFO    = 0o010000
	ModeChar    = 0o020000
	ModeDir     = 0o040000
	ModeBlock   = 0o060000
	ModeRegular = 0o100000
	ModeSymlink = 0o120000
	ModeSocket  = 0o140000
)

// Superblock has the fields of the superblock that vary. Images always have a
// checksum, and the mtime in their inodes.
type Superblock struct {
	Compat, Incompat uint32 // further features
	RootNID          uint16
	Inodes           uint64
	BuildTime        int64
	BuildTimeNsec    uint32
	Blocks           uint32
	MetaBlock        uint32 // block of nid 0
	XattrBlock       uint32 // from where shared attributes are addressed
	UUID             [16]byte
	VolumeName       string // at most 15 bytes: Linux 6.5 wants a NUL at the end
	PrefixCount      uint8  // long prefixes of attributes' names
	PrefixStart      uint32 // where they are, in units of 4 bytes
	IsharePrefix     uint8  // the one of fingerprints
}

// Seal puts the superblock into block 0, which has all else that it will have:
// the checksum covers it from the superblock on.
func (s *Superblock) Seal(block []byte) {
	le := binary.LittleEndian
	b := block[disk.SuperBlockOffset:SuperEnd]
	clear(b)
	le.PutUint32(b[0:], disk.Magic)
	le.PutUint32(b[8:], s.Compat|disk.CompatSBChecksum|disk.CompatMtime)
	b[12] = BlockBits
	le.PutUint16(b[14:], s.RootNID)
	le.PutUint64(b[16:], s.Inodes)
	le.PutUint64(b[24:], uint64(s.BuildTime)) // signed on disk
	le.PutUint32(b[32:], s.BuildTimeNsec)
	le.PutUint32(b[36:], s.Blocks)
	le.PutUint32(b[40:], s.MetaBlock)
	le.PutUint32(b[44:], s.XattrBlock)
	copy(b[48:64], s.UUID[:])
	copy(b[64:80], s.VolumeName)
	le.PutUint32(b[80:], s.Incompat)
	b[0x5b] = s.PrefixCount
	le.PutUint32(b[0x5c:], s.PrefixStart)
	b[0x69] = s.IsharePrefix
	// The kernel's crc32c is seeded with all ones and not inverted at the end.
	sum := crc32.Checksum(block[disk.SuperBlockOffset:BlockSize], crc32.MakeTable(crc32.Castagnoli))
	le.PutUint32(b[4:], ^sum)
}

// Inode has the fields of an extended inode.
type Inode struct {
	Layout    erofs.DataLayout
	Mode      uint32 // below 1<<16
	UID, GID  uint32
	Nlink     uint32
	MtimeSec  int64
	MtimeNsec uint32
	Size      uint64
	XattrSize int64  // 0 or a whole xattr body
	U         uint32 // i_u: start block, rdev or chunk format
	Ino       uint32
}

// Append appends the inode.
func (in *Inode) Append(dst []byte) []byte {
	le := binary.LittleEndian
	var icount uint16
	if in.XattrSize > 0 {
		icount = uint16((in.XattrSize-disk.XattrHeaderSize)/4) + 1
	}
	dst = le.AppendUint16(dst, disk.FormatExtended|uint16(in.Layout)<<disk.FormatLayoutBit)
	dst = le.AppendUint16(dst, icount)
	dst = le.AppendUint16(dst, uint16(in.Mode))
	dst = le.AppendUint16(dst, 0) // upper halves, of 48-bit images only
	dst = le.AppendUint64(dst, in.Size)
	dst = le.AppendUint32(dst, in.U)
	dst = le.AppendUint32(dst, in.Ino)
	dst = le.AppendUint32(dst, in.UID)
	dst = le.AppendUint32(dst, in.GID)
	dst = le.AppendUint64(dst, uint64(in.MtimeSec)) // signed on disk
	dst = le.AppendUint32(dst, in.MtimeNsec)
	dst = le.AppendUint32(dst, in.Nlink)
	return append(dst, make([]byte, 16)...)
}

// DirentType is the file type in directory entries of inodes of that mode,
// erofs.TypeUnknown for a mode that is no file's.
func DirentType(mode uint32) erofs.FileType {
	switch mode & ModeFmt {
	case ModeRegular:
		return erofs.TypeRegular
	case ModeDir:
		return erofs.TypeDir
	case ModeChar:
		return erofs.TypeChar
	case ModeBlock:
		return erofs.TypeBlock
	case ModeFIFO:
		return erofs.TypeFIFO
	case ModeSocket:
		return erofs.TypeSocket
	case ModeSymlink:
		return erofs.TypeSymlink
	}
	return erofs.TypeUnknown
}

// Align rounds n up to a multiple of unit, a power of two.
func Align(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }
