package ledger_test

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs/internal/ledger"
)

func open(t *testing.T) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "f"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func entry(n uint64) (e ledger.Entry) {
	binary.LittleEndian.PutUint64(e[:], n+1)
	e[ledger.EntrySize-1] = 7
	return e
}

func TestLedger(t *testing.T) {
	f := open(t)
	l, err := ledger.Create(f, 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []uint64{0, 1, 5, 5000} {
		e := entry(n)
		l.Put(n, &e)
	}
	l.Clear(1)
	l.Clear(5000)
	l.Free(4000, 1001)
	l.SetCounter(42)

	again, err := ledger.Open(f, 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	var got []uint64
	if err := again.Each(func(n uint64, e *ledger.Entry) {
		if *e != entry(n) {
			t.Errorf("entry %d is %x", n, *e)
		}
		got = append(got, n)
	}); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0] != 0 || got[1] != 5 {
		t.Errorf("entries %v, want 0 and 5", got)
	}
	if n, err := again.Len(); n != 5001 || err != nil {
		t.Errorf("length %d, %v", n, err)
	}
	if n, err := again.Counter(); n != 42 || err != nil {
		t.Errorf("counter %d, %v", n, err)
	}
	if e := again.Get(5); e != entry(5) {
		t.Errorf("entry 5 is %x", e)
	}
	if e := again.Get(1 << 30); e != (ledger.Entry{}) {
		t.Errorf("an entry that was never written is %x", e)
	}
	if err := errors.Join(l.Err(), again.Err()); err != nil {
		t.Error(err)
	}
	for _, kind := range [][2]uint32{{3, 2}, {4, 1}} {
		if _, err := ledger.Open(f, kind[0], kind[1]); !errors.Is(err, ledger.ErrForeign) {
			t.Errorf("opened as %v: %v", kind, err)
		}
	}
	if _, err := ledger.Open(open(t), 3, 1); !errors.Is(err, ledger.ErrForeign) {
		t.Errorf("opened an empty file: %v", err)
	}
}

// A write that fails is told, and the process goes on.
func TestLedgerTellsFailures(t *testing.T) {
	f := open(t)
	l, err := ledger.Create(f, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	e := entry(1)
	l.Put(1, &e)
	if l.Err() == nil {
		t.Error("a write to a closed file did not fail")
	}
	var none *ledger.Ledger
	none.Put(1, &e)
	none.Clear(1)
	none.Free(0, 1)
	none.SetCounter(1)
	if n, err := none.Len(); n != 0 || err != nil || none.Err() != nil || none.Get(1) != (ledger.Entry{}) {
		t.Error("no ledger has something")
	}
}

func TestSeen(t *testing.T) {
	const resent = 1 << 63
	var e ledger.Entry
	s := ledger.Seen(e[40:64])
	for _, c := range []struct {
		unique uint64
		want   bool
	}{
		{2, false},
		{4, false},
		{2 | resent, true},
		{6, false},
		{2 | resent, true},
		{4 | resent, true},
		{8, false},
		{2 | resent, false},
		{2 | resent, true},
		{0, false},
		{0, false},
		{10, false},
		{10, false}, // a number is not used twice, but for what is sent again
	} {
		if got := s.Counted(c.unique); got != c.want {
			t.Errorf("request %x: %v, want %v; %x", c.unique, got, c.want, s)
		}
	}
	if e[39] != 0 {
		t.Error("written outside")
	}
}
