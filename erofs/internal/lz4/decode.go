package lz4

import (
	"encoding/binary"
	"errors"
)

// ErrCorrupt says that the source is not a valid block up to the point where
// the destination would have been full.
var ErrCorrupt = errors.New("lz4: corrupt block")

const (
	minMatch = 4  // a match of length code 0 has 4 bytes
	maxCode  = 15 // of a length in the token: more bytes of length follow

	// The fast loop runs while so many bytes are left of src and of dst: the
	// token, a 16 byte copy of at most 14 literals and the offset; and the
	// literals with a match of at most 18 bytes, copied as 24.
	fastSrc = 1 + 16 + 2
	fastDst = 14 + 24
)

// MaxDistance is the farthest that a match reaches back, in bytes.
const MaxDistance = 1<<16 - 1

// Decode decodes src into dst until dst is full or src ends, and returns the
// number of bytes decoded. n < len(dst) with a nil error means that the block
// is whole and shorter than dst. What follows in src once dst is full is not
// looked at.
//
// Errors: ErrCorrupt, with n the number of bytes that are good.
func Decode(dst, src []byte) (n int, err error) {
	var s State
	return s.Decode(dst, 0, src)
}

// State is where the decoding of a block stopped, so that it can go on later
// and elsewhere. The zero State is the start of a block.
type State struct {
	in     int   // the next byte of src
	phase  phase // what that byte is part of
	code   int   // match length code of the token, from inLiterals on
	lit    int   // literals left
	match  int   // bytes left of the match, as far as its length was read
	long   bool  // more bytes of the match's length follow
	offset int   // of the match: 1 <= offset <= MaxDistance
}

type phase uint8

const (
	atToken    phase = iota // between two sequences
	inLiterals              // lit literals, then the match or the end of the block
	inMatch                 // match bytes
)

// Decode goes on where s stopped and fills dst[at:]. dst[:at] is the history:
// what was decoded last, all of the block's output or at least MaxDistance
// bytes of it. src is the block from its start, the same as in earlier calls.
// Decode returns the end of the decoded bytes in dst; see the function Decode.
//
// Errors: ErrCorrupt. s is then of no more use.
func (s *State) Decode(dst []byte, at int, src []byte) (n int, err error) {
	if s.in > len(src) {
		return at, ErrCorrupt
	}
	more := true
	if s.phase != atToken {
		at, more, err = s.sequence(dst, at, src)
	}
	if more && err == nil {
		s.in, at = decodeFast(dst, src, s.in, at)
	}
	for more && err == nil {
		at, more, err = s.sequence(dst, at, src)
	}
	return at, err
}

// Finished reports whether the block, src, ends where Decode stopped: with the
// literals of a sequence without a match, as every block does.
func (s *State) Finished(src []byte) bool {
	return s.phase == inLiterals && s.lit == 0 && s.code == 0 && s.in == len(src)
}

// mask[o] keeps the first o bytes of a little endian word, and spread[o]
// repeats them over the word by multiplication. stride[o] is the largest
// multiple of o in a word: the period of writes that continue the pattern.
var (
	mask   = [8]uint64{0, 1<<8 - 1, 1<<16 - 1, 1<<24 - 1, 1<<32 - 1, 1<<40 - 1, 1<<48 - 1, 1<<56 - 1}
	spread = [8]uint64{
		0, 0x0101010101010101, 0x0001000100010001, 1 | 1<<24 | 1<<48,
		1 | 1<<32, 1 | 1<<40, 1 | 1<<48, 1 | 1<<56,
	}
	stride = [8]int{8, 8, 8, 6, 8, 5, 6, 7}
)

// decodeFast decodes whole sequences from src[si] to dst[di] while they are
// far enough from the end of both, and returns where it stopped: always
// between two sequences, 0 <= si <= len(src), 0 <= di <= len(dst). A sequence
// that is invalid or comes too near to an end is left to State.sequence.
func decodeFast(dst, src []byte, si, di int) (int, int) {
	for si <= len(src)-fastSrc && di <= len(dst)-fastDst {
		token := int(src[si])
		s, d := si+1, di

		// Literals.
		if lit := token >> 4; lit < maxCode {
			*(*[16]byte)(dst[d:]) = *(*[16]byte)(src[s:])
			s += lit
			d += lit
		} else {
			var ok bool
			if lit, s, ok = extend(src, s, lit); !ok {
				return si, di
			}
			if lit > len(src)-s-2 || lit > len(dst)-d-24 {
				return si, di
			}
			copy(dst[d:d+lit], src[s:])
			s += lit
			d += lit
		}

		// Match: from here s+2 <= len(src) and d+24 <= len(dst).
		offset := int(binary.LittleEndian.Uint16(src[s:]))
		s += 2
		m := d - offset
		if offset == 0 || m < 0 {
			return si, di
		}
		if length := token & 15; length < maxCode {
			length += minMatch
			switch {
			case offset >= 16:
				*(*[16]byte)(dst[d:]) = *(*[16]byte)(dst[m:])
				if length > 16 {
					*(*[8]byte)(dst[d+16:]) = *(*[8]byte)(dst[m+16:])
				}
			case offset >= 8:
				*(*[8]byte)(dst[d:]) = *(*[8]byte)(dst[m:])
				if length > 8 {
					*(*[8]byte)(dst[d+8:]) = *(*[8]byte)(dst[m+8:])
					*(*[8]byte)(dst[d+16:]) = *(*[8]byte)(dst[m+16:])
				}
			default:
				v := binary.LittleEndian.Uint64(dst[m:]) & mask[offset&7] * spread[offset&7]
				step := stride[offset&7]
				binary.LittleEndian.PutUint64(dst[d:], v)
				binary.LittleEndian.PutUint64(dst[d+step:], v)
				binary.LittleEndian.PutUint64(dst[d+2*step:], v)
				if length > 3*step {
					binary.LittleEndian.PutUint64(dst[d+3*step:], v)
				}
			}
			si, di = s, d+length
			continue
		}

		length, s, ok := extend(src, s, maxCode)
		if !ok {
			return si, di
		}
		length += minMatch
		if length > len(dst)-d-16 {
			return si, di
		}
		if offset >= 16 && length <= 64 {
			for w := 0; w < length; w += 16 {
				*(*[16]byte)(dst[d+w:]) = *(*[16]byte)(dst[m+w:])
			}
		} else {
			copyMatch(dst, d, m, length)
		}
		si, di = s, d+length
	}
	return si, di
}

// sequence decodes the rest of the sequence in which s is, exact to the byte,
// to dst[di:], and returns where it ended. more is false when dst is full or
// the block has ended.
func (s *State) sequence(dst []byte, di int, src []byte) (next int, more bool, err error) {
	var ok bool
	if s.phase == atToken {
		if di == len(dst) {
			return di, false, nil
		}
		if s.in >= len(src) {
			return di, false, ErrCorrupt // a block ends with literals, not with a match
		}
		token := int(src[s.in])
		s.in++
		s.code, s.lit = token&15, token>>4
		if s.lit == maxCode {
			if s.lit, s.in, ok = extend(src, s.in, s.lit); !ok {
				return di, false, ErrCorrupt
			}
		}
		s.phase = inLiterals
	}

	if s.phase == inLiterals {
		n := min(s.lit, len(dst)-di)
		if n > len(src)-s.in {
			return di, false, ErrCorrupt
		}
		copy(dst[di:di+n], src[s.in:])
		s.in += n
		s.lit -= n
		di += n
		if di == len(dst) {
			return di, false, nil
		}
		if s.in == len(src) {
			if s.code != 0 {
				return di, false, ErrCorrupt // the last sequence has no match
			}
			return di, false, nil
		}
		if len(src)-s.in < 2 {
			return di, false, ErrCorrupt
		}
		s.offset = int(binary.LittleEndian.Uint16(src[s.in:]))
		s.in += 2
		s.match, s.long = s.code+minMatch, s.code == maxCode
		s.phase = inMatch
	}

	if s.offset == 0 || s.offset > di {
		return di, false, ErrCorrupt
	}
	// No more of the length is read than dst has room for: the rest of src may
	// be missing.
	room := len(dst) - di
	for s.long && s.match < room {
		if s.in >= len(src) {
			return di, false, ErrCorrupt
		}
		b := src[s.in]
		s.in++
		s.match += int(b)
		s.long = b == 255
	}
	n := min(s.match, room)
	copyMatch(dst, di, di-s.offset, n)
	s.match -= n
	di += n
	if s.match > 0 || s.long {
		return di, false, nil
	}
	s.phase = atToken
	return di, true, nil
}

// extend adds the length bytes at src[i:] to n: each up to and including the
// first one below 255. The sum is below 256 times len(src). ok is false when
// src ends before.
func extend(src []byte, i, n int) (length, next int, ok bool) {
	for i < len(src) {
		b := int(src[i])
		i++
		n += b
		if b != 255 {
			return n, i, true
		}
	}
	return n, i, false
}

// copyMatch copies length bytes from dst[m] to dst[d] as if byte by byte.
// 0 <= m < d, d+length <= len(dst).
func copyMatch(dst []byte, d, m, length int) {
	end := d + length
	for d < end {
		// dst[m:d] is a whole number of periods, and twice as many each time.
		d += copy(dst[d:end], dst[m:d])
	}
}
