// Package erofs reads EROFS file system images.
//
// Limits. It only reads; it never writes an image. It reads all that Linux 7.3
// and erofs-utils 1.9.4 know: block sizes of 512 bytes to 64 KiB; compact and
// extended inodes; flat, inline and chunk-based data, also on extra devices;
// LZ4, MicroLZMA, DEFLATE and Zstandard with full and compact indexes and
// encoded extents, tail packing, fragments and deduplicated data; the 48-bit
// layout and the metabox; inline and shared extended attributes with long name
// prefixes and filters. An image that needs anything else is refused by the name
// or the number of the feature with [ErrUnsupported].
//
// Hostile input. An image is untrusted. Every address, count and length read
// from it is checked against the size of the device before it is used, nothing
// is allocated by a count that the image alone names, and every walk is
// bounded. The worst an image can do is an error that wraps [ErrFormat],
// [ErrUnsupported] or [ErrCorrupt].
//
// One call allocates less than 128 MiB, whatever the image; what it decodes
// beyond what was asked for is at most 12 MiB for each end of the range. The
// same byte of a file is read from the same place of the image by every call,
// so that what was hashed once is what is read later.
//
// Concurrency. An [Image] and its [Inode] values are safe for concurrent use.
// Metadata and uncompressed data are read without a lock: metadata blocks are
// kept in a direct-mapped table of atomic pointers to immutable buffers. Readers
// of parts of one compressed cluster wait for each other; see [DecodedCache].
//
// The on-disk format is described by fs/erofs/erofs_fs.h of Linux 7.2, which has
// all features of 7.3, and include/erofs_fs.h of erofs-utils 1.9.
package erofs
