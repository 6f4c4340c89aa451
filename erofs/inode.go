package erofs

import (
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
	area       *metaCache // where the inode is: the primary device or the metabox
	base       int64      // byte address of the inode there
	headSize   int64      // 32 (compact) or 64 (extended)
	xattrSize  int64      // bytes of inline xattrs behind the inode
	iu         uint32     // raw i_u: start block, compressed blocks, rdev or chunk format
	startHi    uint16     // bits 32..47 of the start block
	nullAddr   bool       // flat-plain: the whole file is a hole
	dotOmitted bool       // directory without an entry for "."
	z          atomic.Pointer[zState]
}

// Inode reads the inode nid. Compressed files and directories that were asked for
// lately are kept, so that their indexes need not be looked through again.
//
// Errors: ErrCorrupt for a nid outside of the image or an impossible inode,
// ErrUnsupported for an unknown format, or what the reader returned.
func (im *Image) Inode(nid uint64) (*Inode, error) {
	if in := im.recent.get(nid); in != nil {
		return in, nil
	}
	in := new(Inode)
	if err := im.ReadInode(nid, in); err != nil {
		return nil, err
	}
	if (in.IsRegular() || in.IsDir()) && in.Layout.Compressed() {
		im.recent.put(in)
	}
	return in, nil
}

// ReadInode reads the inode nid into in, of whose old value nothing is kept. It
// is Inode for callers who count allocations: it makes none while the metadata
// are cached. Errors are those of Inode; in is then of no use.
//
// Source: erofs_read_inode in fs/erofs/inode.c of Linux 7.2.
func (im *Image) ReadInode(nid uint64, in *Inode) error {
	const op = "inode"
	*in = Inode{NID: nid, im: im}
	start := im.root
	if in.area = im.meta; inMetabox(nid) {
		if in.area, start = im.metabox, 0; in.area == nil {
			return in.corrupt(op, noOffset, "it is in the metabox, which the image has not")
		}
	}
	slot := int64(nid & disk.DirentNIDMask)
	if slot > (in.area.size-start)>>disk.InodeSlotBits {
		return in.corrupt(op, noOffset, "it is beyond the end of the %s (%d bytes)", in.area.place, in.area.size)
	}
	in.base = start + slot<<disk.InodeSlotBits
	raw, err := in.area.view(op, nid, in.base, disk.InodeCompactSize)
	if err != nil {
		return err
	}
	format := le.Uint16(raw)
	if format&^disk.FormatAll != 0 {
		return in.unsupported(op, "format 0x%x", format)
	}
	in.Layout = DataLayout(format >> disk.FormatLayoutBit & disk.FormatLayoutMask)
	if in.Layout >= layoutEnd {
		return in.unsupported(op, "data %s", in.Layout)
	}
	var addrMask int64
	if format&disk.FormatExtended == 0 {
		addrMask = in.decodeCompact(raw)
	} else {
		if raw, err = in.area.view(op, nid, in.base, disk.InodeExtendedSize); err != nil {
			return err
		}
		addrMask = in.decodeExtended(raw)
	}
	if in.Size < 0 {
		return in.corrupt(op, in.base, "a size of 2^63 bytes or more")
	}
	if in.bodyAddr() > in.area.size {
		return in.corrupt(op, in.base, "it reaches beyond the end of the %s (%d bytes)", in.area.place, in.area.size)
	}
	return in.decodeUnion(format, addrMask)
}

// inMetabox reports whether a nid is that of an inode in the metabox.
func inMetabox(nid uint64) bool { return nid&^disk.DirentNIDMask != 0 }

// recentInodes bounds how many inodes an image keeps: as many files as are
// usually read at once.
const recentInodes = 64

// inodeCache is a direct-mapped table of inodes, at a place by their nid.
type inodeCache [recentInodes]atomic.Pointer[Inode]

func (c *inodeCache) slot(nid uint64) *atomic.Pointer[Inode] {
	return &c[nid*0x9e3779b97f4a7c15>>32%recentInodes]
}

// get returns the inode nid if it is kept, else nil.
func (c *inodeCache) get(nid uint64) *Inode {
	if in := c.slot(nid).Load(); in != nil && in.NID == nid {
		return in
	}
	return nil
}

func (c *inodeCache) put(in *Inode) { c.slot(in.NID).Store(in) }

// Ino is the inode number that Linux shows for a nid: the nid itself, but in
// images with a metabox, where the bit that says so is moved from 63 down to 31
// so that the numbers stay small.
//
// Source: erofs_nid_to_ino64 in fs/erofs/internal.h of Linux 7.2.
func (im *Image) Ino(nid uint64) uint64 {
	if im.metabox == nil {
		return nid
	}
	return nid&inoLow | nid>>disk.DirentMetaboxBit<<inoLowBits | nid&disk.DirentNIDMask>>inoLowBits<<(inoLowBits+1)
}

// NID is the inverse of Ino.
func (im *Image) NID(ino uint64) uint64 {
	if im.metabox == nil {
		return ino
	}
	return ino&inoLow | ino>>inoLowBits&1<<disk.DirentMetaboxBit | ino>>(inoLowBits+1)<<inoLowBits
}

// The bits of a nid that an inode number has in the same place.
const (
	inoLowBits = 31
	inoLow     = 1<<inoLowBits - 1
)

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
// at most the size of the area.
func (in *Inode) bodyAddr() int64 { return in.base + in.headSize + in.xattrSize }

// Sectors is st_blocks of stat(2): the space that the data take in the image in
// units of 512 bytes. For a compressed inode it is what mkfs.erofs wrote, not
// checked.
func (in *Inode) Sectors() uint64 {
	if !in.Layout.Compressed() {
		return (uint64(in.Size) + uint64(in.im.blkSize) - 1) >> in.im.blkBits << (in.im.blkBits - 9)
	}
	return uint64(in.startBlock()) << (in.im.blkBits - 9)
}

// IsDir reports whether the inode is a directory.
func (in *Inode) IsDir() bool { return in.Mode&modeFmt == modeDir }

// DecodeCost orders inodes by how long it takes to get the same data from them: 0
// for one that is not compressed, else more the slower the slowest algorithm of
// the image is to decode, at most MaxDecodeCost.
func (in *Inode) DecodeCost() uint8 {
	if !in.Layout.Compressed() {
		return 0
	}
	cost := decodeCosts[disk.AlgLZ4]
	for alg, c := range decodeCosts {
		if in.im.algorithms&(1<<alg) != 0 {
			cost = max(cost, c)
		}
	}
	return cost
}

// MaxDecodeCost is the largest DecodeCost.
const MaxDecodeCost = 4

var decodeCosts = [disk.AlgEnd]uint8{disk.AlgLZ4: 1, disk.AlgZstd: 2, disk.AlgDeflate: 3, disk.AlgLZMA: MaxDecodeCost}

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
