package microlzma

import "encoding/binary"

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

// wideRoom is how far wide copies write behind the end of a match, at most.
const wideRoom = 16

// copyNear is copyMatch for dist < 16 and at+length <= len(dst)-wideRoom. It
// overwrites the bytes of the room.
func copyNear(dst []byte, at, dist, length int) {
	from, end := at-dist, at+length
	if dist >= 8 {
		for ; at < end; at, from = at+8, from+8 {
			*(*[8]byte)(dst[at:]) = *(*[8]byte)(dst[from:])
		}
		return
	}
	v := binary.LittleEndian.Uint64(dst[from:]) & mask[dist&7] * spread[dist&7]
	for step := stride[dist&7]; at < end; at += step {
		binary.LittleEndian.PutUint64(dst[at:], v)
	}
}

// copyMatch copies length bytes from dst[at-dist] to dst[at] as if byte by
// byte. 1 <= dist <= at, at+length <= len(dst).
func copyMatch(dst []byte, at, dist, length int) {
	from, end := at-dist, at+length
	for at < end {
		// dst[from:at] is a whole number of periods, and twice as many each
		// time.
		at += copy(dst[at:end], dst[from:at])
	}
}
