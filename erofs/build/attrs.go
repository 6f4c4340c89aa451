package build

import (
	"encoding/binary"
	"maps"
	"slices"
	"strings"

	"github.com/erofs-csi/erofs-csi/erofs/internal/encode"
)

const (
	overlayPrefix = "trusted.overlay."
	overlayOpaque = "trusted.overlay.opaque"
	maxValue      = 1<<16 - 1
)

// attributeSets are the distinct sets of attributes of the tree, so that each is in
// memory once. Set 0 has none.
type attributeSets struct {
	ids  map[string]uint32
	sets []string // encoded entries, ordered by name
}

func (a *attributeSets) init() {
	a.ids = map[string]uint32{"": 0}
	a.sets = []string{""}
}

// each calls fn with the encoded entries of a set.
func (a *attributeSets) each(id uint32, fn func(enc []byte)) {
	set := []byte(a.sets[id])
	for len(set) > 0 {
		n := 4 + int(set[0]) + int(binary.LittleEndian.Uint16(set[2:]))
		n = int(encode.Align(int64(n), 4))
		fn(set[:n])
		set = set[n:]
	}
}

// attributes finds the set of an entry. opaque is what overlayfs' attribute says of
// a directory.
func (b *Builder) attributes(all map[string]string) (id uint32, opaque bool, err error) {
	var set []byte
	for _, name := range slices.Sorted(maps.Keys(all)) {
		value := all[name]
		if strings.HasPrefix(name, overlayPrefix) {
			opaque = opaque || name == overlayOpaque && value == "y"
			continue
		}
		index, rest, ok := encode.SplitXattr(name)
		switch {
		case !ok:
			continue
		case len(rest) > encode.MaxName || len(value) > maxValue || strings.Contains(rest, "\x00"):
			return 0, false, malformed("an attribute with a name of %d and a value of %d bytes", len(name), len(value))
		case strings.HasPrefix(name, "system.posix_acl_") && !validACL(value):
			return 0, false, malformed("the attribute %s is no access control list", name)
		}
		set = encode.AppendXattr(set, index, rest, value)
	}
	if int64(len(set)) > encode.MaxXattrBody-bodyOverhead {
		return 0, false, malformed("attributes of %d bytes", len(set))
	}
	if id, ok := b.attrs.ids[string(set)]; ok {
		return id, opaque, nil
	}
	if err := b.countMetadata(len(set)); err != nil {
		return 0, false, err
	}
	id = uint32(len(b.attrs.sets))
	key := string(set)
	b.attrs.sets = append(b.attrs.sets, key)
	b.attrs.ids[key] = id
	return id, opaque, nil
}

// validACL checks the shape of an ACL's attribute: version 2 and entries of 8 bytes
// (include/uapi/linux/posix_acl_xattr.h). Linux refuses to read others.
func validACL(value string) bool {
	return len(value) >= 4 && (len(value)-4)%8 == 0 && value[:4] == "\x02\x00\x00\x00"
}
