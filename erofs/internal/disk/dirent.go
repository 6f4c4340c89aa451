package disk

const (
	// DirentSize is the size of a Dirent.
	DirentSize = 12
	// NameMax is the length of the longest name (EROFS_NAME_LEN).
	NameMax = 255
)

// Dirent is struct erofs_dirent. A directory block is an array of them, sorted
// by name, then their names in the same order without separators. The first
// NameOff is thus the size of the array. The last name ends at the end of the
// block or of the directory, or at a NUL.
type Dirent struct {
	NID      uint64 // 0x00 nid
	NameOff  uint16 // 0x08 nameoff, from the start of the block
	Type     uint8  // 0x0a file_type
	Reserved uint8  // 0x0b
}

// Decode reads the entry that b starts with.
func (d *Dirent) Decode(b []byte) {
	_ = b[DirentSize-1]
	d.NID = le.Uint64(b)
	d.NameOff = le.Uint16(b[8:])
	d.Type = b[10]
	d.Reserved = b[11]
}

// DirentNameOff is the nameoff field of the entry that b starts with.
func DirentNameOff(b []byte) int { return int(le.Uint16(b[8:DirentSize])) }
