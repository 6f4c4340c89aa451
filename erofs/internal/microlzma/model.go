package microlzma

const (
	posStates = 1 << 4 // values of the lowest bits of the position, pb of them

	slots       = 64 // a slot is the length and the highest two bits of a distance
	slotSets    = 4  // for matches of 2, 3, 4 and more bytes
	specialSlot = 4  // from here on more bits follow
	directSlot  = 14 // from here on all but the lowest alignBits have even chances
	alignBits   = 4
	specials    = 128 // more than the slots from specialSlot to directSlot need

	literalProbs = 3 * 256             // a tree, and two for matched
	literalSets  = 1 << maxLiteralBits // by lp bits of the position, lc of the byte before
)

// model is all probabilities. Arrays by the state have 16 elements, so that a
// mask of the index is enough.
type model struct {
	symbols
	literal [literalSets][literalProbs]prob
}

// symbols is the probabilities of all but the literals.
type symbols struct {
	isMatch    [16 * posStates]prob // see byPos
	isRep      [16]prob
	isRep0     [16]prob
	isRep0Long [16 * posStates]prob // see byPos
	isRep1     [16]prob
	isRep2     [16]prob
	matchLen   lengths
	repLen     lengths
	slot       [slotSets][slots]prob
	special    [specials]prob
	align      [1 << alignBits]prob
}

// lengths is the probabilities of the lengths of one kind of match. As in all
// trees, 1 is the index of the root, and 2*i and 2*i+1 are the children of i.
type lengths struct {
	choice, choice2 prob
	low, mid        [posStates][8]prob
	high            [256]prob
}

// byPos is the index of what depends on the state and the position.
func byPos(state, pos uint) uint8 {
	return uint8(state<<4 | pos&(posStates-1))
}

// fresh is what a stream begins with.
var fresh = newFresh()

type freshModel struct {
	symbols symbols
	literal [literalProbs]prob
}

func newFresh() *freshModel {
	f := new(freshModel)
	s := &f.symbols
	for _, probs := range [][]prob{
		s.isMatch[:], s.isRep[:], s.isRep0[:], s.isRep0Long[:], s.isRep1[:], s.isRep2[:],
		s.special[:], s.align[:], f.literal[:],
	} {
		even(probs)
	}
	for _, l := range []*lengths{&s.matchLen, &s.repLen} {
		l.choice, l.choice2 = 1<<probBits/2, 1<<probBits/2
		for i := range posStates {
			even(l.low[i][:])
			even(l.mid[i][:])
		}
		even(l.high[:])
	}
	for i := range s.slot {
		even(s.slot[i][:])
	}
	return f
}

// even gives both values of a bit the same chance.
func even(probs []prob) {
	for i := range probs {
		probs[i] = 1 << probBits / 2
	}
}

// reset makes m that of the start of a stream with n sets for literals.
func (m *model) reset(n int) {
	m.symbols = fresh.symbols
	for i := range m.literal[:n] {
		m.literal[i] = fresh.literal
	}
}
