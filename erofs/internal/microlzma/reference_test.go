package microlzma

// reference decodes a stream bit by bit, as the specification of LZMA says it,
// until limit bytes are there. It is the oracle of the tests.
type reference struct {
	src   []byte
	next  int
	short bool // bytes were missing
	rng   uint32
	code  uint32

	out   []byte
	state int
	reps  [4]uint32

	probs map[probKey]uint32
}

// probKey names a probability.
type probKey struct {
	tree       string
	a, b, node int
}

// decodeReference returns the output and whether the stream is valid as far as
// limit bytes; finished is what Finished has to say after them.
func decodeReference(src []byte, limit int) (out []byte, ok, finished bool) {
	if len(src) < 5 {
		return nil, false, false
	}
	props := int(src[0] ^ 0xff)
	if props >= 9*5*5 {
		return nil, false, false
	}
	lc, lp, pb := props%9, props/9%5, props/9/5
	if lc+lp > 4 {
		return nil, false, false
	}
	r := reference{src: src, next: 1, rng: 0xffffffff, probs: map[probKey]uint32{}}
	for range 4 {
		r.code = r.code<<8 | r.byte()
	}
	if r.code == r.rng {
		return nil, false, false
	}
	for len(r.out) < limit {
		length, dist, literal := r.symbol(lc, lp, pb)
		switch {
		case r.short:
			return r.out, false, false
		case literal >= 0:
			r.out = append(r.out, byte(literal))
			continue
		case uint64(dist) >= uint64(len(r.out)):
			return r.out, false, false
		}
		for ; length > 0 && len(r.out) < limit; length-- {
			r.out = append(r.out, r.out[len(r.out)-int(dist)-1])
		}
		if length > 0 {
			return r.out, true, false
		}
	}
	r.normalize()
	return r.out, true, !r.short && r.next == len(src) && r.code == 0
}

// symbol decodes a literal, or a match with literal < 0.
func (r *reference) symbol(lc, lp, pb int) (length int, dist uint32, literal int) {
	pos := len(r.out) & (1<<pb - 1)
	if r.bit(probKey{"match", r.state, pos, 0}) == 0 {
		return 0, 0, r.literal(lc, lp)
	}
	after := func(lit, other int) {
		if r.state < 7 {
			r.state = lit
		} else {
			r.state = other
		}
	}
	if r.bit(probKey{"rep", r.state, 0, 0}) == 0 {
		length = r.length("match length", pos)
		copy(r.reps[1:], r.reps[:])
		r.reps[0] = r.distance(length)
		after(7, 10)
		return length, r.reps[0], -1
	}
	which := 0
	if r.bit(probKey{"rep0", r.state, 0, 0}) == 0 {
		if r.bit(probKey{"rep0 long", r.state, pos, 0}) == 0 {
			after(9, 11)
			return 1, r.reps[0], -1
		}
	} else if which = 1; r.bit(probKey{"rep1", r.state, 0, 0}) == 1 {
		which = 2 + int(r.bit(probKey{"rep2", r.state, 0, 0}))
	}
	dist = r.reps[which]
	copy(r.reps[1:which+1], r.reps[:which])
	r.reps[0] = dist
	length = r.length("rep length", pos)
	after(8, 11)
	return length, dist, -1
}

func (r *reference) literal(lc, lp int) int {
	prev := 0
	if n := len(r.out); n > 0 {
		prev = int(r.out[n-1])
	}
	set := (len(r.out)&(1<<lp-1))<<lc | prev>>(8-lc)
	sym := 1
	if r.state >= 7 && uint64(r.reps[0]) < uint64(len(r.out)) {
		guess := int(r.out[len(r.out)-1-int(r.reps[0])])
		for sym < 256 {
			want := guess >> 7 & 1
			guess <<= 1
			bit := int(r.bit(probKey{"literal", set, 1 + want, sym}))
			sym = sym<<1 | bit
			if bit != want {
				break
			}
		}
	}
	for sym < 256 {
		sym = sym<<1 | int(r.bit(probKey{"literal", set, 0, sym}))
	}
	switch {
	case r.state < 4:
		r.state = 0
	case r.state < 10:
		r.state -= 3
	default:
		r.state -= 6
	}
	return sym & 255
}

func (r *reference) length(name string, pos int) int {
	if r.bit(probKey{name, 0, 0, 0}) == 0 {
		return 2 + r.tree(name+" low", pos, 3)
	}
	if r.bit(probKey{name, 1, 0, 0}) == 0 {
		return 10 + r.tree(name+" mid", pos, 3)
	}
	return 18 + r.tree(name+" high", 0, 8)
}

func (r *reference) distance(length int) uint32 {
	slot := r.tree("slot", min(length-2, 3), 6)
	if slot < 4 {
		return uint32(slot)
	}
	n := slot>>1 - 1
	dist := uint32(2|slot&1) << n
	if slot < 14 {
		return dist + r.reverse("special", slot, n)
	}
	for i := n - 1; i >= 4; i-- {
		r.normalize()
		if r.rng >>= 1; r.code >= r.rng {
			r.code -= r.rng
			dist += 1 << i
		}
	}
	return dist + r.reverse("align", 0, 4)
}

func (r *reference) tree(name string, set, n int) int {
	sym := 1
	for range n {
		sym = sym<<1 | int(r.bit(probKey{name, set, 0, sym}))
	}
	return sym - 1<<n
}

func (r *reference) reverse(name string, set, n int) uint32 {
	sym, v := 1, uint32(0)
	for i := range n {
		bit := r.bit(probKey{name, set, 0, sym})
		sym = sym<<1 | int(bit)
		v |= bit << i
	}
	return v
}

func (r *reference) bit(k probKey) uint32 {
	r.normalize()
	p, ok := r.probs[k]
	if !ok {
		p = 1024
	}
	bound := r.rng >> 11 * p
	if r.code < bound {
		r.rng = bound
		r.probs[k] = p + (2048-p)>>5
		return 0
	}
	r.rng -= bound
	r.code -= bound
	r.probs[k] = p - p>>5
	return 1
}

func (r *reference) normalize() {
	if r.rng < 1<<24 {
		r.rng <<= 8
		r.code = r.code<<8 | r.byte()
	}
}

func (r *reference) byte() uint32 {
	if r.next >= len(r.src) {
		r.short = true
		return 0
	}
	r.next++
	return uint32(r.src[r.next-1])
}
