package microlzma

import "errors"

// ErrCorrupt says that the source is not a valid stream up to the point where
// the output would have been full.
var ErrCorrupt = errors.New("microlzma: corrupt stream")

const (
	minMatch = 2
	maxMatch = minMatch + 8 + 8 + 256 - 1

	head           = 5             // the properties and the first code
	maxProps       = (4*5+4)*9 + 8 // pb, lp, lc
	maxLiteralBits = 4             // lc+lp
)

// Decoder decodes one stream at a time, of which it keeps no output. The zero
// Decoder is ready for Reset. It has about 30 KB; keep it in a pool.
type Decoder struct {
	src  []byte
	good bool // there is a stream, so far not corrupt
	out  int  // bytes decoded
	left int  // bytes left of the match at rep[0]

	coder coder
	state uint      // what the last symbols were, see run
	rep   [4]uint64 // last distances less 1, the latest first

	posMask    uint // the bits of the position that matter to symbols
	litPosMask uint // and to literals
	lc         uint // how many bits of the byte before matter to literals
	model
}

// Reset begins a stream. src is the whole stream, from its first byte on; d
// keeps it until the next Reset, and Reset(nil) lets it go.
//
// Errors: ErrCorrupt when src has fewer than 5 bytes or doesn't begin as a
// stream does. Decode then fails too.
func (d *Decoder) Reset(src []byte) error {
	d.src, d.out, d.left, d.good = nil, 0, 0, false
	if len(src) < head {
		return ErrCorrupt
	}
	props := uint(^src[0])
	lc, lp, pb := props%9, props/9%5, props/45
	if props > maxProps || lc+lp > maxLiteralBits {
		return ErrCorrupt
	}
	d.coder = coder{rng: 1<<32 - 1, in: head}
	for _, b := range src[1:head] {
		d.coder.code = d.coder.code<<8 | uint64(b)
	}
	if d.coder.code >= d.coder.rng {
		return ErrCorrupt
	}
	d.state, d.rep = 0, [4]uint64{}
	d.posMask, d.litPosMask, d.lc = 1<<pb-1, 1<<lp-1, lc
	d.reset(1 << (lc + lp))
	d.src, d.good = src, true
	return nil
}

// Decode goes on where the last call stopped and fills dst[at:]. dst[:at] is
// all output of the stream so far, as earlier calls decoded it, there or in
// another place. Decode returns the end n of the decoded bytes in dst:
// n == len(dst) without an error. What follows in the stream once dst is full
// is not looked at.
//
// Errors: ErrCorrupt, with n the number of bytes that are good, when the
// stream is invalid or ends too early, or when at isn't where the last call
// stopped.
func (d *Decoder) Decode(dst []byte, at int) (n int, err error) {
	if !d.good || at != d.out || at > len(dst) {
		return at, ErrCorrupt
	}
	if d.left > 0 {
		n = min(d.left, len(dst)-at)
		copyMatch(dst, at, int(d.rep[0])+1, n)
		at += n
		d.left -= n
	}
	at, ok := d.run(dst, at)
	d.out = at
	if !ok {
		d.good = false
		return at, ErrCorrupt
	}
	return at, nil
}

// Finished reports whether the stream ends exactly where Decode stopped: all
// of it is used, no match goes on, and the code is 0.
func (d *Decoder) Finished() bool {
	if !d.good || d.left > 0 {
		return false
	}
	c := d.coder.normalized(d.src)
	return c.in == uint(len(d.src)) && c.code == 0
}
