// Package erofs reads EROFS file system images.
//
// Limits. It only reads; it never writes an image. It reads block sizes of 512
// bytes to 64 KiB, compact and extended inodes, the flat-plain, flat-inline and
// chunk-based data layouts, extra devices, inline and shared extended
// attributes with long name prefixes, and LZ4 compressed inodes. An image that
// needs anything else is refused by the name of the feature with
// [ErrUnsupported]: LZMA, DEFLATE and Zstandard, tail packing of compressed
// data, fragments and deduplicated extents, the 48-bit layout and the metabox.
//
// Hostile input. An image is untrusted. Every address, count and length read
// from it is checked against the size of the device before it is used, nothing
// is allocated by a count that the image alone names, and every walk is
// bounded. The worst an image can do is an error that wraps [ErrFormat],
// [ErrUnsupported] or [ErrCorrupt].
//
// Concurrency. An [Image] and its [Inode] values are safe for concurrent use.
// The read path takes no lock: metadata blocks are kept in a direct-mapped
// table of atomic pointers to immutable buffers.
//
// The on-disk format is described by fs/erofs/erofs_fs.h of Linux 6.18 and
// include/erofs_fs.h of erofs-utils 1.9.
package erofs
