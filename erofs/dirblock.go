package erofs

import (
	"bytes"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// dirBlock is a checked block of a directory. It keeps these promises, so
// that nobody has to look again:
//
//	n >= 1, and the n entries fit in data
//	12*n == nameoff(0) < nameoff(1) < ... < nameoff(n-1) < len(data)
//	1 <= len(name(i)) <= 255, and no name has a '/' or a NUL in it
//
// The names need not be sorted: see ordered.
type dirBlock struct {
	data []byte // up to the end of the last name; immutable
	n    int
}

// dirBlocks is the number of blocks of a directory.
func (in *Inode) dirBlocks() int64 {
	bits := in.im.blkBits
	return (in.Size-1)>>bits + 1
}

// dirBlock reads and checks block i of a directory, 0 <= i < dirBlocks().
func (in *Inode) dirBlock(i int64) (dirBlock, error) {
	data, err := in.dirData(i)
	if err != nil {
		return dirBlock{}, err
	}
	first := 0
	if len(data) >= disk.DirentSize {
		first = disk.DirentNameOff(data)
	}
	if first < disk.DirentSize || first%disk.DirentSize != 0 || first >= len(data) {
		return dirBlock{}, in.badBlock(i, "the first name is at %d of %d bytes", first, len(data))
	}
	b := dirBlock{data: data, n: first / disk.DirentSize}
	prev := first
	for k := 1; k < b.n; k++ {
		off := b.nameOff(k)
		if off <= prev || off >= len(data) || off-prev > disk.NameMax {
			return dirBlock{}, in.badBlock(i, "entry %d has its name at %d, after %d, of %d bytes", k, off, prev, len(data))
		}
		prev = off
	}
	// Only the last name can end at a NUL.
	if k := bytes.IndexByte(data[prev:], 0); k >= 0 {
		b.data = data[:prev+k]
	}
	if n := len(b.data) - prev; n == 0 || n > disk.NameMax {
		return dirBlock{}, in.badBlock(i, "the last name has %d bytes", n)
	}
	if bytes.IndexByte(b.data[first:prev], 0) >= 0 {
		return dirBlock{}, in.badBlock(i, "a NUL in a name")
	}
	if bytes.IndexByte(b.data[first:], '/') >= 0 {
		return dirBlock{}, in.badBlock(i, "a slash in a name")
	}
	return b, nil
}

// dirData returns the bytes of block i: a view of the metadata cache where a
// flat directory is on the primary device, as it nearly always is, else a copy.
func (in *Inode) dirData(i int64) ([]byte, error) {
	im := in.im
	off := i << im.blkBits
	n := min(im.blkSize, in.Size-off)
	if in.Layout == FlatPlain || in.Layout == FlatInline {
		e, err := in.extentAt(off, n)
		if err != nil {
			return nil, err
		}
		if e.kind == extentTail {
			return in.area.view("directory", in.NID, e.addr, int(n))
		}
		if e.kind == extentData && e.n >= n {
			if id, _ := im.unified(e.addr); im.flat || id == 0 {
				return im.meta.view("directory", in.NID, e.addr, int(n))
			}
		}
	}
	p := make([]byte, n) // at most one block
	if _, err := in.ReadAt(p, off); err != nil {
		return nil, err
	}
	return p, nil
}

// badBlock reports what is wrong with block i. Off is that in the directory.
func (in *Inode) badBlock(i int64, format string, args ...any) error {
	return in.corrupt("directory block", i<<in.im.blkBits, format, args...)
}

// nameOff is where name k begins, 0 <= k < n.
func (b dirBlock) nameOff(k int) int { return disk.DirentNameOff(b.data[k*disk.DirentSize:]) }

// name is name k, 0 <= k < n, valid as long as the block.
func (b dirBlock) name(k int) []byte {
	end := len(b.data)
	if k+1 < b.n {
		end = b.nameOff(k + 1)
	}
	return b.data[b.nameOff(k):end]
}

// entry decodes entry k, 0 <= k < n, whose name is name(k).
func (b dirBlock) entry(k int, name string, next int64) Dirent {
	var d disk.Dirent
	d.Decode(b.data[k*disk.DirentSize:])
	t := FileType(d.Type)
	if t > TypeSymlink {
		t = TypeUnknown
	}
	return Dirent{Name: name, NID: d.NID, Type: t, Next: next}
}

// ordered reports whether the names of the block and prev, the last name of
// the block before it or nil, are in strictly rising byte order.
func (b dirBlock) ordered(prev []byte) bool {
	for k := range b.n {
		name := b.name(k)
		if bytes.Compare(prev, name) >= 0 { // no name is empty, so nil is below all
			return false
		}
		prev = name
	}
	return true
}
