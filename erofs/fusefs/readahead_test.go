package fusefs

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

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
		in, ok := d.Find(share.ContentPath(share.Key{Sum: sha256.Sum256(c), Size: int64(len(c))}), 0)
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
	for _, window := range []int64{windowSize, requestSize} {
		var r readAhead
		var got []byte
		requests, hits := 0, 0
		for off := int64(0); off < inodes[0].Size(); off += window {
			// As the kernel asks: whole pages, not far beyond the end.
			size := min(window, (inodes[0].Size()-off+4095)&^4095)
			res, err := r.read(inodes[0], make([]byte, size), off)
			if err != nil {
				t.Fatal(err)
			}
			requests++
			if _, ok := res.(*aheadResult); ok {
				hits++
			}
			got = append(got, sent(t, res)...)
		}
		if !bytes.Equal(got, contents[0]) {
			t.Errorf("windows of %d: %d bytes read differ from the %d of the file", window, len(got), len(contents[0]))
		}
		if hits != requests-2 {
			t.Errorf("windows of %d: %d of %d requests were read ahead, want all but the first two", window, hits, requests)
		}
		for i := range r.slots {
			if a := r.slots[i].Load(); a != nil {
				t.Errorf("windows of %d: slot %d holds %d after the end of the file", window, i, a.off)
			}
		}
	}
}

// A stream that does not begin at a chunk gets windows out of two chunks at once.
func TestWindowsAcrossChunksAreReadAhead(t *testing.T) {
	_, contents, inodes := bigFiles(t, 1)
	var r readAhead
	hits := 0
	const first = 40 << 10
	for i := range int64(30) {
		off := first + i*windowSize
		res, err := r.read(inodes[0], make([]byte, windowSize), off)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := res.(*aheadResult); ok {
			hits++
		}
		if got := sent(t, res); !bytes.Equal(got, contents[0][off:off+windowSize]) {
			t.Errorf("wrong bytes at %d", off)
		}
	}
	r.empty()
	if hits != 28 {
		t.Errorf("%d of 30 requests were read ahead, want all but the first two", hits)
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
	for off := int64(0); off < 1<<20; off += windowSize / 2 { // sequential, but small
		res, err := r.read(inodes[0], make([]byte, windowSize/2), off)
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
				for range 12 {
					if off+requestSize > inodes[f].Size() {
						break
					}
					buf := make([]byte, []int{windowSize, requestSize}[n%2])
					if rng.IntN(8) == 0 {
						buf = buf[:rng.IntN(len(buf))+1]
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
	m.Leave() // waits for the reads
	r.empty()
	deadline := time.Now().Add(10 * time.Second)
	for buffers.unused() != buffers.made() {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d buffers are back", buffers.unused(), buffers.made())
		}
		time.Sleep(time.Millisecond)
	}
	for _, in := range inodes {
		if _, err := in.ReadAt(make([]byte, 1), 0); err == nil {
			t.Error("the image has left and can still be read")
		}
	}
}

func (p *bufferPool) unused() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.free)
}

func (p *bufferPool) made() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mapped
}

// empty gives back what is in the slots.
func (r *readAhead) empty() {
	for i := range r.slots {
		if a := r.slots[i].Swap(nil); a != nil {
			<-a.done
			a.unref()
		}
	}
}
