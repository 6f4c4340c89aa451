package erofs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// findings are what Verify says of an image, each as its path and error.
func findings(t *testing.T, im *Image) string {
	t.Helper()
	var found strings.Builder
	if _, err := Verify(t.Context(), im, func(path string, err error) {
		if !classified(err) {
			t.Errorf("%s: %v is of no class", path, err)
		}
		fmt.Fprintf(&found, "%s: %v\n", path, err)
	}); err != nil {
		t.Fatal(err)
	}
	return found.String()
}

// Compressed data that end before or behind their extent are read as far as they
// go, but Verify finds it, by every codec.
func TestVerifyEndOfCluster(t *testing.T) {
	mkfs := images.NewestMkfs(t)
	if !mkfs.AtLeast(1, 8) {
		return // knows LZ4 alone, and has no 0padding with full indexes
	}
	tree := t.TempDir()
	var text bytes.Buffer
	for i := range 40_000 {
		fmt.Fprintf(&text, "%x ", i*i*7919)
	}
	if err := os.WriteFile(filepath.Join(tree, "text"), text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, codec := range []string{"lz4", "lzma", "deflate", "zstd"} {
		t.Run(codec, func(t *testing.T) {
			data, err := os.ReadFile(images.Build(t, mkfs, []string{"-z" + codec, "-C16384", "-Enosbcrc", "-Elegacy-compress"}, tree))
			if err != nil {
				t.Fatal(err)
			}
			if found := findings(t, openBytes(t, data)); found != "" {
				t.Fatalf("the image as it was made: %s", found)
			}
			// The first extent gets a byte less, the second one a byte more: it starts a
			// byte earlier in its lcluster. Its own data are then no longer decoded whole.
			in := openText(t, data)
			z, err := in.compression()
			if err != nil {
				t.Fatal(err)
			}
			lcn := int64(1)
			for l := (lcluster{kind: disk.LclusterNonhead}); !l.head(); lcn++ {
				if l, err = z.load(in, lcn); err != nil {
					t.Fatal(err)
				}
			}
			at := z.index + (lcn-1)*disk.LclusterIndexSize + 2
			binary.LittleEndian.PutUint16(data[at:], binary.LittleEndian.Uint16(data[at:])-1)
			want, p := make([]byte, 1000), make([]byte, 1000)
			copy(want, text.Bytes())
			if _, err := openText(t, data).ReadAt(p, 0); err != nil || !bytes.Equal(p, want) {
				t.Errorf("a reader does not get its first bytes: %v", err)
			}
			if found := findings(t, openBytes(t, data)); !strings.Contains(found, errLong.Error()) {
				t.Errorf("found %q", found)
			}
		})
	}
}

// openText is the file "text" of an image.
func openText(t *testing.T, data []byte) *Inode {
	t.Helper()
	im := openBytes(t, data)
	root, err := im.Root()
	if err != nil {
		t.Fatal(err)
	}
	d, err := root.Lookup("text")
	if err != nil {
		t.Fatal(err)
	}
	in, err := im.Inode(d.NID)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// A pcluster that is known to decode to more than its extent is no finding, and
// neither are zeros behind it before the 0padding feature.
func TestVerifyPartOfCluster(t *testing.T) {
	const data = craftData / craftBlock
	one := bytes.Repeat([]byte("first "), 2000)[:8192]
	for _, c := range []struct {
		name    string
		advise  uint16
		padding bool // in front
		found   string
	}{
		{"part", disk.LclusterHead1 | disk.LclusterPartialRef, true, ""},
		{"too long", disk.LclusterHead1, true, errLong.Error()},
		{"without 0padding", disk.LclusterHead1, false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := newCraft(t)
			image.named()
			image.lz4Block(data, one)
			image.compressed(CompressedFull, 8000, disk.MapHeader{ClusterBits: 1}, head(c.advise, 0, data))
			if !c.padding {
				image.sb.FeatureIncompat &^= disk.IncompatLZ4ZeroPadding
			}
			found := findings(t, image.mustOpen())
			if c.found == "" && found != "" || !strings.Contains(found, c.found) {
				t.Errorf("found %q, want %q", found, c.found)
			}
		})
	}
}

// Distances to the next head that lead past it.
func TestVerifyDistances(t *testing.T) {
	const data = craftData / craftBlock
	one, two := bytes.Repeat([]byte("first "), 3000)[:12_288], bytes.Repeat([]byte("second. "), 2000)[:8192]
	nonhead := func(back, ahead uint32) disk.LclusterIndex {
		return disk.LclusterIndex{Advise: disk.LclusterNonhead, BlkAddr: ahead<<16 | back}
	}
	for ahead, want := range map[uint32]string{
		2: "", 1: "", 0: "", // 0 is of mkfs.erofs before 1.0
		3: "lcluster 1: the next head is 2 lclusters ahead, not 3", 500: "not 500",
	} {
		c := newCraft(t)
		c.named()
		c.lz4Block(data, one)
		c.lz4Block(data+1, two)
		c.compressed(CompressedFull, 20_000, disk.MapHeader{},
			head(1, 0, data), nonhead(1, ahead), nonhead(2, 1), head(1|disk.LclusterPartialRef, 0, data+1), nonhead(1, 400))
		found := findings(t, c.mustOpen())
		if want == "" && found != "" || !strings.Contains(found, want) {
			t.Errorf("%d ahead: found %q, want %q", ahead, found, want)
		}
	}
}

// The same in compact indexes, where only the last of a pack has one.
func TestVerifyCompactDistances(t *testing.T) {
	data := zBytes(t, images.NewestMkfs(t), "-zlz4")
	var in *Inode
	if err := openBytes(t, data).Walk(func(name string, i *Inode) error {
		if name == "text" {
			in = i
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	z, err := in.compression()
	if err != nil {
		t.Fatal(err)
	}
	for lcn := range z.count {
		l, err := z.load(in, lcn)
		if err != nil {
			t.Fatal(err)
		}
		if l.head() || l.ahead != 1 || lcn < z.initial || lcn >= z.initial+z.packed {
			continue
		}
		// The last of 16 entries of 14 bits, its value 1, becomes 3.
		at := l.behind - disk.PackAddrSize - 2
		word := binary.LittleEndian.Uint16(data[at:])
		binary.LittleEndian.PutUint16(data[at:], word^2<<2)
		found := findings(t, openBytes(t, data))
		if want := fmt.Sprintf("text: erofs: compression index of nid %d", in.NID); !strings.Contains(found, want) || !strings.Contains(found, "lclusters ahead, not 3") {
			t.Errorf("found %q", found)
		}
		return
	}
	t.Error("no pack ends in an extent that ends with it")
}

// Names that no system call can ask for, or that the filter hides.
func TestVerifyXattrs(t *testing.T) {
	for _, c := range []struct {
		entry  []byte
		filter uint32
		kind   string
		text   string
	}{
		{attr(disk.XattrUser, "good", "value"), 0, "", ""},
		{attr(disk.XattrUser, "good", "value"), 1<<32 - 1, "corrupt", `the filter of names excludes "user.good"`},
		{attr(disk.XattrACLAccess, "", "acl"), 0, "", ""},
		{attr(disk.XattrACLAccess, "x", "acl"), 0, "corrupt", `the name "system.posix_acl_accessx"`},
		{attr(disk.XattrUser, "", "value"), 0, "corrupt", `the name "user."`},
		{attr(disk.XattrUser, "a\x00b", "value"), 0, "corrupt", "a NUL in the name"},
		{attr(disk.XattrUser, strings.Repeat("n", 250), "value"), 0, "", ""},
		{attr(disk.XattrUser, strings.Repeat("n", 251), "value"), 0, "corrupt", "a name of 256 bytes"},
		{attr(disk.XattrLongPrefix, "", "value"), 0, "", ""},
		{attr(disk.XattrLongPrefix|2, "x", "value"), 0, "corrupt", `"x" has prefix 2 of 2`},
		{attr(0, "hidden", "value"), 0, "unsupported", "name index 0"},
		{attr(7, "hidden", "value"), 0, "unsupported", "name index 7"},
		{attr(5, "lustre", "value"), 0, "", ""},
		{make([]byte, 8), 0, "", ""}, // room that --root-xattr-isize leaves
		{attr(disk.XattrLongPrefix|1, "", "md5:0123"), 0, "unsupported", "a digest that is not"},
		{append(attr(disk.XattrUser, "a", "1"), attr(disk.XattrUser, "a", "2")...), 0, "corrupt", `"user.a" is there twice`},
	} {
		image := newCraft(t)
		image.prefixes("\x01project.id", "\x00erofs.fingerprint.v1")
		image.sb.FeatureCompat |= disk.CompatIshareXattrs | disk.CompatXattrFilter
		image.sb.IsharePrefixID = 1
		image.xattrs(nil, c.entry)
		image.put(image.at(craftFile)+disk.InodeExtendedSize, c.filter)
		image.named()
		found := findings(t, image.mustOpen())
		if c.text == "" && found != "" || !strings.Contains(found, c.text) || !strings.Contains(found, c.kind) {
			t.Errorf("%q: found %q, want %s, %q", c.entry, found, c.kind, c.text)
		}
	}
	image := newCraft(t)
	image.prefixes("\x09who")
	if found := findings(t, image.mustOpen()); !strings.Contains(found, "prefix 0 extends name index 9") {
		t.Errorf("a prefix of an unknown index: found %q", found)
	}
}

// The data of the special inodes are checked by themselves, and counted for no file.
func TestVerifySpecial(t *testing.T) {
	mkfs := images.NewestMkfs(t)
	if !mkfs.AtLeast(1, 9) {
		return // has none of these options
	}
	for name, opts := range map[string][]string{
		"packed inode": {"-zlz4", "-Eall-fragments"}, "metabox": {"-zlz4", "-m4096"},
	} {
		data := zBytes(t, mkfs, opts...)
		im := openBytes(t, data)
		if found := findings(t, im); found != "" {
			t.Fatalf("%s: as it was made: %s", name, found)
		}
		nid := max(im.sb.PackedNID, im.sb.MetaboxNID)
		in, err := im.Inode(nid)
		if err != nil {
			t.Fatal(err)
		}
		z, err := in.compression()
		if err != nil {
			t.Fatal(err)
		}
		m := zMapper{in: in, z: z}
		var last zExtent // that is compressed: not that of the root
		e, err := m.first(0)
		for ; err == nil; e, err = m.extent() {
			if e.compressed() {
				last = e
			}
			if e.end == in.Size {
				break
			}
		}
		if err != nil || last.la == 0 {
			t.Fatalf("%s: %+v, %v", name, last, err)
		}
		clear(data[last.pa+last.plen-200 : last.pa+last.plen])
		if found := findings(t, openBytes(t, data)); !strings.Contains(found, name+": erofs: compressed data of nid ") {
			t.Errorf("%s: found %q", name, found)
		}
	}
}

// An entry "." in a directory that says it has none.
func TestVerifyDotTwice(t *testing.T) {
	c := treeCraft(t)
	c.put(c.at(10), uint16(disk.FormatExtended|disk.FormatDotOmitted))
	if found := findings(t, c.mustOpen()); !strings.Contains(found, `dir: erofs: directory of nid 10: corrupt EROFS image: "." is there twice`) {
		t.Errorf("found %q", found)
	}
}

// More extension slots than Linux reads.
func TestExtensionSlots(t *testing.T) {
	for slots, good := range map[uint8]bool{0: true, 184: true, 185: false, 255: false} {
		c := newCraft(t)
		c.sb.ExtSlots = slots
		c.dir(craftRoot, 2, dirBytes(entry{".", craftRoot, 2}, entry{"..", craftRoot, 2}))
		_, err := c.open()
		if good && err != nil {
			t.Errorf("%d slots: %v", slots, err)
		} else if !good {
			wantError(t, err, ErrCorrupt, "too many")
		}
	}
}
