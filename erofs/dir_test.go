package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// bigDir is a directory of several blocks, "." and ".." among its sorted
// names, as mkfs.erofs makes it.
func bigDir(t *testing.T, perBlock, blocks int) (*Inode, []string) {
	t.Helper()
	names := []string{".", ".."}
	for i := 0; len(names) < perBlock*blocks-1; i++ {
		names = append(names, fmt.Sprintf("name-%05d-%s", i, strings.Repeat("x", i%40)))
	}
	slices.Sort(names)
	var data []byte
	for b := range blocks {
		var entries []entry
		for i, name := range names[b*perBlock : min((b+1)*perBlock, len(names))] {
			entries = append(entries, entry{name, uint64(b*perBlock + i), 1})
		}
		block := dirBytes(entries...)
		if b < blocks-1 {
			block = append(block, make([]byte, craftBlock-len(block))...)
		}
		data = append(data, block...)
	}
	c := newCraft(t)
	c.dir(craftRoot, craftData/craftBlock, data)
	return c.inode(craftRoot), names
}

func TestLookup(t *testing.T) {
	in, names := bigDir(t, 50, 4)
	for i, name := range names {
		d, err := in.Lookup(name)
		if err != nil || d.Name != name || d.NID != uint64(i) || d.Type != TypeRegular {
			t.Errorf("%q: %+v, %v; want nid %d", name, d, err, i)
		}
	}
	for _, name := range []string{"", "-", "name", "name-00000", "zzz", strings.Repeat("x", 1000), names[60] + "\x00", names[60][:9]} {
		if d, err := in.Lookup(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %+v, %v", name, d, err)
		}
	}
	c := newCraft(t)
	c.file(craftFile, modeRegular, FlatPlain, 0, 0)
	_, err := c.inode(craftFile).Lookup("x")
	wantError(t, err, ErrInvalid, "no directory")
}

// An empty directory has nothing, not even a block.
func TestEmptyDir(t *testing.T) {
	c := newCraft(t)
	c.file(craftFile, modeDir|0o755, FlatPlain, 0, 0)
	in := c.inode(craftFile)
	if _, err := in.Lookup("x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("lookup: %v", err)
	}
	if err := in.ReadDir(0, func(d Dirent) bool { t.Errorf("entry %+v", d); return true }); err != nil {
		t.Error(err)
	}
}

// Every cookie resumes right behind its entry, whoever stops where.
func TestReadDirCookies(t *testing.T) {
	in, names := bigDir(t, 40, 4)
	var list []Dirent
	if err := in.ReadDir(0, func(d Dirent) bool { list = append(list, d); return true }); err != nil {
		t.Fatal(err)
	}
	for i, d := range list {
		if d.Name != names[i] {
			t.Fatalf("entry %d is %q, want %q", i, d.Name, names[i])
		}
		var next string
		err := in.ReadDir(d.Next, func(d Dirent) bool { next = d.Name; return false })
		want := ""
		if i+1 < len(list) {
			want = list[i+1].Name
		}
		if err != nil || next != want {
			t.Errorf("after %q comes %q, %v; want %q", d.Name, next, err, want)
		}
		if found, err := in.Lookup(d.Name); err != nil || found != d {
			t.Errorf("lookup has %+v, %v; want %+v", found, err, d)
		}
	}
	for _, pos := range []int64{5, 4095, 4097, in.Size, in.Size + 1, 1 << 62} {
		if err := in.ReadDir(pos, func(Dirent) bool { return true }); err != nil {
			t.Errorf("cookie %d: %v", pos, err)
		}
	}
	wantError(t, in.ReadDir(-1, func(Dirent) bool { return true }), ErrInvalid, "negative")
}

// A directory may leave out ".", which then comes last.
func TestDotOmitted(t *testing.T) {
	c := newCraft(t)
	data := dirBytes(entry{"..", 1, 2}, entry{"a", 7, 1})
	c.put(c.at(craftFile), disk.InodeCompact{Format: disk.FormatDotOmitted, Mode: modeDir, NB: 2, Size: uint32(len(data)), U: craftData / craftBlock})
	c.put(craftData, data)
	in := c.inode(craftFile)
	var names []string
	pos := int64(0)
	for range 4 {
		if err := in.ReadDir(pos, func(d Dirent) bool {
			names, pos = append(names, d.Name), d.Next
			return false
		}); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"..", "a", "."}; !slices.Equal(names, want) {
		t.Errorf("entries %q, want %q", names, want)
	}
	if d, err := in.Lookup("."); err != nil || d.NID != craftFile || in.Nlink != 2 {
		t.Errorf(`".": %+v, %v; %d links`, d, err, in.Nlink)
	}
}

// Blocks that promise what they don't keep are refused before use, by lookup
// and by readdir.
func TestDirRefuses(t *testing.T) {
	good := dirBytes(entry{".", 1, 2}, entry{"..", 1, 2}, entry{"name", 3, 1})
	change := func(edit func(b []byte) []byte) []byte { return edit(bytes.Clone(good)) }
	for _, c := range []struct {
		name string
		data []byte
		text string
	}{
		{"zeros", make([]byte, 100), "first name"},
		{"too short for an entry", good[:11], "first name"},
		{"first name unaligned", change(func(b []byte) []byte { b[8] = 37; return b }), "first name"},
		{"first name outside", change(func(b []byte) []byte { b[8], b[9] = 0xfc, 0xff; return b }), "first name"},
		{"first name at the end", dirBytes(entry{"", 1, 1}), "first name"},
		{"names going back", change(func(b []byte) []byte { b[32] = 36; return b }), "entry 2"},
		{"empty name", change(func(b []byte) []byte { b[20] = 36; return b }), "entry 1"},
		{"name outside", change(func(b []byte) []byte { b[33] = 200; return b }), "entry 2"},
		{"last name empty", change(func(b []byte) []byte { b[39] = 0; return b }), "last name has 0"},
		{"name cut off", good[:39], "entry 2"},
		{"long name", dirBytes(entry{strings.Repeat("n", 256), 1, 1}, entry{"o", 1, 1}), "entry 1"},
		{"long last name", dirBytes(entry{strings.Repeat("n", 256), 1, 1}), "last name has 256"},
		{"NUL", dirBytes(entry{"a\x00b", 1, 1}, entry{"c", 1, 1}), "NUL"},
		{"slash", dirBytes(entry{"a/b", 1, 1}, entry{"c", 1, 1}), "slash"},
		{"slash in the last name", dirBytes(entry{"a", 1, 1}, entry{"b/", 1, 1}), "slash"},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := newCraft(t)
			image.dir(craftFile, craftData/craftBlock, c.data)
			in := image.inode(craftFile)
			_, err := in.Lookup("name")
			wantError(t, err, ErrCorrupt, c.text)
			wantError(t, in.ReadDir(0, func(Dirent) bool { return true }), ErrCorrupt, c.text)
		})
	}
}

// ReadDir wants names in order, in a block and from block to block.
func TestDirOrder(t *testing.T) {
	pad := func(b []byte) []byte { return append(b, make([]byte, craftBlock-len(b))...) }
	for name, data := range map[string][]byte{
		"in a block":     dirBytes(entry{"b", 1, 1}, entry{"a", 1, 1}),
		"twice":          dirBytes(entry{"a", 1, 1}, entry{"a", 1, 1}),
		"between blocks": append(pad(dirBytes(entry{"b", 1, 1})), dirBytes(entry{"a", 1, 1})...),
	} {
		t.Run(name, func(t *testing.T) {
			image := newCraft(t)
			image.dir(craftFile, craftData/craftBlock, data)
			err := image.inode(craftFile).ReadDir(0, func(Dirent) bool { return true })
			wantError(t, err, ErrCorrupt, "not in order")
		})
	}
}

// The type in an entry is bounded, whatever the byte says.
func TestDirentType(t *testing.T) {
	c := newCraft(t)
	c.dir(craftFile, craftData/craftBlock, dirBytes(entry{"a", 1, 7}, entry{"b", 1, 8}, entry{"c", 1, 255}))
	var got []FileType
	if err := c.inode(craftFile).ReadDir(0, func(d Dirent) bool { got = append(got, d.Type); return true }); err != nil {
		t.Fatal(err)
	}
	if want := []FileType{TypeSymlink, TypeUnknown, TypeUnknown}; !slices.Equal(got, want) {
		t.Errorf("types %v, want %v", got, want)
	}
}
