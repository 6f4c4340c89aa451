package metaimage

import (
	"crypto/sha256"
	"encoding/binary"
	"strings"

	"github.com/erofs-csi/erofs-csi/erofs"
)

const (
	xattrHeaderSize = 12
	xattrEntrySize  = 4
	maxSharedPerIno = 255 // h_shared_count is a byte
	// i_xattr_icount counts the body in units of 4 bytes, the header as one.
	maxXattrBody = xattrHeaderSize + 4*(1<<16-2)
	// maxSharedArea bounds the memory of the pool; what repeats beyond it stays
	// inline.
	maxSharedArea = 32 << 20
)

// The attributes by which overlayfs finds a file's data, without the prefix
// "trusted.".
const (
	overlayPrefix   = "trusted.overlay."
	overlayMetacopy = "overlay.metacopy"
	overlayRedirect = "overlay.redirect"

	indexTrusted = 4
)

// xattrNames are the names that EROFS numbers. Other names can't be read through
// the kernel's EROFS, so META leaves them out.
var xattrNames = []struct {
	name  string
	index byte
	whole bool // the name, not a prefix
}{
	{"user.", 1, false},
	{"system.posix_acl_access", 2, true},
	{"system.posix_acl_default", 3, true},
	{"trusted.", indexTrusted, false},
	{"lustre.", 5, false},
	{"security.", 6, false},
}

// splitXattr finds the number and the rest of a name.
func splitXattr(name string) (index byte, rest string, ok bool) {
	for _, x := range xattrNames {
		if rest, ok = strings.CutPrefix(name, x.name); ok && (!x.whole || rest == "") {
			return x.index, rest, true
		}
	}
	return 0, "", false
}

// appendXattr appends an entry, padded to 4 bytes. len(rest) <= 255 and
// len(value) <= 65535.
func appendXattr(dst []byte, index byte, rest, value string) []byte {
	dst = append(dst, byte(len(rest)), index)                       //nolint:gosec // see above
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(value))) //nolint:gosec // see above
	dst = append(dst, rest...)
	dst = append(dst, value...)
	for len(dst)%4 != 0 {
		dst = append(dst, 0)
	}
	return dst
}

// xattrPool numbers the distinct attributes of an image (name and value) and
// places those that occur more than once in the shared area, in the order in
// which they repeat. It keeps 16 bytes of SHA-256 of each, and the bytes only of
// the shared ones.
type xattrPool struct {
	ids    map[[16]byte]uint32
	size   []uint32 // of the encoded entry
	shared []uint32 // 1 + offset in area; 0: occurs once, goes inline
	area   []byte   // encoded entries
}

// intern returns the number of the encoded entry.
func (p *xattrPool) intern(enc []byte) uint32 {
	sum := sha256.Sum256(enc)
	key := [16]byte(sum[:])
	id, ok := p.ids[key]
	switch {
	case !ok:
		if p.ids == nil {
			p.ids = map[[16]byte]uint32{}
		}
		id = uint32(len(p.size)) //nolint:gosec // fewer than the ids, which scan bounds
		p.ids[key] = id
		p.size = append(p.size, uint32(len(enc))) //nolint:gosec // about 64 KiB
		p.shared = append(p.shared, 0)
	case p.shared[id] == 0 && len(p.area)+len(enc) <= maxSharedArea:
		p.shared[id] = uint32(len(p.area)) + 1 //nolint:gosec // at most maxSharedArea
		p.area = append(p.area, enc...)
	}
	return id
}

// split says how many of an inode's attributes are shared, and the size of its
// whole xattr body. The first 255 that have a place in the area are shared.
func (p *xattrPool) split(ids []uint32) (shared int, body int64) {
	if len(ids) == 0 {
		return 0, 0
	}
	body = xattrHeaderSize
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

// attrs calls fn with the encoded attributes that in has in META: those of
// overlayfs first, for they are asked for most, then the image's own in its
// order. Of two with one name the kernel sees the first, and so does META.
// The bytes are valid until fn returns.
//
// An attribute that META can't carry is reported by refuse; what fn or refuse
// return ends the enumeration.
func (b *builder) attrs(in *erofs.Inode, fn func(enc []byte) error, refuse func(reason string) error) error {
	emit := func(index byte, rest, value string) error {
		b.scratch = appendXattr(b.scratch[:0], index, rest, value)
		return fn(b.scratch)
	}
	if in.IsRegular() && in.Size > 0 {
		path := b.content(in)
		if err := checkContentPath(in, path); err != nil {
			return err
		}
		if err := emit(indexTrusted, overlayMetacopy, ""); err != nil {
			return err
		}
		if err := emit(indexTrusted, overlayRedirect, path); err != nil {
			return err
		}
	}
	own, err := in.Xattrs()
	if err != nil {
		return err
	}
	var seen map[string]bool
	if len(own) > 1 {
		seen = make(map[string]bool, len(own))
	}
	for _, x := range own {
		if strings.HasPrefix(x.Name, overlayPrefix) {
			return refuse("has the attribute " + x.Name + " of overlayfs")
		}
		index, rest, ok := splitXattr(x.Name)
		if !ok || seen[x.Name] {
			continue
		}
		if seen != nil {
			seen[x.Name] = true
		}
		if len(rest) > maxName || len(x.Value) >= 1<<16 {
			return refuse("has an attribute of a size that EROFS can't hold")
		}
		if err := emit(index, rest, string(x.Value)); err != nil {
			return err
		}
	}
	return nil
}
