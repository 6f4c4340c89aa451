package fusefs

import (
	"fmt"
	"maps"
	"sync"
	"syscall"

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

// AddTree shows an image of the domain below the root. It returns the path of its
// root directory in the mount; RemoveTree takes it away.
//
// It fails when the superblock has shown 2^18-1 trees.
func (f *FS) AddTree(m *share.Member) (path string, err error) {
	t := &tree{member: m, read: make(map[uint64]*treeFile)}
	err = m.Do(func(im *erofs.Image) error {
		t.super = im.Superblock()
		t.root = im.Ino(t.super.RootNID)
		return nil
	})
	if err != nil {
		return "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.nextSlot > maxSlot {
		return "", fmt.Errorf("%d trees were shown in %s: no node ids are left", maxSlot, f.domain)
	}
	t.slot = f.nextSlot
	f.nextSlot++
	trees := maps.Clone(*f.trees.Load())
	trees[t.slot] = t
	f.trees.Store(&trees)
	return fmt.Sprintf("/tree/%d", t.slot), nil
}

// RemoveTree takes an image's tree away. Its mounts must be gone; what is left of
// it in the kernel answers ESTALE.
func (f *FS) RemoveTree(m *share.Member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	trees := maps.Clone(*f.trees.Load())
	for slot, t := range trees {
		if t.member == m {
			delete(trees, slot)
			for _, use := range t.files() {
				f.cap.gone(use)
			}
		}
	}
	f.trees.Store(&trees)
}

func (f *FS) tree(slot uint32) *tree { return (*f.trees.Load())[slot] }

// inode calls fn with the inode of a tree's node while its image is open.
func (f *FS) inode(id nodeID, fn func(*tree, *erofs.Image, *erofs.Inode) error) error {
	t := f.tree(id.slot())
	if t == nil {
		return syscall.ESTALE
	}
	return t.member.Do(func(im *erofs.Image) error {
		in, err := im.Inode(im.NID(id.ino()))
		if err != nil {
			return err
		}
		return fn(t, im, in)
	})
}

func (f *FS) treeLookup(dir nodeID, name string, out *fuse.EntryOut) fuse.Status {
	err := f.inode(dir, func(t *tree, im *erofs.Image, in *erofs.Inode) error {
		d, err := in.Lookup(name)
		if err != nil {
			return err
		}
		id, attr, err := f.child(t, im, d.NID)
		if err != nil {
			return err
		}
		entry(out, id, attr)
		return nil
	})
	errno := errnoOf(err)
	if errno == syscall.ENOENT {
		// An image does not change: the kernel may remember that there is none.
		*out = fuse.EntryOut{}
		out.SetEntryTimeout(forever)
		return fuse.OK
	}
	return fuse.Status(errno)
}

// child is the node that stands for an inode of the image: a merged one, counted
// as referenced, where it may share its pages with other trees, else its own.
func (f *FS) child(t *tree, im *erofs.Image, nid uint64) (nodeID, fuse.Attr, error) {
	ino := im.Ino(nid)
	if ino >= 1<<inoBits {
		return 0, fuse.Attr{}, fmt.Errorf("%w: inode %d in a tree, the largest is 2^%d", erofs.ErrUnsupported, ino, inoBits)
	}
	in, err := im.Inode(nid)
	if err != nil {
		return 0, fuse.Attr{}, err
	}
	if in.IsRegular() && in.Size > 0 {
		if shared, ok := t.member.Ref(nid, in.Size); ok {
			return f.merged.join(t.slot, shared, in)
		}
	}
	id := treeNode(t.slot, ino)
	return id, inodeAttr(id, in), nil
}

// inodeAttr is what stat(2) shows of an image's inode.
func inodeAttr(id nodeID, in *erofs.Inode) fuse.Attr {
	t := uint64(in.MtimeSec)
	return fuse.Attr{
		Ino:  uint64(id),
		Size: uint64(in.Size), Blocks: blocks(in.Size),
		Atime: t, Mtime: t, Ctime: t,
		Atimensec: in.MtimeNsec, Mtimensec: in.MtimeNsec, Ctimensec: in.MtimeNsec,
		Mode: in.Mode, Nlink: in.Nlink,
		Owner:   fuse.Owner{Uid: in.UID, Gid: in.GID},
		Rdev:    in.Rdev,
		Blksize: blockSize,
	}
}

func (f *FS) treeAttr(id nodeID) (attr fuse.Attr, errno syscall.Errno) {
	err := f.inode(id, func(_ *tree, _ *erofs.Image, in *erofs.Inode) error {
		attr = inodeAttr(id, in)
		return nil
	})
	return attr, errnoOf(err)
}

func (f *FS) treeRead(id nodeID, buf []byte, off uint64) (n int, err error) {
	err = f.inode(id, func(t *tree, _ *erofs.Image, in *erofs.Inode) error {
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

func (f *FS) treeStatFs(id nodeID, out *fuse.StatfsOut) fuse.Status {
	t := f.tree(id.slot())
	if t == nil {
		return fuse.Status(syscall.ESTALE)
	}
	out.Bsize, out.Frsize = uint32(t.super.BlockSize), uint32(t.super.BlockSize)
	out.Blocks, out.Files = t.super.Blocks, t.super.Inodes
	return fuse.OK
}

// Readlink returns a symbolic link's target, which the kernel caches.
func (f *FS) Readlink(_ <-chan struct{}, h *fuse.InHeader) (target []byte, status fuse.Status) {
	id := nodeID(h.NodeId)
	if id.kind() != kindTree {
		return nil, fuse.EINVAL
	}
	err := f.inode(id, func(_ *tree, _ *erofs.Image, in *erofs.Inode) error {
		s, err := in.Readlink()
		target = []byte(s)
		return err
	})
	return target, fuse.Status(errnoOf(err))
}

// ReadDir lists a directory; the kernel's cookies are the image's own.
func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.list(in, func(_ *tree, _ *erofs.Image, _ erofs.Dirent, e fuse.DirEntry) bool {
		return out.AddDirEntry(e)
	})
}

// ReadDirPlus lists a directory with what lookups would have answered.
func (f *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.list(in, func(t *tree, im *erofs.Image, d erofs.Dirent, e fuse.DirEntry) bool {
		o := out.AddDirLookupEntry(e)
		if o == nil {
			return false
		}
		if d.Name == "." || d.Name == ".." {
			return true // node id 0: no lookup
		}
		// A child that can't be read is listed without attributes; its lookup
		// tells the error.
		if id, attr, err := f.child(t, im, d.NID); err == nil {
			entry(o, id, attr)
		}
		return true
	})
}

// list calls add with each entry from the cookie on until it answers false.
func (f *FS) list(in *fuse.ReadIn, add func(*tree, *erofs.Image, erofs.Dirent, fuse.DirEntry) bool) fuse.Status {
	id := nodeID(in.NodeId)
	if id.kind() != kindTree {
		return fuse.OK // ours: found by name alone
	}
	err := f.inode(id, func(t *tree, im *erofs.Image, dir *erofs.Inode) error {
		return dir.ReadDir(int64(in.Offset), func(d erofs.Dirent) bool {
			return add(t, im, d, fuse.DirEntry{
				Name: d.Name, Off: uint64(d.Next),
				Ino:  uint64(treeNode(t.slot, im.Ino(d.NID))),
				Mode: direntMode(d.Type),
			})
		})
	})
	return fuse.Status(errnoOf(err))
}

// direntMode is the file type bits of st_mode for a type in a directory entry.
func direntMode(t erofs.FileType) uint32 {
	modes := [...]uint32{
		1: syscall.S_IFREG, 2: syscall.S_IFDIR, 3: syscall.S_IFCHR, 4: syscall.S_IFBLK,
		5: syscall.S_IFIFO, 6: syscall.S_IFSOCK, 7: syscall.S_IFLNK,
	}
	if int(t) < len(modes) {
		return modes[t]
	}
	return 0
}
