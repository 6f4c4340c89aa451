package erofs

import "sync"

const (
	// zBatch bounds how many pclusters are read at once.
	zBatch = 256
	// zAlone is the size in bytes from where on a pcluster of which only a part is
	// wanted is read by itself, by one reader for all that wait for it.
	zAlone = 256 << 10
)

// zRead is one call of readCompressed: bytes [off, end) of the file to p.
type zRead struct {
	in       *Inode
	z        *zState
	p        []byte
	off, end int64
	strict   bool // pclusters must end with their extents
	batch    [zBatch]zExtent
}

var zReads = sync.Pool{New: func() any { return new(zRead) }}

// readCompressed fills p from offset off of a compressed inode. The caller
// guarantees 0 <= off and off+len(p) <= in.Size, and len(p) > 0. It returns
// how many bytes precede an error.
//
// Neighbouring pclusters are read from the device at once and decoded straight
// into p, by several goroutines where it pays. Those of which p wants only a
// part are decoded in the image's DecodedCache.
//
// Work is bounded by len(p), for an extent in the middle of which p starts or
// ends disk.PclusterMaxSize read and disk.PclusterMaxDecoded decoded, and for
// parts of pclusters one of disk.PclusterMaxSize read for each partialMin bytes.
// Memory is bounded by 2 * zReadMax and the cache.
//
// strict refuses pclusters that don't end with their extents, of those that are
// in p as a whole; see wholeExtents.
func (in *Inode) readCompressed(p []byte, off int64, strict bool) (int, error) {
	z, err := in.compression()
	if err != nil {
		return 0, err
	}
	r := zReads.Get().(*zRead)
	r.in, r.z, r.p, r.off, r.end, r.strict = in, z, p, off, off+int64(len(p)), strict
	done, err := r.read()
	r.in, r.z, r.p = nil, nil, nil
	zReads.Put(r)
	return int(max(done-off, 0)), err
}

// read returns where in the file it got to.
func (r *zRead) read() (int64, error) {
	m := zMapper{in: r.in, z: r.z}
	e, err := m.first(r.off)
	done := r.off
	for err == nil {
		batch, size := r.batch[:0], int64(0)
		for err == nil && r.joins(batch, size, &e) {
			batch = append(batch, e)
			if size += e.plen; e.end >= r.end {
				break
			}
			e, err = m.extent() // an error is met after what precedes it
		}
		if len(batch) > 0 {
			var batchErr error
			if done, batchErr = r.decodeBatch(batch, size); batchErr != nil {
				return done, batchErr
			}
		} else {
			if err = r.alone(&e); err != nil {
				return max(e.la, r.off), err
			}
			if done = e.end; done < r.end {
				e, err = m.extent()
			}
		}
		if done >= r.end {
			return r.end, nil
		}
	}
	return done, err
}

// joins reports whether extent e is read together with those of batch, whose
// pclusters have size bytes.
func (r *zRead) joins(batch []zExtent, size int64, e *zExtent) bool {
	if !e.stored() || e.inline || r.partly(e) && (e.plen >= zAlone || r.inCache(e)) {
		return false
	}
	if len(batch) == 0 {
		return true
	}
	return len(batch) < zBatch && e.pa == batch[0].pa+size && size+e.plen <= zReadMax
}

// partly reports whether p wants only a part of what a pcluster decodes to.
func (r *zRead) partly(e *zExtent) bool {
	return e.compressed() && (e.la < r.off || e.end > r.end)
}

// part is the place of extent e in p, and the first byte of e that is wanted.
func (r *zRead) part(e *zExtent) (dst []byte, skip int64) {
	return r.p[max(e.la-r.off, 0) : min(e.end, r.end)-r.off], max(r.off-e.la, 0)
}

// alone reads extent e by itself.
func (r *zRead) alone(e *zExtent) error {
	in := r.in
	dst, skip := r.part(e)
	switch {
	case e.kind == zHole:
		clear(dst)
		return nil
	case e.kind == zPacked:
		if n, err := in.im.packed.ReadAt(dst, e.pa+skip); n < len(dst) {
			return &FormatError{Op: "fragment", NID: in.NID, Off: e.la, Err: err}
		}
		return nil
	case r.partly(e):
		return r.viaCache(e, nil)
	}
	src, buf, err := in.pcluster(e)
	if err == nil {
		err = r.decode(e, src)
	}
	if buf != nil {
		buf.put()
	}
	return err
}

// pcluster reads the pcluster of an extent. The caller puts buf back, if there
// is one, also after an error.
func (in *Inode) pcluster(e *zExtent) (src []byte, buf *zBuffer, err error) {
	if e.inline {
		src, err = in.area.view("inline pcluster", in.NID, e.pa, int(e.plen)) // at most a block
		return src, nil, err
	}
	return in.im.readPclusters(in, e.pa, e.plen)
}

// decodeBatch reads and decodes extents whose pclusters follow one another on
// the device, size bytes in all. It returns where in the file it got to.
func (r *zRead) decodeBatch(batch []zExtent, size int64) (int64, error) {
	src, buf, err := r.in.im.readPclusters(r.in, batch[0].pa, size)
	defer buf.put()
	if err != nil {
		return max(batch[0].la, r.off), err
	}
	first := batch[0].pa
	failed, err := zParallel(batch, func(e *zExtent) error {
		return r.decode(e, src[e.pa-first:][:e.plen:e.plen])
	})
	if err != nil {
		return max(batch[failed].la, r.off), err
	}
	return batch[len(batch)-1].end, nil
}

// decode puts what is wanted of e in its place in p. src is its pcluster.
func (r *zRead) decode(e *zExtent, src []byte) error {
	dst, skip := r.part(e)
	if e.plain() {
		plainPart(dst, src, skip, e.la, r.in.im.blkSize, e.kind == zInterlaced)
		return nil
	}
	if r.partly(e) {
		return r.viaCache(e, src)
	}
	src, err := r.in.strip(e, src)
	if err != nil {
		return err
	}
	var d zDecoder
	defer d.stop()
	n := 0
	if err = d.start(e.kind, src, e.partial); err == nil {
		n, err = d.decode(dst, 0)
	}
	if err == nil && n < len(dst) {
		err = errShort
	}
	if err == nil && r.strict && !e.partial && !d.finished(src) {
		err = errLong
	}
	return r.in.badData(e, err)
}
