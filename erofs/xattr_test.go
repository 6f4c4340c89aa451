package erofs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// attr is an attribute as the image has it.
func attr(index uint8, name, value string) []byte {
	b, _ := binary.Append(nil, binary.LittleEndian, disk.XattrEntry{NameLen: uint8(len(name)), NameIndex: index, ValueSize: uint16(len(value))})
	b = append(append(b, name...), value...)
	return append(b, make([]byte, -len(b)&3)...)
}

// xattrs gives craftFile shared ids and inline entries.
func (c *craft) xattrs(shared []uint32, entries ...[]byte) {
	c.t.Helper()
	body, _ := binary.Append(nil, binary.LittleEndian, disk.XattrHeader{SharedCount: uint8(len(shared))})
	body, _ = binary.Append(body, binary.LittleEndian, shared)
	for _, e := range entries {
		body = append(body, e...)
	}
	c.put(c.at(craftFile), disk.InodeExtended{
		Format: disk.FormatExtended, Mode: modeRegular, Nlink: 1, XattrCount: uint16((len(body)-disk.XattrHeaderSize)/4 + 1),
	})
	c.put(c.at(craftFile)+disk.InodeExtendedSize, body)
}

// prefixes gives the image a table of long prefixes in its last block.
func (c *craft) prefixes(list ...string) {
	const at = craftSize - craftBlock
	var table []byte
	for _, p := range list {
		table = append(table, make([]byte, -len(table)&3)...)
		table = binary.LittleEndian.AppendUint16(table, uint16(len(p)))
		table = append(table, p...)
	}
	c.put(at, table)
	c.sb.FeatureIncompat |= disk.IncompatXattrPrefixes
	c.sb.FeatureCompat |= disk.CompatPlainXattrPrefix
	c.sb.PrefixStart, c.sb.PrefixCount = at/4, uint8(len(list))
}

func TestXattrs(t *testing.T) {
	digest := "sha256:" + string(bytes.Repeat([]byte{0xab}, 32))
	c := newCraft(t)
	c.prefixes("\x01project.", "\x04deep.", "\x00erofs.fingerprint.v1", "\x05lustre")
	c.sb.FeatureCompat |= disk.CompatIshareXattrs
	c.sb.IsharePrefixID = 2
	c.sb.XattrBlkAddr = craftData / craftBlock
	c.put(craftData+400, attr(disk.XattrSecurity, "selinux", "label"))
	c.put(craftData+800, attr(disk.XattrLongPrefix|1, "x", ""))
	c.xattrs([]uint32{100, 200},
		attr(disk.XattrUser, "a", "1"), attr(disk.XattrACLAccess, "", "acl"), attr(disk.XattrACLDefault, "", "def"),
		attr(disk.XattrTrusted, "t", "2"), attr(disk.XattrLongPrefix, "name", "long"), attr(disk.XattrLongPrefix|2, "", digest),
		attr(0, "hidden", "x"), attr(5, "lustre", "x"), attr(7, "none", "x"), attr(disk.XattrLongPrefix|3, "", "x"), attr(disk.XattrLongPrefix|4, "", "x"),
		make([]byte, 8), // room that --root-xattr-isize leaves
	)
	in := c.inode(craftFile)
	list, err := in.Xattrs()
	if err != nil {
		t.Fatal(err)
	}
	want := []Xattr{
		{"user.a", []byte("1")},
		{"system.posix_acl_access", []byte("acl")},
		{"system.posix_acl_default", []byte("def")},
		{"trusted.t", []byte("2")},
		{"user.project.name", []byte("long")},
		{"security.selinux", []byte("label")},
		{"trusted.deep.x", []byte{}},
	}
	if got, want := fmt.Sprintf("%q", list), fmt.Sprintf("%q", want); got != want {
		t.Errorf("attributes\n %s, want\n %s", got, want)
	}
	for _, x := range want {
		if value, err := in.Xattr(x.Name); err != nil || !bytes.Equal(value, x.Value) || value == nil {
			t.Errorf("%s: %q, %v", x.Name, value, err)
		}
	}
	for _, name := range []string{"", "user.", "user.b", "user.project.", "a", "hidden", "erofs.fingerprint.v1", "system.posix_acl_accessx"} {
		if value, err := in.Xattr(name); !errors.Is(err, ErrNoXattr) {
			t.Errorf("%q: %q, %v", name, value, err)
		}
	}
	if sum, ok, err := in.ImageFingerprint(); err != nil || !ok || string(sum) != digest[7:] {
		t.Errorf("fingerprint %x, %v, %v", sum, ok, err)
	}
	if sum, ok, err := c.inode(craftRoot).ImageFingerprint(); err != nil || ok {
		t.Errorf("fingerprint of the root: %x, %v, %v", sum, ok, err)
	}
}

func TestFingerprintOther(t *testing.T) {
	c := newCraft(t)
	c.prefixes("\x00erofs.fingerprint.v1")
	c.sb.FeatureCompat |= disk.CompatIshareXattrs
	c.xattrs(nil, attr(disk.XattrLongPrefix, "", "blake3:0123456789"))
	if _, ok, err := c.inode(craftFile).ImageFingerprint(); ok || err != nil {
		t.Errorf("another digest: %v, %v; want none", ok, err)
	}
	c.xattrs(nil, attr(disk.XattrLongPrefix, "", "sha256:short"))
	_, ok, err := c.inode(craftFile).ImageFingerprint()
	wantError(t, err, ErrCorrupt, "12 bytes, not 39")
	if ok {
		t.Error("a short digest is there")
	}
}

func TestXattrRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(c *craft)
		kind   error
		text   string
	}{
		{"header alone", func(c *craft) { c.xattrs(nil) }, ErrUnsupported, "header without entries"},
		{"shared ids outside", func(c *craft) {
			c.xattrs([]uint32{1})
			c.put(c.at(craftFile)+disk.InodeExtendedSize, disk.XattrHeader{SharedCount: 2})
		}, ErrCorrupt, "2 shared attributes"},
		{"entry too long", func(c *craft) {
			c.xattrs(nil, attr(disk.XattrUser, "a", "b"))
			c.put(c.at(craftFile)+disk.InodeExtendedSize+disk.XattrHeaderSize, disk.XattrEntry{NameLen: 255, ValueSize: 65535})
		}, ErrCorrupt, "65794 bytes where 8 are left"},
		{"shared outside", func(c *craft) { c.xattrs([]uint32{1<<32 - 1}) }, ErrCorrupt, "beyond the end"},
		{"shared cut off", func(c *craft) {
			c.xattrs([]uint32{craftSize/4 - 1})
			c.put(craftSize-4, disk.XattrEntry{NameLen: 1})
		}, ErrCorrupt, "where 4 are left"},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := newCraft(t)
			c.change(image)
			in := image.inode(craftFile)
			_, err := in.Xattrs()
			wantError(t, err, c.kind, c.text)
			_, err = in.Xattr("user.a")
			wantError(t, err, c.kind, c.text)
		})
	}
}
