package erofs

import (
	"encoding/binary"
	"io"
	"sync/atomic"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

var le = binary.LittleEndian

// Image is an open EROFS image. It holds no lock and is safe for concurrent
// use; it never closes the readers it was given.
type Image struct {
	id      uint64 // unique in the process; see zKey
	r       io.ReaderAt
	size    int64 // of the primary device, in bytes
	blkBits uint  // 9 <= blkBits <= 16
	blkSize int64 // 1 << blkBits
	sb      Superblock
	lz4     lz4Config
	meta    *metaCache

	devices    []deviceSlot
	deviceMask uint16 // of the device ids in chunk indexes
	flat       bool   // no extra device was given: all of them are looked for in the primary one

	prefixes    []xattrPrefix
	fingerprint uint8 // name index of the image's own fingerprints; 0: there are none

	root int64 // byte address of nid 0; 0 <= root <= size
}

var imageIDs atomic.Uint64

// Option changes how Open works.
type Option func(*options)

type options struct {
	devices   []Device
	metaBytes int
}

// WithDevices gives the extra devices of a multi-device image in the order of
// its device table: all of them, or none. Given none, the devices are expected
// in the primary one, at their places in the unified address space.
func WithDevices(d ...Device) Option {
	return func(o *options) { o.devices = append(o.devices, d...) }
}

// WithMetadataCache bounds the memory kept for metadata, in bytes, 4 MiB by
// default. At least one unit of 16 KiB, or of one block, is kept.
func WithMetadataCache(bytes int) Option {
	return func(o *options) { o.metaBytes = bytes }
}

// Open reads the superblock of the image of size bytes in r and checks that
// everything it announces is supported and that its root is a directory.
// Nothing else is read. r must be safe for concurrent use, as io.ReaderAt says.
//
// Errors: ErrFormat, ErrUnsupported, ErrCorrupt, ErrInvalid for a number of
// devices other than the image's, or what r returned.
func Open(r io.ReaderAt, size int64, opts ...Option) (*Image, error) {
	o := options{metaBytes: defaultMetaCache}
	for _, opt := range opts {
		opt(&o)
	}
	im := &Image{id: imageIDs.Add(1), r: r, size: size}
	sb, err := im.loadSuperblock(o.metaBytes)
	if err != nil {
		return nil, err
	}
	im.root = int64(sb.MetaBlkAddr) << im.blkBits
	if im.root > im.size {
		return nil, fail(ErrCorrupt, "superblock", 0, disk.SuperBlockOffset, "the metadata start beyond the end of the image")
	}
	if err := im.loadCompression(sb); err != nil {
		return nil, err
	}
	if err := im.loadDevices(sb, o.devices); err != nil {
		return nil, err
	}
	if err := im.loadXattrPrefixes(sb); err != nil {
		return nil, err
	}
	root, err := im.Inode(im.sb.RootNID)
	if err != nil {
		return nil, err
	}
	if !root.IsDir() {
		return nil, root.corrupt("root", noOffset, "it is not a directory (mode %#o)", root.Mode)
	}
	return im, nil
}

// Superblock returns the decoded superblock.
func (im *Image) Superblock() Superblock { return im.sb }

// Size returns the size of the primary device in bytes, as given to Open.
func (im *Image) Size() int64 { return im.size }

// Root reads the root directory.
func (im *Image) Root() (*Inode, error) { return im.Inode(im.sb.RootNID) }

// roundUp rounds n >= 0 up to a multiple of unit, a power of two. The caller
// makes sure that the result fits.
func roundUp(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }
