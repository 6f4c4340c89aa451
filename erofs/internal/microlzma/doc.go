// Package microlzma decodes MicroLZMA streams as EROFS images hold them.
//
// Limits. It decodes one raw LZMA stream without a header and without an end
// marker: no .lzma, .xz or LZMA2, no encoder. lc+lp is at most 4 and pb at
// most 4. The output is below 4 GiB; it is the dictionary too, and no other
// limit of the distance is enforced. The caller knows the length of the stream
// and chooses how much of it to decode by the length of the destination.
//
// Hostile input. No input makes it read outside of src, write outside of dst,
// panic, allocate, or work longer than in proportion to len(src)+len(dst).
//
// Speed. Pure Go without unsafe; the bits of literals, lengths and distances
// are decoded without branches, the range coder stays in registers. Bytes of
// dst behind the decoded ones may be overwritten with anything.
//
// The format is lzma-specification.txt of the LZMA SDK, with the first byte,
// always 0 there, replaced by the complement of the properties byte.
package microlzma
