package erofs

import "github.com/erofs-csi/erofs-csi/erofs/internal/disk"

// xattrEntry is an undecoded attribute. name and value are views of the
// metadata cache.
type xattrEntry struct {
	index uint8
	name  []byte // without the prefix of index
	value []byte
}

// xattrHead is the checked header behind an inode with attributes: then come the
// ids of the shared ones and, up to xattrSize bytes, the inline entries.
func (in *Inode) xattrHead() (head disk.XattrHeader, err error) {
	const op = "xattr"
	if in.xattrSize == disk.XattrHeaderSize {
		return head, in.unsupported(op, "a header without entries")
	}
	start := in.base + in.headSize
	raw, err := in.area.view(op, in.NID, start, disk.XattrHeaderSize)
	if err != nil {
		return head, err
	}
	head.Decode(raw)
	if ids := int64(head.SharedCount) * disk.XattrSharedIDSize; ids > in.xattrSize-disk.XattrHeaderSize {
		return head, in.corrupt(op, start, "%d shared attributes do not fit in %d bytes", head.SharedCount, in.xattrSize)
	}
	return head, nil
}

// eachXattr calls fn with the inode's attributes, inline ones before shared
// ones, until it returns false. A shared id counts words from the start of the
// shared area.
//
// Source: erofs_xattr_iter_inline and erofs_xattr_iter_shared in
// fs/erofs/xattr.c of Linux 7.2.
func (in *Inode) eachXattr(fn func(xattrEntry) bool) error {
	if in.xattrSize == 0 {
		return nil
	}
	head, err := in.xattrHead()
	if err != nil {
		return err
	}
	start := in.base + in.headSize
	ids := start + disk.XattrHeaderSize
	entries := ids + int64(head.SharedCount)*disk.XattrSharedIDSize
	if more, err := in.inlineXattrs(entries, start+in.xattrSize, fn); err != nil || !more {
		return err
	}
	return in.sharedXattrs(ids, int(head.SharedCount), fn)
}

// inlineXattrs calls fn with the entries between two addresses. more is false
// when fn wants no more.
func (in *Inode) inlineXattrs(off, end int64, fn func(xattrEntry) bool) (more bool, err error) {
	for off < end { // both are multiples of 4, and so is every step
		e, size, err := in.xattrAt(in.area, off, end)
		if err != nil {
			return false, err
		}
		if !fn(e) {
			return false, nil
		}
		off += size
	}
	return true, nil
}

// sharedXattrs calls fn with the entries whose n ids are at address ids.
func (in *Inode) sharedXattrs(ids int64, n int, fn func(xattrEntry) bool) error {
	im := in.im
	area := im.meta
	if im.sb.FeatureCompat&disk.CompatSharedEAInMetabox != 0 {
		area = im.metabox // Open has made sure that there is one
	}
	start := int64(im.sb.XattrBlkAddr) << im.blkBits
	for i := range n { // at most 255
		raw, err := in.area.view("xattr", in.NID, ids+int64(i)*disk.XattrSharedIDSize, disk.XattrSharedIDSize)
		if err != nil {
			return err
		}
		e, _, err := in.xattrAt(area, start+int64(le.Uint32(raw))*disk.XattrSharedIDSize, area.size)
		if err != nil {
			return err
		}
		if !fn(e) {
			return nil
		}
	}
	return nil
}

// xattrAt reads the entry at off of area, which must end at limit or before.
// size is its length with padding.
func (in *Inode) xattrAt(area *metaCache, off, limit int64) (e xattrEntry, size int64, err error) {
	const op = "xattr"
	raw, err := area.view(op, in.NID, off, disk.XattrEntrySize)
	if err != nil {
		return e, 0, err
	}
	var head disk.XattrEntry
	head.Decode(raw)
	n := head.Size() // less than 2^17
	size = roundUp(int64(n), disk.XattrEntrySize)
	if int64(n) > limit-off {
		return e, 0, in.corrupt(op, off, "an attribute of %d bytes where %d are left", n, limit-off)
	}
	if raw, err = area.view(op, in.NID, off, n); err != nil {
		return e, 0, err
	}
	value := disk.XattrEntrySize + int(head.NameLen)
	return xattrEntry{index: head.NameIndex, name: raw[disk.XattrEntrySize:value], value: raw[value:]}, size, nil
}
