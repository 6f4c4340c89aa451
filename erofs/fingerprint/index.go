// Package fingerprint computes and keeps the SHA-256 of every regular file of an
// EROFS image: the identity by which files of different images become one file in
// memory. Only what this package has hashed itself is ever shared; what an image
// says of itself (the kernel's ishare xattr) is but compared with it.
//
// # Limits
//
// An index holds 53 bytes a file, on disk, and in memory as far as the kernel keeps
// the pages of its file: it is mapped. A file that cannot be read whole, because the
// image is corrupt there, has no entry, nor has one of which the image claims what is
// not so; an empty file has no pages to share.
package fingerprint

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"math/bits"
	"runtime/debug"
	"slices"
	"sort"
	"syscall"
)

// Sum is the SHA-256 of a regular file's whole content.
type Sum = [32]byte

// Index has the fingerprints of an image's files, found by nid and by content. It
// does not change once made, and is safe for concurrent use until Close.
//
// A page of a mapped index that the disk can't give back is as if its entries were
// not there: no method fails for it.
type Index struct {
	data   []byte // as it is stored, without the checksum; see file.go
	count  int
	id     [sha256.Size]byte
	mapped []byte // what to unmap; nil: data is ordinary memory

	leftOut uint32
}

// Entry is a file of an index.
type Entry struct {
	File
	Sum Sum
}

// NewIndex makes an index in memory of files, as Files lists them, of which sums[i]
// is the fingerprint of files[i]. Files beyond the 2^32-1st are left out.
func NewIndex(files []File, sums []Sum) *Index {
	count := min(len(files), math.MaxUint32)
	order := make([]uint32, count)
	for i := range order {
		order[i] = uint32(i)
	}
	slices.SortFunc(order, func(a, b uint32) int {
		f, g := &files[a], &files[b]
		return cmp.Or(bytes.Compare(sums[a][:], sums[b][:]), cmp.Compare(f.Size, g.Size),
			cmp.Compare(f.Cost, g.Cost), cmp.Compare(f.NID, g.NID))
	})
	ix := &Index{data: make([]byte, indexSize(count)), count: count}
	for i, from := range order {
		f := &files[from]
		copy(ix.sum(i), sums[from][:])
		le.PutUint64(ix.size(i), uint64(f.Size))
		le.PutUint64(ix.nid(i), f.NID)
		le.PutUint32(ix.byNID(int(from)), uint32(i)) // files are in the order of their nids
		ix.cost(i)[0] = f.Cost
	}
	ix.id = sha256.Sum256(ix.data)
	return ix
}

// ID is equal for indexes with the same entries, if both were opened and for one
// image, or both made by NewIndex.
func (ix *Index) ID() [sha256.Size]byte { return ix.id }

var le = binary.LittleEndian

// The columns of the index: those of entry i, 0 <= i < count, and the number of the
// entry that is the ith by its nid.
func (ix *Index) sum(i int) []byte   { return ix.field(0, sumSize, i) }
func (ix *Index) size(i int) []byte  { return ix.field(sizesAt, 8, i) }
func (ix *Index) nid(i int) []byte   { return ix.field(nidsAt, 8, i) }
func (ix *Index) byNID(i int) []byte { return ix.field(byNIDAt, 4, i) }
func (ix *Index) cost(i int) []byte  { return ix.field(costsAt, 1, i) }

// field is the ith value of width bytes in the column that begins after so many
// bytes an entry.
func (ix *Index) field(column, width, i int) []byte {
	at := headerSize + column*ix.count + width*i
	return ix.data[at : at+width : at+width]
}

// Len returns the number of files.
func (ix *Index) Len() int { return ix.count }

// LeftOut is how many files of the image that hold data have no entry.
func (ix *Index) LeftOut() int { return int(ix.leftOut) }

// Entry returns the ith file in the order of sums, sizes and costs, 0 <= i < Len. A
// zero entry is one that could not be read.
func (ix *Index) Entry(i int) (e Entry) {
	ix.try(func() {
		e.Sum = Sum(ix.sum(i))
		e.File = File{NID: le.Uint64(ix.nid(i)), Size: int64(le.Uint64(ix.size(i))), Cost: ix.cost(i)[0]}
	})
	return e
}

// Lookup returns the fingerprint of a regular file.
func (ix *Index) Lookup(nid uint64) (sum Sum, ok bool) {
	_, e, ok := ix.File(nid)
	return e.Sum, ok
}

// File returns a file by its nid, with the number of its entry.
func (ix *Index) File(nid uint64) (i int, e Entry, ok bool) {
	ix.try(func() {
		at := sort.Search(ix.count, func(i int) bool { return le.Uint64(ix.nid(ix.ordered(i))) >= nid })
		if at == ix.count {
			return
		}
		i = ix.ordered(at)
		e = ix.Entry(i)
		ok = e.NID == nid && e.Size > 0
	})
	return i, e, ok
}

// ordered is the number of the entry that is the ith by its nid.
func (ix *Index) ordered(i int) int {
	return min(int(le.Uint32(ix.byNID(i))), ix.count-1)
}

// Find returns the entries of files with this content: those numbered from to
// before end, the cheapest to decode first. There are none when from == end.
func (ix *Index) Find(sum Sum, size int64) (from, end int) {
	if !ix.try(func() {
		from = ix.search(&sum, size)
		// Nearly always one file or none.
		for end = from; end < min(from+2, ix.count) && ix.compare(end, &sum, size) == 0; end++ {
		}
		if end == from+2 {
			end += sort.Search(ix.count-end, func(i int) bool { return ix.compare(end+i, &sum, size) > 0 })
		}
	}) {
		return 0, 0
	}
	return from, end
}

// guesses bounds how often search guesses; of even sums 2^32 take about five.
const guesses = 8

// search returns the first entry that is not before a content. Sums are as even as
// chance, so that one can guess where it is: three or four looks in place of the
// fifteen that halving takes among 20,000. What an image forged not to be even is
// found by halving.
func (ix *Index) search(sum *Sum, size int64) int {
	// Entries before lo, of which the last has the prefix below, are before the
	// content; those from hi on, of which the first has the prefix above, are not.
	lo, hi := 0, ix.count
	below, above := uint64(0), uint64(math.MaxUint64)
	want := binary.BigEndian.Uint64(sum[:])
	for n := 0; n < guesses && lo < hi && below < above; n++ {
		if want < below || want > above {
			break // the order is not what was checked
		}
		high, low := bits.Mul64(want-below, uint64(hi-lo))
		part, _ := bits.Div64(high, low, above-below) // high < above-below, because hi-lo < 2^32
		i := min(lo+int(part), hi-1)
		if ix.compare(i, sum, size) < 0 {
			lo, below = i+1, binary.BigEndian.Uint64(ix.sum(i))
		} else {
			hi, above = i, binary.BigEndian.Uint64(ix.sum(i))
		}
	}
	return lo + sort.Search(hi-lo, func(i int) bool { return ix.compare(lo+i, sum, size) >= 0 })
}

// LeastCost is the least Cost of its files, 0 without any.
func (ix *Index) LeastCost() (cost uint8) {
	ix.try(func() {
		if ix.count > 0 {
			costs := ix.data[headerSize+costsAt*ix.count:]
			cost = slices.Min(costs)
		}
	})
	return cost
}

// compare orders entry i and a content.
func (ix *Index) compare(i int, sum *Sum, size int64) int {
	if c := bytes.Compare(ix.sum(i), sum[:]); c != 0 {
		return c
	}
	return cmp.Compare(int64(le.Uint64(ix.size(i))), size)
}

// try calls f, which reads the index, and tells whether all pages of it could be
// read. The kernel answers an access to a mapped page that it cannot read from disk
// with SIGBUS, which would otherwise end the process.
func (ix *Index) try(f func()) (ok bool) {
	if ix.mapped == nil {
		f()
		return true
	}
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			if _, fault := r.(interface{ Addr() uintptr }); !fault {
				panic(r)
			}
			ok = false
		}
	}()
	f()
	return true
}

// Close gives back the memory of a mapped index, which must not be used any more, not
// even by calls under way. It does nothing to others, and nothing the second time.
func (ix *Index) Close() {
	if ix.mapped != nil {
		_ = syscall.Munmap(ix.mapped)
		ix.data, ix.mapped, ix.count = nil, nil, 0
	}
}
