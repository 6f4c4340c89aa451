// Package xxh32 is the 32-bit XXH hash of short strings, by which EROFS images
// filter the names of extended attributes.
//
// Limits. One string at once; no streaming. It takes no more than a few hundred
// cycles for the longest name, 255 bytes.
//
// The algorithm is XXH32 of doc/xxhash_spec.md of the xxHash project.
package xxh32

import "math/bits"

const (
	prime1 uint32 = 0x9e3779b1
	prime2 uint32 = 0x85ebca77
	prime3 uint32 = 0xc2b2ae3d
	prime4 uint32 = 0x27d4eb2f
	prime5 uint32 = 0x165667b1

	stripe = 16 // bytes that the four accumulators take at once
)

// Sum is the hash of s.
func Sum(s string, seed uint32) uint32 {
	n := uint32(len(s))
	h := seed + prime5
	if len(s) >= stripe {
		acc := [4]uint32{seed + prime1 + prime2, seed + prime2, seed, seed - prime1}
		for ; len(s) >= stripe; s = s[stripe:] {
			for i := range acc {
				acc[i] = bits.RotateLeft32(acc[i]+word(s[4*i:])*prime2, 13) * prime1
			}
		}
		h = bits.RotateLeft32(acc[0], 1) + bits.RotateLeft32(acc[1], 7) +
			bits.RotateLeft32(acc[2], 12) + bits.RotateLeft32(acc[3], 18)
	}
	h += n
	for ; len(s) >= 4; s = s[4:] {
		h = bits.RotateLeft32(h+word(s)*prime3, 17) * prime4
	}
	for i := range len(s) {
		h = bits.RotateLeft32(h+uint32(s[i])*prime5, 11) * prime1
	}
	h = (h ^ h>>15) * prime2
	h = (h ^ h>>13) * prime3
	return h ^ h>>16
}

// word is the little-endian word that s starts with.
func word(s string) uint32 {
	return uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24
}
