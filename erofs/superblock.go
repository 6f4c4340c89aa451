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
	UUID            [16]byte
	VolumeName      string
	BuildTime       int64 // of mkfs, seconds since 1970
	BuildTimeNsec   uint32
	Epoch           int64 // what the times of compact inodes count from, seconds since 1970
	FeatureCompat   uint32
	FeatureIncompat uint32
	MetaBlkAddr     uint32 // block of nid 0
	XattrBlkAddr    uint32 // block of the shared xattr area
	Checksum        uint32 // CRC32C as stored; checked if the sb_csum feature is set
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

// loadSuperblock reads the superblock with its checksum and makes sure that
// the image is supported and not cut off. It sets up the metadata cache, which
// later steps of Open need.
//
// Source: erofs_read_superblock in fs/erofs/super.c of Linux 6.18.
func (im *Image) loadSuperblock(metaBytes int) (*disk.SuperBlock, error) {
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
	im.meta = newMetaCache(im.r, im.size, im.blkBits, metaBytes)

	if err := im.checkChecksum(sb); err != nil {
		return nil, err
	}
	if err := checkFeatures(sb); err != nil {
		return nil, err
	}
	if sb.DirBlockBits != 0 {
		return nil, fail(ErrUnsupported, op, 0, off, "directory blocks of another size (dirblkbits %d)", sb.DirBlockBits)
	}
	if sb.FeatureCompat&disk.CompatSharedEAInMetabox != 0 {
		return nil, fail(ErrCorrupt, op, 0, off, "shared_ea_in_metabox without a metabox")
	}
	if end := off + disk.SuperBlockSize + int64(sb.ExtSlots)*disk.ExtSlotSize; end > im.size {
		return nil, fail(ErrCorrupt, op, 0, off, "%d extension slots reach beyond the end of the image", sb.ExtSlots)
	}
	if need := int64(sb.Blocks) << im.blkBits; im.size < need {
		return nil, fail(ErrCorrupt, op, 0, noOffset, "the image is cut off: %d of %d bytes", im.size, need)
	}
	im.sb = Superblock{
		BlockSize:       int(im.blkSize),
		Blocks:          uint64(sb.Blocks),
		Inodes:          sb.Inodes,
		RootNID:         uint64(sb.RootNID),
		PackedNID:       sb.PackedNID,
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
	return sb, nil
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
	if err := im.metaRead("superblock", 0, b, disk.SuperBlockOffset); err != nil {
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
