package erofs

import (
	"context"
	"errors"
	"io"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// What Verify checks of compressed data beyond what a reader does: whether a
// pcluster ends where its extent does, and the distances in indexes that Linux
// follows to find the end of an extent and this package does not.

// errLong says that a pcluster does not end with its extent.
var errLong = errors.New("they do not end with their extent")

// finished reports whether the pcluster ends where decode stopped. src is what
// start was given.
func (d *zDecoder) finished(src []byte) bool {
	switch d.kind {
	case disk.AlgLZ4:
		return d.lz4.Finished(src)
	case disk.AlgLZMA:
		return d.lzma.Finished()
	case disk.AlgDeflate:
		return ended(d.deflate.r) && d.deflate.src.Len() == 0
	default:
		// A frame that was decoded at once is as long as its extent.
		return len(d.src) == len(src) && (d.zstd == nil || ended(d.zstd.r))
	}
}

// ended reports whether nothing comes any more from r.
func ended(r io.Reader) bool {
	var one [1]byte
	n, err := io.ReadFull(r, one[:])
	return n == 0 && errors.Is(err, io.EOF)
}

// readStrict is readCompressed that refuses pclusters which do not end with
// their extents. [off, off+len(p)) is of wholeExtents.
//
// Before the 0padding feature, zeros filled the blocks behind LZ4 data; in such
// images it is no stricter than ReadAt.
func (in *Inode) readStrict(p []byte, off int64) (int, error) {
	strict := in.im.sb.FeatureIncompat&disk.IncompatLZ4ZeroPadding != 0
	return in.readCompressed(p, off, strict)
}

// wholeExtents is how many bytes from off on, where an extent starts, are whole
// extents: at most want, or the one that starts there, of at most
// disk.PclusterMaxDecoded. Fragments and holes have no pcluster and are cut at
// want.
func (in *Inode) wholeExtents(off, want int64) (int64, error) {
	z, err := in.compression()
	if err != nil {
		return 0, err
	}
	m := zMapper{in: in, z: z}
	e, err := m.first(off)
	if err != nil {
		return 0, err
	}
	for e.end-off < want && e.end < in.Size {
		next, err := m.extent()
		if err != nil || next.stored() && next.end-off > want {
			break // an error is met again when the next extents are asked for
		}
		e = next
	}
	if !e.stored() {
		return min(e.end-off, want), nil
	}
	return e.end - off, nil
}

// checkDistances makes sure that no index leads past the head that comes next.
// A reader that follows these distances would take the data of several extents
// for those of one.
//
// Source: z_erofs_get_extent_decompressedlen in fs/erofs/zmap.c of Linux 7.2.
func (in *Inode) checkDistances(ctx context.Context) error {
	z, err := in.compression()
	if err != nil || z.encoded || z.count == 0 {
		return err
	}
	end := z.count
	if z.tailHead >= 0 {
		end = z.tailHead + 1
	}
	farthest, from := int64(0), int64(0) // an lcluster that is said to be no further than the next head, and by which
	for lcn := range end {
		if lcn&0xffff == 0 && ctx.Err() != nil {
			return nil //nolint:nilerr // the caller looks at it
		}
		l, err := z.load(in, lcn)
		if err != nil {
			return err
		}
		switch {
		case !l.head():
			if lcn+l.ahead > farthest {
				farthest, from = lcn+l.ahead, lcn
			}
		case farthest > lcn:
			return in.corrupt("compression index", from<<z.lbits,
				"lcluster %d: the next head is %d lclusters ahead, not %d", from, lcn-from, farthest-from)
		default:
			farthest = 0
		}
	}
	return nil
}
