package metaimage

import (
	"errors"
	"io"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
	"github.com/erofs-csi/erofs-csi/erofs/internal/encode"
)

// errChanged says that the second pass saw something else than the first.
var errChanged = errors.New("metadata image: the image or its content paths changed while it was read")

// emit is the second pass: it writes META by plan.
func (b *builder) emit(w io.WriterAt, p *plan) error {
	source := b.im.Superblock()
	sb := encode.Superblock{
		RootNID:       uint16(b.recs[0].slot), //nolint:gosec // in the first block of the inodes
		Inodes:        uint64(len(b.recs)),
		BuildTime:     source.BuildTime,
		BuildTimeNsec: source.BuildTimeNsec,
		Blocks:        uint32(p.blocks()),    //nolint:gosec // checked by arrange
		MetaBlock:     uint32(p.metaBlock()), //nolint:gosec // less than blocks
		UUID:          deriveUUID(source.UUID),
		VolumeName:    volumeName,
	}
	if b.files > 0 {
		sb.Incompat = disk.IncompatChunkedFile
	}
	out := encode.NewStream(w, 0, sb.Seal)
	out.PadTo(encode.SuperEnd)
	out.Write(b.pool.Area())

	e := &emitter{builder: b, plan: p, w: w, out: out, cur: encode.Cursor{Pos: p.first}}
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
	out.PadTo(p.dirBlock << encode.BlockBits)
	return out.Flush()
}

// emitter writes inodes one after the other.
type emitter struct {
	*builder
	plan   *plan
	w      io.WriterAt
	out    *encode.Stream
	cur    encode.Cursor
	parent uint32 // of the directory in hand: index into recs
	packer encode.DirPacker
	xattrs encode.Body
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
	_, body := e.pool.Split(ids)
	at := e.place(&e.cur, r, body)
	f := encode.Inode{
		Layout: erofs.FlatPlain, Mode: in.Mode, UID: in.UID, GID: in.GID, Nlink: in.Nlink,
		MtimeSec: in.MtimeSec, MtimeNsec: in.MtimeNsec,
		XattrSize: body, Ino: uint32(i) + 1, //nolint:gosec // checked by scan
	}
	if at.Inline {
		f.Layout = erofs.FlatInline
	}
	switch r.typ {
	case erofs.TypeRegular:
		f.Size = uint64(in.Size) //nolint:gosec // checked by scan
		if r.tail > 0 {
			f.Layout = erofs.ChunkBased
			f.U, _ = chunkFormat(in.Size)
		}
	case erofs.TypeDir, erofs.TypeSymlink:
		f.Size = uint64(r.tail)
		if at.Blocks > 0 {
			f.U = uint32(e.plan.dirBlock + at.Block) //nolint:gosec // checked by arrange
		}
	default:
		f.U = in.Rdev
	}
	e.out.PadTo(at.Pos)
	e.buf = f.Append(e.buf[:0])
	if e.buf, err = e.appendXattrs(e.buf, in, ids); err != nil {
		return err
	}
	if int64(len(e.buf)) != encode.InodeSize+body {
		return errChanged
	}
	e.out.Write(e.buf)

	tail, err := e.data(in, r, at)
	if err != nil {
		return err
	}
	e.out.Write(tail)
	if e.out.Pos() != at.End {
		return errChanged
	}
	return e.out.Err()
}

// appendXattrs appends the xattr body.
func (e *emitter) appendXattrs(dst []byte, in *erofs.Inode, ids []uint32) ([]byte, error) {
	if len(ids) == 0 {
		return dst, nil
	}
	e.xattrs.Reset()
	n := 0
	err := e.attrs(in, func(enc []byte) error {
		if n >= len(ids) || len(enc) != e.pool.Size(ids[n]) {
			return errChanged
		}
		e.xattrs.Add(&e.pool, ids[n], enc, encode.SuperEnd)
		n++
		return nil
	}, func(string) error { return errChanged })
	if err == nil && n != len(ids) {
		err = errChanged
	}
	return e.xattrs.Append(dst), err
}

// data writes the data blocks of an inode and returns what goes behind it.
func (e *emitter) data(in *erofs.Inode, r *record, at encode.Place) ([]byte, error) {
	switch r.typ {
	case erofs.TypeRegular:
		e.buf = e.buf[:0]
		if r.tail > 0 {
			e.out.PadTo(encode.Align(e.out.Pos(), chunkSize))
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
func (e *emitter) dir(in *erofs.Inode, r *record, at encode.Place) ([]byte, error) {
	e.packer.Size = encode.DirSize{}
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
		block := e.packer.Add(d.name, uint64(to.slot), to.typ)
		if block == nil {
			return nil
		}
		n++
		return e.block(block, at, n-1)
	})
	if err != nil {
		return nil, err
	}
	if e.packer.Size.Bytes() != int64(r.tail) {
		return nil, errChanged
	}
	return e.last(e.packer.Last(), at, n)
}

// last writes the last, maybe partial block of data as data block n, or returns
// it if it goes behind the inode.
func (e *emitter) last(data []byte, at encode.Place, n int64) ([]byte, error) {
	if at.Inline {
		return data, nil
	}
	var block [encode.BlockSize]byte
	copy(block[:], data)
	return nil, e.block(block[:], at, n)
}

// block writes data block n of an inode.
func (e *emitter) block(data []byte, at encode.Place, n int64) error {
	if n >= at.Blocks {
		return errChanged
	}
	_, err := e.w.WriteAt(data, (e.plan.dirBlock+at.Block+n)<<encode.BlockBits)
	return err
}
