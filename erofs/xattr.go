package erofs

import (
	"strings"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
	"github.com/erofs-csi/erofs-csi/erofs/internal/xxh32"
)

// Xattr is an extended attribute with its full name, such as "user.comment"
// or "system.posix_acl_access". An ACL's value is that of getxattr(2).
type Xattr struct {
	Name  string
	Value []byte
}

// Xattrs returns the extended attributes in the order of the image, inline
// ones first, as the kernel lists them to root: attributes whose name index
// has no name in Linux are left out, and so is the image's own fingerprint,
// unless mkfs was told to give it a common name.
//
// Errors: those of the format, or what the device returned.
func (in *Inode) Xattrs() ([]Xattr, error) {
	var list []Xattr
	err := in.eachXattr(func(e xattrEntry) bool {
		if name := in.im.xattrName(e); name != "" {
			list = append(list, Xattr{Name: name, Value: append([]byte{}, e.value...)})
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// Xattr returns the value of one attribute.
//
// Errors: ErrNoXattr, those of the format, or what the device returned.
func (in *Inode) Xattr(name string) ([]byte, error) {
	absent, err := in.lacksXattr(name)
	if err != nil {
		return nil, err
	}
	var value []byte
	if !absent {
		err = in.eachXattr(func(e xattrEntry) bool {
			if in.im.xattrHasName(e, name) {
				value = append([]byte{}, e.value...)
				return false
			}
			return true
		})
	}
	if err != nil {
		return nil, err
	}
	if value == nil {
		return nil, errNoXattr
	}
	return value, nil
}

// errNoXattr is not made anew for each call: the kernel asks for attributes that
// few files have.
var errNoXattr error = &FormatError{Op: "xattr", Off: noOffset, Err: ErrNoXattr}

// lacksXattr reports whether the inode surely has no attribute of that name:
// names that the format can't have, and those that the inode's Bloom filter
// excludes.
//
// Source: erofs_getxattr in fs/erofs/xattr.c of Linux 7.2.
func (in *Inode) lacksXattr(name string) (bool, error) {
	index, rest := splitXattrName(name)
	if index == 0 || in.xattrSize == 0 {
		return true, nil
	}
	if !in.im.xattrFilter {
		return false, nil
	}
	head, err := in.xattrHead()
	bit := xxh32.Sum(rest, disk.XattrFilterSeed+uint32(index)) % disk.XattrFilterBits
	return head.NameFilter>>bit&1 != 0, err
}

// The value of an image's own fingerprint: a tag and the raw digest.
const (
	fingerprintTag  = "sha256:"
	fingerprintSize = len(fingerprintTag) + 32
)

// HasFingerprints reports whether the image may carry fingerprints of its own
// (the ishare_xattrs feature). It may have the feature and no fingerprint.
func (im *Image) HasFingerprints() bool { return im.fingerprint != nil }

// FingerprintValue returns what the image claims of a regular file's content as
// it is kept, whatever it is: the value by which Linux shares page cache between
// files ("inode_share"). ok is false when there is none. It is a claim: nothing
// has checked it.
//
// It is found by its name, as Linux does: also where an entry spells out the name,
// or another long prefix begins it. The inode's Bloom filter is not asked, which
// can only have Linux see less.
//
// Source: erofs_xattr_fill_inode_fingerprint and erofs_getxattr in
// fs/erofs/xattr.c of Linux 7.3.
func (in *Inode) FingerprintValue() (value []byte, ok bool, err error) {
	if in.im.fingerprint == nil {
		return nil, false, nil
	}
	err = in.eachXattr(func(e xattrEntry) bool {
		ok = in.im.isFingerprint(e)
		if ok {
			value = append([]byte{}, e.value...)
		}
		return !ok
	})
	if err != nil {
		return nil, false, err
	}
	return value, ok, nil
}

// isFingerprint reports whether an entry has the name of the image's own
// fingerprints.
func (im *Image) isFingerprint(e xattrEntry) bool {
	have := xattrPrefix{base: e.index}
	if e.index&disk.XattrLongPrefix != 0 {
		i := int(e.index & disk.XattrLongPrefixMask)
		if i >= len(im.prefixes) {
			return false
		}
		have = im.prefixes[i]
	}
	want := im.fingerprint
	return want != nil && have.base == want.base && len(have.infix)+len(e.name) == len(want.infix) &&
		strings.HasPrefix(want.infix, have.infix) && want.infix[len(have.infix):] == string(e.name)
}

// ImageFingerprint returns the SHA-256 of the content that the image claims
// for a regular file; ok is false when it claims none, or by another digest. It
// is a claim: nothing has checked it.
//
// Errors: ErrCorrupt for a digest of the wrong length and those of Xattrs.
func (in *Inode) ImageFingerprint() (sha256 []byte, ok bool, err error) {
	value, _, err := in.FingerprintValue()
	if err != nil || !strings.HasPrefix(string(value), fingerprintTag) {
		return nil, false, err
	}
	if len(value) != fingerprintSize {
		return nil, false, in.corrupt("fingerprint", noOffset, "%d bytes, not %d", len(value), fingerprintSize)
	}
	return value[len(fingerprintTag):], true, nil
}

// xattrPrefixOf is the prefix that an entry's name index stands for, "" for a
// hidden one.
func (im *Image) xattrPrefixOf(e xattrEntry) string {
	if e.index&disk.XattrLongPrefix == 0 {
		return basePrefix(e.index)
	}
	if i := int(e.index & disk.XattrLongPrefixMask); i < len(im.prefixes) {
		return im.prefixes[i].name
	}
	return ""
}

// xattrName is the full name of an entry, "" for a hidden one.
func (im *Image) xattrName(e xattrEntry) string {
	if prefix := im.xattrPrefixOf(e); prefix != "" {
		return prefix + string(e.name)
	}
	return ""
}

// xattrHasName reports whether an entry has the full name, without building it.
func (im *Image) xattrHasName(e xattrEntry, name string) bool {
	prefix := im.xattrPrefixOf(e)
	return prefix != "" && len(name) == len(prefix)+len(e.name) &&
		strings.HasPrefix(name, prefix) && name[len(prefix):] == string(e.name)
}
