package erofs

import (
	"math"
	"sync/atomic"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// Inode is a decoded inode. It never changes, except for what the first read
// of a compressed inode leaves behind (z), and is safe for concurrent use.
type Inode struct {
	NID       uint64
	Mode      uint32 // st_mode, with the file type bits
	UID       uint32
	GID       uint32
	Nlink     uint32
	Ino       uint32 // i_ino, for 32-bit stat only: not unique in every image
	Size      int64  // 0 <= Size
	MtimeSec  int64  // seconds since 1970
	MtimeNsec uint32
	Rdev      uint32     // of devices, as the kernel's new_encode_dev encodes it; else 0
	Layout    DataLayout // of regular files, directories and symbolic links

	im         *Image
	base       int64  // byte address of the inode on the primary device
	headSize   int64  // 32 (compact) or 64 (extended)
	xattrSize  int64  // bytes of inline xattrs behind the inode
	iu         uint32 // raw i_u: start block, compressed blocks, rdev or chunk format
	startHi    uint16 // bits 32..47 of the start block
	nullAddr   bool   // flat-plain: the whole file is a hole
	dotOmitted bool   // directory without an entry for "."
	z          atomic.Pointer[zState]
}

// Inode reads the inode nid.
//
// Errors: ErrCorrupt for a nid outside of the image or an impossible inode,
// ErrUnsupported for an unknown format, or what the reader returned.
//
// Source: erofs_read_inode in fs/erofs/inode.c of Linux 6.18.
func (im *Image) Inode(nid uint64) (*Inode, error) {
	const op = "inode"
	if nid > math.MaxInt64 { // bit 63, disk.DirentMetaboxBit
		return nil, fail(ErrCorrupt, op, nid, noOffset, "it is in the metabox, which the image has not")
	}
	slot := int64(nid)
	if slot > (im.size-im.root)>>disk.InodeSlotBits {
		return nil, fail(ErrCorrupt, op, nid, noOffset, "it is beyond the end of the image (%d bytes)", im.size)
	}
	in := &Inode{NID: nid, im: im, base: im.root + slot<<disk.InodeSlotBits}
	raw, err := im.metaView(op, nid, in.base, disk.InodeCompactSize)
	if err != nil {
		return nil, err
	}
	format := le.Uint16(raw)
	if format&^disk.FormatAll != 0 {
		return nil, in.unsupported(op, "format 0x%x", format)
	}
	in.Layout = DataLayout(format >> disk.FormatLayoutBit & disk.FormatLayoutMask)
	if in.Layout >= layoutEnd {
		return nil, in.unsupported(op, "data %s", in.Layout)
	}
	var addrMask int64
	if format&disk.FormatExtended == 0 {
		addrMask = in.decodeCompact(raw)
	} else {
		if raw, err = im.metaView(op, nid, in.base, disk.InodeExtendedSize); err != nil {
			return nil, err
		}
		addrMask = in.decodeExtended(raw)
	}
	if in.Size < 0 {
		return nil, in.corrupt(op, in.base, "a size of 2^63 bytes or more")
	}
	if in.bodyAddr() > im.size {
		return nil, in.corrupt(op, in.base, "it reaches beyond the end of the image (%d bytes)", im.size)
	}
	if err := in.decodeUnion(format, addrMask); err != nil {
		return nil, err
	}
	return in, nil
}

// Masks of the width of a start block.
const (
	addr32 = int64(1)<<32 - 1
	addr48 = int64(1)<<48 - 1
)

// decodeCompact reads a 32-byte inode and returns the mask of its start block.
func (in *Inode) decodeCompact(raw []byte) (addrMask int64) {
	var c disk.InodeCompact
	c.Decode(raw)
	in.headSize = disk.InodeCompactSize
	in.xattrSize = disk.XattrBodySize(c.XattrCount)
	in.Mode = uint32(c.Mode)
	in.UID, in.GID = uint32(c.UID), uint32(c.GID)
	in.Ino = c.Ino
	in.Size = int64(c.Size)
	in.MtimeSec = in.im.sb.Epoch + int64(c.Mtime)
	in.MtimeNsec = in.im.sb.BuildTimeNsec
	in.iu = c.U
	if !in.IsDir() && c.Format&disk.FormatNlink1 != 0 {
		in.Nlink, in.startHi = 1, c.NB
		return addr48
	}
	in.Nlink = uint32(c.NB)
	return addr32
}

// decodeExtended reads a 64-byte inode and returns the mask of its start block.
func (in *Inode) decodeExtended(raw []byte) (addrMask int64) {
	var e disk.InodeExtended
	e.Decode(raw)
	in.headSize = disk.InodeExtendedSize
	in.xattrSize = disk.XattrBodySize(e.XattrCount)
	in.Mode = uint32(e.Mode)
	in.UID, in.GID = e.UID, e.GID
	in.Nlink = e.Nlink
	in.Ino = e.Ino
	in.Size = e.Size
	in.MtimeSec = e.Mtime
	in.MtimeNsec = e.MtimeNsec
	in.iu, in.startHi = e.U, e.NB
	return addr48
}

// decodeUnion gives i_u the meaning that the file type and the layout say.
func (in *Inode) decodeUnion(format uint16, addrMask int64) error {
	switch in.Mode & modeFmt {
	case modeDir:
		in.dotOmitted = format&disk.FormatDotOmitted != 0
	case modeRegular, modeSymlink:
	case modeChar, modeBlock:
		in.Rdev = in.iu
		return nil
	case modeFIFO, modeSocket:
		return nil
	default:
		return in.corrupt("inode", in.base, "mode %#o has no file type", in.Mode)
	}
	if in.Layout == FlatPlain {
		in.nullAddr = in.startBlock()&addrMask == addrMask // EROFS_NULL_ADDR, cut to the field
	}
	if in.Layout == ChunkBased && in.iu&0xffff&^disk.ChunkAll != 0 {
		return in.unsupported("inode", "chunk format 0x%x", in.iu&0xffff)
	}
	return nil
}

// startBlock is the first block of a flat inode's data, less than 2^48.
func (in *Inode) startBlock() int64 { return int64(in.startHi)<<32 | int64(in.iu) }

// bodyAddr is the byte address behind the inode and its xattrs: where inline
// data, chunk indexes or the compression header (after alignment) begin. It is
// at most the size of the image.
func (in *Inode) bodyAddr() int64 { return in.base + in.headSize + in.xattrSize }

// IsDir reports whether the inode is a directory.
func (in *Inode) IsDir() bool { return in.Mode&modeFmt == modeDir }

// IsRegular reports whether the inode is a regular file.
func (in *Inode) IsRegular() bool { return in.Mode&modeFmt == modeRegular }

// IsSymlink reports whether the inode is a symbolic link.
func (in *Inode) IsSymlink() bool { return in.Mode&modeFmt == modeSymlink }

// Type is the file type that a directory entry of the inode should have.
func (in *Inode) Type() FileType {
	switch in.Mode & modeFmt {
	case modeRegular:
		return TypeRegular
	case modeDir:
		return TypeDir
	case modeChar:
		return TypeChar
	case modeBlock:
		return TypeBlock
	case modeFIFO:
		return TypeFIFO
	case modeSocket:
		return TypeSocket
	case modeSymlink:
		return TypeSymlink
	}
	return TypeUnknown
}

// Image returns the image that the inode is in.
func (in *Inode) Image() *Image { return in.im }
