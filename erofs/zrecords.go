package erofs

import (
	"math"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// zRecords are the encoded extents of a file: a record of size bytes for each.
//
//	 4  the pcluster's size; each pcluster follows the one before
//	 8  and its address, below 4 GiB
//	16  and where in the file the extent starts
//	32  and that beyond 4 GiB
//
// Without a start in the file the extents have one lcluster each.
type zRecords struct {
	size       int64 // 4, 8, 16 or 32
	count      int64
	fragment   bool // the last extent is a fragment
	interlaced bool // of plain pclusters, where whole blocks

	// Records of 4 bytes: sums[i] is the address of the pcluster of record
	// i*zRecordStep.
	sums []int64
}

// zRecordStep is how many records of 4 bytes are added up to find an address.
const zRecordStep = 1024

// loadRecords sets up encoded extents; the map header h ends at byte address
// pos.
//
// Source: z_erofs_map_blocks_ext in fs/erofs/zmap.c of Linux 7.2.
func (z *zState) loadRecords(in *Inode, h *disk.MapHeader, pos int64) error {
	z.encoded = true
	r := &z.records
	r.size = h.RecordSize()
	r.fragment = h.Advise&disk.AdviseFragment != 0
	r.interlaced = h.Advise&disk.AdviseInterlaced != 0
	z.index = roundUp(pos, r.size)
	if r.size > disk.ExtentFixedMax {
		r.count = int64(h.Extents())
	} else {
		z.lclusters(in, h)
		r.count = z.count
	}
	if r.size != disk.ExtentFixedMax/2 {
		return z.checkSpan(in, r.count, r.size)
	}
	start := z.index
	z.index += 8
	if err := z.checkSpan(in, r.count, r.size); err != nil {
		return err
	}
	return r.sum(in, start, z.index)
}

// sum adds up the sizes of pclusters from the address that is at start on. The
// records begin at index; all of them are in the area.
func (r *zRecords) sum(in *Inode, start, index int64) error {
	const op = "compression index"
	b, err := in.area.view(op, in.NID, start, 8)
	if err != nil {
		return err
	}
	first := le.Uint64(b)
	if first > math.MaxInt64 {
		return in.corrupt(op, start, "pclusters from byte %d on", first)
	}
	at := int64(first)
	for i := int64(0); i < r.count; {
		r.sums = append(r.sums, at) // 8 bytes for at least 4096 of the image, but the last
		end := min(i+zRecordStep, r.count)
		for ; i < end; i++ {
			b, err := in.area.view(op, in.NID, index+i*r.size, int(r.size))
			if err != nil {
				return err
			}
			if at += int64(le.Uint32(b) & disk.ExtentSizeMask); at < 0 {
				return in.corrupt(op, index+i*r.size, "pclusters beyond any device")
			}
		}
	}
	return nil
}

// extent returns the extent that holds offset off of the file.
func (r *zRecords) extent(in *Inode, z *zState, off int64) (e zExtent, err error) {
	var i int64 // the record of the extent; -1: none, a hole
	var rec disk.Extent
	switch {
	case r.size > disk.ExtentFixedMax:
		i, rec, e.la, e.end, err = r.search(in, z.index, off)
		e.pa = int64(rec.PstartHi)<<32 | int64(rec.PstartLo)
	default:
		i = off >> z.lbits
		e.la = i << z.lbits
		e.end = in.Size
		if i < r.count-1 {
			e.end = e.la + 1<<z.lbits
		}
		if rec, err = r.load(in, z.index, i); err != nil {
			return e, err
		}
		if e.pa = int64(rec.PstartLo); r.size < disk.ExtentFixedMax {
			e.pa, err = r.address(in, z.index, i)
		}
	}
	if err != nil {
		return e, err
	}
	if r.fragment && i >= 0 && i == r.count-1 {
		e.kind, e.pa = zPacked, int64(rec.PstartLo)<<32|int64(rec.Plen)
		return e, in.checkFragment(&e)
	}
	e.plen = int64(rec.Plen & disk.ExtentSizeMask)
	e.partial = rec.Plen&disk.ExtentPartial != 0
	format := rec.Plen >> disk.ExtentFormatBit
	switch {
	case e.plen == 0:
		e.kind, e.pa, e.partial = zHole, 0, false
	case format > disk.AlgEnd:
		return e, in.unsupported("compression index", "compression algorithm %d", format-1)
	case format > 0:
		e.kind = zKind(format - 1)
	case r.interlaced && (e.pa|e.plen)&(in.im.blkSize-1) == 0:
		e.kind = zInterlaced
	default:
		e.kind = zShifted
	}
	return e, nil
}

// load reads record i, 0 <= i < r.count.
func (r *zRecords) load(in *Inode, index, i int64) (rec disk.Extent, err error) {
	b, err := in.area.view("compression index", in.NID, index+i*r.size, int(r.size))
	if err == nil {
		rec.Decode(b)
	}
	return rec, err
}

// address is where the pcluster of record i of 4 bytes is.
func (r *zRecords) address(in *Inode, index, i int64) (int64, error) {
	at := r.sums[i/zRecordStep]
	for k := i &^ (zRecordStep - 1); k < i; k++ {
		rec, err := r.load(in, index, k)
		if err != nil {
			return 0, err
		}
		at += int64(rec.Plen & disk.ExtentSizeMask)
	}
	return at, nil
}

// search finds the record whose extent holds off and that extent, [la, end). In
// front of the first record there may be a hole, record -1.
//
// The records need not be in order for the result to be the same for every off
// of the extent: each record that is compared leaves la or end nearer to off or
// is refused.
func (r *zRecords) search(in *Inode, index, off int64) (i int64, rec disk.Extent, la, end int64, err error) {
	i, end = -1, in.Size
	for lo, hi := int64(0), r.count; lo < hi; {
		mid := lo + (hi-lo)/2
		at, err := r.load(in, index, mid)
		if err != nil {
			return 0, rec, 0, 0, err
		}
		start := uint64(at.LstartHi)<<32 | uint64(at.LstartLo)
		if start > uint64(end) || start < uint64(la) {
			return 0, rec, 0, 0, in.corrupt("compression index", index+mid*r.size, "extent %d of %d is out of order", mid, r.count)
		}
		if s := int64(start); s > off {
			hi, end = mid, s
		} else {
			lo, la, i, rec = mid+1, s, mid, at
		}
	}
	return i, rec, la, end, nil
}
