package fusefs

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs/internal/ledger"
)

func newJournal(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "journal"))
	if err == nil {
		err = createJournal(f)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func mustOpenJournal(t *testing.T, f *os.File) (j *journal, used []int32) {
	t.Helper()
	j, used, err := openJournal(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.close(); err != nil {
			t.Error(err)
		}
	})
	return j, used
}

func TestJournal(t *testing.T) {
	f := newJournal(t)
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Blocks*statUnit > 2*blockSize {
		t.Errorf("an empty journal takes %d bytes, %v", st.Blocks*statUnit, err)
	}
	j, used := mustOpenJournal(t, f)
	if len(used) != 0 || j.busy() {
		t.Fatalf("new, and slots %v are used", used)
	}
	put := func(op uint32, unique uint64) int32 {
		slot := j.take()
		h := headerOf(j.slot(slot))
		h.Opcode, h.Unique, h.Length = op, unique, uint32(inHeader)+5
		copy(j.slot(slot)[inHeader:], "name\x00more")
		return slot
	}
	const lookupOp = 1
	a, b, c, d := put(lookupOp, 2), put(forgetOp, 4), put(lookupOp, 6), put(lookupOp, 8)
	j.free(c)
	if got := put(lookupOp, 10); got != c {
		t.Errorf("slot %d is used where %d is free", got, c)
	}
	j.free(c)
	if !j.busy() {
		t.Error("it is not busy")
	}

	again, used := mustOpenJournal(t, f)
	if !slices.Equal(used, []int32{a, b, d}) {
		t.Fatalf("slots %v are used, want %d, %d and %d", used, a, b, d)
	}
	request := again.kept(d)
	if request == nil || headerOf(request).Unique != 8|uniqueResent || string(request[inHeader:]) != "name\x00" {
		t.Errorf("kept %x", request)
	}
	if again.kept(b) != nil {
		t.Error("a forget would be dealt with again")
	}
	if got := again.take(); got != c {
		t.Errorf("slot %d is used, where %d is the only one free", got, c)
	}
	for range journalSlots - 4 {
		again.take()
	}
	taken := make(chan int32)
	go func() { taken <- again.take() }()
	select {
	case got := <-taken:
		t.Errorf("slot %d of a full journal is given away", got)
	case <-time.After(10 * time.Millisecond):
	}
	again.free(d)
	if got := <-taken; got != d {
		t.Errorf("slot %d is given away, %d was freed", got, d)
	}
	for _, slot := range []int32{a, b} {
		again.free(slot)
	}
	if again.busy() || j.busy() {
		t.Error("it is busy with nothing")
	}
}

// A journal of another release, or a damaged one, is not used.
func TestForeignJournal(t *testing.T) {
	for name, change := range map[string]func(f *os.File) error{
		"short":   func(f *os.File) error { return f.Truncate(journalSize - slotSize) },
		"long":    func(f *os.File) error { return f.Truncate(journalSize + 1) },
		"empty":   func(f *os.File) error { return f.Truncate(0) },
		"version": func(f *os.File) error { _, err := ledger.Create(f, journalLedger, journalVersion+1); return err },
	} {
		f := newJournal(t)
		if err := change(f); err != nil {
			t.Fatal(err)
		}
		if _, _, err := openJournal(f); !errors.Is(err, ledger.ErrForeign) {
			t.Errorf("%s: %v, want %v", name, err, ledger.ErrForeign)
		}
	}
}
