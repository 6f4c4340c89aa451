package fusefs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/internal/ledger"
	"github.com/erofs-csi/erofs-csi/erofs/share"
)

// The kinds of ledgers; that of share is 1.
const (
	mergedLedger    = 2
	mergedVersion   = 1
	backingsLedger  = 3
	backingsVersion = 1
)

// Keep writes what the kernel knows of the file system to files from now on, and what
// requests are under way, so that another process can go on with it: see Recall. It must
// be called before it is served or an image joins its domain. The files are the caller's
// to close, after the session.
func (f *FS) Keep(inodes, nodes, requests *os.File) error {
	if err := createJournal(requests); err != nil {
		return err
	}
	f.keeping = &requestKeeping{file: requests, always: f.NoResend}
	l, err := ledger.Create(nodes, mergedLedger, mergedVersion)
	if err != nil {
		return err
	}
	l.SetCounter(1)
	f.merged.kept, f.trees.kept = l, l
	return f.domain.Keep(inodes)
}

// Recall takes over the files of Keep, of another process that is gone. It must be called
// before a session is resumed or an image joins. Then join the images, restore their
// trees, and call Load, which requests wait for.
func (f *FS) Recall(inodes, nodes, requests *os.File) error {
	if err := checkJournal(requests); err != nil {
		return err
	}
	f.keeping = &requestKeeping{file: requests, always: f.NoResend}
	l, err := ledger.Open(nodes, mergedLedger, mergedVersion)
	if err != nil {
		return err
	}
	f.merged.kept = l
	f.loaded = make(chan struct{})
	return errors.Join(f.trees.recall(l), f.domain.Recall(inodes))
}

// KeepError is why the files of Keep or Recall miss something. Another process would
// answer requests for that with ESTALE.
func (f *FS) KeepError() error { return errors.Join(f.domain.KeepError(), f.merged.kept.Err()) }

// Loaded is what Load found.
type Loaded struct {
	Inodes  int // shared inodes
	Orphans int // of them, those that no image supplies
	Merged  int // files of trees
	Lost    int // of them, those whose trees are not there: reads of them fail
}

// Load makes known what the kernel knows. Requests are answered from now on, also after
// an error, which tells that some of it is lost. It must be called once, after Recall.
func (f *FS) Load() (n Loaded, err error) {
	defer close(f.loaded)
	n.Inodes, n.Orphans, err = f.domain.Load()
	n.Merged, n.Lost, err = f.merged.load(&f.trees, err)
	f.domain.Inodes(func(in share.Inode) bool {
		f.cap.held.Add(in.Use().Held())
		return true
	})
	return n, err
}

// Verify asks the kernel whether it still knows what Load made known: of what it does not,
// a process that was killed has read that it is forgotten, and not noted it. It returns
// how many such there were. It must be called once, after Load, and ends with the session.
func (f *FS) Verify(m *Mount) (forgotten int) {
	known := func(id nodeID) func() bool {
		// An offset below 0 leaves the pages alone. The kernel answers ENOENT when it
		// has no such inode.
		return func() bool { return m.server.InodeNotify(uint64(id), -1, 0) != fuse.ENOENT }
	}
	var nodes []*merged
	f.merged.table.each(func(n *merged) bool {
		nodes = append(nodes, n)
		return true
	})
	for _, n := range nodes {
		if m.Alive() != nil {
			return forgotten
		}
		if f.merged.verify(n, known(n.id)) {
			f.cap.gone(&n.use)
			f.forgetContent(n.inode.Index(), 1)
			forgotten++
		}
	}
	own := f.merged.references() // to shared inodes, which the kernel does not know of
	f.domain.Inodes(func(in share.Inode) bool {
		if gone, ok := f.domain.Verify(in.Index(), own[in.Index()], known(contentNode(in.Index()))); ok {
			f.cap.gone(gone.Use())
			forgotten++
		}
		return m.Alive() == nil
	})
	return forgotten
}

// An entry of the ledger of merged nodes, at the node's number:
//
//	bytes 0-7    a file that is the node, as a node of its tree
//	      8-15   index of the shared inode
//	      16-23  the kernel's references
//	      40-63  the requests counted last
const (
	mergedContent = 8
	mergedLookups = 16
	mergedSeen    = 40
)

// note keeps a new node. g.mu is held, as for what follows.
func (g *mergedNodes) note(n *merged, unique uint64) {
	if g.kept == nil {
		return
	}
	var e ledger.Entry
	binary.LittleEndian.PutUint64(e[:], uint64(n.files[0]))
	binary.LittleEndian.PutUint64(e[mergedContent:], n.key.content)
	binary.LittleEndian.PutUint64(e[mergedLookups:], n.nlookup)
	ledger.Seen(e[mergedSeen:]).Counted(unique)
	g.kept.Put(n.id.index(), &e)
}

// count counts a reference, once for each request.
func (g *mergedNodes) count(n *merged, unique uint64) {
	n.loaded = false
	if g.kept == nil {
		n.nlookup++
		return
	}
	e := g.kept.Get(n.id.index())
	if !ledger.Seen(e[mergedSeen:]).Counted(unique) {
		n.nlookup++
		binary.LittleEndian.PutUint64(e[mergedLookups:], n.nlookup)
		g.kept.Put(n.id.index(), &e)
	}
}

func (g *mergedNodes) noteLookups(n *merged) {
	if g.kept == nil {
		return
	}
	e := g.kept.Get(n.id.index())
	binary.LittleEndian.PutUint64(e[mergedLookups:], n.nlookup)
	g.kept.Put(n.id.index(), &e)
}

// leave takes trees that are gone from the nodes, so that each is kept as a file of a
// tree that is there, if any.
func (g *mergedNodes) leave(removed []*tree) {
	if g.kept == nil || len(removed) == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	gone := func(file nodeID) bool {
		return slices.ContainsFunc(removed, func(t *tree) bool { return t.slot == file.slot() })
	}
	g.table.each(func(n *merged) bool {
		if !gone(n.files[0]) {
			return true
		}
		if i := slices.IndexFunc(n.files, func(file nodeID) bool { return !gone(file) }); i > 0 {
			n.files[0], n.files[i] = n.files[i], n.files[0]
			e := g.kept.Get(n.id.index())
			binary.LittleEndian.PutUint64(e[:], uint64(n.files[0]))
			g.kept.Put(n.id.index(), &e)
		}
		return true
	})
}

// load makes the nodes known that the ledger has. The shared inodes must be.
func (g *mergedNodes) load(ts *trees, earlier error) (known, lost int, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	last, err := g.kept.Len()
	if err != nil {
		return 0, 0, errors.Join(earlier, err)
	}
	var damaged error
	err = g.kept.Each(func(number uint64, e *ledger.Entry) {
		n, err := g.restore(ts, number, e)
		if err != nil {
			lost++
			damaged = fmt.Errorf("file %d of the trees: %w", number, err)
			g.kept.Clear(number)
			g.domain.Forget(binary.LittleEndian.Uint64(e[mergedContent:]), 1)
			return
		}
		n.use.Served(n.inode.Size(), n.inode.Size(), time.Now())
		g.put(n)
		known++
	})
	g.next = max(g.next, last)
	return known, lost, errors.Join(earlier, err, damaged)
}

func (g *mergedNodes) restore(ts *trees, number uint64, e *ledger.Entry) (*merged, error) {
	file := nodeID(binary.LittleEndian.Uint64(e[:]))
	n := &merged{id: mergedBit | nodeID(number), files: []nodeID{file}, nlookup: binary.LittleEndian.Uint64(e[mergedLookups:]), loaded: true}
	var ok bool
	if n.inode, ok = g.domain.Inode(binary.LittleEndian.Uint64(e[mergedContent:])); !ok || file.kind() != kindTree || n.nlookup == 0 {
		return nil, errors.New("its entry is damaged, or its content is not known")
	}
	err := ts.inode(file, func(_ *tree, _ *erofs.Image, in *erofs.Inode) (err error) {
		n.key, n.xattrs, err = keyOf(n.inode, in)
		return err
	})
	return n, err
}

// references counts the nodes by shared inode.
func (g *mergedNodes) references() map[uint64]uint32 {
	count := make(map[uint64]uint32)
	g.table.each(func(n *merged) bool {
		count[n.key.content]++
		return true
	})
	return count
}

// verify takes out a node that the kernel does not know; see share.Domain.Verify.
func (g *mergedNodes) verify(n *merged, known func() bool) bool {
	if !g.unchanged(n) || known() {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.get(n.id) != n || !n.loaded {
		return false
	}
	g.remove(n)
	return true
}

// unchanged tells whether a node is as load made it known.
func (g *mergedNodes) unchanged(n *merged) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return n.loaded
}
