package erofs_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// largeBlocks are images of BlocksTree with blocks larger than a page, which neither
// the kernel mounts nor Debian's mkfs.erofs makes on this machine; see
// testdata/blocks/README.
var largeBlocks = []struct {
	name   string
	size   int
	opts   string // of mkfs.erofs
	counts string // ways to store compressed data that must occur
}{
	{"plain", 8192, "-b8192", ""},
	{"extended", 65536, "-b65536 -Eforce-inode-extended,noinline_data -x1", ""},
	{"chunked", 32768, "-b32768 --chunksize=65536", ""},
	{"lz4", 16384, "-b16384 -zlz4hc", "LZ4 compact shifted"},
	{"lz4-big", 65536, "-b65536 -zlz4 -C262144", "LZ4 full"},
	{"lzma-tail", 32768, "-b32768 -zlzma -Eztailpacking", "LZMA full inline"},
	{"deflate-fragments", 65536, "-b65536 -zdeflate -Efragments", "DEFLATE fragment whole-fragment"},
	{"zstd-all-fragments", 16384, "-b16384 -zzstd -C65536 -Eall-fragments,dedupe", "Zstandard whole-fragment"},
	{"zstd-metabox", 8192, "-b8192 -zzstd -m8192 -Eforce-inode-extended", "Zstandard"},
}

// Images with large blocks have what the tree has that mkfs.erofs was given.
func TestLargeBlocks(t *testing.T) {
	tree := images.BlocksTree(t)
	for _, kind := range largeBlocks {
		t.Run(kind.name, func(t *testing.T) {
			path := filepath.Join("testdata", "blocks", kind.name+".img.gz")
			if mkfs := os.Getenv("UPDATE_LARGE_BLOCKS"); mkfs != "" {
				updateLargeBlocks(t, mkfs, kind.opts, tree, path)
			}
			b := gunzip(t, path)
			im, err := erofs.Open(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			if sb := im.Superblock(); sb.BlockSize != kind.size {
				t.Errorf("blocks of %d bytes", sb.BlockSize)
			}
			images.Compare(t, images.Dir(tree), imageTree{im}, images.CompareOptions{Reads: 20, SkipDirSize: true, OnlyMtime: true})
			counts := make(erofs.ZCounts)
			if err := counts.AddImage(im); err != nil {
				t.Error(err)
			}
			for name := range strings.FieldsSeq(kind.counts) {
				if counts[name] == 0 {
					t.Errorf("%q never occurred: %v", name, counts)
				}
			}
			if _, err := erofs.Verify(t.Context(), im, func(path string, err error) { t.Errorf("verify %s: %v", path, err) }); err != nil {
				t.Error(err)
			}
		})
	}
}

func gunzip(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// updateLargeBlocks makes an image again.
func updateLargeBlocks(t *testing.T, mkfs, opts, tree, path string) {
	t.Helper()
	b, err := os.ReadFile(images.Build(t, images.Mkfs{Path: mkfs, Version: [3]int{1, 9, 4}}, strings.Fields(opts), tree))
	if err != nil {
		t.Fatal(err)
	}
	var z bytes.Buffer
	w, _ := gzip.NewWriterLevel(&z, gzip.BestCompression)
	if _, err = w.Write(b); err == nil {
		err = w.Close()
	}
	if err == nil {
		err = os.WriteFile(path, z.Bytes(), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
