package encode

import (
	"crypto/sha256"
	"encoding/binary"
	"strings"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

const (
	maxSharedPerIno = 255 // h_shared_count is a byte
	// MaxXattrBody is the longest xattr body: i_xattr_icount counts it in units of 4
	// bytes, the header as one.
	MaxXattrBody = disk.XattrHeaderSize + 4*(1<<16-2)
	// maxSharedArea bounds the memory of the pool; what repeats beyond it stays
	// inline.
	maxSharedArea = 32 << 20
)

// xattrNames are the names that EROFS numbers. Other names can't be read through
// the kernel's EROFS.
var xattrNames = []struct {
	name  string
	index byte
	whole bool // the name, not a prefix
}{
	{"user.", 1, false},
	{"system.posix_acl_access", 2, true},
	{"system.posix_acl_default", 3, true},
	{"trusted.", disk.XattrTrusted, false},
	{"lustre.", 5, false},
	{"security.", 6, false},
}

// SplitXattr finds the number and the rest of a name.
func SplitXattr(name string) (index byte, rest string, ok bool) {
	for _, x := range xattrNames {
		if rest, ok = strings.CutPrefix(name, x.name); ok && (!x.whole || rest == "") {
			return x.index, rest, true
		}
	}
	return 0, "", false
}

// AppendXattr appends an entry, padded to 4 bytes. len(rest) <= 255 and
// len(value) <= 65535.
func AppendXattr(dst []byte, index byte, rest, value string) []byte {
	dst = append(dst, byte(len(rest)), index)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(value)))
	dst = append(dst, rest...)
	dst = append(dst, value...)
	for len(dst)%4 != 0 {
		dst = append(dst, 0)
	}
	return dst
}

// Pool numbers the distinct attributes of an image (name and value) and
// places those that occur more than once in the shared area, in the order in
// which they repeat. It keeps 16 bytes of SHA-256 of each, and the bytes only of
// the shared ones.
type Pool struct {
	ids    map[[16]byte]uint32
	size   []uint32 // of the encoded entry
	shared []uint32 // 1 + offset in area; 0: occurs once, goes inline
	area   []byte   // encoded entries
}

// Intern returns the number of the encoded entry.
func (p *Pool) Intern(enc []byte) uint32 {
	sum := sha256.Sum256(enc)
	key := [16]byte(sum[:])
	id, ok := p.ids[key]
	switch {
	case !ok:
		if p.ids == nil {
			p.ids = map[[16]byte]uint32{}
		}
		id = uint32(len(p.size))
		p.ids[key] = id
		p.size = append(p.size, uint32(len(enc)))
		p.shared = append(p.shared, 0)
	case p.shared[id] == 0 && len(p.area)+len(enc) <= maxSharedArea:
		p.shared[id] = uint32(len(p.area)) + 1
		p.area = append(p.area, enc...)
	}
	return id
}

// Split says how many of an inode's attributes are shared, and the size of its
// whole xattr body. The first 255 that have a place in the area are shared.
func (p *Pool) Split(ids []uint32) (shared int, body int64) {
	if len(ids) == 0 {
		return 0, 0
	}
	body = disk.XattrHeaderSize
	for _, id := range ids {
		if p.shared[id] > 0 && shared < maxSharedPerIno {
			shared++
			body += 4
		} else {
			body += int64(p.size[id])
		}
	}
	return shared, body
}

// Area is the shared area. It changes with every Intern.
func (p *Pool) Area() []byte { return p.area }

// Shared is the offset of attribute id in the area; ok is false for one that has no
// place there.
func (p *Pool) Shared(id uint32) (off int64, ok bool) {
	return int64(p.shared[id]) - 1, p.shared[id] > 0
}

// Size is the size of attribute id, encoded, in bytes.
func (p *Pool) Size(id uint32) int { return int(p.size[id]) }

// Body builds the xattr body of one inode: a header, the ids of the shared
// attributes and the others as they are.
type Body struct {
	shared []byte
	inline []byte
	count  byte
}

// Reset forgets all attributes.
func (b *Body) Reset() { b.shared, b.inline, b.count = b.shared[:0], b.inline[:0], 0 }

// Add adds attribute id of the pool, whose bytes are enc. area is how far the shared
// area begins behind the address that its attributes are addressed from.
func (b *Body) Add(p *Pool, id uint32, enc []byte, area int64) {
	off, ok := p.Shared(id)
	if !ok || b.count == maxSharedPerIno {
		b.inline = append(b.inline, enc...)
		return
	}
	b.shared = binary.LittleEndian.AppendUint32(b.shared, uint32((area+off)/4))
	b.count++
}

// AddInline adds an attribute of no pool.
func (b *Body) AddInline(enc []byte) { b.inline = append(b.inline, enc...) }

// Append appends the body. There is none without attributes.
func (b *Body) Append(dst []byte) []byte {
	if b.count == 0 && len(b.inline) == 0 {
		return dst
	}
	dst = binary.LittleEndian.AppendUint32(dst, 0) // the name filter, which no feature bit announces
	dst = append(dst, b.count, 0, 0, 0, 0, 0, 0, 0)
	dst = append(dst, b.shared...)
	return append(dst, b.inline...)
}

// Find returns the number of an encoded entry that was interned.
func (p *Pool) Find(enc []byte) uint32 {
	sum := sha256.Sum256(enc)
	return p.ids[[16]byte(sum[:])]
}
