package fusefs

import (
	"errors"
	"path"
	"strconv"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/erofs-csi/erofs-csi/erofs/share"
)

// NodeUse is a file of the superblock that may have pages in memory.
type NodeUse struct {
	Path  string `json:"path"`  // below the content mount; opens the same kernel inode
	Size  int64  `json:"size"`  // bytes
	Files int    `json:"files"` // files of images that are this inode; each would have pages of its own
}

// ReadNodes lists the files that were read since they were made: no other file
// has pages. To learn how many, a process other than the server's may open Path
// below the mount and ask cachestat(2) or mincore(2).
func (f *FS) ReadNodes() []NodeUse {
	var list []NodeUse
	for _, in := range f.domain.Inodes() {
		if in.WasRead() && in.Backings() > 0 {
			list = append(list, NodeUse{Path: in.Path(), Size: in.Size(), Files: in.Backings()})
		}
	}
	list = append(list, f.merged.uses()...)
	for _, t := range *f.trees.Load() {
		t.mu.Lock()
		for ino := range t.read {
			id := treeNode(t.slot, ino)
			list = append(list, NodeUse{Path: id.path(), Files: 1})
		}
		t.mu.Unlock()
	}
	return list
}

func (g *mergedNodes) uses() []NodeUse {
	g.mu.RLock()
	defer g.mu.RUnlock()
	var list []NodeUse
	for id, n := range g.byID {
		if n.read {
			list = append(list, NodeUse{Path: id.path(), Size: n.inode.Size(), Files: len(n.files)})
		}
	}
	return list
}

// path is the name by which nodeByNumber finds a file.
func (id nodeID) path() string {
	return path.Join("/node", strconv.FormatUint(uint64(id), 16))
}

// Drop makes the kernel forget inodes that no image can supply any more, and
// their pages with them. It must not be called from a request, and only for
// inodes that no front shows: the notification waits for pages being read.
func (f *FS) Drop(orphans []*share.Inode) error {
	s := f.server.Load()
	if s == nil {
		return nil
	}
	var errs []error
	for _, in := range orphans {
		dir, name := path.Split(in.Path())
		parent := topDir(path.Base(dir))
		for _, st := range []fuse.Status{
			s.InodeNotify(uint64(contentNode(in.Index())), 0, 0),
			s.EntryNotify(uint64(parent), name),
		} {
			if st != fuse.OK && st != fuse.ENOENT {
				errs = append(errs, syscall.Errno(st))
			}
		}
	}
	return errors.Join(errs...)
}
