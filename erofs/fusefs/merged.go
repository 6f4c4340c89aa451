package fusefs

import (
	"crypto/sha256"
	"encoding/binary"
	"hash/maphash"
	"slices"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/internal/ledger"
	"github.com/erofs-csi/erofs-csi/erofs/share"
)

// mergedNodes are the files of trees that share a kernel inode. The kernel keeps
// metadata and pages in one inode, so that files of trees share only where they
// agree in all of their metadata and in their content.
//
// A node costs about 290 bytes, with its shared inode.
type mergedNodes struct {
	domain *share.Domain
	seed   maphash.Seed
	table  mergedTable // its writers hold mu

	mu     sync.Mutex
	byHash map[uint64]*merged // of the key, the first of those with this hash; GUARDED_BY(mu)
	next   uint64             // the number to give out next, never used twice; GUARDED_BY(mu)
	kept   *ledger.Ledger     // set before a node is made; entries: GUARDED_BY(mu)
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
	inode   share.Inode // of which it has a reference
	xattrs  []erofs.Xattr
	use     share.Use
	files   []nodeID // as which tree's nodes it was found, each once; GUARDED_BY(mergedNodes.mu)
	nlookup uint64   // GUARDED_BY(mergedNodes.mu)
	loaded  bool     // by load, and nlookup did not change since; GUARDED_BY(mergedNodes.mu)
	next    *merged  // with the same hash; GUARDED_BY(mergedNodes.mu)
}

// attr is what stat(2) shows of it.
func (n *merged) attr() fuse.Attr {
	k, t := &n.key, uint64(n.key.sec)
	return fuse.Attr{
		Ino:  uint64(n.id),
		Size: uint64(n.inode.Size()), Blocks: blocks(n.inode.Size()),
		Atime: t, Mtime: t, Ctime: t,
		Atimensec: k.nsec, Mtimensec: k.nsec, Ctimensec: k.nsec,
		Mode: k.mode, Nlink: k.nlink,
		Owner:   fuse.Owner{Uid: k.uid, Gid: k.gid},
		Blksize: blockSize,
	}
}

func (g *mergedNodes) init(d *share.Domain) {
	g.domain, g.seed = d, maphash.MakeSeed()
	g.byHash = make(map[uint64]*merged)
}

// join finds or makes the node for a file whose content is a shared inode, and
// counts a reference to it, once for each request. It takes over the caller's reference
// to the shared inode.
func (g *mergedNodes) join(slot uint32, shared share.Inode, in *erofs.Inode, unique uint64) (nodeID, fuse.Attr, error) {
	k, xattrs, err := keyOf(shared, in)
	if err != nil {
		g.domain.Forget(shared.Index(), 1)
		return 0, fuse.Attr{}, err
	}
	file := treeNode(slot, in.Image().Ino(in.NID))
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.find(&k)
	if n != nil {
		g.domain.Forget(shared.Index(), 1) // it has one
		if !slices.Contains(n.files, file) {
			n.files = append(n.files, file)
		}
		g.count(n, unique)
		return n.id, n.attr(), nil
	}
	n = &merged{id: mergedBit | nodeID(g.next), key: k, inode: shared, xattrs: xattrs, files: []nodeID{file}, nlookup: 1}
	g.put(n)
	g.note(n, unique)
	return n.id, n.attr(), nil
}

// keyOf is the key of a file of an image.
func keyOf(shared share.Inode, in *erofs.Inode) (mergedKey, []erofs.Xattr, error) {
	xattrs, err := in.Xattrs()
	if err != nil {
		return mergedKey{}, nil, err
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
	return k, xattrs, nil
}

// find returns the node with a key, or nil. g.mu is held, as for put.
func (g *mergedNodes) find(k *mergedKey) *merged {
	n := g.byHash[maphash.Comparable(g.seed, *k)]
	for n != nil && n.key != *k {
		n = n.next
	}
	return n
}

// put makes a node known by its number, which is not less than next, and its key.
func (g *mergedNodes) put(n *merged) {
	hash := maphash.Comparable(g.seed, n.key)
	n.next = g.byHash[hash]
	g.byHash[hash] = n
	g.table.add(n.id.index(), n)
	g.next = n.id.index() + 1
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

func (g *mergedNodes) get(id nodeID) *merged { return g.table.get(id.index()) }

// ref counts one more reference, if the node is still there.
func (g *mergedNodes) ref(id nodeID, unique uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.get(id)
	if n != nil {
		g.count(n, unique)
	}
	return n != nil
}

// forget takes back references. It returns the node when it was the last one.
func (g *mergedNodes) forget(id nodeID, nlookup uint64) *merged {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.get(id)
	if n == nil {
		return nil
	}
	n.loaded = false
	if n.nlookup -= min(nlookup, n.nlookup); n.nlookup > 0 {
		g.noteLookups(n)
		return nil
	}
	g.remove(n)
	return n
}

// remove takes out a node. g.mu is held.
func (g *mergedNodes) remove(n *merged) {
	g.kept.Clear(n.id.index())
	if g.table.remove(n.id.index(), g.next) {
		g.kept.Free(n.id.index()/mergedPage*mergedPage, mergedPage)
	}
	hash := maphash.Comparable(g.seed, n.key)
	if first := g.byHash[hash]; first != n {
		for first.next != n {
			first = first.next
		}
		first.next = n.next
	} else if n.next != nil {
		g.byHash[hash] = n.next
	} else {
		delete(g.byHash, hash)
	}
}
