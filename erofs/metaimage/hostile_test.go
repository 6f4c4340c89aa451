package metaimage_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/metaimage"
)

// smallImage is an image of a few inodes of many types.
func smallImage(tb testing.TB) []byte {
	tb.Helper()
	dir := tb.TempDir()
	err := errors.Join(
		os.MkdirAll(dir+"/sub/deeper", 0o755),
		os.WriteFile(dir+"/file", []byte("data"), 0o644),
		os.WriteFile(dir+"/sub/large", bytes.Repeat([]byte("data"), 5000), 0o600),
		os.WriteFile(dir+"/empty", nil, 0o644),
		os.Link(dir+"/file", dir+"/sub/deeper/link"),
		os.Symlink(strings.Repeat("target/", 20), dir+"/symlink"),
		unix.Mkfifo(dir+"/fifo", 0o644),
	)
	if err != nil {
		tb.Fatal(err)
	}
	for i, name := range []string{"/file", "/empty", "/sub", "/sub/large"} {
		if err := unix.Setxattr(dir+name, "user.common", []byte("the same everywhere"), 0); err != nil {
			tb.Skipf("user xattrs: %v", err)
		}
		if err := unix.Setxattr(dir+name, "user.own", []byte{byte(i)}, 0); err != nil {
			tb.Fatal(err)
		}
	}
	b, err := os.ReadFile(mkfs(tb, dir))
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
	image := smallImage(t)
	if err := write(t, image); err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	failed := 0
	for range 20000 {
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
	image := smallImage(t)
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
		if le.Uint64(image[off:]) == nids["sub/deeper"] && image[off+10] == byte(erofs.TypeDir) && image[off+11] == 0 {
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
	image := smallImage(f)
	le := binary.LittleEndian
	le.PutUint32(image[1024+8:], le.Uint32(image[1024+8:])&^1) // no checksum
	f.Add(image)
	f.Fuzz(func(t *testing.T, image []byte) {
		if len(image) < 1<<20 {
			_ = write(t, image)
		}
	})
}
