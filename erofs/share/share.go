// Package share decides which files of which images are one file in memory.
//
// A Domain is the set of images that may share. Every regular file of an image
// that joins a domain gets a shared inode: the one of its content (SHA-256 and
// size, computed by us, see package fingerprint) when that is known, else a
// private one of its own image. A shared inode belongs to no image; it keeps the
// list of files, its backings, that can supply its bytes, and reads from one of
// them. Mode, owner, times, path, layout and compression play no part.
//
// The package knows nothing of FUSE: package fusefs puts one kernel inode, and so
// one page cache, before each shared inode.
//
// # Limits
//
// A domain holds at most 2^44 shared inodes over its life; an index is never used
// twice, because the kernel may still know it. A shared inode costs about 200
// bytes, and lives while it has a backing or the kernel remembers it.
//
// # Locks
//
//	LOCK ORDER: Domain.mu before Member.gate; never the other way.
//
// Reads take Domain.mu for reading to find an inode, release it, and then hold
// the gate of the member they read from, for reading, until the bytes are there.
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
