package ledger

import "encoding/binary"

// resentBit is set in the unique number of a FUSE request that the kernel sends
// again, because a server that had it did not answer (FUSE_UNIQUE_RESEND).
const resentBit = 1 << 63

// Seen is the requests, 8 bytes each and the last one first, that an entry counted
// last. A request may have been counted by a process that was killed before it
// answered: the kernel sends it again, and it must not be counted twice.
type Seen []byte

// Counted tells whether a request was counted before, and notes it if not. unique is
// its number in the FUSE header; 0: it is none of the kernel's.
//
// Of requests that are sent again no more are recognised than Seen has room for.
func (s Seen) Counted(unique uint64) bool {
	if unique == 0 {
		return false
	}
	number := unique &^ resentBit
	if unique&resentBit != 0 {
		for i := 0; i+8 <= len(s); i += 8 {
			if binary.LittleEndian.Uint64(s[i:]) == number {
				return true
			}
		}
	}
	copy(s[8:], s)
	binary.LittleEndian.PutUint64(s, number)
	return false
}
