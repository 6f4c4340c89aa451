package microlzma

// The states by what the last symbols were. In the first literalStates ones
// the last symbol was a literal.
const (
	literalStates = 7

	literalMatch    = 7 // a literal, then a match
	literalRep      = 8
	literalShortRep = 9
	otherMatch      = 10 // anything else, then a match
	otherRep        = 11 // a short one too
)

// afterLiteral is the state after a literal, by the state before.
var afterLiteral = [16]uint8{0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 4, 5}

// run decodes symbols until dst is full and returns the end of the decoded
// bytes. ok is false when the stream is corrupt there; d is then of no more
// use.
func (d *Decoder) run(dst []byte, at int) (n int, ok bool) {
	src, c, state, rep0 := d.src, d.coder, d.state, d.rep[0]
	for at < len(dst) {
		pos := uint(at) & d.posMask
		c = c.normalized(src)
		p := &d.isMatch[byPos(state, pos)]
		bound := c.bound(*p)
		if c.code < bound {
			c, *p = c.zero(bound), raised(*p)
			var prev byte
			if at > 0 {
				prev = dst[at-1]
			}
			t := d.literalProbs(uint(at), prev)
			var sym uint64
			if state < literalStates {
				c, sym = literal(c, src, t)
			} else {
				c, sym = matched(c, src, t, dst[uint64(at)-rep0-1])
			}
			if c.in > uint(len(src)) {
				return at, false
			}
			dst[at] = byte(sym)
			at++
			state = uint(afterLiteral[state&15])
			continue
		}
		c, *p = c.one(bound), lowered(*p)

		var length uint64
		c = c.normalized(src)
		p = &d.isRep[state&15]
		if bound = c.bound(*p); c.code < bound {
			c, *p = c.zero(bound), raised(*p)
			d.rep[1], d.rep[2], d.rep[3] = rep0, d.rep[1], d.rep[2]
			c, length = d.matchLen.decode(c, src, pos)
			c, rep0 = d.distance(c, src, length)
			if state < literalStates {
				state = literalMatch
			} else {
				state = otherMatch
			}
		} else {
			c, *p = c.one(bound), lowered(*p)
			c = c.normalized(src)
			p = &d.isRep0[state&15]
			if bound = c.bound(*p); c.code < bound {
				c, *p = c.zero(bound), raised(*p)
				c = c.normalized(src)
				p = &d.isRep0Long[byPos(state, pos)]
				if bound = c.bound(*p); c.code < bound {
					c, *p = c.zero(bound), raised(*p)
					if c.in > uint(len(src)) || rep0 >= uint64(at) {
						return at, false
					}
					dst[at] = dst[uint64(at)-rep0-1]
					at++
					if state < literalStates {
						state = literalShortRep
					} else {
						state = otherRep
					}
					continue
				}
				c, *p = c.one(bound), lowered(*p)
			} else {
				c, *p = c.one(bound), lowered(*p)
				d.rep[0] = rep0
				c = d.older(c, state)
				rep0 = d.rep[0]
			}
			c, length = d.repLen.decode(c, src, pos)
			if state < literalStates {
				state = literalRep
			} else {
				state = otherRep
			}
		}
		if c.in > uint(len(src)) || rep0 >= uint64(at) {
			return at, false
		}

		if room := uint64(len(dst) - at); length > room {
			d.left = int(length - room)
			length = room
		}
		from, end := at-int(rep0)-1, at+int(length)
		switch {
		case len(dst)-end < wideRoom:
			copyMatch(dst, at, int(rep0)+1, int(length))
		case rep0 < 15:
			copyNear(dst, at, int(rep0)+1, int(length))
		default:
			for ; at < end; at, from = at+16, from+16 {
				*(*[16]byte)(dst[at:]) = *(*[16]byte)(dst[from:])
			}
		}
		at = end
	}
	d.coder, d.state, d.rep[0] = c, state, rep0
	return at, true
}

// literalProbs returns the probabilities of a literal at a position, by the
// byte before it.
func (d *Decoder) literalProbs(at uint, prev byte) *[literalProbs]prob {
	i := at&d.litPosMask<<(d.lc&7) | uint(prev)>>((8-d.lc)&15)
	return &d.literal[i&(literalSets-1)]
}

// older puts the one of the last distances that a match has, and which isn't
// the latest, first in d.rep.
func (d *Decoder) older(c coder, state uint) coder {
	src, r := d.src, &d.rep
	c = c.normalized(src)
	p := &d.isRep1[state&15]
	bound := c.bound(*p)
	if c.code < bound {
		c, *p = c.zero(bound), raised(*p)
		r[0], r[1] = r[1], r[0]
		return c
	}
	c, *p = c.one(bound), lowered(*p)
	c = c.normalized(src)
	p = &d.isRep2[state&15]
	bound = c.bound(*p)
	if c.code < bound {
		c, *p = c.zero(bound), raised(*p)
		r[0], r[1], r[2] = r[2], r[0], r[1]
		return c
	}
	c, *p = c.one(bound), lowered(*p)
	r[0], r[1], r[2], r[3] = r[3], r[0], r[1], r[2]
	return c
}
