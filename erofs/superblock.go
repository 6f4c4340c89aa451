package erofs

import (
	"bytes"
	"errors"
	"hash/crc32"
	"io"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// Superblock is the decoded superblock of an image.
type Superblock struct {
	BlockSize       int    // bytes, a power of two, 512 <= BlockSize <= 65536
	Blocks          uint64 // of the primary device
	Inodes          uint64 // as mkfs counted them; not checked
	RootNID         uint64
	PackedNID       uint64 // of the packed inode, 0: none
	MetaboxNID      uint64 // of the metabox, 0: none
	UUID            [16]byte
	VolumeName      string
	BuildTime       int64 // of mkfs, seconds since 1970
	BuildTimeNsec   uint32
	Epoch           int64 // what the times of compact inodes count from, seconds since 1970
	FeatureCompat   uint32
	FeatureIncompat uint32
	Algorithms      []string // of compression, that files may use
	MetaBlkAddr     uint32   // block of nid 0
	XattrBlkAddr    uint32   // block of the shared xattr area
	Checksum        uint32   // CRC32C as stored; checked if the sb_csum feature is set
	ExtraDevices    []DeviceSlot
}

// TotalBlocks is the number of blocks of all devices.
func (s *Superblock) TotalBlocks() uint64 {
	n := s.Blocks
	for _, d := range s.ExtraDevices {
		n += d.Blocks
	}
	return n
}

// pageMin is the size of the smallest page of Linux in bytes.
const pageMin = 4096

// loadSuperblock reads the superblock with its checksum and makes sure that
// the image is supported and not cut off. It sets up the metadata cache, which
// later steps of Open need.
//
// Source: erofs_read_superblock in fs/erofs/super.c of Linux 7.2.
func (im *Image) loadSuperblock(metadata *MetadataCache) (*disk.SuperBlock, error) {
	const op, off = "superblock", disk.SuperBlockOffset
	if im.size < off+disk.SuperBlockSize {
		return nil, fail(ErrFormat, op, 0, noOffset, "%d bytes are too few", im.size)
	}
	raw := make([]byte, disk.SuperBlockSize)
	if err := readFull(im.r, raw, off); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fail(ErrFormat, op, 0, off, "the file ends before it")
		}
		return nil, &FormatError{Op: op, Off: off, Err: err}
	}
	sb := new(disk.SuperBlock)
	sb.Decode(raw)
	if sb.Magic != disk.Magic {
		return nil, fail(ErrFormat, op, 0, off, "the magic number is 0x%08x, not 0x%08x", sb.Magic, uint32(disk.Magic))
	}
	if sb.BlockBits < disk.MinBlockBits || sb.BlockBits > disk.MaxBlockBits {
		return nil, fail(ErrUnsupported, op, 0, off, "a block size of 2^%d bytes", sb.BlockBits)
	}
	im.blkBits = uint(sb.BlockBits)
	im.blkSize = 1 << im.blkBits
	im.meta = newMetaCache(placeImage, im.r, im.size, im.blkBits, metadata)

	if err := im.checkChecksum(sb); err != nil {
		return nil, err
	}
	if err := checkFeatures(sb); err != nil {
		return nil, err
	}
	if sb.DirBlockBits != 0 {
		return nil, fail(ErrUnsupported, op, 0, off, "directory blocks of another size (dirblkbits %d)", sb.DirBlockBits)
	}
	// Linux reads no more of it than a page, or a block where that is larger.
	if end := off + disk.SuperBlockSize + int64(sb.ExtSlots)*disk.ExtSlotSize; end > min(im.size, max(im.blkSize, pageMin)) {
		return nil, fail(ErrCorrupt, op, 0, off, "%d extension slots are too many", sb.ExtSlots)
	}
	if sb.ExtSlots > 0 {
		raw = make([]byte, disk.SuperBlockMax)
		if err := im.meta.read(op, 0, raw, off); err != nil {
			return nil, err
		}
		sb.Decode(raw)
	}
	if err := checkSpecial(sb); err != nil {
		return nil, err
	}
	blocks, root := rootAndBlocks(sb)
	if blocks > uint64(im.size)>>im.blkBits {
		return nil, fail(ErrCorrupt, op, 0, noOffset, "the image is cut off: %d bytes of %d blocks of %d", im.size, blocks, im.blkSize)
	}
	im.sb = Superblock{
		BlockSize:       int(im.blkSize),
		Blocks:          blocks,
		Inodes:          sb.Inodes,
		RootNID:         root,
		UUID:            sb.UUID,
		VolumeName:      cString(sb.VolumeName[:]),
		BuildTime:       sb.Epoch + int64(sb.BuildTime),
		BuildTimeNsec:   sb.FixedNsec,
		Epoch:           sb.Epoch,
		FeatureCompat:   sb.FeatureCompat,
		FeatureIncompat: sb.FeatureIncompat,
		MetaBlkAddr:     sb.MetaBlkAddr,
		XattrBlkAddr:    sb.XattrBlkAddr,
		Checksum:        sb.Checksum,
	}
	if sb.FeatureIncompat&disk.IncompatFragments != 0 {
		im.sb.PackedNID = sb.PackedNID
	}
	if sb.FeatureIncompat&disk.IncompatMetabox != 0 {
		im.sb.MetaboxNID = sb.MetaboxNID
	}
	return sb, nil
}

// rootAndBlocks are the fields that the 48bit feature widens. An image may have
// the feature and still the short fields.
func rootAndBlocks(sb *disk.SuperBlock) (blocks, root uint64) {
	if sb.FeatureIncompat&disk.Incompat48Bit != 0 && sb.RootNID8 != 0 {
		return uint64(sb.RB)<<32 | uint64(sb.Blocks), sb.RootNID8
	}
	return uint64(sb.Blocks), uint64(sb.RB)
}

// checkSpecial refuses special inodes that could not be read: in the metabox,
// which is not open yet then.
func checkSpecial(sb *disk.SuperBlock) error {
	const op, off = "superblock", disk.SuperBlockOffset
	metabox := sb.FeatureIncompat&disk.IncompatMetabox != 0
	switch {
	case metabox && sb.ExtSlots == 0:
		return fail(ErrCorrupt, op, 0, off, "the metabox feature without a nid of the metabox")
	case metabox && inMetabox(sb.MetaboxNID):
		return fail(ErrCorrupt, op, 0, off, "the metabox is in itself")
	case !metabox && sb.FeatureCompat&disk.CompatSharedEAInMetabox != 0:
		return fail(ErrCorrupt, op, 0, off, "shared_ea_in_metabox without a metabox")
	case sb.FeatureIncompat&disk.IncompatFragments != 0 && inMetabox(sb.PackedNID):
		return fail(ErrCorrupt, op, 0, off, "the packed inode is in the metabox")
	}
	return nil
}

// castagnoli is the polynomial of the superblock's checksum.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checkChecksum compares the checksum, if the image has one: CRC32C with the
// initial value ~0 and no final inversion, over the rest of the superblock's
// block with the checksum field zero. Blocks of up to 1024 bytes are not cut:
// there it is one whole block's length from the superblock on.
//
// Source: erofs_superblock_csum_verify in fs/erofs/super.c of Linux 6.18.
func (im *Image) checkChecksum(sb *disk.SuperBlock) error {
	if sb.FeatureCompat&disk.CompatSBChecksum == 0 {
		return nil
	}
	n := im.blkSize
	if n > disk.SuperBlockOffset {
		n -= disk.SuperBlockOffset
	}
	b := make([]byte, n) // at most 64 KiB
	if err := im.meta.read("superblock", 0, b, disk.SuperBlockOffset); err != nil {
		return err
	}
	clear(b[4:8])
	if sum := ^crc32.Checksum(b, castagnoli); sum != sb.Checksum {
		return fail(ErrCorrupt, "superblock", 0, disk.SuperBlockOffset,
			"the checksum is 0x%08x, computed 0x%08x", sb.Checksum, sum)
	}
	return nil
}

// cString is the part of b before the first NUL.
func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
