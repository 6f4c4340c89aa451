package erofs

import (
	"io/fs"
	"math"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// Dirent is one entry of a directory.
type Dirent struct {
	Name string // 1 to 255 bytes of any kind but '/' and NUL
	NID  uint64 // not checked
	Type FileType
	Next int64 // the cookie of the entry after this one
}

// Lookup finds the entry of that name in a directory, by binary search among
// the blocks and then in one block. An entry out of order may not be found.
//
// Errors: fs.ErrNotExist, ErrInvalid for an inode that is no directory, those
// of the format, or what the device returned.
//
// Source: erofs_namei in fs/erofs/namei.c of Linux 7.2.
func (in *Inode) Lookup(name string) (Dirent, error) {
	if err := in.checkDir("lookup"); err != nil {
		return Dirent{}, err
	}
	if in.dotOmitted && name == "." {
		return in.omittedDot(), nil
	}
	// The last block whose first name is not above name.
	var found dirBlock
	var at int64
	for lo, hi := int64(0), in.dirBlocks()-1; lo <= hi; {
		mid := lo + (hi-lo)/2
		b, err := in.dirBlock(mid)
		if err != nil {
			return Dirent{}, err
		}
		if compareName(b.name(0), name) <= 0 {
			found, at, lo = b, mid, mid+1
		} else {
			hi = mid - 1
		}
	}
	for lo, hi := 0, found.n-1; lo <= hi; {
		mid := int(uint(lo+hi) / 2)
		switch c := compareName(found.name(mid), name); {
		case c == 0:
			return found.entry(mid, name, in.cookieAfter(at, mid, found.n)), nil
		case c < 0:
			lo = mid + 1
		default:
			hi = mid - 1
		}
	}
	return Dirent{}, errNoEntry
}

// errNoEntry is not made anew for each lookup: looking for what is not there is
// as common as looking for what is.
var errNoEntry error = &FormatError{Op: "lookup", Off: noOffset, Err: fs.ErrNotExist}

// compareName is bytes.Compare of a name and a string, without a conversion
// that allocates.
func compareName(a []byte, b string) int {
	switch {
	case string(a) < b:
		return -1
	case string(a) > b:
		return 1
	}
	return 0
}

// ReadDir calls fn with the entries of a directory from the cookie pos on,
// "." and ".." included, until fn returns false. Cookies rise; 0 is the first
// entry, and Dirent.Next of one entry the next. Any other value stands for the
// entry after it, so that a cookie that somebody made up does no harm.
//
// Errors: ErrInvalid for an inode that is no directory or a negative cookie,
// those of the format, also for names out of order, or what the device
// returned.
//
// Source: erofs_readdir in fs/erofs/dir.c of Linux 7.2.
func (in *Inode) ReadDir(pos int64, fn func(Dirent) bool) error {
	if err := in.checkDir("readdir"); err != nil {
		return err
	}
	if pos < 0 {
		return fail(ErrInvalid, "readdir", in.NID, noOffset, "negative cookie")
	}
	im := in.im
	var prev []byte
	for pos < in.Size {
		i := pos >> im.blkBits
		b, err := in.dirBlock(i)
		if err != nil {
			return err
		}
		if !b.ordered(prev) {
			return in.badBlock(i, "the names are not in order")
		}
		prev = b.name(b.n - 1)
		within := pos & (im.blkSize - 1)
		for k := int((within + disk.DirentSize - 1) / disk.DirentSize); k < b.n; k++ {
			if !fn(b.entry(k, string(b.name(k)), in.cookieAfter(i, k, b.n))) {
				return nil
			}
		}
		pos = min((i+1)<<im.blkBits, in.Size)
	}
	if in.dotOmitted && pos == in.Size {
		fn(in.omittedDot())
	}
	return nil
}

// cookieAfter is the cookie behind entry k of the n of block i: the offset of
// the next entry, of the next block, or the size of the directory.
func (in *Inode) cookieAfter(i int64, k, n int) int64 {
	bits := in.im.blkBits
	if k+1 < n {
		return i<<bits + int64(k+1)*disk.DirentSize
	}
	return min((i+1)<<bits, in.Size)
}

// omittedDot is the entry "." of a directory that does not store it. It comes
// last.
func (in *Inode) omittedDot() Dirent {
	return Dirent{Name: ".", NID: in.NID, Type: TypeDir, Next: in.Size + 1}
}

// checkDir makes sure that the inode is a directory whose cookies can't
// overflow.
func (in *Inode) checkDir(op string) error {
	if !in.IsDir() {
		return fail(ErrInvalid, op, in.NID, noOffset, "mode %#o is no directory", in.Mode)
	}
	if in.Size > math.MaxInt64-in.im.blkSize {
		return in.corrupt(op, in.base, "a directory of %d bytes", in.Size)
	}
	return nil
}
