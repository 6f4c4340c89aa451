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

	meta    *metaCache // of the primary device
	metabox *metaCache // of the metabox's data; nil: there is none
	packed  *Inode     // nil: there is none
	recent  inodeCache

	algorithms uint16 // that files may use: bits of disk.AlgLZ4, ...
	decoded    *DecodedCache

	devices    []deviceSlot
	deviceMask uint16 // of the device ids in chunk indexes
	flat       bool   // no extra device was given: all of them are looked for in the primary one

	prefixes    []xattrPrefix
	fingerprint *xattrPrefix // base and infix are the name of the image's own fingerprints; nil: there are none
	xattrFilter bool         // inodes' attributes come with a Bloom filter of their names

	root int64 // byte address of nid 0; 0 <= root <= size
}

var imageIDs atomic.Uint64

// Option changes how Open works.
type Option func(*options)

type options struct {
	devices  []Device
	metadata *MetadataCache
	decoded  *DecodedCache
}

// WithDevices gives the extra devices of a multi-device image in the order of
// its device table: all of them, or none. Given none, the devices are expected
// in the primary one, at their places in the unified address space.
func WithDevices(d ...Device) Option {
	return func(o *options) { o.devices = append(o.devices, d...) }
}

// WithMetadataCache gives the cache of metadata, which images may share; by default
// each has one of 4 MiB.
func WithMetadataCache(c *MetadataCache) Option {
	return func(o *options) { o.metadata = c }
}

// WithDecodedCache gives the cache of decompressed data, which images may share;
// by default all images of the process share one of 32 MiB.
func WithDecodedCache(c *DecodedCache) Option {
	return func(o *options) { o.decoded = c }
}

// Open reads the superblock of the image of size bytes in r and checks that
// everything it announces is supported and that its root is a directory. But
// for what those need, nothing else is read. r must be safe for concurrent use,
// as io.ReaderAt says.
//
// Errors: ErrFormat, ErrUnsupported, ErrCorrupt, ErrInvalid for a number of
// devices other than the image's, or what r returned.
func Open(r io.ReaderAt, size int64, opts ...Option) (*Image, error) {
	o := options{decoded: defaultDecoded}
	for _, opt := range opts {
		opt(&o)
	}
	if o.metadata == nil {
		o.metadata = NewMetadataCache(defaultMetaCache)
	}
	im := &Image{id: imageIDs.Add(1), r: r, size: size, decoded: o.decoded}
	sb, err := im.loadSuperblock(o.metadata)
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
	if err := im.loadSpecial(o.metadata); err != nil {
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

// loadSpecial opens the inodes that hold other inodes' data: the packed inode
// and the metabox. Neither is in the metabox, the packed inode has no fragments
// (see zTail), and the metabox may have some, so that they never wait for
// themselves.
//
// Source: erofs_fc_fill_super in fs/erofs/super.c of Linux 7.2.
func (im *Image) loadSpecial(metadata *MetadataCache) (err error) {
	if im.sb.PackedNID != 0 {
		if im.packed, err = im.special("packed inode", im.sb.PackedNID); err != nil {
			return err
		}
	}
	if im.sb.FeatureIncompat&disk.IncompatMetabox == 0 {
		return nil
	}
	in, err := im.special("metabox", im.sb.MetaboxNID)
	if err != nil {
		return err
	}
	im.metabox = newMetaCache(placeMetabox, in, in.Size, im.blkBits, metadata)
	return nil
}

func (im *Image) special(op string, nid uint64) (*Inode, error) {
	in, err := im.Inode(nid)
	if err != nil {
		return nil, err
	}
	if !in.IsRegular() {
		return nil, in.corrupt(op, noOffset, "it is not a regular file (mode %#o)", in.Mode)
	}
	return in, nil
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
