package microlzma

// The loops over trees are alike but for their size: as calls of one function
// they are 4 % slower. Each loads both of the probabilities that can be next
// before it is known which one it is. Their masks only spare bounds checks.

// tree decodes 8 bits, the highest first, and returns them with a 1 above.
func tree(c coder, src []byte, t *[256]prob) (next coder, sym uint64) {
	sym, p, not := uint64(1), uint64(t[1]), uint64(0)
	for sym < 256 {
		child := 2 * sym & 255
		zero, one := uint64(t[child]), uint64(t[child|1])
		c = c.normalized(src)
		c, p, not = c.bit(p)
		t[sym&255] = prob(p)
		sym = 2*sym + 1 + not
		p = one ^ (one^zero)&not
	}
	return c, sym
}

// literal decodes a byte after a literal, with a 1 above.
func literal(c coder, src []byte, t *[literalProbs]prob) (next coder, sym uint64) {
	return tree(c, src, (*[256]prob)(t[:]))
}

// matched decodes a byte after a match, with a 1 above. guess is the byte that
// would have gone on with the match. While all bits are as in guess, the next
// bit has other probabilities, one set for each value it has in guess.
func matched(c coder, src []byte, t *[literalProbs]prob, guess byte) (next coder, sym uint64) {
	sym, p, not := uint64(1), uint64(0), uint64(0)
	rest, on := uint64(guess), uint64(256) // on is 0 once a bit wasn't guessed
	for sym < 256 {
		rest <<= 1
		bit := rest & on
		q := &t[on+bit+sym] // at most 256+256+255
		c = c.normalized(src)
		c, p, not = c.bit(uint64(*q))
		*q = prob(p)
		sym = 2*sym + 1 + not
		on &= bit ^ not
	}
	return c, sym
}

// decode decodes a length, from minMatch to maxMatch.
func (l *lengths) decode(c coder, src []byte, pos uint) (next coder, length uint64) {
	t, base := &l.low[pos&(posStates-1)], uint64(minMatch)
	c = c.normalized(src)
	if bound := c.bound(l.choice); c.code < bound {
		c, l.choice = c.zero(bound), raised(l.choice)
	} else {
		c, l.choice = c.one(bound), lowered(l.choice)
		c = c.normalized(src)
		if bound := c.bound(l.choice2); c.code < bound {
			c, l.choice2 = c.zero(bound), raised(l.choice2)
			t, base = &l.mid[pos&(posStates-1)], minMatch+8
		} else {
			c, l.choice2 = c.one(bound), lowered(l.choice2)
			c, length = tree(c, src, &l.high)
			return c, length - 256 + minMatch + 16
		}
	}
	sym, p, not := uint64(1), uint64(t[1]), uint64(0)
	for sym < 8 {
		child := 2 * sym & 7
		zero, one := uint64(t[child]), uint64(t[child|1])
		c = c.normalized(src)
		c, p, not = c.bit(p)
		t[sym&7] = prob(p)
		sym = 2*sym + 1 + not
		p = one ^ (one^zero)&not
	}
	return c, base + sym - 8
}

// distance decodes the distance, less 1, of a match of a length. It may have
// any value of 32 bits.
func (s *symbols) distance(c coder, src []byte, length uint64) (next coder, dist uint64) {
	t := &s.slot[min(length-minMatch, slotSets-1)&(slotSets-1)]
	sym, p, not := uint64(1), uint64(t[1]), uint64(0)
	for sym < slots {
		child := 2 * sym & (slots - 1)
		zero, one := uint64(t[child]), uint64(t[child|1])
		c = c.normalized(src)
		c, p, not = c.bit(p)
		t[sym&(slots-1)] = prob(p)
		sym = 2*sym + 1 + not
		p = one ^ (one^zero)&not
	}
	slot := sym - slots
	if slot < specialSlot {
		return c, slot
	}

	n := slot>>1 - 1 // bits to come
	dist = 2 | slot&1
	sym = 1
	if slot < directSlot {
		// The lowest bit first. The trees of the slots lie one behind the
		// other.
		dist <<= n & 7
		base := dist - slot - 1
		for one := uint64(1); n > 0; n-- {
			q := &s.special[(base+sym)&(specials-1)]
			c = c.normalized(src)
			c, p, not = c.bit(uint64(*q))
			*q = prob(p)
			sym = 2*sym + 1 + not
			dist += one &^ not
			one <<= 1
		}
		return c, dist
	}

	for ; n > alignBits; n-- {
		c = c.normalized(src)
		c.rng >>= 1
		c.code -= c.rng
		not = uint64(int64(c.code) >> 63)
		c.code += c.rng & not
		dist = 2*dist + 1 + not
	}
	dist <<= alignBits
	p = uint64(s.align[1])
	for one := uint64(1); one < 1<<alignBits; one <<= 1 {
		child := 2 * sym & (1<<alignBits - 1)
		low, high := uint64(s.align[child]), uint64(s.align[child|1])
		c = c.normalized(src)
		c, p, not = c.bit(p)
		s.align[sym&(1<<alignBits-1)] = prob(p)
		sym = 2*sym + 1 + not
		p = high ^ (high^low)&not
		dist += one &^ not
	}
	return c, dist
}
