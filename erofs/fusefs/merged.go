package fusefs

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/share"
)

// mergedNodes are the files of trees that share a kernel inode. The kernel keeps
// metadata and pages in one inode, so that files of trees share only where they
// agree in all of their metadata and in their content.
type mergedNodes struct {
	mu    sync.RWMutex
	byKey map[mergedKey]*merged // GUARDED_BY(mu)
	byID  map[nodeID]*merged    // GUARDED_BY(mu)
	next  nodeID                // the id to give out next, never used twice; GUARDED_BY(mu)
}

// mergedKey is all that stat(2) and the xattrs tell of a file but its inode number,
// and its content. nid is 0, but for a file with hard links: its links are one
// file within the image, and must not be joined by other files.
type mergedKey struct {
	content  uint64 // index of the shared inode
	mode     uint32
	uid, gid uint32
	nlink    uint32
	sec      int64
	nsec     uint32
	nid      uint64
	xattrs   [sha256.Size]byte // zero without any
}

// merged lives as long as the kernel remembers it.
type merged struct {
	id      nodeID
	key     mergedKey
	inode   *share.Inode
	attr    fuse.Attr
	xattrs  []erofs.Xattr
	files   map[nodeID]struct{} // as which tree's nodes it was found; GUARDED_BY(mergedNodes.mu)
	use     share.Use
	nlookup uint64 // GUARDED_BY(mergedNodes.mu)
}

func (g *mergedNodes) init() {
	g.byKey = make(map[mergedKey]*merged)
	g.byID = make(map[nodeID]*merged)
	g.next = mergedBit
}

// join finds or makes the node for a file whose content is a shared inode, and
// counts a reference to it.
func (g *mergedNodes) join(slot uint32, shared *share.Inode, in *erofs.Inode) (nodeID, fuse.Attr, error) {
	xattrs, err := in.Xattrs()
	if err != nil {
		return 0, fuse.Attr{}, err
	}
	k := mergedKey{
		content: shared.Index(),
		mode:    in.Mode, uid: in.UID, gid: in.GID, nlink: in.Nlink,
		sec: in.MtimeSec, nsec: in.MtimeNsec,
		xattrs: xattrSum(xattrs),
	}
	if in.Nlink > 1 {
		k.nid = in.NID
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.byKey[k]
	if n == nil {
		n = &merged{id: g.next, key: k, inode: shared, attr: inodeAttr(g.next, in), xattrs: xattrs, files: make(map[nodeID]struct{})}
		g.next++
		g.byKey[k], g.byID[n.id] = n, n
	}
	n.files[treeNode(slot, in.Image().Ino(in.NID))] = struct{}{}
	n.nlookup++
	return n.id, n.attr, nil
}

// xattrSum is equal for equal sets in equal order, which is all mkfs.erofs makes
// of equal files.
func xattrSum(xattrs []erofs.Xattr) (sum [sha256.Size]byte) {
	if len(xattrs) == 0 {
		return sum
	}
	h := sha256.New()
	for _, x := range xattrs {
		var n [8]byte
		binary.LittleEndian.PutUint32(n[:4], uint32(len(x.Name)))
		binary.LittleEndian.PutUint32(n[4:], uint32(len(x.Value)))
		h.Write(n[:])
		h.Write([]byte(x.Name))
		h.Write(x.Value)
	}
	h.Sum(sum[:0])
	return sum
}

func (g *mergedNodes) get(id nodeID) *merged {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.byID[id]
}

// ref counts one more reference, if the node is still there.
func (g *mergedNodes) ref(id nodeID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.byID[id]
	if n != nil {
		n.nlookup++
	}
	return n != nil
}

// forget takes back references. It returns the node when it was the last one.
func (g *mergedNodes) forget(id nodeID, nlookup uint64) *merged {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.byID[id]
	if n == nil {
		return nil
	}
	if n.nlookup -= min(nlookup, n.nlookup); n.nlookup > 0 {
		return nil
	}
	delete(g.byID, id)
	delete(g.byKey, n.key)
	return n
}
