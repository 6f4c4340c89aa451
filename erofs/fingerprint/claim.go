package fingerprint

import (
	"crypto/sha256"
	"fmt"
	"math"

	"github.com/erofs-csi/erofs-csi/erofs"
)

// Claimed makes an index of what the image itself says of its files, as Files lists
// them, without reading any content. Nothing has checked it: an index like this must
// not meet one of Build's. A file of which the image says nothing, or nothing that is
// a SHA-256, has no entry.
//
// Errors: those of the image's metadata.
func Claimed(im *erofs.Image, files []File) (*Index, error) {
	claiming, sums := make([]File, 0, len(files)), make([]Sum, 0, len(files))
	for _, f := range files {
		in, err := im.Inode(f.NID)
		if err != nil {
			return nil, err
		}
		value, ok, err := in.FingerprintValue()
		if err != nil {
			return nil, err
		}
		sum, isSum := parseClaim(value)
		if ok && isSum {
			claiming = append(claiming, f)
			sums = append(sums, sum)
		}
	}
	return newIndex(claiming, sums, len(files)), nil
}

// newIndex is NewIndex for files that are some of all the image has.
func newIndex(files []File, sums []Sum, all int) *Index {
	ix := NewIndex(files, sums)
	ix.leftOut = uint32(min(all-ix.count, math.MaxUint32))
	return ix
}

// claimTag is how the value of a fingerprint begins; the raw digest follows.
const claimTag = "sha256:"

// parseClaim is the digest in an image's own fingerprint.
func parseClaim(value []byte) (sum Sum, ok bool) {
	if len(value) != len(claimTag)+len(sum) || string(value[:len(claimTag)]) != claimTag {
		return sum, false
	}
	return Sum(value[len(claimTag):]), true
}

// Claims is what CheckClaims counts.
type Claims struct {
	Files   int // regular files that hold data
	Claimed int // of them those that the image has a fingerprint of
}

// CheckClaims compares everything by which Linux would share page cache between
// files of the image ("inode_share") with an index of Build's, so that what it
// shares has been hashed: each regular file's own fingerprint must be the SHA-256
// in the index, and that of an empty file the one of nothing. With ix nil only the
// form is checked.
//
// Linux shares by any value of any length, and has inodes of its own making beside
// those in the tree, the packed inode and the metabox. So a value that is no
// SHA-256, and any that these carry, is an error, too.
//
// Errors: ErrForged, with the file's path and nid, for the first that does not
// agree or that the index has not, because it could not be read; or those of the
// image's metadata.
func CheckClaims(im *erofs.Image, ix *Index) (Claims, error) {
	var c Claims
	linked := make(map[uint64]struct{}) // the files with several names
	err := im.Walk(func(path string, in *erofs.Inode) error {
		if !in.IsRegular() {
			return nil
		}
		if in.Nlink > 1 {
			if _, seen := linked[in.NID]; seen {
				return nil
			}
			linked[in.NID] = struct{}{}
		}
		claimed, err := checkClaim(in, ix)
		if err != nil {
			return fmt.Errorf("%q (nid %d): %w", path, in.NID, err)
		}
		if in.Size > 0 {
			c.Files++
			if claimed {
				c.Claimed++
			}
		}
		return nil
	})
	if err != nil {
		return Claims{}, err
	}
	sb := im.Superblock()
	for _, nid := range []uint64{sb.PackedNID, sb.MetaboxNID} {
		if nid == 0 {
			continue
		}
		in, err := im.Inode(nid)
		if err != nil {
			return Claims{}, err
		}
		if _, ok, err := in.FingerprintValue(); err != nil || ok {
			return Claims{}, fmt.Errorf("special inode (nid %d): %w", nid, orForged(err))
		}
	}
	return c, nil
}

// orForged is err, or ErrForged without one.
func orForged(err error) error {
	if err == nil {
		err = ErrForged
	}
	return err
}

func checkClaim(in *erofs.Inode, ix *Index) (claimed bool, err error) {
	value, ok, err := in.FingerprintValue()
	if err != nil || !ok {
		return false, err
	}
	sum, isSum := parseClaim(value)
	if !isSum {
		return false, fmt.Errorf("%w: %d bytes that are no SHA-256", ErrForged, len(value))
	}
	if ix == nil {
		return true, nil
	}
	have, known := ix.Lookup(in.NID)
	if in.Size == 0 {
		have, known = sha256.Sum256(nil), true
	}
	switch {
	case !known:
		return false, fmt.Errorf("%w, or cannot be compared with it: the content was found to be another, or unreadable", ErrForged)
	case have != sum:
		return false, fmt.Errorf("%w: sha256:%x, not sha256:%x", ErrForged, have, sum)
	}
	return true, nil
}
