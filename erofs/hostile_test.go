package erofs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// exercise does with untrusted bytes all that the package can do: every name
// is walked, looked up and resumed at, every inode's attributes and links and
// parts of its data are read. Each error must be of a class, and the work
// bounded by the size of the image. It returns how often the image was at
// fault.
func exercise(t *testing.T, b []byte) (failures int) {
	t.Helper()
	check := func(what string, err error) {
		if err == nil || errors.Is(err, io.EOF) {
			return
		}
		if !classified(err) {
			t.Errorf("%s: %v is of no class", what, err)
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrNoXattr) {
			failures++
		}
	}
	im, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		check("open", err)
		return failures
	}
	check("devices", im.CheckDevices())
	entries := 0
	done := make(map[uint64]bool)
	err = im.Walk(func(path string, in *Inode) error {
		entries++
		if done[in.NID] {
			return nil
		}
		done[in.NID] = true
		exerciseInode(t, in, check)
		return nil
	})
	check("walk", err)
	// A name takes at least 13 bytes of a directory, and directories as much of
	// the image, but for compressed ones.
	if limit := len(b)/13*maxCompression + 1; entries > limit {
		t.Errorf("%d entries in an image of %d bytes", entries, len(b))
	}
	// Inodes can claim any amount of the same data, so time is given.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err = Verify(ctx, im, func(path string, err error) { check("verify "+path, err) })
	if !errors.Is(err, context.DeadlineExceeded) {
		check("verify", err)
	}
	return failures
}

// exerciseInode does with one inode all there is.
func exerciseInode(t *testing.T, in *Inode, check func(string, error)) {
	t.Helper()
	list, err := in.Xattrs()
	check("xattrs", err)
	for _, x := range list {
		_, err := in.Xattr(x.Name)
		check("xattr", err)
	}
	_, err = in.Xattr("user.none")
	check("xattr", err)
	_, _, err = in.ImageFingerprint()
	check("fingerprint", err)
	switch in.Type() {
	case TypeSymlink:
		_, err := in.Readlink()
		check("readlink", err)
	case TypeDir:
		var names []string
		check("readdir", in.ReadDir(0, func(d Dirent) bool {
			names = append(names, d.Name)
			return len(names) < 100
		}))
		for _, name := range append(names, "", "no such name", "\xff\xff") {
			d, err := in.Lookup(name)
			check("lookup", err)
			check("resume", in.ReadDir(d.Next, func(Dirent) bool { return false }))
		}
	default:
	}
	if !in.IsRegular() && !in.IsDir() && !in.IsSymlink() {
		return
	}
	buf := make([]byte, 20000)
	for _, off := range []int64{0, 1, 4095, in.Size / 2, in.Size - 5000, in.Size - 1, in.Size} {
		if off >= 0 {
			bounded(t, "read", func() { _, err = in.ReadAt(buf, off) })
			check("read", err)
			_, err = in.Extent(off)
			check("extent", err)
		}
	}
}

// tinyImages are images of a dozen files, one for each layout.
func tinyImages(t testing.TB) map[string][]byte {
	t.Helper()
	tree := images.TinyTree(t)
	all := make(map[string][]byte)
	for _, mkfs := range images.AllMkfs(t) {
		kinds := map[string][]string{
			"inline": nil, "chunked": {"--chunksize=4096", "-Eforce-chunk-indexes"}, "lz4": {"-zlz4"},
			"lz4-legacy": {"-zlz4", "-Elegacy-compress"},
		}
		if mkfs.AtLeast(1, 9) {
			kinds["small-blocks"] = []string{"-b512", "--xattr-prefix=user.sh", "--xattr-inode-digest"}
			kinds["lz4-big"] = []string{"-zlz4hc", "-C16384", "-b512"}
		}
		for name, opts := range kinds {
			b, err := os.ReadFile(images.Build(t, mkfs, opts, tree))
			if err != nil {
				t.Fatal(err)
			}
			all[mkfs.String()+"/"+name] = b
		}
	}
	return all
}

// An image that ends early, anywhere, is refused or fails cleanly, also when
// nobody says how long it really is.
func TestTruncated(t *testing.T) {
	for name, b := range tinyImages(t) {
		t.Run(name, func(t *testing.T) {
			if n := exercise(t, b); n > 0 {
				t.Fatalf("%d failures of the whole image", n)
			}
			step := 512
			if testing.Short() {
				step = 4096
			}
			cuts := []int{0, 1, 1023, 1024, 1025, 1024 + disk.SuperBlockSize - 1, 1024 + disk.SuperBlockSize}
			for cut := 0; cut < len(b); cut += step {
				cuts = append(cuts, cut, cut+disk.InodeSlotSize, cut+step-1)
			}
			for _, cut := range cuts {
				if cut = min(cut, len(b)-1); exercise(t, b[:cut]) == 0 {
					t.Errorf("%d of %d bytes are not missed", len(b)-cut, len(b))
				}
				liar := bytes.NewReader(b[:cut])
				if im, err := Open(liar, int64(len(b))); err != nil {
					if !classified(err) {
						t.Errorf("cut at %d: %v is of no class", cut, err)
					}
				} else if _, err := Verify(t.Context(), im, func(path string, err error) {
					if !classified(err) {
						t.Errorf("cut at %d: %s: %v is of no class", cut, path, err)
					}
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// Flipped bytes anywhere: whatever comes of it is an error of a class or a
// result, soon.
func TestFlippedBytes(t *testing.T) {
	flips := 1000
	if testing.Short() {
		flips = 200
	}
	for name, b := range tinyImages(t) {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(len(b)), 42))
			meta := metadataOf(b)
			failures := 0
			for i := range flips {
				mutant := bytes.Clone(b)
				var at []int
				for range 1 + rng.IntN(3) {
					where := rng.IntN(len(b))
					if i%4 != 0 { // mostly where it hurts
						where = meta[rng.IntN(len(meta))]
					}
					at = append(at, where)
					mutant[where] ^= byte(1 + rng.IntN(255))
				}
				noChecksum(mutant)
				if exercise(t, mutant) > 0 {
					failures++
				}
				if t.Failed() {
					t.Fatalf("flip %d at %v", i, at)
				}
			}
			if failures < flips/20 {
				t.Errorf("only %d of %d flips were noticed", failures, flips)
			}
		})
	}
}

// noChecksum takes the checksum feature from an image, so that what comes
// behind it is reached.
func noChecksum(b []byte) {
	b[disk.SuperBlockOffset+8] &^= disk.CompatSBChecksum
}

// metadataOf are the positions of the bytes that are neither zero nor the
// random data of TinyTree's block file: superblock, inodes, entries, indexes.
func metadataOf(b []byte) []int {
	var at []int
	for i, v := range b {
		near := b[i:min(i+16, len(b))]
		if v != 0 || bytes.Count(near, []byte{0}) > 3 && bytes.Count(near, []byte{0}) < len(near) {
			at = append(at, i)
		}
	}
	return at
}
