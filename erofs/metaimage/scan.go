package metaimage

import (
	"fmt"
	"math"
	"strings"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/internal/encode"
)

const (
	// pushed marks a directory in index that is known but has no record yet.
	pushed = math.MaxUint32

	maxNsec = 1e9
	pathMax = 4096 // of Linux: a link's target is shorter, a redirect as well
)

// unread is a directory that scan has yet to read, and the way to it.
type unread struct {
	in     *erofs.Inode
	name   string
	parent *unread
	rec    uint32 // from visit
}

// path builds the path of an entry of d, for messages; of a deep one, the end.
func (d *unread) path(name string) string {
	parts := []string{name}
	for n := 0; d != nil && d.parent != nil; d = d.parent {
		if n += len(d.name); n > pathMax {
			parts = append(parts, "...")
			break
		}
		parts = append(parts, d.name)
	}
	for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
		parts[i], parts[j] = parts[j], parts[i]
	}
	return strings.Join(parts, "/")
}

// scan is the first pass: it records every inode in the order it gets in META,
// which is that of a depth-first walk with the entries of a directory that are
// no directories right behind it.
//
// It ends on every image: a directory that is met twice, so also a cycle, is
// corrupt.
func (b *builder) scan() error {
	sb := b.im.Superblock()
	root, err := b.im.Inode(sb.RootNID)
	if err != nil {
		return err
	}
	if !root.IsDir() {
		return corrupt(root.NID, "the root is no directory")
	}
	b.index = map[uint64]uint32{root.NID: pushed}
	stack := []*unread{{in: root, name: "."}}
	for len(stack) > 0 {
		if err := b.ctx.Err(); err != nil {
			return err
		}
		d := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		below, err := b.visit(d)
		if err != nil {
			return err
		}
		for i := len(below) - 1; i >= 0; i-- {
			stack = append(stack, below[i])
		}
	}
	return nil
}

// visit records a directory and those of its entries that are no directories,
// and returns the others.
func (b *builder) visit(d *unread) (below []*unread, err error) {
	refuse := func(reason string) error { return needsTree(d.parent, d.name, d.in, reason) }
	if d.rec, err = b.record(d.in, refuse); err != nil {
		return nil, err
	}
	parent := d.rec // of the root, itself
	if d.parent != nil {
		parent = d.parent.rec
	}
	b.parents = append(b.parents, parent)

	var size encode.DirSize
	err = entries(d.in, func(e entry) error {
		size.Add(e.name)
		if e.dots {
			return nil
		}
		sub, err := b.child(d, e)
		if sub != nil {
			below = append(below, sub)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if size.Bytes() > math.MaxUint32 {
		return nil, refuse("is larger than 4 GiB")
	}
	b.recs[d.rec].tail = uint32(size.Bytes()) //nolint:gosec // checked
	return below, nil
}

// child records the inode of an entry if it is new, or returns it if it is a
// directory.
func (b *builder) child(d *unread, e entry) (*unread, error) {
	if i, ok := b.index[e.nid]; ok {
		if i == pushed || b.recs[i].typ == erofs.TypeDir {
			return nil, corrupt(e.nid, "directory with two names, one of them %q", d.path(e.name))
		}
		return nil, nil // a hard link
	}
	if len(b.index)%1024 == 0 {
		if err := b.ctx.Err(); err != nil {
			return nil, err
		}
	}
	in, err := b.im.Inode(e.nid)
	if err != nil {
		return nil, err
	}
	if in.IsDir() {
		b.index[in.NID] = pushed
		return &unread{in: in, name: e.name, parent: d}, nil
	}
	_, err = b.record(in, func(reason string) error { return needsTree(d, e.name, in, reason) })
	return nil, err
}

func needsTree(d *unread, name string, in *erofs.Inode, reason string) error {
	return &NeedsTreeError{NID: in.NID, Path: d.path(name), Reason: reason}
}

// record appends the record of in, whose fields it checks.
func (b *builder) record(in *erofs.Inode, refuse func(reason string) error) (uint32, error) {
	t := encode.DirentType(in.Mode)
	r := record{nid: in.NID, typ: t, xattr: uint32(len(b.ids))} //nolint:gosec // bounded below
	switch {
	case t == erofs.TypeUnknown || in.Mode >= 1<<16:
		return 0, corrupt(in.NID, "mode %#o", in.Mode)
	case in.MtimeNsec >= maxNsec:
		return 0, corrupt(in.NID, "%d nanoseconds", in.MtimeNsec)
	case in.Size < 0:
		return 0, corrupt(in.NID, "size %d", in.Size)
	case in.Nlink == 0:
		return 0, refuse("has no links, for which kernels refuse it")
	case t == erofs.TypeChar && in.Rdev == 0:
		return 0, refuse("is a character device 0:0, a deleted file to overlayfs")
	case t == erofs.TypeSymlink && in.Size >= pathMax:
		return 0, refuse(fmt.Sprintf("is a link with a target of %d bytes", in.Size))
	case t == erofs.TypeSymlink:
		r.tail = uint32(in.Size) //nolint:gosec // checked
	case t == erofs.TypeRegular && in.Size > chunkSpan*maxChunks:
		return 0, refuse(fmt.Sprintf("has %d bytes", in.Size))
	case t == erofs.TypeRegular && in.Size > 0:
		_, chunks := chunkFormat(in.Size)
		r.tail = uint32(chunks) //nolint:gosec // at most maxChunks
		b.files++
	}

	err := b.attrs(in, func(enc []byte) error {
		b.ids = append(b.ids, b.pool.Intern(enc))
		return nil
	}, refuse)
	if err != nil {
		return 0, err
	}
	if len(b.ids) >= math.MaxUint32 || len(b.recs) >= pushed {
		return 0, refuse("is one inode or attribute too many")
	}
	i := uint32(len(b.recs)) //nolint:gosec // checked
	b.recs = append(b.recs, r)
	b.index[in.NID] = i
	return i, nil
}

// checkContentPath refuses a path that overlayfs would not follow below its
// data-only layer (fs/overlayfs/util.c, ovl_get_redirect_xattr).
func checkContentPath(in *erofs.Inode, path string) error {
	rest, ok := strings.CutPrefix(path, "/")
	ok = ok && len(path) < pathMax && !strings.Contains(path, "\x00")
	for part := range strings.SplitSeq(rest, "/") {
		ok = ok && part != "" && part != "." && part != ".." && len(part) <= encode.MaxName
	}
	if !ok {
		return fmt.Errorf("metadata image: %q is no path in the content mount (nid %d)", path, in.NID)
	}
	return nil
}
