package share

import (
	"math/rand/v2"
	"testing"
)

// The table agrees with a map, whatever comes and goes, and however hashes collide.
func TestNames(t *testing.T) {
	for _, hashes := range []uint64{1, 3, 1 << 10, 1 << 24} {
		var n names
		want := make(map[uint64]uint64) // hash by index
		var list []uint64
		r := rand.New(rand.NewPCG(1, hashes))
		hash := func() uint64 { return r.Uint64N(hashes) * (1<<64 - 1) / hashes }
		limit := min(int(hashes)*50, 2000)
		for round := range 20_000 {
			growing := round/5000%2 == 0
			if len(list) < limit && (growing || r.IntN(4) == 0) {
				index, h := uint64(round), hash()
				n.add(h, index)
				want[index] = h
				list = append(list, index)
			} else if len(list) > 0 {
				i := r.IntN(len(list))
				index := list[i]
				list[i] = list[len(list)-1]
				list = list[:len(list)-1]
				if round%7 == 0 {
					n.removeIndex(index)
				} else {
					n.remove(want[index], index)
				}
				delete(want, index)
			}
			if n.count != len(want) {
				t.Fatalf("round %d: %d names, want %d", round, n.count, len(want))
			}
			if round%97 != 0 {
				continue
			}
			for index, h := range want {
				if got, ok := n.find(h, func(i uint64) bool { return i == index }); !ok || got != index {
					t.Fatalf("round %d: index %d with hash %x is not found", round, index, h)
				}
			}
			if _, ok := n.find(hash(), func(uint64) bool { return false }); ok {
				t.Fatal("a name was found that is not there")
			}
		}
		for index, h := range want {
			n.remove(h, index)
		}
		if n.count != 0 || len(n.places) > 1<<(minBits+1) {
			t.Errorf("%d names are left, in %d places", n.count, len(n.places))
		}
	}
}

func TestSourcesKeepTheirParts(t *testing.T) {
	for _, nid := range []uint64{0, 1, 1<<46 - 1, 1 << 63, 1<<63 | (1<<46 - 1)} {
		s, ok := privateSource(maxSlot, nid)
		if !ok || !s.private() || s.slot() != maxSlot || s.nid() != nid {
			t.Errorf("nid %#x: %x %v", nid, s, ok)
		}
	}
	for _, nid := range []uint64{1 << 46, 1 << 62, 1<<63 | 1<<46} {
		if s, ok := privateSource(1, nid); ok {
			t.Errorf("nid %#x: %x", nid, s)
		}
	}
	if s := entrySource(maxSlot, 1<<32-1); s.private() || s.slot() != maxSlot || s.entry() != 1<<32-1 {
		t.Errorf("%x", s)
	}
}

// Records come and go as indexes do; pages that nothing uses are given back.
func TestRecords(t *testing.T) {
	var table records
	const n = 5 * pageRecords
	for want := range uint64(n) {
		if table.get(want) != nil {
			t.Fatalf("index %d is there before it was given out", want)
		}
		index, r := table.add()
		r.store(orphan)
		if index != want || table.get(index) != r {
			t.Fatalf("index %d, want %d", index, want)
		}
	}
	for index := range uint64(n) {
		if index != 2*pageRecords {
			table.remove(index, table.get(index))
		}
	}
	seen := 0
	table.each(func(index uint64, _ *record) bool {
		if seen++; index != 2*pageRecords {
			t.Errorf("index %d is there", index)
		}
		return true
	})
	pages := 0
	for i := range *table.pages.Load() {
		if (*table.pages.Load())[i].Load() != nil {
			pages++
		}
	}
	if seen != 1 || table.count != 1 || pages != 1 {
		t.Errorf("%d records, %d counted, in %d pages; want one", seen, table.count, pages)
	}
	if table.get(1<<39) != nil {
		t.Error("an index that was never given out is there")
	}
}
