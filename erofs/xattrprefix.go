package erofs

import (
	"strings"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// basePrefixes are the name prefixes by name index. An attribute with another
// index has no name in Linux and is hidden.
//
// Source: xattr_handler_map in fs/erofs/xattr.c of Linux 6.18.
var basePrefixes = [...]string{
	disk.XattrUser:       "user.",
	disk.XattrACLAccess:  "system.posix_acl_access",
	disk.XattrACLDefault: "system.posix_acl_default",
	disk.XattrTrusted:    "trusted.",
	disk.XattrSecurity:   "security.",
}

// xattrPrefix is an entry of the table of long name prefixes.
type xattrPrefix struct {
	base  uint8
	infix string
	name  string // infix with the base's prefix, "" if that is hidden
}

// basePrefix is the prefix of a name index, "" for a hidden one.
func basePrefix(index uint8) string {
	if int(index) < len(basePrefixes) {
		return basePrefixes[index]
	}
	return ""
}

// splitXattrName takes a full name apart into the name index of its prefix and
// the rest; index 0 is none.
func splitXattrName(name string) (index uint8, rest string) {
	for i, prefix := range basePrefixes { // none is the beginning of another
		if prefix != "" && strings.HasPrefix(name, prefix) {
			return uint8(i), name[len(prefix):]
		}
	}
	return 0, ""
}

// loadXattrPrefixes reads the table of long name prefixes: at most 255
// length-prefixed records of at most 256 bytes.
//
// Source: erofs_xattr_prefixes_init in fs/erofs/xattr.c of Linux 7.2.
func (im *Image) loadXattrPrefixes(sb *disk.SuperBlock) error {
	const op = "xattr prefixes"
	im.xattrFilter = sb.FeatureCompat&disk.CompatXattrFilter != 0 && sb.FilterReserved == 0
	area, off := im.prefixArea(), int64(sb.PrefixStart)*4
	for range int(sb.PrefixCount) {
		record, next, err := area.record(op, off)
		if err != nil {
			return err
		}
		if len(record) > 1+disk.NameMax {
			return fail(ErrCorrupt, op, 0, off, "a prefix of %d bytes", len(record)-1)
		}
		p := xattrPrefix{base: record[0], infix: string(record[1:])}
		if base := basePrefix(p.base); base != "" {
			p.name = base + p.infix
		}
		im.prefixes = append(im.prefixes, p)
		off = next
	}
	if sb.FeatureCompat&disk.CompatIshareXattrs != 0 {
		if int(sb.IsharePrefixID) >= min(len(im.prefixes), disk.XattrLongPrefix) {
			return fail(ErrCorrupt, "superblock", 0, disk.SuperBlockOffset,
				"fingerprints have prefix %d of %d", sb.IsharePrefixID, len(im.prefixes))
		}
		name := im.prefixes[sb.IsharePrefixID]
		name.infix, _, _ = strings.Cut(name.infix, "\x00") // a C string to Linux
		im.fingerprint = &name
	}
	return nil
}

// prefixArea is where the table of long name prefixes is: in a special inode, if
// the image has one, unless the plain_xattr_pfx feature says that it is not.
func (im *Image) prefixArea() *metaCache {
	switch {
	case im.sb.FeatureCompat&disk.CompatPlainXattrPrefix != 0:
		return im.meta
	case im.metabox != nil:
		return im.metabox
	case im.packed != nil:
		return newMetaCache(placePacked, im.packed, im.packed.Size, im.blkBits, NewMetadataCache(0))
	}
	return im.meta
}
