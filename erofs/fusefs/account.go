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

// ReadNodes lists the files of which the kernel may have pages: those of the image,
// or of all when m is nil. To learn how many, a process other than the server's may
// open Path below the mount and ask cachestat(2) or mincore(2).
func (f *FS) ReadNodes(m *share.Member) []NodeUse {
	nodes := f.inUse(m)
	list := make([]NodeUse, 0, len(nodes))
	for _, n := range nodes {
		list = append(list, n.NodeUse)
	}
	return list
}

// nodeInUse is a node of which the kernel may have pages.
type nodeInUse struct {
	NodeUse
	id  nodeID
	use *share.Use
}

// inUse lists the nodes of an image, or of all when m is nil.
func (f *FS) inUse(m *share.Member) []nodeInUse {
	var list []nodeInUse
	for _, in := range f.domain.Inodes() {
		if in.Use().Held() > 0 && in.Backings() > 0 && (m == nil || in.Of(m)) {
			list = append(list, nodeInUse{
				NodeUse{Path: in.Path(), Size: in.Size(), Files: in.Backings()},
				contentNode(in.Index()), in.Use(),
			})
		}
	}
	slots := make(map[uint32]bool)
	for slot, t := range *f.trees.Load() {
		if m == nil || t.member == m {
			slots[slot] = true
			list = t.inUse(list)
		}
	}
	if m == nil {
		slots = nil // merged files outlive the trees they were found in
	}
	return f.merged.inUse(list, slots)
}

// inUse appends the files of a tree that are no other's.
func (t *tree) inUse(list []nodeInUse) []nodeInUse {
	t.mu.Lock()
	defer t.mu.Unlock()
	for ino, r := range t.read {
		if r.use.Held() > 0 {
			id := treeNode(t.slot, ino)
			list = append(list, nodeInUse{NodeUse{Path: id.path(), Size: r.size, Files: 1}, id, &r.use})
		}
	}
	return list
}

// inUse appends the merged files, those of the trees with these slots unless it is
// nil.
func (g *mergedNodes) inUse(list []nodeInUse, slots map[uint32]bool) []nodeInUse {
	g.mu.RLock()
	defer g.mu.RUnlock()
	for id, n := range g.byID {
		in := slots == nil
		for file := range n.files {
			in = in || slots[file.slot()]
		}
		if in && n.use.Held() > 0 {
			list = append(list, nodeInUse{NodeUse{Path: id.path(), Size: n.inode.Size(), Files: len(n.files)}, id, &n.use})
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
		errs = append(errs, f.dropPages(contentNode(in.Index()), in.Use()))
		if st := s.EntryNotify(uint64(topDir(path.Base(dir))), name); st != fuse.OK && st != fuse.ENOENT {
			errs = append(errs, syscall.Errno(st))
		}
	}
	return errors.Join(errs...)
}
