package erofs

import (
	"math"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// extent is a run of an uncompressed inode's data: n bytes at byte address
// addr of device dev. n is at least 1.
type extent struct {
	n    int64
	dev  uint16
	addr int64
	kind extentKind
}

type extentKind uint8

const (
	extentData extentKind = iota // blocks of a device
	extentHole                   // zeros that are stored nowhere
	extentTail                   // behind the inode, among the metadata
)

// extentAt finds the run that holds off, from off on, for 0 <= off < in.Size.
// Runs of a chunk-based inode are merged while they follow each other on the
// same device, up to want bytes.
//
// Source: erofs_map_blocks in fs/erofs/data.c of Linux 6.18.
func (in *Inode) extentAt(off, want int64) (extent, error) {
	switch in.Layout {
	case FlatPlain:
		if in.nullAddr {
			return extent{kind: extentHole, n: in.Size - off}, nil
		}
		return in.flatExtent(off, in.Size)
	case FlatInline:
		tail := (in.Size - 1) &^ (in.im.blkSize - 1)
		if off < tail {
			return in.flatExtent(off, tail)
		}
		return in.tailExtent(off, tail)
	case ChunkBased:
		return in.chunkRun(off, want)
	default: // compressed ones have no extents of this kind
		return extent{}, in.unsupported("data", "%s data layout", in.Layout)
	}
}

// flatExtent is the run from off to end of the blocks from the start block on.
func (in *Inode) flatExtent(off, end int64) (extent, error) {
	addr, ok := in.im.blockAddr(in.startBlock(), off)
	if !ok {
		return extent{}, in.corrupt("data", noOffset, "start block %d is out of reach", in.startBlock())
	}
	return extent{n: end - off, addr: addr}, nil
}

// blockAddr is the byte address off behind the start of a block, for
// 0 <= blk < 2^48 and off >= 0; ok is false when there is no such address.
func (im *Image) blockAddr(blk, off int64) (addr int64, ok bool) {
	if blk > (math.MaxInt64-off)>>im.blkBits {
		return 0, false
	}
	return blk<<im.blkBits + off, true
}

// tailExtent is the run from off to the end of the file of an inline tail
// that begins at offset tail, a multiple of the block size. The tail, at most
// one block, must not cross a block boundary.
func (in *Inode) tailExtent(off, tail int64) (extent, error) {
	body := in.bodyAddr()
	if body&(in.im.blkSize-1)+in.Size-tail > in.im.blkSize {
		return extent{}, in.corrupt("data", body, "the inline tail of %d bytes crosses a block boundary", in.Size-tail)
	}
	return extent{n: in.Size - off, addr: body + off - tail, kind: extentTail}, nil
}

// chunkRun merges chunks from off on.
func (in *Inode) chunkRun(off, want int64) (extent, error) {
	run, err := in.chunkExtent(off)
	if err != nil {
		return extent{}, err
	}
	for run.n < want && run.n < in.Size-off {
		next, err := in.chunkExtent(off + run.n)
		if err != nil {
			break // it is met again when the next run is asked for
		}
		if next.kind != run.kind || next.dev != run.dev || run.kind == extentData && next.addr != run.addr+run.n {
			break
		}
		run.n += next.n
	}
	return run, nil //nolint:nilerr // what is known of the run is right
}

// chunkExtent is the rest of the chunk that holds off.
func (in *Inode) chunkExtent(off int64) (extent, error) {
	im := in.im
	format := in.iu & 0xffff
	bits := im.blkBits + uint(format&disk.ChunkBlockBitsMask) // at most 16+31
	unit := int64(disk.BlockMapEntrySize)
	if format&disk.ChunkIndexes != 0 {
		unit = disk.ChunkIndexSize
	}
	chunk := off >> bits
	table := roundUp(in.bodyAddr(), unit)
	if chunk > (in.area.size-table)/unit {
		return extent{}, in.corrupt("chunk index", table, "%d entries reach beyond the end of the %s (%d bytes)", chunk+1, in.area.place, in.area.size)
	}
	raw, err := in.area.view("chunk index", in.NID, table+chunk*unit, int(unit))
	if err != nil {
		return extent{}, err
	}
	within := off & (1<<bits - 1)
	e := extent{n: min(1<<bits-within, in.Size-off)}
	var blk int64
	if format&disk.ChunkIndexes != 0 {
		var ix disk.ChunkIndex
		ix.Decode(raw)
		mask := addr32
		if format&disk.Chunk48Bit != 0 {
			mask = addr48
		}
		blk = (int64(ix.StartBlkHi)<<32 | int64(ix.StartBlk)) & mask
		if blk == mask {
			e.kind = extentHole
			return e, nil
		}
		e.dev = ix.DeviceID & im.deviceMask
	} else if blk = int64(le.Uint32(raw)); blk == addr32 {
		e.kind = extentHole
		return e, nil
	}
	addr, ok := im.blockAddr(blk, within)
	if !ok {
		return extent{}, in.corrupt("chunk index", table+chunk*unit, "block %d is out of reach", blk)
	}
	e.addr = addr
	return e, nil
}
