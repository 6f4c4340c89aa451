package erofs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// treeCraft is an image with the tree ./{dir/{inner,link},file}; blocks 5 and
// on have the directories.
func treeCraft(t *testing.T) *craft {
	t.Helper()
	c := newCraft(t)
	c.dir(craftRoot, 2, dirBytes(entry{".", 1, 2}, entry{"..", 1, 2}, entry{"dir", 10, 2}, entry{"file", 20, 1}))
	c.dir(10, 5, dirBytes(entry{".", 10, 2}, entry{"..", 1, 2}, entry{"inner", 20, 1}, entry{"link", 30, 7}))
	c.file(20, modeRegular|0o644, FlatPlain, 10, 6)
	c.file(30, modeSymlink|0o777, FlatPlain, 3, 6)
	c.put(6*craftBlock, []byte("0123456789"))
	c.put(c.at(20)+0x2c, uint32(2)) // i_nlink
	return c
}

func TestWalk(t *testing.T) {
	im := treeCraft(t).mustOpen()
	var paths []string
	if err := im.Walk(func(path string, in *Inode) error {
		paths = append(paths, fmt.Sprintf("%s %d", path, in.NID))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want := []string{". 1", "dir 10", "dir/inner 20", "dir/link 30", "file 20"}; !slices.Equal(paths, want) {
		t.Errorf("walked %q, want %q", paths, want)
	}
	paths = nil
	if err := im.Walk(func(path string, _ *Inode) error {
		paths = append(paths, path)
		if path == "dir" {
			return fs.SkipDir
		}
		return nil
	}); err != nil || strings.Join(paths, " ") != ". dir file" {
		t.Errorf("with SkipDir: %q, %v", paths, err)
	}
	stop := errors.New("enough")
	if err := im.Walk(func(path string, _ *Inode) error {
		if path == "dir/inner" {
			return stop
		}
		return nil
	}); !errors.Is(err, stop) {
		t.Errorf("error %v, want %v", err, stop)
	}
}

func TestSummarize(t *testing.T) {
	s, err := Summarize(t.Context(), treeCraft(t).mustOpen())
	if err != nil {
		t.Fatal(err)
	}
	want := Summary{
		Inodes: 4, Entries: 4, Bytes: 10,
		Types:   map[string]uint64{"regular": 1, "directory": 2, "symlink": 1},
		Layouts: map[string]uint64{"flat-plain": 4},
	}
	if got, want := fmt.Sprint(s), fmt.Sprint(want); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Summarize(ctx, treeCraft(t).mustOpen()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A tree without end is refused by Walk and by Verify, in little time.
func TestWalkRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(c *craft)
		kind   error
		text   string
	}{
		{"cycle", func(c *craft) {
			c.dir(10, 5, dirBytes(entry{".", 10, 2}, entry{"..", 1, 2}, entry{"up", 1, 2}))
		}, ErrCorrupt, "more than one name"},
		{"self", func(c *craft) {
			c.dir(10, 5, dirBytes(entry{".", 10, 2}, entry{"..", 1, 2}, entry{"me", 10, 2}))
		}, ErrCorrupt, "more than one name"},
		{"two names", func(c *craft) {
			c.dir(10, 5, dirBytes(entry{".", 10, 2}, entry{"..", 1, 2}))
			c.dir(craftRoot, 2, dirBytes(entry{".", 1, 2}, entry{"..", 1, 2}, entry{"a", 10, 2}, entry{"b", 10, 2}))
		}, ErrCorrupt, "more than one name"},
		{"overlapping directories", func(c *craft) {
			// Nine directories claim the same four blocks.
			var entries []entry
			for nid := uint64(30); nid < 48; nid += 2 {
				c.file(nid, modeDir, FlatPlain, 4*craftBlock, craftData/craftBlock)
				entries = append(entries, entry{fmt.Sprint("d", nid), nid, 2})
			}
			for b := range int64(4) {
				c.put(craftData+b*craftBlock, dirBytes(entry{fmt.Sprint("f", b), 20, 1}))
			}
			c.file(20, modeRegular, FlatPlain, 0, 0)
			c.dir(craftRoot, 2, dirBytes(append([]entry{{".", 1, 2}, {"..", 1, 2}}, entries...)...))
		}, ErrCorrupt, "more data than the image"},
		{"no such inode", func(c *craft) {
			c.dir(10, 5, dirBytes(entry{".", 10, 2}, entry{"..", 1, 2}, entry{"gone", 1 << 40, 1}))
		}, ErrCorrupt, "beyond the end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := treeCraft(t)
			c.change(image)
			im := image.mustOpen()
			err := im.Walk(func(string, *Inode) error { return nil })
			wantError(t, err, c.kind, c.text)
			var found []string
			stats, err := Verify(t.Context(), im, func(path string, err error) { found = append(found, err.Error()) })
			if err != nil || stats.Findings != uint64(len(found)) || !strings.Contains(strings.Join(found, "\n"), c.text) {
				t.Errorf("verify: %+v, %v, %q", stats, err, found)
			}
		})
	}
}

// Depth is bounded, whatever the image says.
func TestWalkDepth(t *testing.T) {
	const depth = maxDepth + 10
	c := newCraft(t)
	c.b = append(c.b, make([]byte, depth*craftBlock)...)
	for i := range uint64(depth) { // one directory a block: its inode, then its data
		nid := 200 + i*craftBlock/disk.InodeSlotSize
		block := uint64(c.at(nid)) / craftBlock
		data := dirBytes(entry{"d", nid + craftBlock/disk.InodeSlotSize, 2})
		c.put(c.at(nid), disk.InodeExtended{
			Format: 1 | uint16(FlatInline)<<disk.FormatLayoutBit, Mode: modeDir, Size: int64(len(data)), Nlink: 2, U: uint32(block),
		})
		c.put(c.at(nid)+disk.InodeExtendedSize, data)
	}
	c.dir(craftRoot, 2, dirBytes(entry{".", 1, 2}, entry{"..", 1, 2}, entry{"d", 200, 2}))
	err := c.mustOpen().Walk(func(string, *Inode) error { return nil })
	wantError(t, err, ErrUnsupported, "4097 levels")
}

// Verify goes on after a finding and reports each with its path.
func TestVerify(t *testing.T) {
	c := treeCraft(t)
	clean, err := Verify(t.Context(), c.mustOpen(), func(path string, err error) { t.Errorf("%s: %v", path, err) })
	if want := (VerifyStats{Inodes: 4, Dirents: 8, Bytes: 10}); err != nil || clean != want {
		t.Errorf("clean image: %+v, %v; want %+v", clean, err, want)
	}
	c.dir(craftRoot, 2, dirBytes(entry{".", 20, 2}, entry{"..", 1, 2}, entry{"bad", 40, 1}, entry{"dir", 10, 2}, entry{"file", 20, 7}))
	c.dir(10, 5, dirBytes(entry{".", 10, 2}, entry{"inner", 20, 1}, entry{"link", 30, 7}))
	c.file(30, modeSymlink, FlatPlain, 3, 5) // block 5 has NULs
	c.file(20, modeRegular, FlatPlain, 3*craftBlock, 6)
	found := map[string]string{}
	stats, err := Verify(t.Context(), c.mustOpen(), func(path string, err error) {
		if !classified(err) {
			t.Errorf("%s: %v is of no class", path, err)
		}
		found[path] += err.Error() + "\n"
	})
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		".": `"." is directory 20`, "bad": "no file type", "file": "its inode 20 regular",
		"dir": `"." or ".." is missing`, "dir/inner": "beyond the end", "dir/link": "NUL",
	} {
		if !strings.Contains(found[path], text) {
			t.Errorf("%s: found %q, want %q", path, found[path], text)
		}
		delete(found, path)
	}
	if len(found) > 0 || stats.Findings != 6 {
		t.Errorf("also found %q, %d in all", found, stats.Findings)
	}
}

// A fingerprint that does not fit the content is a finding.
func TestVerifyFingerprint(t *testing.T) {
	c := treeCraft(t)
	c.prefixes("\x00erofs.fingerprint.v1")
	c.sb.FeatureCompat |= disk.CompatIshareXattrs
	c.xattrs(nil, attr(disk.XattrLongPrefix, "", "sha256:"+strings.Repeat("f", 32)))
	c.dir(craftRoot, 2, dirBytes(entry{".", 1, 2}, entry{"..", 1, 2}, entry{"forged", craftFile, 1}))
	var found []string
	stats, err := Verify(t.Context(), c.mustOpen(), func(path string, err error) { found = append(found, path+err.Error()) })
	if err != nil || stats.Fingerprints != 1 || len(found) != 1 || !strings.Contains(found[0], "the image says sha256:6666") ||
		!strings.HasPrefix(found[0], "forged") {
		t.Errorf("%+v, %v, %q", stats, err, found)
	}
	// One that would take years to compute is left out.
	c.put(c.at(craftFile)+0x08, uint64(1<<62)) // i_size
	c.put(c.at(craftFile)+0x06, uint16(1<<16-1))
	c.put(c.at(craftFile)+0x10, uint32(1<<32-1))
	stats, err = Verify(t.Context(), c.mustOpen(), func(path string, err error) { t.Errorf("%s: %v", path, err) })
	if err != nil || stats.Fingerprints != 0 || stats.Uncompared != 1 {
		t.Errorf("%+v, %v", stats, err)
	}
}

// Holes as large as numbers go cost Verify nothing.
func TestVerifyHugeHole(t *testing.T) {
	c := treeCraft(t)
	c.put(c.at(20), disk.InodeExtended{Format: 1, Mode: modeRegular, Size: 1<<63 - 1, U: 1<<32 - 1, NB: 1<<16 - 1, Nlink: 2})
	stats, err := Verify(t.Context(), c.mustOpen(), func(path string, err error) { t.Errorf("%s: %v", path, err) })
	if err != nil || stats.Holes != 1<<63-1 {
		t.Errorf("%+v, %v", stats, err)
	}
}
