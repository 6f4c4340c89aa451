package erofs

// key names the pcluster of e among those of all images.
func (r *zRead) key(e *zExtent) zKey {
	in := r.in
	return zKey{
		image: in.im.id, pa: e.pa, plen: e.plen, kind: e.kind,
		metabox: e.inline && in.area == in.im.metabox,
	}
}

// inCache reports whether viaCache would surely not read the pcluster of e.
func (r *zRead) inCache(e *zExtent) bool {
	c := r.in.im.decoded
	entry := c.acquire(r.key(e), false)
	if entry == nil {
		return false
	}
	defer c.release(entry, false)
	dst, skip := r.part(e)
	entry.mu.RLock()
	defer entry.mu.RUnlock()
	return entry.dec.started() || skip+int64(len(dst)) <= entry.n
}

// viaCache puts what is wanted of e in its place in p by way of the cache. src
// is its pcluster; nil: it is read if it has to be.
func (r *zRead) viaCache(e *zExtent, src []byte) error {
	c := r.in.im.decoded
	entry := c.acquire(r.key(e), true)
	drop := true // also when a codec panics
	defer func() { c.release(entry, drop) }()
	dst, skip := r.part(e)
	if !entry.copy(dst, skip) {
		if err := r.decodeInto(entry, e, dst, skip, src); err != nil {
			return err
		}
	}
	drop = false
	return nil
}

// decodeInto decodes e as far as is wanted and copies that.
func (r *zRead) decodeInto(entry *zEntry, e *zExtent, dst []byte, skip int64, src []byte) error {
	entry.mu.Lock()
	defer entry.mu.Unlock()
	in, need := r.in, skip+int64(len(dst))
	ok, err := entry.fill(e, need, nil)
	if !ok && err == nil {
		if src == nil {
			var buf *zBuffer
			src, buf, err = in.pcluster(e)
			if buf != nil {
				defer buf.put()
			}
			if err != nil {
				return err
			}
		}
		if src, err = in.strip(e, src); err != nil {
			return err
		}
		_, err = entry.fill(e, need, src)
	}
	if err != nil {
		return in.badData(e, err)
	}
	in.im.decoded.account(entry, entry.held())
	copy(dst, entry.buf.b[skip:])
	return nil
}

// strip removes the zeros in front of a compressed pcluster, less than a block
// of them: no codec's data start with a zero byte. Images without the 0padding
// feature have none there.
//
// Source: z_erofs_fixup_insize in fs/erofs/decompressor.c of Linux 7.2.
func (in *Inode) strip(e *zExtent, src []byte) ([]byte, error) {
	for i := range src[:min(int64(len(src)), in.im.blkSize)] {
		if src[i] != 0 {
			return src[i:], nil
		}
	}
	return nil, in.corrupt("compressed data", e.pa, "zeros instead of compressed data")
}

// badData turns an error of decoding e into one of the format.
func (in *Inode) badData(e *zExtent, err error) error {
	if err == nil {
		return nil
	}
	return in.corrupt("compressed data", e.pa, "%s data are invalid: %v", algorithmNames[e.kind], err)
}

// plainPart copies len(dst) bytes, from byte skip of the extent on, out of a
// plain pcluster; the extent starts at la and fits in src. Shifted data start
// with the pcluster. Interlaced data keep their place in the block, and those
// that would come behind it are in front.
//
// Source: z_erofs_transform_plain in fs/erofs/decompressor.c of Linux 7.2.
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
