// Package lz4 decodes LZ4 blocks as EROFS images hold them.
//
// Limits. It decodes raw blocks only: no frames, no dictionaries, no encoder.
// A block may be of any length; the caller chooses how much of it to decode by
// the length of the destination.
//
// It exists because EROFS needs a decoder that stops when the destination is
// full, whatever follows in the source, and github.com/pierrec/lz4 has no such
// mode: to it a destination shorter than the block is an error. EROFS decodes
// the first bytes of a cluster alone, and images without the 0padding feature
// fill the rest of a cluster with zeros that belong to no block.
//
// Hostile input. No input makes it read outside of src, write outside of dst,
// panic, or work longer than in proportion to len(src)+len(dst).
//
// Speed. Pure Go without unsafe; copies are 16 bytes wide while both ends are
// far enough away, and one byte exact near them. Bytes of dst behind the
// decoded ones may be overwritten with anything.
//
// The format is lz4_Block_format.md of the LZ4 project.
package lz4
