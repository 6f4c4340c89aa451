package erofs

import (
	"bytes"
	"strings"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// prefixes checks the table of long attribute name prefixes.
func (v *verifier) prefixes() {
	for i, p := range v.im.prefixes {
		if p.base > disk.XattrSecurity {
			v.finding(".", fail(ErrUnsupported, "xattr prefixes", 0, noOffset, "prefix %d extends name index %d", i, p.base))
		}
	}
}

// xattrs checks the attributes of an inode, and reports the first with a fault.
func (v *verifier) xattrs(path string, in *Inode) {
	var fault error
	names := make(map[string]struct{}) // at most one for 4 bytes of the inode
	err := in.eachXattr(func(e xattrEntry) bool {
		name := v.im.xattrName(e)
		if name != "" {
			v.stats.Xattrs++
		}
		if fault == nil {
			fault = in.checkXattr(e, name)
		}
		if _, ok := names[name]; ok && name != "" && fault == nil {
			fault = in.corrupt("xattr", noOffset, "%q is there twice", name)
		}
		names[name] = struct{}{}
		return true
	})
	if fault == nil {
		fault = err
	}
	if fault != nil {
		v.finding(path, fault)
	}
}

// checkXattr checks what Linux does not care for in an entry whose full name is
// name, "" for a hidden one: names that the system calls can't have, indexes of
// no prefix, and those that the Bloom filter wrongly excludes.
func (in *Inode) checkXattr(e xattrEntry, name string) error {
	const op = "xattr"
	long := e.index&disk.XattrLongPrefix != 0
	base, rest := splitXattrName(name)
	switch {
	case long && int(e.index&disk.XattrLongPrefixMask) >= len(in.im.prefixes):
		return in.corrupt(op, noOffset, "%q has prefix %d of %d", e.name, e.index&disk.XattrLongPrefixMask, len(in.im.prefixes))
	case e.index == 0 && len(e.name) == 0:
		return nil // room that mkfs.erofs --root-xattr-isize has left
	case !long && (e.index == 0 || e.index > disk.XattrSecurity):
		return in.unsupported(op, "%q has name index %d", e.name, e.index)
	case in.im.isFingerprint(e) && in.IsRegular() && !bytes.HasPrefix(e.value, []byte(fingerprintTag)):
		return in.unsupported("fingerprint", "a digest that is not %q", fingerprintTag)
	case name == "":
		return nil
	case strings.IndexByte(name, 0) >= 0:
		return in.corrupt(op, noOffset, "a NUL in the name %q", name)
	case len(name) > disk.NameMax:
		return in.corrupt(op, noOffset, "a name of %d bytes, %q", len(name), name)
	case rest == "" != (base == disk.XattrACLAccess || base == disk.XattrACLDefault):
		return in.corrupt(op, noOffset, "the name %q", name)
	}
	absent, err := in.lacksXattr(name)
	if absent {
		err = in.corrupt(op, noOffset, "the filter of names excludes %q, which is there", name)
	}
	return err
}
