package fusefs

import (
	"errors"
	"sync"
	"time"

	"github.com/erofs-csi/erofs-csi/erofs/internal/ledger"
)

const (
	// maxUnused bounds the backings kept of nodes that are not open. Each holds an
	// inode, a dentry and a file of the kernel's, some 1.3 KiB.
	maxUnused = 16 << 10
	// keepUnused is how long, at least, a backing is kept after its node was last
	// open, and at most twice that. What is opened again in between costs half:
	// measured with all of 4000 files, 94-121 µs without and 32-36 with, for
	// open+read+close.
	keepUnused = 10 * time.Second
)

// backings are the files that the kernel reads in place of open files of a
// superblock, by its backing ids (FUSE_DEV_IOC_BACKING_OPEN).
//
// While an inode is open, all its opens must name one backing id: the kernel refuses
// another with EBUSY, whatever file it stands for. So the first open of a node
// registers one, later ones name it again, and it is given back only after the release
// of the last. The kernel has let go of it by then, for it does so before it sends
// RELEASE.
//
// What is here outlives the process in the ledger, so that nodes stay open through its
// end: node ids, their backing ids, and how often each is open.
type backings struct {
	register   func(nodeID) (int32, error)
	unregister func(int32)

	mu     sync.Mutex
	kept   *ledger.Ledger          // set before a node is opened; entries: GUARDED_BY(mu)
	free   []uint32                // entries to use again; GUARDED_BY(mu)
	next   uint32                  // the entry to use when none is free; GUARDED_BY(mu)
	nodes  map[nodeID]*backingFile // GUARDED_BY(mu)
	unused int                     // how many of them are not open, <= maxUnused; GUARDED_BY(mu)
	sweeps uint64                  // GUARDED_BY(mu)
	timer  *time.Timer             // of the next sweep, runs while unused > 0; GUARDED_BY(mu)
}

// backingFile is the backing of a node.
type backingFile struct {
	opens int           // not released, or waiting for ready; GUARDED_BY(backings.mu)
	sweep uint64        // backings.sweeps when it was last released; GUARDED_BY(backings.mu)
	ready chan struct{} // closed when id and err are set
	id    int32         // > 0
	err   error

	entry uint32              // in the ledger, once id is set; GUARDED_BY(backings.mu)
	seen  [seenOpens * 8]byte // a ledger.Seen; GUARDED_BY(backings.mu)
}

func (b *backings) init(register func(nodeID) (int32, error), unregister func(int32)) {
	b.register, b.unregister = register, unregister
	b.nodes = make(map[nodeID]*backingFile)
}

// open returns the backing id of a node, to be named in the answer to OPEN, the request
// unique. The caller owes one close for it. A failure is that of all who wait for it, and
// of nobody after.
func (b *backings) open(node nodeID, unique uint64) (int32, error) {
	b.mu.Lock()
	if f := b.nodes[node]; f != nil {
		if !ledger.Seen(f.seen[:]).Counted(unique) {
			if f.opens == 0 {
				b.unused--
			}
			f.opens++
		}
		if f.id != 0 {
			b.note(node, f)
		}
		b.mu.Unlock()
		<-f.ready
		return f.id, f.err
	}
	f := &backingFile{opens: 1, ready: make(chan struct{}), err: errNotRegistered}
	ledger.Seen(f.seen[:]).Counted(unique)
	b.nodes[node] = f
	b.mu.Unlock()
	id, err := int32(0), errNotRegistered
	defer func() { // after a panic, too
		b.mu.Lock()
		if f.id, f.err = id, err; err != nil {
			delete(b.nodes, node)
		} else {
			f.entry = b.take()
			b.note(node, f)
		}
		b.mu.Unlock()
		close(f.ready)
	}()
	id, err = b.register(node)
	return id, err
}

// errNotRegistered is what the others get when registering panics.
var errNotRegistered = errors.New("no backing was registered")

// close takes back one open of a node, at its RELEASE, the request unique.
func (b *backings) close(node nodeID, unique uint64) {
	b.mu.Lock()
	f := b.nodes[node]
	if f == nil || ledger.Seen(f.seen[:]).Counted(unique) || f.opens == 0 { // the kernel counts as we do
		b.mu.Unlock()
		return
	}
	f.opens--
	full := f.opens == 0 && b.unused == maxUnused
	if !full {
		b.note(node, f)
	}
	switch {
	case full:
		delete(b.nodes, node)
		b.leave(node, f)
	case f.opens == 0:
		f.sweep = b.sweeps
		b.unused++
		if b.timer == nil {
			b.timer = time.AfterFunc(keepUnused, b.tick)
		}
	}
	b.mu.Unlock()
	if full {
		b.unregister(f.id)
		b.clear(f)
	}
}

// tick gives back what was not open since the last tick.
func (b *backings) tick() {
	b.mu.Lock()
	now := b.sweeps
	b.sweeps++
	b.mu.Unlock()
	b.drop(func(_ nodeID, f *backingFile) bool { return f.sweep < now })
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.unused > 0 {
		b.timer.Reset(keepUnused)
	} else {
		b.timer = nil
	}
}

// drop gives back those that are not open and that pick chooses, with b.mu held.
func (b *backings) drop(pick func(nodeID, *backingFile) bool) {
	var files []*backingFile
	b.mu.Lock()
	for node, f := range b.nodes {
		if f.opens == 0 && pick(node, f) {
			delete(b.nodes, node)
			b.unused--
			b.leave(node, f)
			files = append(files, f)
		}
	}
	b.mu.Unlock()
	for _, f := range files {
		b.unregister(f.id)
		b.clear(f)
	}
}

// opened is how many nodes are open.
func (b *backings) opened() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.nodes) - b.unused
}
