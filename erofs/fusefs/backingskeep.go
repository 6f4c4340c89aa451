package fusefs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/erofs-csi/erofs-csi/erofs/internal/ledger"
)

// An entry of the ledger of backings is a node that has one:
//
//	bytes 0-7    the node id
//	      8-11   the backing id
//	      12-15  how often the node is open
//	      16     backingLeaving
//	      24-63  the requests counted last
const (
	backingID    = 8
	backingOpens = 12
	backingFlags = 16
	backingSeen  = 24

	// backingLeaving: the backing id is being given back.
	backingLeaving = 1

	// seenOpens is how many OPEN and RELEASE requests of one node may be counted and
	// not answered when the process is killed: those between two instructions.
	seenOpens = (ledger.EntrySize - backingSeen) / 8
)

// take returns an entry that is not used. b.mu is held, as for note and leave.
func (b *backings) take() (entry uint32) {
	if n := len(b.free); n > 0 {
		entry = b.free[n-1]
		b.free = b.free[:n-1]
		return entry
	}
	b.next++
	return b.next - 1
}

// note keeps a node as it is now.
func (b *backings) note(node nodeID, f *backingFile) { b.write(node, f, 0) }

// leave notes that a backing id is about to be given back.
func (b *backings) leave(node nodeID, f *backingFile) { b.write(node, f, backingLeaving) }

func (b *backings) write(node nodeID, f *backingFile, flags byte) {
	if b.kept == nil {
		return
	}
	var e ledger.Entry
	binary.LittleEndian.PutUint64(e[:], uint64(node))
	binary.LittleEndian.PutUint32(e[backingID:], uint32(f.id))
	binary.LittleEndian.PutUint32(e[backingOpens:], uint32(f.opens))
	e[backingFlags] = flags
	copy(e[backingSeen:], f.seen[:])
	b.kept.Put(uint64(f.entry), &e)
}

// clear takes out the entry of a backing that was given back. b.mu is not held.
func (b *backings) clear(f *backingFile) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kept.Clear(uint64(f.entry))
	b.free = append(b.free, f.entry)
}

// load makes known what the ledger has, and gives back the ids that a killed process was
// about to give back, or had got from the kernel and not noted.
func (b *backings) load() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var damaged error
	var leaving []*backingFile
	used := make(map[int32]bool)
	last := int32(0)
	b.next = 0
	err := b.kept.Each(func(entry uint64, e *ledger.Entry) {
		for ; uint64(b.next) < entry; b.next++ {
			b.free = append(b.free, b.next)
		}
		b.next++
		node := nodeID(binary.LittleEndian.Uint64(e[:]))
		id, opens := binary.LittleEndian.Uint32(e[backingID:]), binary.LittleEndian.Uint32(e[backingOpens:])
		if node.kind() != kindTree || id == 0 || id > math.MaxInt32 || opens > math.MaxInt32 || b.nodes[node] != nil || used[int32(id)] {
			damaged = fmt.Errorf("open file %d: its entry is damaged", entry)
			return
		}
		f := &backingFile{opens: int(opens), id: int32(id), entry: uint32(entry), ready: make(chan struct{})}
		copy(f.seen[:], e[backingSeen:])
		close(f.ready)
		used[f.id] = true
		last = max(last, f.id)
		if e[backingFlags]&backingLeaving != 0 {
			leaving = append(leaving, f)
			return
		}
		b.nodes[node] = f
		if f.opens == 0 {
			b.unused++
		}
	})
	for _, f := range leaving {
		b.unregister(f.id)
		b.kept.Clear(uint64(f.entry))
		b.free = append(b.free, f.entry)
	}
	// The kernel numbers them in turn, and openerThreads are registered at a time.
	for id := max(last-openerThreads, 1); id <= last+openerThreads; id++ {
		if !used[id] {
			b.unregister(id)
		}
	}
	if b.unused > 0 {
		b.timer = time.AfterFunc(keepUnused, b.tick)
	}
	return errors.Join(err, damaged)
}
