package erofs

import "github.com/erofs-csi/erofs-csi/erofs/internal/disk"

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
	base uint8
	name string // with the base's prefix, "" if that is hidden
}

// basePrefix is the prefix of a name index, "" for a hidden one.
func basePrefix(index uint8) string {
	if int(index) < len(basePrefixes) {
		return basePrefixes[index]
	}
	return ""
}

// loadXattrPrefixes reads the table of long name prefixes: at most 255
// length-prefixed records of at most 256 bytes. It is in the primary device:
// only images with the fragments or the metabox feature, which are refused
// before, may have it in a packed inode or in the metabox.
//
// Source: erofs_xattr_prefixes_init in fs/erofs/xattr.c of Linux 6.18.
func (im *Image) loadXattrPrefixes(sb *disk.SuperBlock) error {
	const op = "xattr prefixes"
	if sb.FeatureIncompat&disk.IncompatXattrPrefixes == 0 {
		return nil
	}
	off := int64(sb.PrefixStart) * 4
	for range int(sb.PrefixCount) {
		record, next, err := im.metaRecord(op, off)
		if err != nil {
			return err
		}
		if len(record) > 1+disk.NameMax {
			return fail(ErrCorrupt, op, 0, off, "a prefix of %d bytes", len(record)-1)
		}
		p := xattrPrefix{base: record[0]}
		if base := basePrefix(p.base); base != "" {
			p.name = base + string(record[1:])
		}
		im.prefixes = append(im.prefixes, p)
		off = next
	}
	if sb.FeatureCompat&disk.CompatIshareXattrs != 0 {
		if int(sb.IsharePrefixID) >= min(len(im.prefixes), disk.XattrLongPrefix) {
			return fail(ErrCorrupt, "superblock", 0, disk.SuperBlockOffset,
				"fingerprints have prefix %d of %d", sb.IsharePrefixID, len(im.prefixes))
		}
		im.fingerprint = disk.XattrLongPrefix | sb.IsharePrefixID
	}
	return nil
}
