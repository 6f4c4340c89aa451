package erofs

import (
	"errors"
	"io/fs"
)

// Bounds of a walk. Linux can't name a file deeper or longer than 4096 bytes
// at once, and mkfs.erofs reads its source by such names.
const (
	maxDepth = 4096
	maxPath  = 64 << 10
)

// maxCompression is how many bytes of directories a byte of the image may hold.
// The nids in entries differ, so that none compresses better.
const maxCompression = 256

// Walk calls fn for every entry of the tree but "." and "..", the root first
// as ".", a directory before what is in it, in the order of the directories.
// Paths are relative, with slashes; names can be any bytes. Hard links come
// once for each name. When fn returns fs.SkipDir for a directory, its entries
// are left out; any other error ends the walk.
//
// The walk is bounded by the size of the image: a directory that is met twice
// is ErrCorrupt, and so are directories that together are larger than the
// image can hold.
//
// Errors: what fn returned, those of the format, or what the device returned.
func (im *Image) Walk(fn func(path string, in *Inode) error) error {
	w := walk{im: im, visit: newTraversal(im), fn: fn}
	root, err := im.Root()
	if err != nil {
		return err
	}
	return w.enter(".", root, 0)
}

type walk struct {
	im    *Image
	visit *traversal
	fn    func(path string, in *Inode) error
}

// enter reports an inode and walks on below a directory.
func (w *walk) enter(path string, in *Inode, depth int) error {
	err := w.fn(path, in)
	if errors.Is(err, fs.SkipDir) && in.IsDir() {
		return nil
	}
	if err != nil || !in.IsDir() {
		return err
	}
	if err := w.visit.directory(in, path, depth); err != nil {
		return err
	}
	var failed error
	err = in.ReadDir(0, func(d Dirent) bool {
		if d.Name == "." || d.Name == ".." {
			return true
		}
		child, err := w.im.Inode(d.NID)
		if err != nil {
			failed = err
			return false
		}
		failed = w.enter(join(path, d.Name), child, depth+1)
		return failed == nil
	})
	if failed != nil {
		return failed
	}
	return err
}

// join is path.Join for a name that can't be cleaned away.
func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

// traversal bounds the work of visiting directories in an untrusted image:
// each only once, and all of them no larger than the image can hold.
type traversal struct {
	seen   map[uint64]struct{} // nids of the directories met: at most one for 32 bytes of image
	budget int64               // bytes of directory data left
}

func newTraversal(im *Image) *traversal {
	return &traversal{seen: make(map[uint64]struct{}), budget: im.size}
}

// directory admits a directory at path, depth levels below the root.
func (t *traversal) directory(in *Inode, path string, depth int) error {
	const op = "directory"
	if depth > maxDepth || len(path) > maxPath {
		return in.unsupported(op, "a path of %d levels and %d bytes", depth, len(path))
	}
	if _, ok := t.seen[in.NID]; ok {
		return in.corrupt(op, noOffset, "it has more than one name, or contains itself")
	}
	t.seen[in.NID] = struct{}{}
	size := in.Size
	if in.Layout.Compressed() {
		size /= maxCompression
	}
	if size > t.budget {
		return in.corrupt(op, noOffset, "the directories have more data than the image")
	}
	t.budget -= size
	return nil
}
