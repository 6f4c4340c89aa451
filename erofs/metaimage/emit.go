package metaimage

import (
	"encoding/binary"
	"errors"
	"io"

	"github.com/erofs-csi/erofs-csi/erofs"
)

// errChanged says that the second pass saw something else than the first.
var errChanged = errors.New("metadata image: the image or its content paths changed while it was read")

// emit is the second pass: it writes META by plan.
func (b *builder) emit(w io.WriterAt, p *plan) error {
	source := b.im.Superblock()
	sb := superblock{
		chunked:   b.files > 0,
		rootNID:   uint16(b.recs[0].slot), //nolint:gosec // in the first block of the inodes
		inodes:    uint64(len(b.recs)),
		blocks:    uint32(p.blocks()),    //nolint:gosec // checked by arrange
		metaBlock: uint32(p.metaBlock()), //nolint:gosec // less than blocks
		source:    &source,
	}
	out := &stream{w: w, first: sb.seal}
	out.padTo(superOff + superSize)
	out.write(b.pool.area)

	e := &emitter{builder: b, plan: p, out: out, cur: cursor{pos: p.first}}
	dirs := 0
	for i := range b.recs {
		if i%1024 == 0 {
			if err := b.ctx.Err(); err != nil {
				return err
			}
		}
		if b.recs[i].typ == erofs.TypeDir {
			e.parent = b.parents[dirs]
			dirs++
		}
		if err := e.inode(i); err != nil {
			return err
		}
	}
	out.padTo(p.dirBlock << blockBits)
	return out.flush()
}

// emitter writes inodes one after the other.
type emitter struct {
	*builder
	plan   *plan
	out    *stream
	cur    cursor
	parent uint32 // of the directory in hand: index into recs
	packer dirPacker
	buf    []byte
}

// inode writes recs[i] and what belongs to it.
func (e *emitter) inode(i int) error {
	r := &e.recs[i]
	in, err := e.im.Inode(r.nid)
	if err != nil {
		return err
	}
	ids := e.idsOf(i)
	shared, body := e.pool.split(ids)
	at := e.cur.next(r.typ, inodeSize+body, int64(r.tail))
	f := inodeFields{layout: erofs.FlatPlain, xattrSize: body, ino: uint32(i) + 1} //nolint:gosec // checked by scan
	if at.inline {
		f.layout = erofs.FlatInline
	}
	switch r.typ {
	case erofs.TypeRegular:
		f.size = uint64(in.Size) //nolint:gosec // checked by scan
		if r.tail > 0 {
			f.layout = erofs.ChunkBased
			f.u, _ = chunkFormat(in.Size)
		}
	case erofs.TypeDir, erofs.TypeSymlink:
		f.size = uint64(r.tail)
		if at.blocks > 0 {
			f.u = uint32(e.plan.dirBlock + at.block) //nolint:gosec // checked by arrange
		}
	default:
		f.u = in.Rdev
	}
	e.out.padTo(at.pos)
	e.buf = appendInode(e.buf[:0], in, f)
	if e.buf, err = e.appendXattrs(e.buf, in, ids, shared); err != nil {
		return err
	}
	if int64(len(e.buf)) != inodeSize+body {
		return errChanged
	}
	e.out.write(e.buf)

	tail, err := e.data(in, r, at)
	if err != nil {
		return err
	}
	e.out.write(tail)
	if e.out.pos() != at.end {
		return errChanged
	}
	return e.out.err
}

// appendXattrs appends the xattr body: the addresses of the shared attributes in
// units of 4 bytes, then the others.
func (e *emitter) appendXattrs(dst []byte, in *erofs.Inode, ids []uint32, shared int) ([]byte, error) {
	if len(ids) == 0 {
		return dst, nil
	}
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, 0)                        // the name filter, which no feature bit announces
	dst = append(dst, byte(shared), 0, 0, 0, 0, 0, 0, 0) //nolint:gosec // at most maxSharedPerIno
	isInline := make([]bool, 0, len(ids))
	for _, id := range ids {
		inline := e.pool.shared[id] == 0 || shared == 0
		if !inline {
			dst = le.AppendUint32(dst, (superOff+superSize+e.pool.shared[id]-1)/4)
			shared--
		}
		isInline = append(isInline, inline)
	}
	n := 0
	err := e.attrs(in, func(enc []byte) error {
		if n >= len(ids) || len(enc) != int(e.pool.size[ids[n]]) {
			return errChanged
		}
		if isInline[n] {
			dst = append(dst, enc...)
		}
		n++
		return nil
	}, func(string) error { return errChanged })
	if err == nil && n != len(ids) {
		err = errChanged
	}
	return dst, err
}

// data writes the data blocks of an inode and returns what goes behind it.
func (e *emitter) data(in *erofs.Inode, r *record, at place) ([]byte, error) {
	switch r.typ {
	case erofs.TypeRegular:
		e.buf = e.buf[:0]
		if r.tail > 0 {
			e.out.padTo(align(e.out.pos(), chunkSize))
		}
		for range r.tail {
			e.buf = appendHole(e.buf)
		}
		return e.buf, nil
	case erofs.TypeSymlink:
		target, err := in.Readlink()
		if err != nil {
			return nil, err
		}
		if len(target) != int(r.tail) {
			return nil, errChanged
		}
		return e.last([]byte(target), at, 0)
	case erofs.TypeDir:
		return e.dir(in, r, at)
	default:
		return nil, nil
	}
}

// dir packs a directory.
func (e *emitter) dir(in *erofs.Inode, r *record, at place) ([]byte, error) {
	e.packer.size = dirSize{}
	n := int64(0)
	err := entries(in, func(d entry) error {
		to := r
		switch {
		case d.name == "." && d.dots:
		case d.dots:
			to = &e.recs[e.parent]
		default:
			i, ok := e.index[d.nid]
			if !ok || i == pushed {
				return errChanged
			}
			to = &e.recs[i]
		}
		block := e.packer.add(d.name, uint64(to.slot), to.typ)
		if block == nil {
			return nil
		}
		n++
		return e.block(block, at, n-1)
	})
	if err != nil {
		return nil, err
	}
	if e.packer.size.bytes() != int64(r.tail) {
		return nil, errChanged
	}
	return e.last(e.packer.last(), at, n)
}

// last writes the last, maybe partial block of data as data block n, or returns
// it if it goes behind the inode.
func (e *emitter) last(data []byte, at place, n int64) ([]byte, error) {
	if at.inline {
		return data, nil
	}
	var block [blockSize]byte
	copy(block[:], data)
	return nil, e.block(block[:], at, n)
}

// block writes data block n of an inode.
func (e *emitter) block(data []byte, at place, n int64) error {
	if n >= at.blocks {
		return errChanged
	}
	_, err := e.out.w.WriteAt(data, (e.plan.dirBlock+at.block+n)<<blockBits)
	return err
}
