package microlzma

import "math/bits"

const (
	probBits = 11      // of a probability
	probMove = 5       // the higher, the slower it follows the bits
	topValue = 1 << 24 // the range is brought to at least it before a bit
)

// prob is the probability of a bit to be 0, as a fraction of 1<<probBits.
// It is neither 0 nor 1<<probBits.
type prob = uint16

// raised returns p after a 0.
func raised(p prob) prob {
	return prob(uint64(p) + (1<<probBits-uint64(p))>>probMove)
}

// lowered returns p after a 1.
func lowered(p prob) prob {
	return prob(uint64(p) - uint64(p)>>probMove)
}

// coder is the range decoder. It is passed by value so that it lives in
// registers; 32 bits of rng and code are used.
type coder struct {
	rng  uint64
	code uint64 // below rng
	in   uint   // the next byte of the source
}

// normalized returns c ready for a bit. At the end of src it takes zeros: in
// is then beyond len(src), and what is decoded from there on is worth nothing.
func (c coder) normalized(src []byte) coder {
	if c.rng < topValue {
		c.rng <<= 8
		c.code <<= 8
		if c.in < uint(len(src)) {
			c.code |= uint64(src[c.in])
		}
		c.in++
	}
	return c
}

// bound returns the end of the codes that mean a 0, for a bit of probability
// p. c is normalized, as for all that follows.
func (c coder) bound(p prob) uint64 {
	return c.rng >> probBits * uint64(p)
}

// zero returns c after a 0.
func (c coder) zero(bound uint64) coder {
	c.rng = bound
	return c
}

// one returns c after a 1.
func (c coder) one(bound uint64) coder {
	c.rng -= bound
	c.code -= bound
	return c
}

// bit decodes a bit without a branch, for bits that only data depends on. not
// is all ones after a 0 and 0 after a 1; moved is what p becomes.
//
// The compiler makes conditional moves of the two ifs. It makes branches when
// the difference is written without bits.Sub64 (go1.26), which are a third
// slower. Arithmetic with not in their place is 5 % slower.
func (c coder) bit(p uint64) (next coder, moved, not uint64) {
	bound := c.rng >> probBits * p
	next.in = c.in
	next.rng = c.rng - bound
	next.code, _ = bits.Sub64(c.code, bound, 0)
	not = uint64(int64(next.code) >> 63)
	// A 1 takes p>>probMove away. A 0 adds (1<<probBits-p)>>probMove: it takes
	// away p-1<<probBits, shifted and rounded up.
	moved = p - uint64(int64(p+not&(1<<64-1<<probBits+1<<probMove-1))>>probMove)
	if c.code < bound {
		next.rng = bound
	}
	if c.code < bound {
		next.code = c.code
	}
	return next, moved, not
}
