package erofs

import (
	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
	"github.com/erofs-csi/erofs-csi/erofs/internal/lz4"
)

const (
	// zBatch bounds how many pclusters are read at once; 64 of the smallest
	// usual size are 256 KiB, from where on a larger read is no faster.
	zBatch = 64
	// zReadMax bounds the bytes read at once: a whole pcluster always fits.
	zReadMax = disk.PclusterMaxSize
)

// zRead is one call of readCompressed: bytes [off, end) of the file to p.
type zRead struct {
	in       *Inode
	z        *zState
	p        []byte
	off, end int64
}

// readCompressed fills p from offset off of a compressed inode. The caller
// guarantees 0 <= off and off+len(p) <= in.Size, and len(p) > 0. It returns
// how many bytes precede an error.
//
// Neighbouring pclusters are read from the device at once, in whole blocks,
// into a page-aligned buffer, and decoded straight into p. An extent of which
// p wants only the middle is decoded aside; see zStream.
//
// Work is bounded by len(p) and, for the extents at both ends of it,
// disk.PclusterMaxSize read and disk.PclusterMaxDecoded decoded; memory by
// zReadMax and a zStream.
func (in *Inode) readCompressed(p []byte, off int64) (int, error) {
	z, err := in.compression()
	if err != nil {
		return 0, err
	}
	r := zRead{in: in, z: z, p: p, off: off, end: off + int64(len(p))}
	m := zMapper{in: in, z: z, end: r.end}
	e, err := m.first(off)
	if err != nil {
		return 0, err
	}
	if r.kept(e) {
		if e.end >= r.end {
			return len(p), nil
		}
		off = e.end
		if e, err = m.extent(); err != nil {
			return int(off - r.off), err
		}
	}
	var array [zBatch]zExtent
	for {
		batch := append(array[:0], e)
		size := r.wanted(e)
		for e.end < r.end && len(batch) < zBatch && size == e.pa+e.plen-batch[0].pa {
			if e, err = m.extent(); err != nil {
				break // after what precedes it
			}
			n := r.wanted(e)
			if e.pa != batch[0].pa+size || size+n > zReadMax {
				break
			}
			batch = append(batch, e)
			size += n
		}
		done, readErr := r.batch(batch, size)
		if readErr != nil {
			return int(max(done-r.off, 0)), readErr
		}
		if done >= r.end {
			return len(p), nil
		}
		if err == nil && e.la < done { // e was the last of the batch
			e, err = m.extent()
		}
		if err != nil {
			return int(done - r.off), err
		}
	}
}

// batch reads and decodes extents whose pclusters follow one another on the
// device, size bytes in all. It returns where in the file it got to.
func (r *zRead) batch(batch []zExtent, size int64) (int64, error) {
	buf := getBuffer(size)
	defer buf.put()
	src := buf.b[:size]
	if err := r.in.im.readData(r.in, src, 0, batch[0].pa); err != nil {
		return batch[0].la, err
	}
	for i := range batch {
		e := &batch[i]
		n := min(e.plen, int64(len(src)))
		if err := r.decode(e, src[:n:n]); err != nil {
			return e.la, err
		}
		src = src[n:]
	}
	return batch[len(batch)-1].end, nil
}

// wanted is how many bytes of e's pcluster have to be read: all, or as many as
// can be needed for the bytes of e that are wanted.
//
// In the worst block each byte costs a byte, one of length for each 255, and
// the token and the offset that the first sequence spends on nothing. The
// literals of the last sequence may reach behind what is wanted, so that its
// length takes a byte for each 255 of the pcluster. Zeros in front are less
// than a block.
func (r *zRead) wanted(e zExtent) int64 {
	if e.plain || r.keep(&e) {
		return e.plen
	}
	n := min(e.end, r.end) - e.la
	n += n/255 + e.plen/255 + 32 + r.in.im.blkSize
	return min(e.plen, roundUp(n, r.in.im.blkSize))
}

// decode puts what is wanted of e in its place in p. src is its pcluster, or
// the first wanted bytes of it.
func (r *zRead) decode(e *zExtent, src []byte) error {
	skip := max(r.off-e.la, 0)
	dst := r.p[max(e.la-r.off, 0) : min(e.end, r.end)-r.off]
	if e.plain {
		plainPart(dst, src, skip, e.la, r.in.im.blkSize, r.z.interlaced)
		return nil
	}
	src, err := r.in.strip(e, src)
	if err != nil {
		return err
	}
	if skip == 0 && !r.keep(e) {
		n, err := lz4.Decode(dst, src)
		return r.in.decoded(e, n, len(dst), err)
	}
	return r.stream(e, src, dst, skip)
}

// plainPart copies len(dst) bytes, from byte skip of the extent on, out of a
// plain pcluster; the extent starts at la and fits in src. Shifted data start
// with the pcluster. Interlaced data keep their place in the block, and those
// that would come behind it are in front.
//
// Source: z_erofs_transform_plain in fs/erofs/decompressor.c of Linux 6.18.
func plainPart(dst, src []byte, skip, la, blkSize int64, interlaced bool) {
	if !interlaced {
		copy(dst, src[skip:])
		return
	}
	// The first part fills the last block of the pcluster from la's place on;
	// the rest is at the start of the pcluster.
	right := blkSize - la&(blkSize-1)
	if skip < right {
		n := copy(dst, src[int64(len(src))-right+skip:])
		dst, skip = dst[n:], skip+int64(n)
	}
	if len(dst) > 0 {
		copy(dst, src[skip-right:])
	}
}

// strip removes the zeros in front of a compressed pcluster, which images with
// the 0padding feature have there, less than a block of them. No LZ4 block
// starts with a zero: it would be a match with nothing before it.
func (in *Inode) strip(e *zExtent, src []byte) ([]byte, error) {
	if in.im.sb.FeatureIncompat&disk.IncompatLZ4ZeroPadding == 0 {
		return src, nil
	}
	for i := range src[:min(int64(len(src)), in.im.blkSize)] {
		if src[i] != 0 {
			return src[i:], nil
		}
	}
	return nil, in.corrupt("compressed data", e.pa, "a block of zeros instead of compressed data")
}

// decoded turns the result of decoding want bytes of e into an error.
func (in *Inode) decoded(e *zExtent, n, want int, err error) error {
	switch {
	case err != nil:
		return in.corrupt("compressed data", e.pa, "LZ4 data are invalid after %d of %d bytes", n, want)
	case n < want:
		return in.corrupt("compressed data", e.pa, "LZ4 data end after %d of %d bytes", n, want)
	}
	return nil
}
