package fusefs

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/erofs-csi/erofs-csi/erofs/share"
)

// bigFiles is an image with n files of a size that is no multiple of the request's.
func bigFiles(t *testing.T, n int) (m *share.Member, contents [][]byte, inodes []share.Inode) {
	t.Helper()
	dir := t.TempDir()
	rng := rand.NewChaCha8([32]byte{1})
	for i := range n {
		data := make([]byte, 9*requestSize+4099)
		_, _ = rng.Read(data)
		contents = append(contents, data)
		if err := os.WriteFile(filepath.Join(dir, string(rune('a'+i))), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d := share.NewDomain("d")
	m = joinTree(t, d, "a", true, dir)
	for _, c := range contents {
		in, ok := d.Find(share.ContentPath(share.Key{Sum: sha256.Sum256(c), Size: int64(len(c))}))
		if !ok {
			t.Fatal("a file is not found")
		}
		inodes = append(inodes, in)
	}
	return m, contents, inodes
}

// sent returns a reply's bytes as go-fuse sends them, and ends it.
func sent(t *testing.T, r fuse.ReadResult) []byte {
	t.Helper()
	defer r.Done()
	if s, ok := r.(interface {
		Slices() ([][]byte, fuse.Status)
	}); ok {
		parts, status := s.Slices()
		if status != fuse.OK {
			t.Error(status)
		}
		return bytes.Clone(bytes.Join(parts, nil))
	}
	b, status := r.Bytes(nil)
	if status != fuse.OK {
		t.Error(status)
	}
	return bytes.Clone(b)
}

func TestSequentialReadsAreReadAhead(t *testing.T) {
	_, contents, inodes := bigFiles(t, 1)
	var r readAhead
	hits := 0
	var got []byte
	for off := int64(0); off < inodes[0].Size(); off += requestSize {
		// As the kernel asks: whole pages, not far beyond the end.
		size := min(requestSize, (inodes[0].Size()-off+4095)&^4095)
		res, err := r.read(inodes[0], make([]byte, size), off)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := res.(*aheadResult); ok {
			hits++
		}
		got = append(got, sent(t, res)...)
	}
	if !bytes.Equal(got, contents[0]) {
		t.Errorf("%d bytes read differ from the %d of the file", len(got), len(contents[0]))
	}
	if hits != 9 {
		t.Errorf("%d of 10 requests were read ahead, want all but the first", hits)
	}
	for i := range r.slots {
		if a := r.slots[i].Load(); a != nil {
			t.Errorf("slot %d holds %d after the end of the file", i, a.off)
		}
	}
}

func TestScatteredReadsAreNotReadAhead(t *testing.T) {
	_, contents, inodes := bigFiles(t, 1)
	var r readAhead
	for _, off := range []int64{5 * requestSize, 2 * requestSize, 7 * requestSize, 4096, requestSize + 8192} {
		res, err := r.read(inodes[0], make([]byte, requestSize), off)
		if err != nil {
			t.Fatal(err)
		}
		if got := sent(t, res); !bytes.Equal(got, contents[0][off:off+requestSize]) {
			t.Errorf("wrong bytes at %d", off)
		}
	}
	for off := int64(0); off < 1<<20; off += 128 << 10 { // sequential, but small
		res, err := r.read(inodes[0], make([]byte, 128<<10), off)
		if err != nil {
			t.Fatal(err)
		}
		sent(t, res)
	}
	for i := range r.slots {
		if r.slots[i].Load() != nil {
			t.Errorf("slot %d: something was read ahead", i)
		}
	}
}

// Many readers of many files, who take each other's slots, always get the right
// bytes; and a reader whose image left gets an error, not old bytes of another.
func TestReadAheadUnderContention(t *testing.T) {
	m, contents, inodes := bigFiles(t, 6)
	var r readAhead
	var wg sync.WaitGroup
	for n := range 12 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(n), 1))
			for range 15 {
				f := rng.IntN(len(inodes))
				off := int64(rng.IntN(4)) * requestSize
				for range 5 {
					buf := make([]byte, requestSize)
					if rng.IntN(8) == 0 {
						buf = buf[:rng.IntN(requestSize)+1]
					}
					res, err := r.read(inodes[f], buf, off)
					if err != nil {
						t.Error(err)
						return
					}
					if got := sent(t, res); !bytes.Equal(got, contents[f][off:off+int64(len(buf))]) {
						t.Errorf("file %d: wrong bytes at %d", f, off)
						return
					}
					off += int64(len(buf))
				}
			}
		})
	}
	wg.Wait()
	m.Leave()
	for _, in := range inodes {
		if _, err := in.ReadAt(make([]byte, 1), 0); err == nil {
			t.Error("the image has left and can still be read")
		}
	}
}
