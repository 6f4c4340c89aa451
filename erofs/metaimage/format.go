package metaimage

import (
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
	"math/bits"

	"github.com/erofs-csi/erofs-csi/erofs"
)

// Sizes and addresses of the format (fs/erofs/erofs_fs.h of Linux 6.18).
const (
	blockBits  = 12 // every architecture has pages of at least this
	blockSize  = 1 << blockBits
	superOff   = 1024
	superSize  = 128
	slotSize   = 32 // the unit of nids
	inodeSize  = 64 // extended inode
	direntSize = 12
	chunkSize  = 8 // chunk index

	maxName = 255
)

const (
	superMagic = 0xE0F5E1E2

	compatChecksum = 0x1
	compatMtime    = 0x2 // inodes have the mtime, not the ctime

	incompatChunkedFile = 0x4

	formatExtended = 1 // bit 0 of i_format; the data layout is in bits 1-3

	chunkIndexes = 0x20 // of the chunk format: 8-byte indexes
	maxChunkBits = 31   // of the chunk format: blocks in a chunk, as a power of two
)

// The longest file with one chunk index, and the most indexes a file may have.
// Nothing reads them; they are there because the format has an index for each
// chunk, and an image of a few MiB could ask for TiB of them.
const (
	chunkSpan = int64(blockSize) << maxChunkBits // 8 TiB
	maxChunks = 16
)

// The file types of st_mode.
const (
	modeFmt     = 0o170000
	modeFIFO    = 0o010000
	modeChar    = 0o020000
	modeDir     = 0o040000
	modeBlock   = 0o060000
	modeRegular = 0o100000
	modeSymlink = 0o120000
	modeSocket  = 0o140000
)

// volumeName is at most 15 bytes: Linux 6.5 wants a NUL at the end.
const volumeName = "erofs-csi-meta"

// superblock has the fields of the superblock that vary.
type superblock struct {
	chunked   bool // an inode is chunk-based
	rootNID   uint16
	inodes    uint64
	blocks    uint32
	metaBlock uint32 // block of nid 0
	source    *erofs.Superblock
}

// seal puts the superblock into block 0, which has all else that it will have:
// the checksum covers it from the superblock on.
func (s *superblock) seal(block []byte) {
	le := binary.LittleEndian
	b := block[superOff : superOff+superSize]
	le.PutUint32(b[0:], superMagic)
	le.PutUint32(b[8:], compatChecksum|compatMtime)
	b[12] = blockBits
	le.PutUint16(b[14:], s.rootNID)
	le.PutUint64(b[16:], s.inodes)
	le.PutUint64(b[24:], uint64(s.source.BuildTime)) //nolint:gosec // signed on disk
	le.PutUint32(b[32:], s.source.BuildTimeNsec)
	le.PutUint32(b[36:], s.blocks)
	le.PutUint32(b[40:], s.metaBlock)
	// b[44:48]: the shared xattr area is addressed from block 0.
	uuid := deriveUUID(s.source.UUID)
	copy(b[48:64], uuid[:])
	copy(b[64:80], volumeName)
	if s.chunked {
		le.PutUint32(b[80:], incompatChunkedFile)
	}
	// The kernel's crc32c is seeded with all ones and not inverted at the end.
	sum := crc32.Checksum(block[superOff:blockSize], crc32.MakeTable(crc32.Castagnoli))
	le.PutUint32(b[4:], ^sum)
}

// deriveUUID makes META's UUID (version 8) from the image's: overlayfs tells
// layers apart by it.
func deriveUUID(source [16]byte) (uuid [16]byte) {
	sum := sha256.Sum256(append([]byte("erofs-csi metaimage\x00"), source[:]...))
	copy(uuid[:], sum[:])
	uuid[6] = uuid[6]&0x0f | 0x80
	uuid[8] = uuid[8]&0x3f | 0x80
	return uuid
}

// inodeFields are the fields of an inode that the encoder decides.
type inodeFields struct {
	layout    erofs.DataLayout
	size      uint64
	xattrSize int64  // 0 or a whole xattr body
	u         uint32 // i_u: start block, rdev or chunk format
	ino       uint32
}

// appendInode appends in as an extended inode.
func appendInode(dst []byte, in *erofs.Inode, f inodeFields) []byte {
	le := binary.LittleEndian
	var icount uint16
	if f.xattrSize > 0 {
		icount = uint16((f.xattrSize-xattrHeaderSize)/4) + 1 //nolint:gosec // at most maxXattrBody
	}
	dst = le.AppendUint16(dst, formatExtended|uint16(f.layout)<<1)
	dst = le.AppendUint16(dst, icount)
	dst = le.AppendUint16(dst, uint16(in.Mode)) //nolint:gosec // checked by scan
	dst = le.AppendUint16(dst, 0)               // upper halves, of 48-bit images only
	dst = le.AppendUint64(dst, f.size)
	dst = le.AppendUint32(dst, f.u)
	dst = le.AppendUint32(dst, f.ino)
	dst = le.AppendUint32(dst, in.UID)
	dst = le.AppendUint32(dst, in.GID)
	dst = le.AppendUint64(dst, uint64(in.MtimeSec)) //nolint:gosec // signed on disk
	dst = le.AppendUint32(dst, in.MtimeNsec)
	dst = le.AppendUint32(dst, in.Nlink)
	return append(dst, make([]byte, 16)...)
}

// chunkFormat returns the chunk format for a hole of size bytes and the number
// of its chunks: one, as long as a chunk can be that large.
func chunkFormat(size int64) (format uint32, chunks uint64) {
	blocks := uint64(size-1)>>blockBits + 1 //nolint:gosec // size > 0
	log := min(bits.Len64(blocks-1), maxChunkBits)
	return chunkIndexes | uint32(log), (blocks-1)>>log + 1 //nolint:gosec // at most maxChunkBits
}

// appendHole appends a chunk index without a block.
func appendHole(dst []byte) []byte {
	return append(dst, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff)
}

// direntType is the file type in directory entries of inodes of that mode,
// erofs.TypeUnknown for a mode that is no file's.
func direntType(mode uint32) erofs.FileType {
	switch mode & modeFmt {
	case modeRegular:
		return erofs.TypeRegular
	case modeDir:
		return erofs.TypeDir
	case modeChar:
		return erofs.TypeChar
	case modeBlock:
		return erofs.TypeBlock
	case modeFIFO:
		return erofs.TypeFIFO
	case modeSocket:
		return erofs.TypeSocket
	case modeSymlink:
		return erofs.TypeSymlink
	}
	return erofs.TypeUnknown
}

// align rounds n up to a multiple of unit, a power of two.
func align(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }
