package share

import (
	"encoding/binary"
	"errors"
	"math"
	"os"
	"time"

	"github.com/erofs-csi/erofs-csi/erofs/internal/ledger"
)

// An entry of a domain's ledger is an inode that the kernel knows, at its index:
//
//	bytes 0-31   SHA-256 of the content; of a private file its image's tag and its nid
//	      32-39  size
//	      40-43  the kernel's references
//	      44     entryUsed, entryPrivate
//	      48-63  the requests counted last
const (
	ledgerKind    = 1
	ledgerVersion = 1

	entrySize    = 32
	entryLookups = 40
	entryFlags   = 44
	entrySeen    = 48

	entryUsed    = 1
	entryPrivate = 2
)

func seenBy(e *ledger.Entry) ledger.Seen { return e[entrySeen:] }

func putLookups(e *ledger.Entry, n uint32) { binary.LittleEndian.PutUint32(e[entryLookups:], n) }

func putIdentity(e *ledger.Entry, id *identity) {
	copy(e[:entrySize], id.key.Sum[:])
	e[entryFlags] = entryUsed
	if id.private {
		e[entryFlags] |= entryPrivate
	}
}

// Keep writes what the kernel knows of the domain to a file from now on, 64 bytes an
// inode, so that Recall can go on with it in another process. It must be called before
// an image joins. The file is the caller's to close, when the domain is of no more use.
func (d *Domain) Keep(file *os.File) (err error) {
	d.kept, err = ledger.Create(file, ledgerKind, ledgerVersion)
	return err
}

// Recall takes over a file of Keep. It must be called before an image joins; until Load
// the domain knows no inode and must not be asked for one.
func (d *Domain) Recall(file *os.File) (err error) {
	d.kept, err = ledger.Open(file, ledgerKind, ledgerVersion)
	return err
}

// KeepError is why the file of Keep or Recall misses something: a write to it failed.
func (d *Domain) KeepError() error { return d.kept.Err() }

// Load makes the inodes known that Recall's file has, when the images have joined that
// supply them. Others that join later supply what is missing then. It returns how many
// inodes there are, and how many of them no image supplies.
//
// All their bytes may be in the page cache, as far as Use tells.
func (d *Domain) Load() (known, orphans int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	joined := d.members.Load().joined
	now := time.Now()
	var rejected error
	err = d.kept.Each(func(index uint64, e *ledger.Entry) {
		var id identity
		id.private = e[entryFlags]&entryPrivate != 0
		copy(id.key.Sum[:], e[:entrySize])
		size := binary.LittleEndian.Uint64(e[entrySize:])
		lookups := binary.LittleEndian.Uint32(e[entryLookups:])
		if e[entryFlags]&entryUsed == 0 || size == 0 || size > math.MaxInt64 || lookups == 0 || index >= maxIndex || d.names.count >= maxNames {
			rejected = errEntry
			return
		}
		if !id.private {
			id.key.Size = int64(size)
		}
		hash := d.hash(&id)
		if _, ok := d.known(&id, hash); ok {
			rejected = errEntry
			return
		}
		r := d.records.restore(index)
		r.size, r.nlookup, r.loaded = int64(size), lookups, true
		r.use.Served(r.size, r.size, now)
		d.names.add(hash, index)
		if !d.choose(r, &id, joined) {
			d.orphans[index] = id
			r.store(orphan)
			orphans++
		}
		known++
	})
	next, lenErr := d.kept.Len()
	d.records.extend(min(next, maxIndex))
	return known, orphans, errors.Join(err, lenErr, rejected)
}

// errEntry says that a ledger has what no domain writes.
var errEntry = errors.New("an entry of the ledger is damaged: its file fails to be read")

// Verify asks, of an inode that Load made known and whose references have not changed
// since, whether the kernel still knows it: a process that is killed may have read that
// it was forgotten, and not noted it. known is called without a lock. own is how many
// references are not the kernel's.
//
// It returns the inode when it is gone, as Forget does.
func (d *Domain) Verify(index uint64, own uint32, known func() bool) (Inode, bool) {
	if !d.unchanged(index) || known() {
		return Inode{}, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.records.get(index)
	if r == nil || !r.loaded || r.nlookup == own {
		return Inode{}, false
	}
	if own > 0 {
		r.nlookup = own
		d.noteLookups(index, r)
		return Inode{}, false
	}
	return d.remove(index, r), true
}

// unchanged tells whether an inode is as Load made it known.
func (d *Domain) unchanged(index uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.records.get(index)
	return r != nil && r.loaded
}

// note keeps a new inode. d.mu is held, as for what follows.
func (d *Domain) note(index uint64, id *identity, r *record, unique uint64) {
	if d.kept == nil {
		return
	}
	var e ledger.Entry
	putIdentity(&e, id)
	binary.LittleEndian.PutUint64(e[entrySize:], uint64(r.size))
	putLookups(&e, r.nlookup)
	seenBy(&e).Counted(unique)
	d.kept.Put(index, &e)
}

func (d *Domain) noteLookups(index uint64, r *record) {
	if d.kept == nil {
		return
	}
	e := d.kept.Get(index)
	putLookups(&e, r.nlookup)
	d.kept.Put(index, &e)
}

func (d *Domain) noteIdentity(index uint64, id *identity) {
	if d.kept == nil {
		return
	}
	e := d.kept.Get(index)
	putIdentity(&e, id)
	d.kept.Put(index, &e)
}
