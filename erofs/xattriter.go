package erofs

import "github.com/erofs-csi/erofs-csi/erofs/internal/disk"

// xattrEntry is an undecoded attribute. name and value are views of the
// metadata cache.
type xattrEntry struct {
	index uint8
	name  []byte // without the prefix of index
	value []byte
}

// eachXattr calls fn with the inode's attributes, inline ones before shared
// ones, until it returns false.
//
// Behind the inode there are a header, the ids of the shared attributes and,
// up to xattrSize bytes, the inline entries. A shared id counts words from the
// start of the shared area.
//
// Source: erofs_xattr_iter_inline and erofs_xattr_iter_shared in
// fs/erofs/xattr.c of Linux 6.18.
func (in *Inode) eachXattr(fn func(xattrEntry) bool) error {
	const op = "xattr"
	if in.xattrSize == 0 {
		return nil
	}
	start := in.base + in.headSize
	if in.xattrSize == disk.XattrHeaderSize {
		return in.unsupported(op, "a header without entries")
	}
	raw, err := in.im.metaView(op, in.NID, start, disk.XattrHeaderSize)
	if err != nil {
		return err
	}
	var head disk.XattrHeader
	head.Decode(raw)
	ids := start + disk.XattrHeaderSize
	entries := ids + int64(head.SharedCount)*disk.XattrSharedIDSize
	end := start + in.xattrSize
	if entries > end {
		return in.corrupt(op, start, "%d shared attributes do not fit in %d bytes", head.SharedCount, in.xattrSize)
	}
	if more, err := in.inlineXattrs(entries, end, fn); err != nil || !more {
		return err
	}
	return in.sharedXattrs(ids, int(head.SharedCount), fn)
}

// inlineXattrs calls fn with the entries between two addresses. more is false
// when fn wants no more.
func (in *Inode) inlineXattrs(off, end int64, fn func(xattrEntry) bool) (more bool, err error) {
	for off < end { // both are multiples of 4, and so is every step
		e, size, err := in.xattrAt(off, end)
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
	area := int64(im.sb.XattrBlkAddr) << im.blkBits
	for i := range n { // at most 255
		raw, err := im.metaView("xattr", in.NID, ids+int64(i)*disk.XattrSharedIDSize, disk.XattrSharedIDSize)
		if err != nil {
			return err
		}
		e, _, err := in.xattrAt(area+int64(le.Uint32(raw))*disk.XattrSharedIDSize, im.size)
		if err != nil {
			return err
		}
		if !fn(e) {
			return nil
		}
	}
	return nil
}

// xattrAt reads the entry at off, which must end at limit or before. size is
// its length with padding.
func (in *Inode) xattrAt(off, limit int64) (e xattrEntry, size int64, err error) {
	const op = "xattr"
	raw, err := in.im.metaView(op, in.NID, off, disk.XattrEntrySize)
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
	if raw, err = in.im.metaView(op, in.NID, off, n); err != nil {
		return e, 0, err
	}
	value := disk.XattrEntrySize + int(head.NameLen)
	return xattrEntry{index: head.NameIndex, name: raw[disk.XattrEntrySize:value], value: raw[value:]}, size, nil
}
