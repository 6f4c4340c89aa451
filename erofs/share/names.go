package share

// names finds the indexes of known inodes by the hash of their identity: a table
// with open addressing and linear probing, 8 bytes a place, of which between 3/8 and
// 3/4 are taken. The zero value is empty. It has no lock.
//
// A place holds the upper hashBits of the hash and the index plus 1, or 0. The upper
// bits of the hash say where an entry belongs, so that the table can grow, shrink and
// close gaps without knowing the identities.
type names struct {
	places []uint64
	bits   uint // len(places) == 1<<bits, or places is nil
	count  int
}

const (
	hashBits  = 24
	indexBits = 64 - hashBits
	minBits   = 4

	// maxNames is what the largest table may hold.
	maxNames = 1 << hashBits / 4 * 3
)

func (t *names) home(place uint64) int { return int(place >> (64 - t.bits)) }
func (t *names) next(i int) int        { return (i + 1) & (len(t.places) - 1) }

// find returns the index with this hash for which same answers true.
func (t *names) find(hash uint64, same func(index uint64) bool) (uint64, bool) {
	if t.count == 0 {
		return 0, false
	}
	for i := t.home(hash); t.places[i] != 0; i = t.next(i) {
		if p := t.places[i]; p>>indexBits == hash>>indexBits {
			if index := p&(1<<indexBits-1) - 1; same(index) {
				return index, true
			}
		}
	}
	return 0, false
}

// add adds an index, less than 2^indexBits-1. The caller makes sure that there are
// fewer than maxNames.
func (t *names) add(hash, index uint64) {
	if t.places == nil || t.count >= len(t.places)/4*3 {
		t.resize(max(t.bits+1, minBits))
	}
	t.count++
	t.place(hash>>indexBits<<indexBits | (index + 1))
}

// place puts an entry into the first free place from its home on.
func (t *names) place(p uint64) {
	i := t.home(p)
	for t.places[i] != 0 {
		i = t.next(i)
	}
	t.places[i] = p
}

// remove takes out an index that add was given with this hash.
func (t *names) remove(hash, index uint64) {
	if t.count == 0 {
		return
	}
	p := hash>>indexBits<<indexBits | (index + 1)
	i := t.home(p)
	for ; t.places[i] != p; i = t.next(i) {
		if t.places[i] == 0 {
			return
		}
	}
	t.removeAt(i)
}

// removeIndex takes out an index whose hash is not known, by looking at all places.
func (t *names) removeIndex(index uint64) {
	for i, p := range t.places {
		if p&(1<<indexBits-1) == index+1 {
			t.removeAt(i)
			return
		}
	}
}

func (t *names) removeAt(i int) {
	t.count--
	// What follows moves up, but for what belongs behind the gap.
	for j := t.next(i); t.places[j] != 0; j = t.next(j) {
		home, mask := t.home(t.places[j]), len(t.places)-1
		if (j-home)&mask >= (j-i)&mask {
			t.places[i] = t.places[j]
			i = j
		}
	}
	t.places[i] = 0
	if t.bits > minBits && t.count < len(t.places)/8 {
		t.resize(t.bits - 1)
	}
}

func (t *names) resize(bits uint) {
	old := t.places
	t.bits = min(bits, hashBits)
	t.places = make([]uint64, 1<<t.bits)
	for _, p := range old {
		if p != 0 {
			t.place(p)
		}
	}
}
