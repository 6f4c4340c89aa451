package erofs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
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

// The kernel finds a file's fingerprint by its name, however that is put together.
func TestFingerprintBySpelling(t *testing.T) {
	value := "sha256:" + strings.Repeat("v", 32)
	other := "sha256:" + strings.Repeat("o", 32)
	for _, tt := range []struct {
		name     string
		prefixes []string // the first is that of the fingerprints
		entries  [][]byte
		want     string // "": none
	}{
		{"prefix alone", []string{"\x01fp"}, [][]byte{attr(disk.XattrLongPrefix, "", value)}, value},
		{"spelled out", []string{"\x01fp"}, [][]byte{attr(disk.XattrUser, "fp", value)}, value},
		{"spelled out, hidden", []string{"\x00erofs.fingerprint.v1"}, [][]byte{attr(0, "erofs.fingerprint.v1", value)}, value},
		{"another prefix begins it", []string{"\x01fp.sum", "\x01fp"}, [][]byte{attr(disk.XattrLongPrefix|1, ".sum", value)}, value},
		{"the first one counts", []string{"\x01fp"}, [][]byte{attr(disk.XattrUser, "fp", value), attr(disk.XattrLongPrefix, "", other)}, value},
		{"up to a NUL", []string{"\x01fp\x00sum"}, [][]byte{attr(disk.XattrUser, "fp", value)}, value},
		{"beyond a NUL", []string{"\x01fp\x00sum"}, [][]byte{attr(disk.XattrLongPrefix, "", value)}, ""},
		{"no name", []string{"\x02"}, [][]byte{attr(disk.XattrACLAccess, "", value)}, value},
		{"any value", []string{"\x01fp"}, [][]byte{attr(disk.XattrUser, "fp", "md5")}, "md5"},
		{"longer name", []string{"\x01fp"}, [][]byte{attr(disk.XattrUser, "fps", value), attr(disk.XattrLongPrefix, "s", value)}, ""},
		{"shorter name", []string{"\x01fp"}, [][]byte{attr(disk.XattrUser, "f", value)}, ""},
		{"another base", []string{"\x01fp", "\x04fp"}, [][]byte{attr(disk.XattrTrusted, "fp", value), attr(disk.XattrLongPrefix|1, "", value)}, ""},
		{"no such prefix", []string{"\x01fp"}, [][]byte{attr(disk.XattrLongPrefix|1, "", value)}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCraft(t)
			c.prefixes(tt.prefixes...)
			c.sb.FeatureCompat |= disk.CompatIshareXattrs
			c.xattrs(nil, tt.entries...)
			in := c.inode(craftFile)
			got, ok, err := in.FingerprintValue()
			if string(got) != tt.want || ok != (tt.want != "") || err != nil {
				t.Errorf("value %q, %v, %v; want %q", got, ok, err, tt.want)
			}
			sum, ok, err := in.ImageFingerprint()
			if want, isSum := strings.CutPrefix(tt.want, "sha256:"); ok != isSum || isSum && string(sum) != want || err != nil {
				t.Errorf("fingerprint %q, %v, %v; want that of %q", sum, ok, err, tt.want)
			}
		})
	}
	for name, entry := range map[string][]byte{"by prefix": attr(disk.XattrLongPrefix, "", value), "spelled out": attr(disk.XattrUser, "fp", value)} {
		c := newCraft(t)
		c.prefixes("\x01fp")
		c.sb.FeatureCompat |= disk.CompatIshareXattrs
		c.sb.XattrBlkAddr = craftData / craftBlock
		c.put(craftData+400, attr(disk.XattrUser, "fps", other))
		c.put(craftData+800, entry)
		c.xattrs([]uint32{100, 200}, attr(disk.XattrUser, "note", "x"))
		if got, ok, err := c.inode(craftFile).FingerprintValue(); string(got) != value || !ok || err != nil {
			t.Errorf("shared, %s: %q, %v, %v", name, got, ok, err)
		}
	}
	c := newCraft(t)
	c.prefixes("\x01fp")
	c.xattrs(nil, attr(disk.XattrLongPrefix, "", value))
	if got, ok, err := c.inode(craftFile).FingerprintValue(); ok || err != nil {
		t.Errorf("without the feature: %q, %v, %v", got, ok, err)
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
