package fingerprint

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"syscall"
)

// ErrDamaged says that a stored index is not one, is of another version or image,
// or does not match its own checksum. Build it anew.
var ErrDamaged = errors.New("fingerprint index is damaged or of another image")

// The file: a header, then one column of all files after the other, then the
// SHA-256 of all before. Little endian.
//
//	magic      [8]byte  "EROFSFPI"
//	version    uint32   2
//	leftOut    uint32   files without an entry, see Index.LeftOut
//	identity   [32]byte SHA-256 of the image's identity (see Write)
//	count      uint64
//	reserved   uint64   0
//
//	sums       [count][32]byte
//	sizes      [count]uint64
//	nids       [count]uint64
//	byNID      [count]uint32  numbers of the entries, in ascending order of nids
//	costs      [count]uint8   erofs.Inode.DecodeCost
//
// Entries are in strictly ascending order of (sum, size, cost, nid), so that those
// of one content are neighbours, and two indexes can be compared in one pass.
const (
	magic      = "EROFSFPI"
	version    = 2
	leftOutAt  = 8 + 4
	headerSize = leftOutAt + 4 + 32 + 8 + 8

	sumSize   = sha256.Size
	sizesAt   = sumSize
	nidsAt    = sizesAt + 8
	byNIDAt   = nidsAt + 8
	costsAt   = byNIDAt + 4
	entrySize = costsAt + 1
)

// indexSize is the length of an index without its checksum.
func indexSize(count int) int { return headerSize + count*entrySize }

func header(imageID string, count int, leftOut uint32) []byte {
	h := make([]byte, 0, headerSize)
	h = append(h, magic...)
	h = le.AppendUint32(h, version)
	h = le.AppendUint32(h, leftOut)
	id := sha256.Sum256([]byte(imageID))
	h = append(h, id[:]...)
	h = le.AppendUint64(h, uint64(count))
	return le.AppendUint64(h, 0)
}

// Write stores the index. imageID is what names the image's bytes, for example
// its blob's digest; Open takes the index for that image alone.
func (ix *Index) Write(w io.Writer, imageID string) error {
	sum := sha256.New()
	both := io.MultiWriter(w, sum)
	if _, err := both.Write(header(imageID, ix.count, ix.leftOut)); err != nil {
		return err
	}
	if _, err := both.Write(ix.data[headerSize:]); err != nil {
		return err
	}
	_, err := w.Write(sum.Sum(nil))
	return err
}

// Open maps an index that Write stored for the image of this identity, and checks it.
// The file may be closed and removed, but must never be changed or cut while the
// index is in use: it is replaced by renaming another one over it. A file system
// that can't be mapped is read into memory instead.
//
// Errors: ErrDamaged, or those of f.
func Open(f *os.File, imageID string) (*Index, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	size := st.Size()
	if size < headerSize+sha256.Size || size > math.MaxInt || (size-headerSize-sha256.Size)%entrySize != 0 {
		return nil, fmt.Errorf("%w: %d bytes long", ErrDamaged, size)
	}
	ix := &Index{}
	if ix.mapped, err = syscall.Mmap(int(f.Fd()), 0, int(size), syscall.PROT_READ, syscall.MAP_SHARED); err == nil {
		ix.data = ix.mapped
	} else if ix.data, err = io.ReadAll(io.NewSectionReader(f, 0, size)); err != nil {
		return nil, err
	}
	if !ix.try(func() { err = ix.check(imageID) }) {
		err = fmt.Errorf("%w: it cannot be read", ErrDamaged)
	}
	if err != nil {
		ix.Close()
		return nil, err
	}
	return ix, nil
}

// check checks data, which has the checksum still, and takes that off.
func (ix *Index) check(imageID string) error {
	n := len(ix.data) - sha256.Size
	if n < headerSize {
		return fmt.Errorf("%w: cut off", ErrDamaged)
	}
	count := (n - headerSize) / entrySize
	leftOut := le.Uint32(ix.data[leftOutAt:])
	if !bytes.Equal(ix.data[:headerSize], header(imageID, count, leftOut)) {
		return fmt.Errorf("%w: header", ErrDamaged)
	}
	if sum := sha256.Sum256(ix.data[:n]); !bytes.Equal(ix.data[n:], sum[:]) {
		return fmt.Errorf("%w: checksum", ErrDamaged)
	}
	ix.id = [sha256.Size]byte(ix.data[n:])
	ix.data, ix.count, ix.leftOut = ix.data[:n:n], count, leftOut
	return ix.checkOrder()
}

// checkOrder makes sure that no number leads out of the index, and that searches
// end at what is there: both orders ascend strictly, so that byNID names each entry
// once.
func (ix *Index) checkOrder() error {
	for i := range ix.count {
		if i > 0 && !ix.before(i-1, i) {
			return fmt.Errorf("%w: entries out of order", ErrDamaged)
		}
		at := le.Uint32(ix.byNID(i))
		if uint64(at) >= uint64(ix.count) {
			return fmt.Errorf("%w: no entry %d", ErrDamaged, at)
		}
		if i > 0 && le.Uint64(ix.nid(int(le.Uint32(ix.byNID(i-1))))) >= le.Uint64(ix.nid(int(at))) {
			return fmt.Errorf("%w: nids out of order", ErrDamaged)
		}
		if int64(le.Uint64(ix.size(i))) <= 0 {
			return fmt.Errorf("%w: an empty file", ErrDamaged)
		}
	}
	return nil
}

// before tells whether entry i is to come before entry j.
func (ix *Index) before(i, j int) bool {
	return cmp.Or(
		bytes.Compare(ix.sum(i), ix.sum(j)),
		cmp.Compare(le.Uint64(ix.size(i)), le.Uint64(ix.size(j))),
		cmp.Compare(ix.cost(i)[0], ix.cost(j)[0]),
		cmp.Compare(le.Uint64(ix.nid(i)), le.Uint64(ix.nid(j))),
	) < 0
}
