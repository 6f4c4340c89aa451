// Package share decides which files of which images are one file in memory.
//
// A Domain is the set of images that may share. Every regular file of an image
// that joins a domain has a shared inode: the one of its content (SHA-256 and
// size, computed by us, see package fingerprint) when that is known, else a
// private one of its own image. A shared inode belongs to no image; it is read
// from the file that is cheapest to decode of all that have its content, its
// backings. Mode, owner, times, path, layout and compression play no part.
//
// A domain has no table of its images' files: what they are is looked for in their
// indexes, which are mapped files, and only the inodes that the kernel knows at the
// moment take memory.
//
// The package knows nothing of FUSE: package fusefs puts one kernel inode, and so
// one page cache, before each shared inode.
//
// # Limits
//
// A domain has at most 65534 images at a time, and 12 million inodes that the kernel
// knows. It gives out at most 2^40-1 indexes over its life; none is used twice,
// because the kernel may still know it. A known inode costs 32 bytes and between 11
// and 22 for finding it again; see BenchmarkKnownInodes.
//
// # Locks
//
//	LOCK ORDER: Member.gate before Domain.mu. Whoever holds Domain.mu may try a gate,
//	but never waits for one.
//
// Reads take no lock of the domain: they find an inode through atomic pointers, and
// hold the gate of the member they read from, for reading, until the bytes are there.
package share

import "errors"

// ErrNoBacking says that no image of the domain can supply the bytes any more.
var ErrNoBacking = errors.New("no image of the domain holds this content any more")

// Key is the identity of content within a domain: the SHA-256 of a whole regular
// file and its size in bytes.
type Key struct {
	Sum  [32]byte
	Size int64
}
