package erofs

import "io"

// Image is an open EROFS image. It holds no lock and is safe for concurrent
// use; it never closes the readers it was given.
type Image struct {
	r       io.ReaderAt
	size    int64 // of the primary device, in bytes
	blkBits uint  // 9 <= blkBits <= 16
	blkSize int64 // 1 << blkBits
	sb      Superblock
	lz4     lz4Config
	meta    *metaCache

	devices    []deviceSlot
	deviceMask uint16 // of the device ids of chunk indexes

	prefixes []xattrPrefix
	root     int64 // byte address of nid 0
}

// lz4Config is what the superblock says about LZ4 compressed data.
type lz4Config struct {
	maxDistance     uint16 // of a match, in bytes; 0: 65535
	maxPclusterBlks uint16 // blocks in the largest physical cluster, at least 1
}

// Option changes how Open works.
type Option func(*options)

type options struct {
	devices   []Device
	metaBytes int
}

// WithDevices gives the extra devices of a multi-device image in the order of
// its device table. Files with data on a device that is not given can't be
// read.
func WithDevices(d ...Device) Option {
	return func(o *options) { o.devices = append(o.devices, d...) }
}

// WithMetadataCache bounds the memory kept for metadata blocks, 4 MiB by
// default. At least one unit of 16 KiB, or one block, is kept.
func WithMetadataCache(bytes int) Option {
	return func(o *options) { o.metaBytes = bytes }
}

// Open reads the superblock of the image of size bytes in r and checks that
// everything it needs is supported.
//
// Errors: ErrFormat, ErrUnsupported, ErrCorrupt, or what r returned.
func Open(r io.ReaderAt, size int64, opts ...Option) (*Image, error) {
	return nil, fail(ErrUnsupported, "superblock", 0, noOffset, "not yet")
}

// Superblock returns the decoded superblock.
func (im *Image) Superblock() Superblock { return im.sb }
