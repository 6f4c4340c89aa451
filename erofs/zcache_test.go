package erofs

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// cacheFile returns a compressed file of an image in memory, with its content.
func cacheFile(t *testing.T, cache *DecodedCache, opts ...string) (in *Inode, want []byte, device *alignedReader) {
	t.Helper()
	data := zBytes(t, images.NewestMkfs(t), opts...)
	im, err := Open(bytes.NewReader(data), int64(len(data)), WithDecodedCache(cache))
	if err != nil {
		t.Fatal(err)
	}
	device = &alignedReader{t: t, r: bytes.NewReader(data)}
	im.r = device
	err = im.Walk(func(name string, i *Inode) error {
		if name == "program" {
			in = i
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want = make([]byte, in.Size)
	if _, err := in.ReadAt(want, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if source, err := os.ReadFile(program); err != nil || !bytes.Equal(want, source[:len(want)]) {
		t.Fatalf("the whole file is wrong: %v", err)
	}
	return in, want, device
}

// Reads at random are right whatever the cache holds, which is never more than it
// may, and nothing at all when it may hold nothing.
func TestDecodedCache(t *testing.T) {
	for _, opts := range []string{"-zlz4", "-zlz4 -C65536", "-zlz4 -C1048576 -Elegacy-compress"} {
		for _, most := range []int64{0, 1, 100 << 10, 1 << 20, 64 << 20} {
			cache := NewDecodedCache(most)
			in, want, _ := cacheFile(t, cache, strings.Fields(opts)...)
			rng := rand.New(rand.NewPCG(uint64(most), 1))
			p := make([]byte, 20_000)
			for range 300 {
				off := rng.IntN(len(want))
				n, err := in.ReadAt(p[:1+rng.IntN(len(p))], int64(off))
				if err != nil && err != io.EOF || !bytes.Equal(p[:n], want[off:off+n]) {
					t.Fatalf("%s, cache of %d: %d bytes at %d: %v", opts, most, n, off, err)
				}
				if cache.bytes > most {
					t.Fatalf("%s: the cache of %d has %d bytes", opts, most, cache.bytes)
				}
			}
			cache.check(t)
			if most == 64<<20 && len(cache.entries) == 0 {
				t.Errorf("%s: nothing is kept", opts)
			}
		}
	}
}

// check checks the invariants of an idle cache.
func (c *DecodedCache) check(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	var sum int64
	n := 0
	for e := c.newest; e != nil; {
		n++
		sum += e.size
		if e.users != 0 || !e.cached || c.entries[e.key] != e || e.held() != e.size {
			t.Errorf("entry %+v: %d users, cached %t, %d bytes held, %d accounted", e.key, e.users, e.cached, e.held(), e.size)
		}
		if e = e.next; e == c.newest {
			break
		}
	}
	if n != len(c.entries) || sum != c.bytes || sum > max(c.most, 0) {
		t.Errorf("%d entries of %d in the ring, %d bytes of %d", n, len(c.entries), sum, c.bytes)
	}
}

// A reader in small steps has each pcluster read from the device once.
func TestDecodedCacheReadsOnce(t *testing.T) {
	in, want, device := cacheFile(t, NewDecodedCache(defaultDecodedCache), "-zlz4", "-C1048576")
	device.bytes = 0
	p := make([]byte, 3000)
	for off := int64(0); off < in.Size; off += int64(len(p)) {
		n, err := in.ReadAt(p, off)
		if err != nil && err != io.EOF || !bytes.Equal(p[:n], want[off:off+int64(n)]) {
			t.Fatalf("at %d: %v", off, err)
		}
	}
	if device.bytes > in.Size*5/4 {
		t.Errorf("%d bytes were read for a compressed file of %d", device.bytes, in.Size)
	}
}

// Many readers of the same and of other parts of a file, with a cache that is
// too small for all of them, get the right bytes; with -race this shows that they
// share nothing unguarded.
func TestDecodedCacheConcurrent(t *testing.T) {
	for _, opts := range []string{"-zlz4 -C4096", "-zlz4 -C1048576"} {
		cache := NewDecodedCache(3 << 20)
		in, want, _ := cacheFile(t, cache, strings.Fields(opts)...)
		in.im.r = bytes.NewReader(in.im.r.(*alignedReader).bytesOf())
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(g/2), 7))
				p := make([]byte, 400_000)
				for range 60 {
					off := rng.IntN(len(want))
					n, err := in.ReadAt(p[:1+rng.IntN(len(p))], int64(off))
					if err != nil && err != io.EOF || !bytes.Equal(p[:n], want[off:off+n]) {
						t.Errorf("%s: %d bytes at %d: %v", opts, n, off, err)
					}
				}
			})
		}
		wg.Wait()
		cache.check(t)
	}
}

// What could not be decoded is not kept: when the device is well again, so is the
// next read.
func TestDecodedCacheErrors(t *testing.T) {
	cache := NewDecodedCache(1 << 20)
	in, want, _ := cacheFile(t, cache, "-zlz4", "-C65536")
	good := in.im.r
	broken := errors.New("not now")
	data := good.(*alignedReader).bytesOf()
	damaged := bytes.Clone(data)
	for i := craftBlock; i < len(damaged); i++ {
		damaged[i] ^= 0x5a
	}
	for _, c := range []struct {
		name   string
		device io.ReaderAt
		want   error
	}{{"damaged", bytes.NewReader(damaged), ErrCorrupt}, {"broken", &flaky{err: broken}, broken}} {
		cache.mu.Lock()
		clear(cache.entries)
		cache.newest, cache.bytes = nil, 0
		cache.mu.Unlock()
		in.im.r = c.device
		if _, err := in.ReadAt(make([]byte, 100), 70_000); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		in.im.r = good
		p := make([]byte, 100)
		if _, err := in.ReadAt(p, 70_000); err != nil || !bytes.Equal(p, want[70_000:70_100]) {
			t.Errorf("%s, then well: %v", c.name, err)
		}
		cache.check(t)
	}
}

// An extent that is a part of a pcluster may be followed by one that is more of
// it: the entry grows.
func TestDecodedCacheGrows(t *testing.T) {
	one := bytes.Repeat([]byte("data "), 2000)[:8192]
	c := newCraft(t)
	c.sb.FeatureIncompat |= disk.Incompat48Bit
	c.lz4Block(craftData/craftBlock, one)
	const encoded = disk.AdviseExtents | 2<<1
	plen := uint32(1<<disk.ExtentFormatBit | disk.ExtentPartial | craftBlock)
	c.compressed(CompressedFull, 12_000, disk.MapHeader{Advise: encoded, FragmentOff: 3},
		disk.Extent{Plen: plen, PstartLo: craftData},
		disk.Extent{Plen: plen, PstartLo: craftData, LstartLo: 1000},
		disk.Extent{Plen: plen, PstartLo: craftData, LstartLo: 7000})
	want := append(append(bytes.Clone(one[:1000]), one[:6000]...), one[:5000]...)
	in := c.inode(craftFile)
	for _, at := range []int64{10, 990, 1010, 6900, 7100, 11_900, 500, 4000} {
		p := make([]byte, 50)
		if n, err := in.ReadAt(p, at); err != nil || n != 50 || !bytes.Equal(p, want[at:at+50]) {
			t.Errorf("at %d: %q, %v, want %q", at, p, err, want[at:at+50])
		}
	}
}

// Extents are decoded by several goroutines, the first error counts, and a panic
// in one is one of the caller.
func TestParallel(t *testing.T) {
	if runtime.GOMAXPROCS(0) < 2 {
		t.Log("one CPU: there are no helpers")
	}
	batch := make([]zExtent, 100)
	for i := range batch {
		batch[i] = zExtent{la: int64(i) << 16, end: int64(i+1) << 16, kind: disk.AlgLZMA}
	}
	var mu sync.Mutex
	done := map[int64]int{}
	if _, err := zParallel(batch, func(e *zExtent) error {
		mu.Lock()
		defer mu.Unlock()
		done[e.la]++
		return nil
	}); err != nil || len(done) != len(batch) {
		t.Errorf("%d of %d extents, %v", len(done), len(batch), err)
	}
	bad := errors.New("bad")
	for range 100 {
		failed, err := zParallel(batch, func(e *zExtent) error {
			if n := e.la >> 16; n == 17 || n == 18 || n > 60 {
				return bad
			}
			return nil
		})
		if !errors.Is(err, bad) || failed != 17 {
			t.Fatalf("extent %d failed: %v", failed, err)
		}
	}
	func() {
		defer func() {
			if r := recover(); r != "a bug" {
				t.Errorf("recovered %v", r)
			}
		}()
		_, _ = zParallel(batch, func(e *zExtent) error {
			if e.la>>16 == 40 {
				panic("a bug")
			}
			return nil
		})
	}()
	if len(zHelpers) != 0 {
		t.Errorf("%d helpers are still taken", len(zHelpers))
	}
}
