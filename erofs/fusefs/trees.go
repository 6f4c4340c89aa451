package fusefs

import (
	"fmt"
	"maps"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/internal/ledger"
	"github.com/erofs-csi/erofs-csi/erofs/share"
)

// trees are the trees of one superblock.
type trees struct {
	// bySlot is replaced, never changed, by writers that hold mu.
	bySlot atomic.Pointer[map[uint32]*tree]

	mu       sync.Mutex
	nextSlot uint32         // GUARDED_BY(mu)
	kept     *ledger.Ledger // its counter is nextSlot; set before a tree is added
}

func (ts *trees) init() {
	ts.nextSlot = 1
	ts.bySlot.Store(&map[uint32]*tree{})
}

// add shows an image in a slot of its own. dirs are those of Passthrough.AddTree.
//
// It fails when the superblock has shown 2^18-1 trees.
func (ts *trees) add(m *share.Member, dirs ...string) (slot uint32, err error) {
	t, err := newTree(m, dirs)
	if err != nil {
		return 0, err
	}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.nextSlot > maxSlot {
		return 0, fmt.Errorf("%d trees were shown in %s: no node ids are left", maxSlot, m.Domain())
	}
	t.slot = ts.nextSlot
	ts.nextSlot++
	ts.kept.SetCounter(uint64(ts.nextSlot))
	ts.show(t)
	return t.slot, nil
}

// restore shows an image in a slot that add gave it in another process.
func (ts *trees) restore(m *share.Member, slot Tree, dirs ...string) error {
	t, err := newTree(m, dirs)
	if err != nil {
		return err
	}
	t.slot = uint32(slot)
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t.slot == 0 || t.slot >= ts.nextSlot || (*ts.bySlot.Load())[t.slot] != nil {
		return fmt.Errorf("tree %d of %s was never shown, or is already", t.slot, m.Domain())
	}
	ts.show(t)
	return nil
}

// show makes a tree found. ts.mu is held.
func (ts *trees) show(t *tree) {
	bySlot := maps.Clone(*ts.bySlot.Load())
	bySlot[t.slot] = t
	ts.bySlot.Store(&bySlot)
}

func newTree(m *share.Member, dirs []string) (*tree, error) {
	t := &tree{member: m, dirs: dirs, read: make(map[uint64]*treeFile)}
	err := m.Do(func(im *erofs.Image) error {
		t.super = im.Superblock()
		t.root = im.Ino(t.super.RootNID)
		return nil
	})
	return t, err
}

// recall takes the next slot from a ledger of another process.
func (ts *trees) recall(l *ledger.Ledger) error {
	next, err := l.Counter()
	if err != nil {
		return err
	}
	ts.kept = l
	ts.nextSlot = uint32(min(max(next, 1), maxSlot+1))
	return nil
}

// remove takes an image's trees away and returns them.
func (ts *trees) remove(m *share.Member) (removed []*tree) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	bySlot := maps.Clone(*ts.bySlot.Load())
	for slot, t := range bySlot {
		if t.member == m {
			delete(bySlot, slot)
			removed = append(removed, t)
		}
	}
	ts.bySlot.Store(&bySlot)
	return removed
}

func (ts *trees) tree(slot uint32) *tree { return (*ts.bySlot.Load())[slot] }

// byName finds a tree by its slot in decimal.
func (ts *trees) byName(name string) (nodeID, fuse.Attr) {
	slot, err := strconv.ParseUint(name, 10, 32)
	if t := ts.tree(uint32(slot)); err == nil && t != nil {
		id := treeNode(t.slot, t.root)
		if attr, errno := ts.attr(id); errno == 0 {
			return id, attr
		}
	}
	return 0, fuse.Attr{}
}

// inode calls fn with the inode of a tree's node while its image is open.
func (ts *trees) inode(id nodeID, fn func(*tree, *erofs.Image, *erofs.Inode) error) error {
	t := ts.tree(id.slot())
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

// childFunc returns the node that stands for an inode of a tree's image.
type childFunc func(t *tree, im *erofs.Image, nid uint64) (nodeID, fuse.Attr, error)

func (ts *trees) lookup(dir nodeID, name string, out *fuse.EntryOut, child childFunc) fuse.Status {
	err := ts.inode(dir, func(t *tree, im *erofs.Image, in *erofs.Inode) error {
		d, err := in.Lookup(name)
		if err != nil {
			return err
		}
		id, attr, err := child(t, im, d.NID)
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

// node is the tree's own node for an inode of its image.
func (t *tree) node(im *erofs.Image, nid uint64) (nodeID, *erofs.Inode, error) {
	ino := im.Ino(nid)
	if ino >= 1<<inoBits {
		return 0, nil, fmt.Errorf("%w: inode %d in a tree, the largest is 2^%d", erofs.ErrUnsupported, ino, inoBits)
	}
	in, err := im.Inode(nid)
	return treeNode(t.slot, ino), in, err
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

func (ts *trees) attr(id nodeID) (attr fuse.Attr, errno syscall.Errno) {
	err := ts.inode(id, func(_ *tree, _ *erofs.Image, in *erofs.Inode) error {
		attr = inodeAttr(id, in)
		return nil
	})
	return attr, errnoOf(err)
}

func (ts *trees) statFs(id nodeID, out *fuse.StatfsOut) fuse.Status {
	t := ts.tree(id.slot())
	if t == nil {
		return fuse.Status(syscall.ESTALE)
	}
	out.Bsize, out.Frsize = uint32(t.super.BlockSize), uint32(t.super.BlockSize)
	out.Blocks, out.Files = t.super.Blocks, t.super.Inodes
	return fuse.OK
}

func (ts *trees) readlink(id nodeID) (target []byte, status fuse.Status) {
	if id.kind() != kindTree {
		return nil, fuse.EINVAL
	}
	err := ts.inode(id, func(_ *tree, _ *erofs.Image, in *erofs.Inode) error {
		s, err := in.Readlink()
		target = []byte(s)
		return err
	})
	return target, fuse.Status(errnoOf(err))
}

func (ts *trees) readDir(in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return ts.list(in, func(_ *tree, _ *erofs.Image, _ erofs.Dirent, e fuse.DirEntry) bool {
		return out.AddDirEntry(e)
	})
}

func (ts *trees) readDirPlus(in *fuse.ReadIn, out *fuse.DirEntryList, child childFunc) fuse.Status {
	return ts.list(in, func(t *tree, im *erofs.Image, d erofs.Dirent, e fuse.DirEntry) bool {
		o := out.AddDirLookupEntry(e)
		if o == nil {
			return false
		}
		if d.Name == "." || d.Name == ".." {
			return true // node id 0: no lookup
		}
		// A child that can't be read is listed without attributes; its lookup
		// tells the error.
		if id, attr, err := child(t, im, d.NID); err == nil {
			entry(o, id, attr)
		}
		return true
	})
}

// list calls add with each entry from the cookie on until it answers false.
func (ts *trees) list(in *fuse.ReadIn, add func(*tree, *erofs.Image, erofs.Dirent, fuse.DirEntry) bool) fuse.Status {
	id := nodeID(in.NodeId)
	if id.kind() != kindTree {
		return fuse.OK // ours: found by name alone
	}
	err := ts.inode(id, func(t *tree, im *erofs.Image, dir *erofs.Inode) error {
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
