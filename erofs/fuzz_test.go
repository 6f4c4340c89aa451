package erofs

import (
	"bytes"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
	"github.com/erofs-csi/erofs-csi/test/images"
)

var update = flag.Bool("update", false, "make the images in testdata/seeds again")

// seedKinds are the images in testdata/seeds: each of TinyTree, below 26 KB.
var seedKinds = []struct {
	name string
	opts string
	old  bool // by the system's mkfs.erofs, else by the newest
}{
	{"inline-old", "", true},
	{"lz4-old", "-zlz4 -Elegacy-compress", true},
	{"inline", "", false},
	{"extended", "-b512 -Eforce-inode-extended,noinline_data", false},
	{"chunked", "-b512 --chunksize=1024 -Eforce-chunk-indexes", false},
	{"lz4", "-zlz4", false},
	{"lz4-big", "-b512 -zlz4hc -C8192", false},
	{"lz4-dedupe", "-b512 -zlz4 -C1024 -Ededupe", false},
	{"lzma", "-b512 -zlzma -C1024", false},
	{"lzma-tail", "-b512 -zlzma -Elegacy-compress,ztailpacking", false},
	{"deflate-tail", "-b512 -zdeflate -C1024 -Eztailpacking", false},
	{"zstd-fragments", "-b512 -zzstd -Efragments,dedupe", false},
	{"zstd-all-fragments", "-b512 -zzstd -C1024 -Eall-fragments --xattr-prefix=user.sh", false},
	{"deflate-encoded", "-b512 -zlibdeflate -C2048 -E48bit", false},
	{"zstd-encoded", "-b512 -zzstd -E48bit,dedupe --max-extent-bytes=1024", false},
	{"zstd-unaligned", "-b512 -zzstd -C2048 -E48bit", false},
	{"lz4-encoded-fragments", "-b512 -zlz4 -E48bit,fragments,dot-omitted --zD", false},
	{"metabox", "-b512 -zlz4 -C1024 -m1024 -x0 --xattr-prefix=user.sh", false},
	{"metabox-zstd", "-zzstd -C8192 -m8192 -Eall-fragments,xattr-name-filter --xattr-inode-digest", false},
	{"prefixes", "-b512 -x1 --xattr-prefix=user.sh --xattr-inode-digest", false},
}

// The seeds are good images, and have everything that a fuzzer could not come by;
// -update makes them.
func TestSeeds(t *testing.T) {
	all := make(ZCounts)
	for _, kind := range seedKinds {
		path := filepath.Join("testdata", "seeds", kind.name+".img")
		if *update {
			mkfs := images.NewestMkfs(t)
			if kind.old {
				mkfs = images.AllMkfs(t)[0]
			}
			b, err := os.ReadFile(images.Build(t, mkfs, append([]string{"-T1700000000"}, strings.Fields(kind.opts)...), images.TinyTree(t)))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 26<<10 {
			t.Errorf("%s has %d bytes", path, len(b))
		}
		im, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		stats, err := Verify(t.Context(), im, func(name string, err error) { t.Errorf("%s: %s: %v", path, name, err) })
		if err != nil || stats.Inodes < 20 {
			t.Errorf("%s: %+v, %v", path, stats, err)
		}
		if err := all.AddImage(im); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, name := range []string{
		"compact", "full", "encoded-4", "encoded-16", "LZ4", "LZMA", "DEFLATE", "Zstandard", "shifted", "interlaced",
		"inline", "fragment", "whole-fragment", "partial", "big", "offset", "unaligned",
	} {
		if all[name] == 0 {
			t.Errorf("no seed has %q: %v", name, all)
		}
	}
}

// FuzzImage: whatever the bytes of an image are, every error is of a class and
// the work is bounded.
func FuzzImage(f *testing.F) {
	for path, im := range seedImages(f) {
		b := make([]byte, im.size)
		if err := readFull(im.r, b, 0); err != nil {
			f.Fatalf("%s: %v", path, err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 64<<10 {
			return // nothing new comes from more
		}
		if len(b) > disk.SuperBlockOffset+disk.SuperBlockSize {
			b = bytes.Clone(b)
			noChecksum(b)
		}
		exercise(t, b)
	})
}

// FuzzDirectory: whatever the blocks of a directory are, what ReadDir lists are
// good names that Lookup finds again.
func FuzzDirectory(f *testing.F) {
	f.Add(dirBytes(entry{".", 1, 2}, entry{"..", 1, 2}, entry{"a", 2, 1}))
	f.Add(append(dirBytes(entry{"a", 1, 2}), make([]byte, craftBlock)...))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > craftSize-craftData {
			return
		}
		c := newCraft(t)
		c.dir(craftFile, craftData/craftBlock, b)
		in := c.inode(craftFile)
		var names []string
		err := in.ReadDir(0, func(d Dirent) bool {
			names = append(names, d.Name)
			if d.Name == "" || len(d.Name) > disk.NameMax || strings.ContainsAny(d.Name, "/\x00") {
				t.Errorf("a name %q", d.Name)
			}
			return true
		})
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("readdir: %v", err)
		}
		for _, name := range names {
			_, lookupErr := in.Lookup(name)
			switch {
			case err == nil && lookupErr != nil:
				t.Errorf("listed %q, but lookup: %v", name, lookupErr)
			case lookupErr != nil && !errors.Is(lookupErr, fs.ErrNotExist) && !errors.Is(lookupErr, ErrCorrupt):
				t.Errorf("lookup %q: %v", name, lookupErr)
			}
		}
	})
}

// FuzzXattrs: whatever is behind an inode, what Xattrs lists Xattr finds.
func FuzzXattrs(f *testing.F) {
	f.Add(attr(disk.XattrUser, "a", "value"), uint16(6))
	f.Add(append(make([]byte, 12), attr(disk.XattrLongPrefix, "b", "x")...), uint16(3))
	f.Fuzz(func(t *testing.T, b []byte, count uint16) {
		c := newCraft(t)
		c.prefixes("\x01long.", "\x00erofs.fingerprint.v1")
		c.sb.FeatureCompat |= disk.CompatIshareXattrs
		c.sb.IsharePrefixID = 1
		c.put(c.at(craftFile), disk.InodeExtended{Format: 1, Mode: modeRegular, XattrCount: count % 4096})
		copy(c.b[c.at(craftFile)+disk.InodeExtendedSize:craftData], b)
		in := c.inode(craftFile)
		list, err := in.Xattrs()
		if err != nil && !classified(err) {
			t.Errorf("xattrs: %v", err)
		}
		for _, x := range list {
			if _, err := in.Xattr(x.Name); err != nil {
				t.Errorf("listed %q, but: %v", x.Name, err)
			}
		}
		if _, _, err := in.ImageFingerprint(); err != nil && !classified(err) {
			t.Errorf("fingerprint: %v", err)
		}
	})
}
