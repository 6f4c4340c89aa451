// Package ledger keeps small entries in a file that outlives the process, so that
// another one can go on where it ended: what the kernel remembers of a FUSE file
// system, and expects its server to know.
//
// An entry is written whole by one write(2), which no signal interrupts: after a
// SIGKILL it is the old or the new one. The file is meant to be a memfd, whose other
// descriptors somebody else holds.
package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// EntrySize is the size of an entry in bytes.
const EntrySize = 64

// Entry is an entry. One that is all zero is not there.
type Entry [EntrySize]byte

// Ledger is a file of entries. Entry n is at (n+1)*EntrySize; what kind of entries
// they are is at the start. The nil Ledger keeps nothing.
//
// Writes of one entry must not run concurrently.
type Ledger struct {
	file   *os.File
	failed atomic.Pointer[error]
}

const (
	magic     = "erofsled"
	kindAt    = 8  // of the header, 32 bits
	versionAt = 12 // 32 bits
	counterAt = 16 // 64 bits
)

// ErrForeign says that a file is none that this release can read.
var ErrForeign = errors.New("not a ledger of this kind and version")

// Create makes an empty ledger of a file. kind and version tell what its entries are.
func Create(file *os.File, kind, version uint32) (*Ledger, error) {
	var h Entry
	copy(h[:], magic)
	binary.LittleEndian.PutUint32(h[kindAt:], kind)
	binary.LittleEndian.PutUint32(h[versionAt:], version)
	if err := file.Truncate(0); err != nil {
		return nil, err
	}
	if _, err := file.WriteAt(h[:], 0); err != nil {
		return nil, err
	}
	return &Ledger{file: file}, nil
}

// Open opens a file that Create made, maybe in another process. The error wraps
// ErrForeign when it is of another kind or version.
func Open(file *os.File, kind, version uint32) (*Ledger, error) {
	var h Entry
	if _, err := file.ReadAt(h[:], 0); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrForeign, err)
	}
	k, v := binary.LittleEndian.Uint32(h[kindAt:]), binary.LittleEndian.Uint32(h[versionAt:])
	if string(h[:len(magic)]) != magic || k != kind || v != version {
		return nil, fmt.Errorf("%w: kind %d, version %d", ErrForeign, k, v)
	}
	return &Ledger{file: file}, nil
}

// Err is why entries are missing: the first write that failed, for want of memory.
func (l *Ledger) Err() error {
	if l == nil {
		return nil
	}
	if err := l.failed.Load(); err != nil {
		return *err
	}
	return nil
}

func (l *Ledger) note(err error) {
	if err != nil {
		err = fmt.Errorf("ledger: %w", err)
		l.failed.CompareAndSwap(nil, &err)
	}
}

// Put writes an entry. A failure is told by Err.
func (l *Ledger) Put(n uint64, e *Entry) {
	if l == nil {
		return
	}
	_, err := l.file.WriteAt(e[:], at(n))
	l.note(err)
}

// Get reads an entry, of zeros if it was never written.
func (l *Ledger) Get(n uint64) (e Entry) {
	if l == nil {
		return e
	}
	if _, err := l.file.ReadAt(e[:], at(n)); err != nil && err != io.EOF {
		l.note(err)
	}
	return e
}

// Clear takes an entry out.
func (l *Ledger) Clear(n uint64) { l.Put(n, &Entry{}) }

// Free gives back the memory of count entries from n on, which were taken out.
func (l *Ledger) Free(n, count uint64) {
	if l == nil {
		return
	}
	// Where that is not possible it costs the memory.
	_ = unix.Fallocate(int(l.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at(n), int64(count)*EntrySize)
}

// Len is one more than the number of the last entry that was ever written.
func (l *Ledger) Len() (uint64, error) {
	if l == nil {
		return 0, nil
	}
	info, err := l.file.Stat()
	if err != nil {
		return 0, err
	}
	return uint64(max(info.Size()/EntrySize-1, 0)), nil
}

// Each calls f with the entries that are there, in order.
func (l *Ledger) Each(f func(n uint64, e *Entry)) error {
	if l == nil {
		return nil
	}
	const some = 1024
	buf := make([]byte, some*EntrySize)
	for n := uint64(0); ; {
		got, err := l.file.ReadAt(buf, at(n))
		for i := 0; i+EntrySize <= got; i += EntrySize {
			if e := (*Entry)(buf[i:]); *e != (Entry{}) {
				f(n, e)
			}
			n++
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Counter is a number kept beside the entries, 0 at first.
func (l *Ledger) Counter() (uint64, error) {
	var b [8]byte
	if l == nil {
		return 0, nil
	}
	_, err := l.file.ReadAt(b[:], counterAt)
	return binary.LittleEndian.Uint64(b[:]), err
}

// SetCounter keeps it.
func (l *Ledger) SetCounter(n uint64) {
	if l == nil {
		return
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], n)
	_, err := l.file.WriteAt(b[:], counterAt)
	l.note(err)
}

func at(n uint64) int64 { return int64(n+1) * EntrySize }
