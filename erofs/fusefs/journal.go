package fusefs

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs/internal/ledger"
)

// A journal is a file of requests under way, for kernels that cannot send them again
// (before Linux 6.9). It is mapped, and requests are read from /dev/fuse into it: to the
// kernel a request is its server's when it is copied there, so that at no moment a
// request is with a server and not in the file. It is taken out when its answer is
// written.
//
// After the header of a ledger come slots of slotSize bytes, from journalStart on. A slot
// is the start of a request as the kernel sends it; its first word, the request's length,
// is 0 when the slot is free. What is longer than a slot is never needed again: forgets,
// and requests that are refused whatever they say.
const (
	journalLedger  = 4
	journalVersion = 1

	journalStart = 4096
	journalSlots = 2048
	journalSize  = journalStart + journalSlots*slotSize

	// slotSize has room for a name of nameMax bytes.
	slotSize = 512
)

// requestKeeping says that requests are to be kept in a journal.
type requestKeeping struct {
	file *os.File
	// always: also where the kernel can send them again.
	always bool
}

// journal is one that is mapped. A slot is its reader's and handler's alone from take to
// free.
type journal struct {
	data []byte

	mu    sync.Mutex
	cond  sync.Cond // on mu; signalled when a slot is free
	spare []int32   // slots that are free, the one to be used first at the end; GUARDED_BY(mu)
	next  int32     // slots from here on were never used; GUARDED_BY(mu)
}

// createJournal makes an empty journal of a file. It takes no memory before it is used.
func createJournal(file *os.File) error {
	if _, err := ledger.Create(file, journalLedger, journalVersion); err != nil {
		return err
	}
	return file.Truncate(journalSize)
}

// checkJournal tells whether a file is a journal that this release can read.
func checkJournal(file *os.File) error {
	if _, err := ledger.Open(file, journalLedger, journalVersion); err != nil {
		return err
	}
	info, err := file.Stat()
	if err == nil && info.Size() != journalSize {
		err = fmt.Errorf("%w: a journal of %d bytes, not %d", ledger.ErrForeign, info.Size(), journalSize)
	}
	return err
}

// openJournal maps a file of createJournal, and returns the slots that are in use.
func openJournal(file *os.File) (j *journal, used []int32, err error) {
	if err := checkJournal(file); err != nil {
		return nil, nil, err
	}
	// Not by the mapping: a slot that was never written has no page, and should get none.
	var word [4]byte
	j = &journal{}
	j.cond.L = &j.mu
	for i := range int32(journalSlots) {
		if _, err := file.ReadAt(word[:], journalStart+int64(i)*slotSize); err != nil {
			return nil, nil, fmt.Errorf("journal: %w", err)
		}
		if word != [4]byte{} {
			used = append(used, i)
			j.next = i + 1
		}
	}
	for i, u := int32(0), used; i < j.next; i++ {
		if u[0] == i {
			u = u[1:]
			continue
		}
		j.spare = append(j.spare, i)
	}
	j.data, err = unix.Mmap(int(file.Fd()), 0, journalSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("map the journal: %w", err)
	}
	// Pages that were used once must stay: see take. Without the right to lock them they
	// do until memory is short.
	_, _, _ = unix.Syscall(unix.SYS_MLOCK2, uintptr(unsafe.Pointer(&j.data[0])), journalSize, unix.MLOCK_ONFAULT)
	return j, used, nil
}

// close unmaps it. Nobody may use a slot any more.
func (j *journal) close() error { return unix.Munmap(j.data) }

// take returns a free slot. Without one it waits: the kernel keeps what is not read, and
// whoever waits for that can be killed.
func (j *journal) take() int32 {
	j.mu.Lock()
	for len(j.spare) == 0 && j.next == journalSlots {
		j.cond.Wait()
	}
	var slot int32
	if n := len(j.spare); n > 0 {
		slot = j.spare[n-1]
		j.spare = j.spare[:n-1]
	} else {
		slot = j.next
		j.next++
	}
	j.mu.Unlock()
	// Its page must be there and writable before the kernel writes to it, or else a
	// process that is being killed does not get it, and the request fails.
	j.setLength(slot, 0)
	return slot
}

// free takes out the request of a slot, whose answer the kernel has.
func (j *journal) free(slot int32) {
	j.setLength(slot, 0)
	j.mu.Lock()
	j.spare = append(j.spare, slot)
	j.mu.Unlock()
	j.cond.Signal()
}

// slot is the memory of a slot.
func (j *journal) slot(n int32) []byte {
	at := journalStart + int(n)*slotSize
	return j.data[at : at+slotSize : at+slotSize]
}

// length is that of the request in a slot, as the kernel says; 0: there is none.
func (j *journal) length(slot int32) uint32 {
	return atomic.LoadUint32((*uint32)(unsafe.Pointer(&j.slot(slot)[0])))
}

func (j *journal) setLength(slot int32, n uint32) {
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&j.slot(slot)[0])), n)
}

// busy tells whether some request is in it.
func (j *journal) busy() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := range j.next {
		if j.length(i) != 0 {
			return true
		}
	}
	return false
}

// kept returns a copy of a request that a process left which is gone, marked as one that
// is sent again, or nil: nobody waits for it.
func (j *journal) kept(slot int32) []byte {
	n := j.length(slot)
	if n < uint32(inHeader) {
		return nil
	}
	request := append([]byte(nil), j.slot(slot)[:min(n, slotSize)]...)
	h := headerOf(request)
	if unanswered(h.Opcode) {
		return nil
	}
	h.Unique |= uniqueResent
	return request
}

func headerOf(request []byte) *fuse.InHeader { return (*fuse.InHeader)(unsafe.Pointer(&request[0])) }
