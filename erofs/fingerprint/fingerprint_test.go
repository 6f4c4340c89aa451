package fingerprint_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/fingerprint"
	"github.com/erofs-csi/erofs-csi/erofs/metaimage"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// open builds an image of a tree and opens it.
func open(t *testing.T, tree string, opts ...string) (*erofs.Image, int64) {
	t.Helper()
	data, err := os.ReadFile(images.Build(t, images.NewestMkfs(t), opts, tree))
	if err != nil {
		t.Fatal(err)
	}
	im, err := erofs.Open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return im, int64(len(data))
}

// write makes files below a new directory.
func write(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func build(t *testing.T, im *erofs.Image, size int64) (*fingerprint.Index, []fingerprint.File, fingerprint.Result) {
	t.Helper()
	files, err := fingerprint.Files(im)
	if err != nil {
		t.Fatal(err)
	}
	ix, r, err := fingerprint.Build(t.Context(), im, files, size)
	if err != nil {
		t.Fatal(err)
	}
	return ix, files, r
}

func TestIndexHoldsTheSumOfEachFile(t *testing.T) {
	big := bytes.Repeat([]byte("three megabytes and a bit "), 3<<20/25)
	contents := map[string][]byte{
		"a": []byte("a"), "d/same": []byte("a"), "big": big, "empty": nil,
		"block": make([]byte, 4096), "tail": bytes.Repeat([]byte{7}, 4097),
	}
	tree := write(t, contents)
	if err := os.Link(filepath.Join(tree, "a"), filepath.Join(tree, "hard")); err != nil {
		t.Fatal(err)
	}
	im, size := open(t, tree)
	ix, files, r := build(t, im, size)
	if want := len(contents) - 1; len(files) != want || ix.Len() != want || r.Files != want || r.Unreadable != 0 {
		t.Errorf("%d files listed, %d in the index, result %+v; want %d of each: the empty one has no data, a hard link is one file", len(files), ix.Len(), r, want)
	}
	seen := 0
	err := im.Walk(func(path string, in *erofs.Inode) error {
		if !in.IsRegular() {
			return nil
		}
		seen++
		data, ok := contents[path]
		if path == "hard" {
			data, ok = contents["a"], true
		}
		if !ok {
			t.Errorf("%s is not of the tree", path)
		}
		sum, ok := ix.Lookup(in.NID)
		if len(data) == 0 {
			if ok {
				t.Errorf("%s is empty and has a fingerprint", path)
			}
		} else if !ok || sum != sha256.Sum256(data) {
			t.Errorf("%s: fingerprint %x (%v), want %x", path, sum, ok, sha256.Sum256(data))
		}
		return nil
	})
	if err != nil || seen != len(contents)+1 {
		t.Errorf("walk saw %d files: %v", seen, err)
	}
	if _, ok := ix.Lookup(math.MaxUint64); ok {
		t.Error("a nid that is not in the image has a fingerprint")
	}
}

func TestFilesLargerThanTheImageCanHoldAreNotHashed(t *testing.T) {
	tree := write(t, map[string][]byte{"small": []byte("small")})
	huge, err := os.Create(filepath.Join(tree, "huge"))
	if err != nil {
		t.Fatal(err)
	}
	if err := huge.Truncate(64 << 20); err != nil { // zeros, in an image of a few KiB
		t.Fatal(err)
	}
	_ = huge.Close()
	// mkfs.erofs may write the zeros out; the metadata of the image has holes.
	full, _ := open(t, tree)
	var holes image
	if _, err := metaimage.Write(t.Context(), &holes, full, func(*erofs.Inode) string { return "/x" }); err != nil {
		t.Fatal(err)
	}
	size := int64(len(holes))
	im, err := erofs.Open(bytes.NewReader(holes), size)
	if err != nil {
		t.Fatal(err)
	}
	ix, files, r := build(t, im, size)
	if size*fingerprint.MaxRatio >= 64<<20 {
		t.Fatalf("an image of %d bytes may have that much: this test proves nothing", size)
	}
	if len(files) != 2 || ix.Len() != 1 || r.Unreadable != 1 || r.FirstError == nil {
		t.Errorf("%d files, %d hashed, result %+v: want the huge one left out", len(files), ix.Len(), r)
	}
}

func TestBuildStopsWithItsContext(t *testing.T) {
	im, size := open(t, write(t, map[string][]byte{"a": []byte("a")}))
	files, err := fingerprint.Files(im)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := fingerprint.Build(ctx, im, files, size); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}

// reopen opens stored bytes as a file's.
func reopen(t *testing.T, path string, stored []byte, id string) (*fingerprint.Index, error) {
	t.Helper()
	if err := os.WriteFile(path, stored, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	ix, err := fingerprint.Open(f, id)
	if err == nil {
		t.Cleanup(ix.Close)
	}
	return ix, err
}

func TestStoredIndexIsReadBackForItsImageAlone(t *testing.T) {
	im, size := open(t, write(t, map[string][]byte{"a": []byte("a"), "b": []byte("b"), "c": []byte("c"), "d": []byte("b")}))
	ix, files, _ := build(t, im, size)
	var buf bytes.Buffer
	if err := ix.Write(&buf, "sha256-one"); err != nil {
		t.Fatal(err)
	}
	stored := buf.Bytes()
	dir := t.TempDir()

	back, err := reopen(t, filepath.Join(dir, "good"), stored, "sha256-one")
	if err != nil {
		t.Fatal(err)
	}
	if back.Len() != len(files) {
		t.Errorf("%d entries, want %d", back.Len(), len(files))
	}
	for _, f := range files {
		want, _ := ix.Lookup(f.NID)
		if got, ok := back.Lookup(f.NID); !ok || got != want {
			t.Errorf("nid %d: %x (%v), want %x", f.NID, got, ok, want)
		}
		if i, e, ok := back.File(f.NID); !ok || e.File != f || back.Entry(i) != e {
			t.Errorf("nid %d: entry %d %+v (%v), want %+v", f.NID, i, e, ok, f)
		}
	}

	if _, err := reopen(t, filepath.Join(dir, "other"), stored, "sha256-two"); !errors.Is(err, fingerprint.ErrDamaged) {
		t.Errorf("read for another image: %v, want %v", err, fingerprint.ErrDamaged)
	}
	for i := range stored {
		bad := bytes.Clone(stored)
		bad[i] ^= 0x10
		if _, err := reopen(t, filepath.Join(dir, "bad"), bad, "sha256-one"); !errors.Is(err, fingerprint.ErrDamaged) {
			t.Fatalf("byte %d changed: %v, want %v", i, err, fingerprint.ErrDamaged)
		}
	}
	for n := range stored {
		if _, err := reopen(t, filepath.Join(dir, "cut"), stored[:n], "sha256-one"); !errors.Is(err, fingerprint.ErrDamaged) {
			t.Fatalf("cut to %d bytes: %v, want %v", n, err, fingerprint.ErrDamaged)
		}
	}
	// What is in no order, but has a good checksum, is refused as well.
	for at := 64; at+32 < len(stored)-32; at++ {
		bad := bytes.Clone(stored[:len(stored)-32])
		bad[at] ^= 0xff
		sum := sha256.Sum256(bad)
		if ix, err := reopen(t, filepath.Join(dir, "forged"), append(bad, sum[:]...), "sha256-one"); err == nil {
			walkIndex(ix, files)
		} else if !errors.Is(err, fingerprint.ErrDamaged) {
			t.Fatalf("byte %d changed, checksum mended: %v", at, err)
		}
	}
}

// walkIndex asks an index for all it has, which must not panic.
func walkIndex(ix *fingerprint.Index, files []fingerprint.File) (found int) {
	for _, f := range files {
		if sum, ok := ix.Lookup(f.NID); ok {
			from, end := ix.Find(sum, f.Size)
			found += end - from
		}
	}
	for i := range ix.Len() {
		e := ix.Entry(i)
		from, end := ix.Find(e.Sum, e.Size)
		found += end - from
	}
	return found
}

// Every content is found, with all files that have it, the cheapest first.
func TestFind(t *testing.T) {
	var files []fingerprint.File
	var sums []fingerprint.Sum
	want := make(map[fingerprint.Entry]int) // by content alone
	content := func(e fingerprint.Entry) fingerprint.Entry {
		return fingerprint.Entry{Sum: e.Sum, File: fingerprint.File{Size: e.Size}}
	}
	for nid := range 3000 {
		f := fingerprint.File{NID: uint64(nid*7 + 1), Size: int64(1 + nid%3), Cost: uint8(nid % 4)}
		sum := sha256.Sum256([]byte{byte(nid % 5), byte(nid % 3)})
		if nid%2 == 0 {
			sum = sha256.Sum256(binary.LittleEndian.AppendUint32(nil, uint32(nid)))
		}
		files, sums = append(files, f), append(sums, sum)
		want[content(fingerprint.Entry{File: f, Sum: sum})]++
	}
	ix := fingerprint.NewIndex(files, sums)
	for c, n := range want {
		from, end := ix.Find(c.Sum, c.Size)
		if end-from != n {
			t.Errorf("%x of %d bytes: %d files, want %d", c.Sum[:4], c.Size, end-from, n)
		}
		for i := from; i < end; i++ {
			if e := ix.Entry(i); content(e) != c || i > from && e.Cost < ix.Entry(i-1).Cost {
				t.Errorf("%x of %d bytes: entry %d is %+v", c.Sum[:4], c.Size, i, e)
			}
		}
		if from, end := ix.Find(c.Sum, c.Size+3); from != end {
			t.Errorf("%x of %d bytes is found", c.Sum[:4], c.Size+3)
		}
		c.Sum[31]++
		if from, end := ix.Find(c.Sum, c.Size); from != end {
			t.Errorf("%x is found", c.Sum)
		}
	}
}

// A page of the index that the disk does not give back costs its entries, no more. A
// file cut under its mapping, which nobody may do, is such a disk.
func TestIndexThatCanNotBeRead(t *testing.T) {
	var files []fingerprint.File
	var sums []fingerprint.Sum
	for nid := range 2000 {
		files = append(files, fingerprint.File{NID: uint64(nid), Size: 1})
		sums = append(sums, sha256.Sum256(binary.LittleEndian.AppendUint32(nil, uint32(nid))))
	}
	var buf bytes.Buffer
	if err := fingerprint.NewIndex(files, sums).Write(&buf, "x"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "index")
	ix, err := reopen(t, path, buf.Bytes(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if n := walkIndex(ix, files); n != 2*len(files) {
		t.Fatalf("%d entries found, want %d", n, 2*len(files))
	}
	if err := os.Truncate(path, 16<<10); err != nil {
		t.Fatal(err)
	}
	if n := walkIndex(ix, files); n >= len(files) {
		t.Errorf("%d entries are found in a file that was cut: this test proves nothing", n)
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if n := walkIndex(ix, files); n != 0 {
		t.Errorf("%d entries are found in a file that was cut to nothing", n)
	}
}

// A file whose data can't be read is left out; the others are hashed.
func TestUnreadableFileIsLeftOut(t *testing.T) {
	noise := make([]byte, 300<<10)
	for i := range noise {
		noise[i] = byte(crc32.ChecksumIEEE(binary.LittleEndian.AppendUint32(nil, uint32(i))))
	}
	tree := write(t, map[string][]byte{"a": noise[:64<<10], "z": noise})
	data, err := os.ReadFile(images.Build(t, images.NewestMkfs(t), nil, tree))
	if err != nil {
		t.Fatal(err)
	}
	// The superblock's size is trusted only as far as the device reaches: a
	// reader that fails beyond a point is a device with bad blocks.
	im, err := erofs.Open(badBlocks{bytes.NewReader(data), int64(len(data) - 4096)}, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	ix, files, r := build(t, im, int64(len(data)))
	if len(files) != 2 || ix.Len() != 1 || r.Unreadable != 1 || !errors.Is(r.FirstError, errBadBlock) {
		t.Errorf("%d files, %d hashed, result %+v: want one of two left out for %v", len(files), ix.Len(), r, errBadBlock)
	}
}

var errBadBlock = errors.New("bad block")

type badBlocks struct {
	r    *bytes.Reader
	from int64
}

func (b badBlocks) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > b.from {
		return 0, errBadBlock
	}
	return b.r.ReadAt(p, off)
}

// An image that claims for one file the fingerprint of another does not get it into
// the other's shared inode; what it claims rightly changes nothing.
func TestForgedFingerprintIsLeftOut(t *testing.T) {
	good, evil := bytes.Repeat([]byte("good"), 30), bytes.Repeat([]byte("evil"), 30)
	data, err := os.ReadFile("testdata/digests.img") // see testdata/README
	if err != nil {
		t.Fatal(err)
	}
	goodSum, evilSum := sha256.Sum256(good), sha256.Sum256(evil)
	index := func() (*fingerprint.Index, fingerprint.Result) {
		im, err := erofs.Open(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		ix, _, r := build(t, im, int64(len(data)))
		return ix, r
	}
	if ix, r := index(); ix.Len() != 2 || r.Forged != 0 {
		t.Fatalf("an honest image: %d in the index, %+v", ix.Len(), r)
	}
	if n := bytes.Count(data, evilSum[:]); n != 1 {
		t.Fatalf("the image has the fingerprint %d times, want 1: this test can't forge it", n)
	}
	copy(data[bytes.Index(data, evilSum[:]):], goodSum[:])
	// The forger mends the superblock's checksum, which covers the whole block.
	clear(data[1028:1032])
	sum := ^crc32.Checksum(data[1024:4096], crc32.MakeTable(crc32.Castagnoli))
	binary.LittleEndian.PutUint32(data[1028:], sum)
	ix, r := index()
	if ix.Len() != 1 || r.Forged != 1 || r.Unreadable != 0 || !errors.Is(r.FirstError, fingerprint.ErrForged) {
		t.Errorf("%d in the index, result %+v: want the forged one left out", ix.Len(), r)
	}
}

// image is an image being written in memory.
type image []byte

func (i *image) WriteAt(p []byte, off int64) (int, error) {
	if n := int(off) + len(p); n > len(*i) {
		*i = append(*i, make([]byte, n-len(*i))...)
	}
	return copy((*i)[off:], p), nil
}
