package encode

import (
	"encoding/binary"

	"github.com/erofs-csi/erofs-csi/erofs"
)

// DirSize adds up the size of a directory as mkfs.erofs packs it: an entry goes
// into the current block if its 12 bytes and its name fit, else it begins the
// next.
type DirSize struct {
	blocks int64 // full ones
	used   int   // bytes of the current block
}

// Add counts an entry, and tells whether it begins a new block.
func (s *DirSize) Add(name string) (full bool) {
	n := DirentSize + len(name)
	if full = s.used+n > BlockSize; full {
		s.blocks++
		s.used = 0
	}
	s.used += n
	return full
}

// Bytes is the size of the directory: the last block is counted by its content.
func (s *DirSize) Bytes() int64 { return s.blocks<<BlockBits + int64(s.used) }

// DirPacker packs entries into blocks: the fixed parts first, then the names.
type DirPacker struct {
	Size  DirSize // of what was added; reset it for the next directory
	heads []byte  // DirentSize an entry, the offsets of names counted from the first name
	names []byte
	block [BlockSize]byte
}

// Add appends an entry. It returns a full block when the entry begins the next
// one; the block is valid until the next call.
func (p *DirPacker) Add(name string, nid uint64, t erofs.FileType) (full []byte) {
	if p.Size.Add(name) {
		full = p.flush()
	}
	le := binary.LittleEndian
	p.heads = le.AppendUint64(p.heads, nid)
	p.heads = le.AppendUint16(p.heads, uint16(len(p.names)))
	p.heads = append(p.heads, byte(t), 0)
	p.names = append(p.names, name...)
	return full
}

// Last returns the last block, without the bytes behind its content.
func (p *DirPacker) Last() []byte {
	n := len(p.heads) + len(p.names)
	return p.flush()[:n]
}

func (p *DirPacker) flush() []byte {
	le := binary.LittleEndian
	for off := DirentSize - 4; off < len(p.heads); off += DirentSize {
		le.PutUint16(p.heads[off:], le.Uint16(p.heads[off:])+uint16(len(p.heads)))
	}
	n := copy(p.block[:], p.heads)
	n += copy(p.block[n:], p.names)
	clear(p.block[n:])
	p.heads, p.names = p.heads[:0], p.names[:0]
	return p.block[:]
}
