package erofs

import (
	"io"
)

// ReadAt reads the data of a regular file, or the raw data of a directory or
// symbolic link. It is the ReadAt of io.ReaderAt: n < len(p) comes with an
// error, io.EOF at the end; all of p may be used as scratch space; calls may
// be concurrent and take no lock.
//
// Uncompressed data are read straight into p, a contiguous run in one ReadAt
// of the device. Where off is a multiple of the block size, so are the
// addresses read; where p has room for it, a read at the end of a file covers
// the whole of its last block.
//
// Errors: ErrInvalid for a negative offset or a type of file without data,
// those of the format, or what the device returned.
func (in *Inode) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fail(ErrInvalid, "data", in.NID, off, "negative offset")
	}
	switch in.Mode & modeFmt {
	case modeRegular, modeDir, modeSymlink:
	default:
		return 0, fail(ErrInvalid, "data", in.NID, noOffset, "mode %#o has no data", in.Mode)
	}
	if off >= in.Size {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	want := min(int64(len(p)), in.Size-off)
	if in.Layout.Compressed() {
		n, err := in.readCompressed(p[:want], off, false)
		return n, eof(err, int64(n), int64(len(p)))
	}
	n, err := in.readRaw(p, off, want)
	return int(n), eof(err, n, int64(len(p)))
}

// eof is the error of a ReadAt that read n of want bytes.
func eof(err error, n, want int64) error {
	if err == nil && n < want {
		return io.EOF
	}
	return err
}

// readRaw reads want bytes of uncompressed data, 0 < want <= len(p). The rest
// of p is scratch space. It returns how many bytes precede an error.
func (in *Inode) readRaw(p []byte, off, want int64) (int64, error) {
	im := in.im
	var done int64
	for done < want {
		e, err := in.extentAt(off+done, want-done)
		if err != nil {
			return done, err
		}
		n := min(e.n, want-done)
		switch e.kind {
		case extentHole:
			clear(p[done : done+n])
		case extentTail:
			err = in.area.read("inline data", in.NID, p[done:done+n], e.addr)
		case extentData:
			err = im.readData(in, p[done:done+in.padded(e, n, off+done, int64(len(p))-done)], e.dev, e.addr)
		}
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// padded is how many bytes to read for the n first bytes of a run at offset
// off: up to the end of the block where the run ends with the file, so that
// the length stays aligned, if p has room and the device reaches so far.
func (in *Inode) padded(e extent, n, off, room int64) int64 {
	if off+n != in.Size {
		return n
	}
	full := roundUp(e.addr+n, in.im.blkSize) - e.addr
	if full <= n || full > room {
		return n
	}
	_, _, left, err := in.im.mapDevice(in.NID, e.dev, e.addr)
	if err != nil || full > left {
		return n
	}
	return full
}

// Extent describes a run of a file's data as lseek(2) does with SEEK_HOLE.
type Extent struct {
	Off  int64
	Len  int64 // at least 1
	Hole bool  // zeros that are stored nowhere
}

// Extent returns the run that holds off, from off on: a hole, or data up to
// the next hole, though maybe less. At the end of the file the error is io.EOF.
//
// A hole of any length costs the image only a few bytes, so whoever reads
// untrusted files whole should skip holes by this.
func (in *Inode) Extent(off int64) (Extent, error) {
	if off < 0 {
		return Extent{}, fail(ErrInvalid, "data", in.NID, off, "negative offset")
	}
	if off >= in.Size {
		return Extent{}, io.EOF
	}
	if in.Layout.Compressed() {
		return in.compressedRun(off)
	}
	e, err := in.extentAt(off, extentWant)
	if err != nil {
		return Extent{}, err
	}
	return Extent{Off: off, Len: e.n, Hole: e.kind == extentHole}, nil
}

// extentWant bounds how far Extent looks for the end of a run, in bytes.
const extentWant = 64 << 20

// compressedRun is Extent for a compressed inode.
func (in *Inode) compressedRun(off int64) (Extent, error) {
	z, err := in.compression()
	if err != nil {
		return Extent{}, err
	}
	m := zMapper{in: in, z: z}
	e, err := m.first(off)
	if err != nil {
		return Extent{}, err
	}
	run := Extent{Off: off, Len: e.end - off, Hole: e.kind == zHole}
	for e.end < in.Size && run.Len < extentWant {
		if e, err = m.extent(); err != nil || (e.kind == zHole) != run.Hole {
			break // an error is met again when the next run is asked for
		}
		run.Len = e.end - off
	}
	return run, nil //nolint:nilerr // what is known of the run is right
}
