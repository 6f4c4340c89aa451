package fusefs

import (
	"context"
	"errors"
	"iter"
	"path"
	"slices"
	"strconv"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/erofs-csi/erofs-csi/erofs/share"
)

// NodeUse is a file of the superblock that may have pages in memory.
type NodeUse struct {
	Path  string // below the content mount; opens the same kernel inode
	Size  int64  // bytes
	Files []share.MemberFiles
}

// InUse calls fn with the files of which the kernel may have pages, and how many bytes
// of them at the most, until it answers false: those of the image, or of all when m is
// nil. Files may come and go meanwhile; fn may take its time.
func (f *FS) InUse(m *share.Member, fn func(node uint64, held int64) bool) {
	f.eachInUse(m, func(id nodeID, use *share.Use) bool { return fn(uint64(id), use.Held()) })
}

// eachInUse is InUse for who wants to change what is held.
func (f *FS) eachInUse(m *share.Member, fn func(nodeID, *share.Use) bool) {
	more := true
	each := func(id nodeID, use *share.Use) bool {
		more = more && (use.Held() == 0 || fn(id, use))
		return more
	}
	f.domain.Inodes(func(in share.Inode) bool {
		if in.Use().Held() == 0 || in.Orphan() || m != nil && !in.Of(m) {
			return true
		}
		return each(contentNode(in.Index()), in.Use())
	})
	slots := make(map[uint32]bool)
	for slot, t := range *f.trees.bySlot.Load() {
		if m == nil || t.member == m {
			slots[slot] = true
			for id, use := range t.files() {
				each(id, use)
			}
		}
	}
	f.merged.table.each(func(n *merged) bool {
		return m != nil && !f.merged.of(n, slots) || each(n.id, &n.use) // of all, also those that outlived their trees
	})
}

// files are those of a tree that are no other's and were read.
func (t *tree) files() map[nodeID]*share.Use {
	t.mu.Lock()
	defer t.mu.Unlock()
	files := make(map[nodeID]*share.Use, len(t.read))
	for ino, r := range t.read {
		files[treeNode(t.slot, ino)] = &r.use
	}
	return files
}

// of tells whether a node is a file of one of the trees with these slots.
func (g *mergedNodes) of(n *merged, slots map[uint32]bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.ContainsFunc(n.files, func(file nodeID) bool { return slots[file.slot()] })
}

// Node tells what a node of InUse is, if it is still there. To learn how many of its
// pages are in memory, a process other than the server's may open Path below the mount
// and ask cachestat(2) or mincore(2).
func (f *FS) Node(node uint64) (NodeUse, bool) {
	id := nodeID(node)
	switch id.kind() {
	case kindContent:
		if in, ok := f.domain.Inode(id.index()); ok {
			use := NodeUse{in.Path(), in.Size(), in.Files()}
			if use.Path == "" {
				return use, false
			}
			if !in.Shared() { // whose name may be that of a shared inode by now
				use.Path = id.path()
			}
			return use, true
		}
	case kindMerged:
		if n := f.merged.get(id); n != nil {
			return NodeUse{id.path(), n.inode.Size(), f.filesOf(n)}, true
		}
	case kindTree:
		if t := f.trees.tree(id.slot()); t != nil {
			return NodeUse{id.path(), t.size(id.ino()), []share.MemberFiles{{Member: t.member, Files: 1}}}, true
		}
	case kindInternal:
	}
	return NodeUse{}, false
}

// filesOf lists the images of a node's files.
func (f *FS) filesOf(n *merged) (list []share.MemberFiles) {
	f.merged.mu.Lock()
	files := slices.Clone(n.files)
	f.merged.mu.Unlock()
	for _, file := range files {
		t := f.trees.tree(file.slot())
		if t == nil {
			continue // the image has left
		}
		i := slices.IndexFunc(list, func(m share.MemberFiles) bool { return m.Member == t.member })
		if i < 0 {
			i = len(list)
			list = append(list, share.MemberFiles{Member: t.member})
		}
		list[i].Files++
	}
	return list
}

// path is the name by which nodeByNumber finds a file.
func (id nodeID) path() string {
	return path.Join("/node", strconv.FormatUint(uint64(id), 16))
}

// DropPages makes the kernel drop the pages of an image's files, but keep the files. It
// must not be called from a request: the notification waits for pages being read.
func (f *FS) DropPages(m *share.Member) error {
	var errs []error
	f.eachInUse(m, func(id nodeID, use *share.Use) bool {
		errs = append(errs, f.dropPages(id, use))
		return true
	})
	return errors.Join(errs...)
}

// ForgetNames makes the kernel forget the names in /private of an image's files. It is for
// one that joins without fingerprints, before a front shows it, and must not be called from a
// request.
//
// A file that was looked up by such a name may have become a shared inode since, which the
// name leads to for as long as the kernel remembers it: also when the image has left and
// comes back as one that does not know what its files share, and so cannot supply that
// inode. Nothing less than to name each of them helps, and not when the image leaves: who has
// one open, or the front that is not quite gone, keeps it, and with it the whole directory
// (d_splice_alias, fs/dcache.c of Linux 6.18).
//
// After Recall it waits for Load, or the end of ctx.
func (f *FS) ForgetNames(ctx context.Context, tag share.Tag, nids iter.Seq[uint64]) error {
	if f.loaded != nil {
		select {
		case <-f.loaded:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s := f.server.Load()
	if n, _ := f.domain.Len(); n == 0 || s == nil {
		return nil // the kernel knows no file
	}
	for nid := range nids {
		name := path.Base(share.PrivatePath(tag, nid))
		if st := s.EntryNotify(uint64(privateID), name); st != fuse.OK && st != fuse.ENOENT {
			return syscall.Errno(st)
		}
	}
	return nil
}

// Drop makes the kernel forget inodes that no image can supply any more, and
// their pages with them. It must not be called from a request, and only for
// inodes that no front shows: the notification waits for pages being read.
func (f *FS) Drop(orphans []share.Inode) error {
	s := f.server.Load()
	if s == nil {
		return nil
	}
	var errs []error
	for _, in := range orphans {
		full := in.Path()
		if full == "" {
			continue // the kernel forgot it meanwhile
		}
		dir, name := path.Split(full)
		errs = append(errs, f.dropPages(contentNode(in.Index()), in.Use()))
		if st := s.EntryNotify(uint64(topDir(path.Base(dir))), name); st != fuse.OK && st != fuse.ENOENT {
			errs = append(errs, syscall.Errno(st))
		}
	}
	return errors.Join(errs...)
}
