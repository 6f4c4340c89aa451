package erofs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
)

// VerifyStats counts what Verify has checked.
type VerifyStats struct {
	Inodes       uint64 `json:"inodes"`       // distinct ones
	Dirents      uint64 `json:"dirents"`      // with "." and ".."
	Xattrs       uint64 `json:"xattrs"`       // of distinct inodes, as Inode.Xattrs lists them
	Bytes        uint64 `json:"bytes"`        // of file data that was read, without holes
	Holes        uint64 `json:"holes"`        // bytes of file data that are stored nowhere
	Fingerprints uint64 `json:"fingerprints"` // of the image itself, that were compared
	Uncompared   uint64 `json:"uncompared"`   // fingerprints of files with too large holes
	Findings     uint64 `json:"findings"`
}

// Verify reads and checks everything that can be reached in the image: inodes,
// directories with the order of their names, "." and "..", the types in
// entries, links, attributes with their names and the filter of those, all data,
// the special inodes, and the fingerprints that the image itself carries. It goes
// on after a finding, which it reports with the path and an error of this package
// or of the device.
//
// It is stricter than a reader: compressed data must end where their extent
// ends, and the distances in indexes that only other readers follow must be
// right. It does not count links, nor look for blocks that nothing names.
//
// The time it takes is bounded by the size of the image for directories and
// holes, but for data only by what the inodes claim: many can name the same
// blocks. It ends early with ctx.
//
// Errors: only ctx.Err(); all else is reported.
func Verify(ctx context.Context, im *Image, report func(path string, err error)) (VerifyStats, error) {
	v := verifier{
		ctx: ctx, im: im, visit: newTraversal(im), report: report,
		done: make(map[uint64]struct{}), buf: make([]byte, verifyChunk),
		zeros: im.size*maxCompression + verifyZeros,
	}
	if err := im.CheckDevices(); err != nil {
		v.finding(".", err)
	}
	root, err := im.Root()
	if err != nil {
		v.finding(".", err)
		return v.stats, ctx.Err()
	}
	v.prefixes()
	v.special("packed inode", im.sb.PackedNID)
	v.special("metabox", im.sb.MetaboxNID)
	v.enter(".", root, root, 0)
	return v.stats, ctx.Err()
}

const (
	// verifyChunk is how many bytes of file data are read at once.
	verifyChunk = 1 << 20
	// verifyZeros is how many bytes of holes are hashed for fingerprints in any
	// image, in addition to what a compressed image could hold.
	verifyZeros = 64 << 20
)

type verifier struct {
	ctx    context.Context
	im     *Image
	visit  *traversal
	report func(path string, err error)
	done   map[uint64]struct{} // nids of inodes that were checked, but directories
	buf    []byte
	zeros  int64 // bytes of holes that may still be hashed
	stats  VerifyStats
}

func (v *verifier) finding(path string, err error) {
	v.stats.Findings++
	v.report(path, err)
}

// special checks the data of an inode that holds those of others, if there is
// one. The image was opened, so it can be read.
func (v *verifier) special(path string, nid uint64) {
	if nid == 0 {
		return
	}
	in, err := v.im.Inode(nid)
	if err != nil {
		v.finding(path, err)
		return
	}
	v.clusters(path, in)
}

// enter checks an inode and all below it.
func (v *verifier) enter(path string, in, parent *Inode, depth int) {
	if v.ctx.Err() != nil {
		return
	}
	if in.IsDir() {
		if err := v.visit.directory(in, path, depth); err != nil {
			v.finding(path, err)
			return
		}
	} else if _, ok := v.done[in.NID]; ok {
		return
	} else {
		v.done[in.NID] = struct{}{}
	}
	v.stats.Inodes++
	v.xattrs(path, in)
	switch in.Type() {
	case TypeRegular:
		v.data(path, in)
	case TypeSymlink:
		if _, err := in.Readlink(); err != nil {
			v.finding(path, err)
			return
		}
		v.clusters(path, in)
	case TypeDir:
		v.clusters(path, in)
		v.directory(path, in, parent, depth)
	default: // has no data
	}
}

// directory checks the entries of a directory and what they name.
func (v *verifier) directory(path string, in, parent *Inode, depth int) {
	var dot, dotdot bool
	err := in.ReadDir(0, func(d Dirent) bool {
		v.stats.Dirents++
		switch d.Name {
		case ".":
			v.dots(path, in, d, in.NID, &dot)
			return true
		case "..":
			v.dots(path, in, d, parent.NID, &dotdot)
			return true
		}
		name := join(path, d.Name)
		child, err := v.im.Inode(d.NID)
		switch {
		case err != nil:
			v.finding(name, err)
			return true
		case child.Type() != d.Type:
			v.finding(name, in.corrupt("directory", noOffset,
				"the entry %q says %s, its inode %d %s", d.Name, d.Type, d.NID, child.Type()))
		}
		v.enter(name, child, in, depth+1)
		return v.ctx.Err() == nil
	})
	if err != nil {
		v.finding(path, err)
		return
	}
	if v.ctx.Err() == nil && (!dot || !dotdot) {
		v.finding(path, in.corrupt("directory", noOffset, `"." or ".." is missing`))
	}
}

// dots checks the entry "." or ".." of the directory in. Names are in order, so
// that one is there twice only where it should not be stored at all.
func (v *verifier) dots(path string, in *Inode, d Dirent, want uint64, seen *bool) {
	if *seen {
		v.finding(path, in.corrupt("directory", noOffset, "%q is there twice", d.Name))
	}
	*seen = true
	if d.NID != want || d.Type != TypeDir {
		v.finding(path, in.corrupt("directory", noOffset, "%q is %s %d, not directory %d", d.Name, d.Type, d.NID, want))
	}
}

// data reads a regular file but for its holes, and compares the fingerprint
// that the image carries for it.
func (v *verifier) data(path string, in *Inode) {
	want, ok, err := in.ImageFingerprint()
	if err != nil {
		v.finding(path, err)
	}
	var sum hash.Hash // nil when there is nothing to compare
	if ok {
		sum = sha256.New()
	}
	sum, err = v.read(in, sum)
	if err != nil {
		v.finding(path, err)
		return
	}
	if sum == nil || v.ctx.Err() != nil {
		return
	}
	v.stats.Fingerprints++
	if got := sum.Sum(nil); !bytes.Equal(got, want) {
		v.finding(path, in.corrupt("fingerprint", noOffset, "the image says sha256:%x, the data are sha256:%x", want, got))
	}
}

// clusters reads the data of an inode that is no regular file, if they are
// compressed. Others are read by who needs them.
func (v *verifier) clusters(path string, in *Inode) {
	if !in.Layout.Compressed() {
		return
	}
	before := v.stats
	_, err := v.read(in, nil)
	v.stats.Bytes, v.stats.Holes = before.Bytes, before.Holes // they are no file's
	if err != nil {
		v.finding(path, err)
	}
}

// read reads the data of an inode but for its holes. It returns the hash, if
// there is one, with all of them added, or nil where the holes are too large.
func (v *verifier) read(in *Inode, sum hash.Hash) (hash.Hash, error) {
	for off := int64(0); off < in.Size && v.ctx.Err() == nil; {
		e, err := in.Extent(off)
		if err == nil && e.Hole {
			sum = v.hole(sum, e.Len)
		} else if err == nil {
			err = v.extent(in, sum, e)
		}
		if err != nil {
			return nil, err
		}
		off += e.Len
	}
	if in.Layout.Compressed() && in.Size > 0 {
		return sum, in.checkDistances(v.ctx)
	}
	return sum, nil
}

// extent reads a run of data, in whole chunks, or in whole clusters.
func (v *verifier) extent(in *Inode, sum hash.Hash, e Extent) error {
	for off, end := e.Off, e.Off+e.Len; off < end && v.ctx.Err() == nil; {
		n, err := v.chunk(in, off, min(end-off, verifyChunk))
		if n == 0 || err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		v.stats.Bytes += uint64(n)
		if sum != nil {
			sum.Write(v.buf[:n])
		}
		off += int64(n)
	}
	return nil
}

// chunk reads about size bytes of data to buf.
func (v *verifier) chunk(in *Inode, off, size int64) (int, error) {
	if !in.Layout.Compressed() {
		return in.ReadAt(v.buf[:size], off)
	}
	size, err := in.wholeExtents(off, size)
	if err != nil {
		return 0, err
	}
	if size > int64(len(v.buf)) {
		v.buf = make([]byte, size) // at most disk.PclusterMaxDecoded
	}
	return in.readStrict(v.buf[:size], off)
}

// hole adds n zero bytes to the hash, if there is one. It returns nil instead
// of the hash when those are more than may be hashed.
func (v *verifier) hole(sum hash.Hash, n int64) hash.Hash {
	v.stats.Holes += uint64(n)
	if sum == nil {
		return nil
	}
	if n > v.zeros {
		v.stats.Uncompared++
		return nil
	}
	v.zeros -= n
	clear(v.buf)
	for n > 0 && v.ctx.Err() == nil {
		k := min(n, verifyChunk)
		sum.Write(v.buf[:k])
		n -= k
	}
	return sum
}
