package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// zTree makes a tree of files of every texture that mkfs.erofs lays out in its
// own way: text and programs of the machine, random, zero, mixed and sparse
// data, lengths around a block, and extended attributes of all lengths in
// front of the indexes, because those depend on the address modulo 32.
func zTree(t testing.TB, goFiles int) string {
	t.Helper()
	root := t.TempDir()
	rng := rand.New(rand.NewPCG(5, 6))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	write := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(root, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var text []byte
	n := 0
	err := filepath.WalkDir(filepath.Join(images.RealTree(t), "net"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || n == goFiles {
			return err
		}
		data, err := os.ReadFile(path)
		write(fmt.Sprintf("go%03d", n), data)
		text = append(text, data...)
		n++
		return err
	})
	if err != nil || n < goFiles || len(text) < 500_000 {
		t.Fatalf("%d files with %d bytes in the Go source tree: %v", n, len(text), err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(program); err != nil {
		t.Fatal(err)
	} else {
		write("program", data[:min(len(data), 3<<20)])
	}
	write("text", text)
	write("random", random(300_001))
	write("zeros", make([]byte, 14<<20+777))
	write("blocks", bytes.Repeat(random(4096), 40))
	for _, n := range []int{1, 511, 512, 513, 4095, 4096, 4097, 8191, 8192, 8193, 65535, 65537} {
		write(fmt.Sprintf("random%d", n), random(n))
		write(fmt.Sprintf("text%d", n), text[:n])
	}
	var mixed []byte
	for len(mixed) < 2_000_000 {
		switch n := 1 + rng.IntN(20_000); rng.IntN(3) {
		case 0:
			mixed = append(mixed, random(n)...)
		case 1:
			mixed = append(mixed, make([]byte, n)...)
		default:
			at := rng.IntN(len(text) - n)
			mixed = append(mixed, text[at:at+n]...)
		}
	}
	write("mixed", mixed)
	write("random-text", append(random(1_300_000), text...)) // plain even with pclusters of 1 MiB
	for i := range 16 {
		name := fmt.Sprintf("xattr%d", i)
		write(name, append(bytes.Clone(text[i*1000:i*1000+i*30_000]), random(i*1000)...))
		if err := unix.Setxattr(filepath.Join(root, name), "user.a", make([]byte, 1+4*i), 0); err != nil {
			images.Need(t, "user extended attributes in "+root, false)
		}
	}
	f, err := os.Create(filepath.Join(root, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int64{0, 100_000, 1 << 20, 5<<20 - 3} {
		if _, err := f.WriteAt(text[at%1000:][:50_000], at); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// openFile opens an image file until the test's end.
func openFile(t testing.TB, path string) *Image {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	im, err := Open(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// equalKernel compares every compressed file of an image with the kernel's
// mount of it, whole in several steps and at random, by concurrent readers.
func equalKernel(t *testing.T, path string, reads int) ZCounts {
	t.Helper()
	mnt := images.KernelMount(t, path)
	im := openFile(t, path)
	c := make(ZCounts)
	err := im.Walk(func(name string, in *Inode) error {
		if !in.IsRegular() || !in.Layout.Compressed() {
			return nil
		}
		want, err := os.ReadFile(filepath.Join(mnt, name))
		if err != nil {
			return err
		}
		if int64(len(want)) != in.Size {
			t.Errorf("%s: %d bytes, the kernel has %d", name, in.Size, len(want))
			return nil
		}
		if err := c.Add(in); err != nil {
			return err
		}
		var wg sync.WaitGroup
		for i, step := range []int{len(want), 128 << 10, 1 << 20, 4096, 5000} {
			wg.Go(func() { equalReads(t, name, in, want, step, uint64(i), reads) })
		}
		wg.Wait()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if c["files"] < 60 {
		t.Fatalf("only %d files are compressed", c["files"])
	}
	return c
}

func equalReads(t *testing.T, name string, in *Inode, want []byte, step int, seed uint64, reads int) {
	if step < 6000 {
		want = want[:min(len(want), 300_000)]
	}
	p := make([]byte, max(step, 200_000))
	check := func(off, n int) bool {
		got, err := in.ReadAt(p[:n], int64(off))
		if err != nil && (!errors.Is(err, io.EOF) || off+n < int(in.Size)) {
			t.Errorf("%s: %d bytes at %d: %v", name, n, off, err)
		} else if !bytes.Equal(p[:got], want[off:off+n]) {
			t.Errorf("%s: %d bytes at %d differ from the kernel's", name, n, off)
		} else {
			return true
		}
		return false
	}
	for off := 0; off < len(want); off += step {
		if !check(off, min(step, len(want)-off)) {
			return
		}
	}
	rng := rand.New(rand.NewPCG(seed, uint64(len(want))))
	for range reads {
		off := rng.IntN(len(want))
		n := 1 + rng.IntN([]int{1, 4096, 200_000}[rng.IntN(3)])
		if !check(off, min(n, len(want)-off)) {
			return
		}
	}
}

func TestCompressedEqualsKernel(t *testing.T) {
	tree := zTree(t, 120)
	const c4, c64, c1M = "-C4096", "-C65536", "-C1048576"
	rows := []struct {
		opts  string
		since [2]int
		sizes []string
	}{
		{"-zlz4", [2]int{}, []string{c4, c64, c1M}},
		{"-zlz4 -Elegacy-compress", [2]int{}, []string{c4, c64, c1M}}, // before 1.8 without 0padding
		{"-zlz4 -Eforce-inode-extended", [2]int{}, []string{c4, c64}},
		{"-zlz4 -x-1", [2]int{}, []string{c4, c64}},
		{"-zlz4hc,9", [2]int{}, []string{c4, c64, c1M}},
		{"-zlz4hc,12", [2]int{}, []string{c4}},
		{"-zlz4 -b512", [2]int{1, 6}, []string{"-C512", c4, c64}},
		{"-zlz4 -b1024 -Elegacy-compress", [2]int{1, 6}, []string{"-C1024", c64}},
	}
	all := make(ZCounts)
	missed := 0
	for _, mkfs := range images.AllMkfs(t) {
		for _, row := range rows {
			for _, size := range row.sizes {
				if !mkfs.AtLeast(row.since[0], row.since[1]) {
					continue
				}
				opts := append(strings.Fields(row.opts), size)
				missed++
				t.Run(mkfs.String()+"/"+strings.Join(opts, " "), func(t *testing.T) {
					path := images.Build(t, mkfs, opts, tree)
					if openFile(t, path).sb.FeatureIncompat&disk.IncompatLZ4ZeroPadding != 0 {
						all["0padding"]++
					} else {
						all["no 0padding"]++
					}
					c := equalKernel(t, path, 30)
					t.Logf("%+v", c)
					if c["LZ4"] == 0 || c["shifted"] == 0 {
						t.Errorf("some kind of pcluster did not occur: %v", c)
					}
					if big := size != row.sizes[0]; (c["big"] != 0) != big {
						t.Errorf("%d big pclusters with %s", c["big"], size)
					}
					if legacy := strings.Contains(row.opts, "legacy"); legacy != (c["full"] == c["files"]) || legacy == (c["compact"] == c["files"]) {
						t.Errorf("the indexes are of the wrong kind: %v", c)
					}
					for name, n := range c {
						all[name] += n
					}
					missed--
				})
			}
		}
	}
	if missed > 0 {
		return // failed, or not asked for
	}
	for _, name := range []string{"offset", "long", "initial", "packed", "trailing", "0padding"} {
		if all[name] == 0 {
			t.Errorf("%q never occurred: %v", name, all)
		}
	}
	if old := images.AllMkfs(t)[0]; !old.AtLeast(1, 8) && all["no 0padding"] == 0 {
		t.Errorf("no image of %s is without 0padding", old)
	}
}

// TestInterlacedEqualsKernel sets the bit for interlaced plain pclusters in all
// files of an image that was written without, for the kernel and us: what is
// read is not what was written, but has to be the same. mkfs.erofs sets it
// only together with fragments, which are not supported.
func TestInterlacedEqualsKernel(t *testing.T) {
	tree := zTree(t, 120)
	path := images.Build(t, images.NewestMkfs(t), []string{"-zlz4", "-Enosbcrc"}, tree)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = openFile(t, path).Walk(func(_ string, in *Inode) error {
		if !in.Layout.Compressed() {
			return nil
		}
		at := roundUp(in.bodyAddr(), disk.MapHeaderSize) + 4
		var advise [2]byte
		if _, err := f.ReadAt(advise[:], at); err != nil {
			return err
		}
		advise[0] |= disk.AdviseInterlaced
		_, err := f.WriteAt(advise[:], at)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if c := equalKernel(t, path, 30); c["offset"] == 0 || c["shifted"] != 0 {
		t.Errorf("no interlaced pclusters across two blocks: %+v", c)
	}
}
