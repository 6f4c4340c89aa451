// Package disk has the on-disk structures of EROFS and nothing else: their
// sizes, their bits and how their fields are laid out. It checks no value.
//
// All numbers are little-endian. Field comments name the twin in
// include/erofs_fs.h of erofs-utils 1.9 and fs/erofs/erofs_fs.h of Linux 7.2.
// Each structure has a Decode method that reads its first XxxSize bytes; a
// shorter slice is a programming error and panics.
package disk

import "encoding/binary"

var le = binary.LittleEndian

// int64At reads a number that the kernel holds in a signed type, such as
// time64_t and loff_t.
func int64At(b []byte) int64 {
	return int64(le.Uint64(b))
}
