package metaimage_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/metaimage"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// tinyImage is an image of a few inodes of every type.
func tinyImage(tb testing.TB) []byte {
	tb.Helper()
	b, err := os.ReadFile(images.Build(tb, images.NewestMkfs(tb), nil, images.TinyTree(tb)))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// write writes the META of an image in memory and checks what must be so of
// every image: a failure is of a known class, a META can be read again.
func write(t *testing.T, image []byte) error {
	t.Helper()
	im, err := erofs.Open(bytes.NewReader(image), int64(len(image)))
	var out sink
	var stats metaimage.Stats
	if err == nil {
		stats, err = metaimage.Write(t.Context(), &out, im, byNID)
	}
	if err != nil {
		for _, class := range []error{erofs.ErrFormat, erofs.ErrUnsupported, erofs.ErrCorrupt, metaimage.ErrNeedsTree} {
			if errors.Is(err, class) {
				return err
			}
		}
		t.Fatalf("error of no class: %v", err)
	}
	back, err := erofs.Open(bytes.NewReader(out.b), int64(len(out.b)))
	if err != nil {
		t.Fatalf("META can't be read: %v", err)
	}
	seen := map[uint64]bool{}
	err = back.Walk(func(path string, in *erofs.Inode) error {
		seen[in.NID] = true
		_, err := in.Xattrs()
		return err
	})
	if err != nil || uint64(len(seen)) != stats.Inodes {
		t.Fatalf("META has %d of %d inodes, %v", len(seen), stats.Inodes, err)
	}
	return nil
}

// TestFlippedBytes writes the META of images with random bytes changed.
func TestFlippedBytes(t *testing.T) {
	image := tinyImage(t)
	if err := write(t, image); err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	failed := 0
	for range 5000 {
		b := bytes.Clone(image)
		for range 1 + rnd.IntN(3) {
			// Behind the superblock, whose checksum would give each away.
			b[1152+rnd.IntN(len(b)-1152)] ^= 1 << rnd.IntN(8)
		}
		binary.LittleEndian.PutUint32(b[1024+8:], binary.LittleEndian.Uint32(b[1024+8:])&^1) // no checksum
		if write(t, b) != nil {
			failed++
		}
	}
	if failed == 0 {
		t.Error("no change was noticed")
	}
}

// TestCycle gives a directory that contains the root.
func TestCycle(t *testing.T) {
	image := tinyImage(t)
	im, err := erofs.Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	nids := map[string]uint64{}
	if err := im.Walk(func(path string, in *erofs.Inode) error { nids[path] = in.NID; return nil }); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	patched := 0
	for off := 1152; off+12 <= len(image); off += 4 {
		if le.Uint64(image[off:]) == nids["dir/sub"] && image[off+10] == byte(erofs.TypeDir) && image[off+11] == 0 {
			le.PutUint64(image[off:], nids["."])
			patched++
		}
	}
	if patched == 0 {
		t.Fatal("the entry was not found")
	}
	le.PutUint32(image[1024+8:], le.Uint32(image[1024+8:])&^1) // no checksum
	if err := write(t, image); !errors.Is(err, erofs.ErrCorrupt) {
		t.Errorf("Write: %v, want ErrCorrupt", err)
	}
}

// FuzzWrite writes the META of whatever opens as an image.
func FuzzWrite(f *testing.F) {
	image := tinyImage(f)
	le := binary.LittleEndian
	le.PutUint32(image[1024+8:], le.Uint32(image[1024+8:])&^1) // no checksum
	f.Add(image)
	f.Fuzz(func(t *testing.T, image []byte) {
		if len(image) < 1<<20 {
			_ = write(t, image)
		}
	})
}
