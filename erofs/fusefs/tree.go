package fusefs

import (
	"fmt"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/share"
)

// tree is an image shown as a directory tree. Its nodes are not kept: a node id
// names the image and the inode number, and each request reads the inode from the image's
// metadata cache.
type tree struct {
	slot   uint32
	root   uint64 // inode number
	member *share.Member
	super  erofs.Superblock
	dirs   []string // where its content is; of a Passthrough alone

	mu   sync.Mutex
	read map[uint64]*treeFile // unmerged files that were read, by inode number; GUARDED_BY(mu)
}

// treeFile is a file of a tree that shares its kernel inode with no other.
type treeFile struct {
	size int64
	use  share.Use
}

// size is the size in bytes of a file that was read.
func (t *tree) size(ino uint64) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.read[ino]; r != nil {
		return r.size
	}
	return 0
}

// AddTree shows an image of the domain below the root, as the tree returned, which
// RemoveTree takes away.
//
// It fails when the superblock has shown 2^18-1 trees.
func (f *FS) AddTree(m *share.Member) (Tree, error) {
	t, err := f.trees.add(m)
	return Tree(t), err
}

// RestoreTree shows an image as a tree that was its own before the session was resumed.
func (f *FS) RestoreTree(m *share.Member, t Tree) error { return f.trees.restore(m, t) }

// Tree is the number of an image's tree in its superblock, never used twice; 0: none.
type Tree uint32

// Path is where a tree is in a content mount.
func (t Tree) Path() string { return fmt.Sprintf("/tree/%d", t) }

// PassthroughPath is where it is in the mount of a Passthrough.
func (t Tree) PassthroughPath() string { return fmt.Sprintf("/%d", t) }

// RemoveTree takes an image's tree away. Its mounts must be gone; what is left of
// it in the kernel answers ESTALE.
func (f *FS) RemoveTree(m *share.Member) {
	removed := f.trees.remove(m)
	f.merged.leave(removed)
	for _, t := range removed {
		for _, use := range t.files() {
			f.cap.gone(use)
		}
	}
}

// child returns a childFunc for a request: a merged node, counted as referenced, where
// the file may share its pages with other trees, else its own.
func (f *FS) child(unique uint64) childFunc {
	return func(t *tree, im *erofs.Image, nid uint64) (nodeID, fuse.Attr, error) {
		id, in, err := t.node(im, nid)
		if err != nil {
			return 0, fuse.Attr{}, err
		}
		if in.IsRegular() && in.Size > 0 {
			if shared, ok := t.member.Ref(nid, in.Size); ok {
				return f.merged.join(t.slot, shared, in, unique)
			}
		}
		return id, inodeAttr(id, in), nil
	}
}

func (f *FS) treeRead(id nodeID, buf []byte, off uint64) (n int, err error) {
	err = f.trees.inode(id, func(t *tree, _ *erofs.Image, in *erofs.Inode) error {
		if off >= uint64(in.Size) {
			return nil
		}
		if n, err = in.ReadAt(buf, int64(off)); n > 0 {
			f.served(t.use(id.ino(), in.Size), n, in.Size)
		}
		return err
	})
	return n, err
}

func (t *tree) use(ino uint64, size int64) *share.Use {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.read[ino]
	if r == nil {
		r = &treeFile{size: size}
		t.read[ino] = r
	}
	return &r.use
}

// Readlink returns a symbolic link's target, which the kernel caches.
func (f *FS) Readlink(_ <-chan struct{}, h *fuse.InHeader) (target []byte, status fuse.Status) {
	return f.trees.readlink(nodeID(h.NodeId))
}

// ReadDir lists a directory; the kernel's cookies are the image's own.
func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.trees.readDir(in, out)
}

// ReadDirPlus lists a directory with what lookups would have answered.
func (f *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.trees.readDirPlus(in, out, f.child(in.Unique))
}
