package disk

// Sizes of the parts of extended attributes.
const (
	XattrHeaderSize   = 12
	XattrEntrySize    = 4 // and the alignment of entries
	XattrSharedIDSize = 4 // and the unit of a shared id
)

// Name indexes: the prefix of an attribute's name. Index 5 (Lustre) has none
// in Linux.
const (
	XattrUser       = 1 // EROFS_XATTR_INDEX_USER
	XattrACLAccess  = 2 // EROFS_XATTR_INDEX_POSIX_ACL_ACCESS
	XattrACLDefault = 3 // EROFS_XATTR_INDEX_POSIX_ACL_DEFAULT
	XattrTrusted    = 4 // EROFS_XATTR_INDEX_TRUSTED
	XattrSecurity   = 6 // EROFS_XATTR_INDEX_SECURITY

	XattrLongPrefix     = 0x80 // EROFS_XATTR_LONG_PREFIX: the rest is an index of the prefix table
	XattrLongPrefixMask = 0x7f
)

// The Bloom filter of names, XattrHeader.NameFilter: a set bit excludes the
// names that hash to it. The hash is XXH32 of the name without its prefix, and
// its seed XattrFilterSeed plus the name index.
const (
	XattrFilterBits = 32         // EROFS_XATTR_FILTER_BITS
	XattrFilterSeed = 0x25bbe08f // EROFS_XATTR_FILTER_SEED
)

// XattrHeader is struct erofs_xattr_ibody_header: it comes behind an inode
// with attributes, before the ids of the shared ones and the inline entries.
type XattrHeader struct {
	NameFilter  uint32  // 0x00 h_name_filter
	SharedCount uint8   // 0x04 h_shared_count
	Reserved    [7]byte // 0x05
}

// Decode reads the header that b starts with.
func (h *XattrHeader) Decode(b []byte) {
	_ = b[XattrHeaderSize-1]
	h.NameFilter = le.Uint32(b)
	h.SharedCount = b[4]
	copy(h.Reserved[:], b[5:])
}

// XattrBodySize is the size of what an inode with the given i_xattr_icount has
// behind it, in bytes: none for 0, else a header and count-1 words.
func XattrBodySize(count uint16) int64 {
	if count == 0 {
		return 0
	}
	return XattrHeaderSize + XattrSharedIDSize*int64(count-1)
}

// XattrEntry is struct erofs_xattr_entry. Name and value follow it.
type XattrEntry struct {
	NameLen   uint8  // 0x00 e_name_len
	NameIndex uint8  // 0x01 e_name_index
	ValueSize uint16 // 0x02 e_value_size
}

// Decode reads the entry that b starts with.
func (e *XattrEntry) Decode(b []byte) {
	_ = b[XattrEntrySize-1]
	e.NameLen = b[0]
	e.NameIndex = b[1]
	e.ValueSize = le.Uint16(b[2:])
}

// Size is the size of the entry with its name and value, without padding.
func (e *XattrEntry) Size() int {
	return XattrEntrySize + int(e.NameLen) + int(e.ValueSize)
}
