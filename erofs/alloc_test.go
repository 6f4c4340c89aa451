package erofs

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/erofs-csi/erofs-csi/test/images"
)

// Lookups, inodes and reads of uncompressed files allocate nothing while the
// metadata are cached, and those of compressed files nothing that is not pooled.
func TestAllocations(t *testing.T) {
	tree := images.SmallTree(t)
	for _, opts := range []string{"", "-Enoinline_data", "--chunksize=4096", "-zlz4", "-zlz4 -C65536 -Elegacy-compress"} {
		b, err := os.ReadFile(images.Build(t, images.NewestMkfs(t), strings.Fields(opts), tree))
		if err != nil {
			t.Fatal(err)
		}
		im, err := Open(bytes.NewReader(b), int64(len(b)), WithMetadataCache(NewMetadataCache(64<<20)))
		if err != nil {
			t.Fatal(err)
		}
		root, err := im.Root()
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 128<<10)
		var dir, file Inode
		n := testing.AllocsPerRun(100, func() {
			var d Dirent
			step := func(f func() error) {
				if err == nil {
					err = f()
				}
			}
			step(func() (e error) { d, e = root.Lookup("many"); return e })
			step(func() error { return im.ReadInode(d.NID, &dir) })
			step(func() (e error) { d, e = dir.Lookup("entry-1234-173c44"); return e })
			if _, e := dir.Lookup("no such name"); err == nil && e != errNoEntry {
				err = e
			}
			step(func() (e error) { d, e = root.Lookup("big"); return e })
			step(func() error { return im.ReadInode(d.NID, &dir) })
			step(func() (e error) { d, e = dir.Lookup("mixed"); return e })
			step(func() error { return im.ReadInode(d.NID, &file) })
		})
		if err != nil || n != 0 {
			t.Errorf("%q: lookups and inodes: %v allocations, %v", opts, n, err)
		}
		in, err := im.Inode(file.NID)
		if err != nil {
			t.Fatal(err)
		}
		off := int64(0)
		n = testing.AllocsPerRun(100, func() {
			if _, e := in.ReadAt(buf, off); err == nil {
				err = e
			}
			if off += int64(len(buf)); off > in.Size-int64(len(buf)) {
				off = 0
			}
		})
		// An entry of the cache, a batch given to helpers, and what they are told.
		most := 0.
		if in.Layout.Compressed() {
			most = 12
		}
		if err != nil || n > most {
			t.Errorf("%q: reads of %d KiB: %v allocations, %v", opts, len(buf)>>10, n, err)
		}
	}
}
