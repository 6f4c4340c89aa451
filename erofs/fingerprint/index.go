// Package fingerprint computes and keeps the SHA-256 of every regular file of an
// EROFS image: the identity by which files of different images become one file in
// memory. Only what this package has hashed itself is ever shared; what an image
// says of itself (the kernel's ishare xattr) is but compared with it.
//
// # Limits
//
// An index holds 40 bytes a file, in memory and on disk. A file that cannot be
// read whole, because the image is corrupt there, has no entry, nor has one of
// which the image claims what is not so; an empty file has no pages to share.
package fingerprint

import "sort"

// Sum is the SHA-256 of a regular file's whole content.
type Sum = [32]byte

// Index maps the nids of an image to fingerprints. It does not change once made,
// and is safe for concurrent use.
type Index struct {
	// For 0 <= i < j < len(nids): nids[i] < nids[j], and sums[i] is of nids[i].
	nids []uint64
	sums []Sum
}

// Lookup returns the fingerprint of a regular file.
func (ix *Index) Lookup(nid uint64) (Sum, bool) {
	i := sort.Search(len(ix.nids), func(i int) bool { return ix.nids[i] >= nid })
	if i == len(ix.nids) || ix.nids[i] != nid {
		return Sum{}, false
	}
	return ix.sums[i], true
}

// Len returns the number of files.
func (ix *Index) Len() int { return len(ix.nids) }
