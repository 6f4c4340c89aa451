package metaimage

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/erofs-csi/erofs-csi/erofs"
)

// entry is a directory entry on its way from the image to META.
type entry struct {
	name string
	nid  uint64 // in the image; of "." and ".." meaningless
	dots bool   // "." or ".."
}

// entries calls fn with the entries of a directory in byte order, with "." and
// ".." in their places whether the image has them or not. Where those point to
// in the image is ignored: META's point to what they must.
//
// An order that is not strictly ascending is corrupt: the kernel searches
// directories by halves, so it would find only some of the names.
func entries(in *erofs.Inode, fn func(entry) error) error {
	var (
		last    string
		pending = []string{".", ".."}
		err     error
	)
	readErr := in.ReadDir(0, func(d erofs.Dirent) bool {
		if err = checkName(in, d.Name, last); err != nil {
			return false
		}
		last = d.Name
		for len(pending) > 0 && pending[0] <= d.Name {
			if err = fn(entry{name: pending[0], dots: true}); err != nil {
				return false
			}
			pending = pending[1:]
		}
		if d.Name == "." || d.Name == ".." {
			return true
		}
		err = fn(entry{name: d.Name, nid: d.NID})
		return err == nil
	})
	if err != nil {
		return err
	}
	if readErr != nil {
		return readErr
	}
	for _, name := range pending {
		if err := fn(entry{name: name, dots: true}); err != nil {
			return err
		}
	}
	return nil
}

// checkName refuses what is not the name of a file and what does not come after
// last.
func checkName(in *erofs.Inode, name, last string) error {
	switch {
	case name == "" || len(name) > maxName || strings.ContainsAny(name, "/\x00"):
		return corrupt(in.NID, "%q is no file name", name)
	case name <= last:
		return corrupt(in.NID, "name %q after %q", name, last)
	}
	return nil
}

// corrupt reports an inconsistency of the image that package erofs leaves to
// its callers.
func corrupt(nid uint64, format string, args ...any) error {
	return &erofs.FormatError{
		Op: "metadata image", NID: nid, Off: -1,
		Err: fmt.Errorf("%w: %s", erofs.ErrCorrupt, fmt.Sprintf(format, args...)),
	}
}

// dirSize adds up the size of a directory as mkfs.erofs packs it: an entry goes
// into the current block if its 12 bytes and its name fit, else it begins the
// next.
type dirSize struct {
	blocks int64 // full ones
	used   int   // bytes of the current block
}

func (s *dirSize) add(name string) (full bool) {
	n := direntSize + len(name)
	if full = s.used+n > blockSize; full {
		s.blocks++
		s.used = 0
	}
	s.used += n
	return full
}

// bytes is the size of the directory: the last block is counted by its content.
func (s *dirSize) bytes() int64 { return s.blocks<<blockBits + int64(s.used) }

// dirPacker packs entries into blocks: the fixed parts first, then the names.
type dirPacker struct {
	size  dirSize
	heads []byte // direntSize an entry, the offsets of names counted from the first name
	names []byte
	block [blockSize]byte
}

// add appends an entry. It returns a full block when the entry begins the next
// one; the block is valid until the next call.
func (p *dirPacker) add(name string, nid uint64, t erofs.FileType) (full []byte) {
	if p.size.add(name) {
		full = p.flush()
	}
	le := binary.LittleEndian
	p.heads = le.AppendUint64(p.heads, nid)
	p.heads = le.AppendUint16(p.heads, uint16(len(p.names))) //nolint:gosec // < blockSize
	p.heads = append(p.heads, byte(t), 0)
	p.names = append(p.names, name...)
	return full
}

// last returns the last block, without the bytes behind its content.
func (p *dirPacker) last() []byte {
	n := len(p.heads) + len(p.names)
	return p.flush()[:n]
}

func (p *dirPacker) flush() []byte {
	le := binary.LittleEndian
	for off := direntSize - 4; off < len(p.heads); off += direntSize {
		le.PutUint16(p.heads[off:], le.Uint16(p.heads[off:])+uint16(len(p.heads))) //nolint:gosec // < blockSize
	}
	n := copy(p.block[:], p.heads)
	n += copy(p.block[n:], p.names)
	clear(p.block[n:])
	p.heads, p.names = p.heads[:0], p.names[:0]
	return p.block[:]
}
