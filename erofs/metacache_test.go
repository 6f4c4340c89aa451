package erofs

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// The cache gives the device's bytes from every offset, reads whole aligned
// units, each once while it has room, and keeps no more than it may.
func TestMetaCache(t *testing.T) {
	const size = 5*metaUnitMin + 100
	dev := &tracer{b: pattern(size)}
	c := newMetaCache(placeImage, dev, size, 12, NewMetadataCache(3*metaUnitMin)) // rounds down to two units
	if len(c.cache.slots) != 2 {
		t.Fatalf("%d slots, want 2", len(c.cache.slots))
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for range 1000 {
		off := rng.Int64N(size)
		b, err := c.at(off)
		if err != nil || len(b) == 0 || !bytes.Equal(b, dev.b[off:][:len(b)]) {
			t.Fatalf("at %d: %d bytes, %v", off, len(b), err)
		}
	}
	for _, r := range dev.reads {
		if want := min(metaUnitMin, size-r[0]); r[0]%metaUnitMin != 0 || r[1] != want && r[1] != min(2*metaUnitMin, size-r[0]) {
			t.Errorf("the device was read at %d, %d bytes", r[0], r[1])
		}
	}
	before := len(dev.reads)
	for range 10 {
		if _, err := c.at(7); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(dev.reads) - before; n > 1 {
		t.Errorf("one unit was read %d times", n)
	}
}

// A unit is never smaller than a block, and there is always one.
func TestMetaCacheSizes(t *testing.T) {
	for _, c := range []struct {
		blkBits  uint
		bytes    int
		unitBits uint
		slots    int
	}{
		{12, defaultMetaCache, 14, 256},
		{9, 1 << 20, 14, 64},
		{16, 1 << 20, 16, 64},
		{12, 0, 14, 1},
		{12, -5, 14, 1},
	} {
		m := newMetaCache(placeImage, nil, 0, c.blkBits, NewMetadataCache(c.bytes))
		if m.unitBits != c.unitBits || len(m.cache.slots) != c.slots {
			t.Errorf("%+v: 2^%d bytes × %d", c, m.unitBits, len(m.cache.slots))
		}
	}
}

// A walk is read in large steps, from its second unit on, as far as the place goes.
func TestMetaCacheReadsAhead(t *testing.T) {
	dev := &tracer{b: pattern(20*metaUnitMin + 100)}
	c := newMetaCache(placeImage, dev, int64(len(dev.b)), 12, NewMetadataCache(1<<20))
	for off := int64(0); off < c.size; off += 1000 {
		b, err := c.at(off)
		if err != nil || !bytes.Equal(b, dev.b[off:][:len(b)]) {
			t.Fatalf("at %d: %d bytes, %v", off, len(b), err)
		}
	}
	const ahead = metaAhead / metaUnitMin
	want := [][2]int64{{0, metaUnitMin}, {metaUnitMin, metaAhead}, {(1 + ahead) * metaUnitMin, metaAhead}, {(1 + 2*ahead) * metaUnitMin, 3*metaUnitMin + 100}}
	if !slices.Equal(dev.reads, want) {
		t.Errorf("reads %v, want %v", dev.reads, want)
	}
}

// Places of one cache do not meet each other's units, and together keep no more than
// it may, whatever the size of their blocks. What was forgotten is read again.
func TestSharedMetaCache(t *testing.T) {
	cache := NewMetadataCache(16 * metaUnitMin)
	rng := rand.New(rand.NewPCG(1, 2))
	var places []*metaCache
	for i := range 12 {
		dev := &tracer{b: pattern(20*metaUnitMin + 100*i)}
		dev.b[0] = byte(i)
		places = append(places, newMetaCache(placeImage, dev, int64(len(dev.b)), []uint{12, 16}[i%2], cache))
	}
	for range 20_000 {
		c := places[rng.IntN(len(places))]
		off := rng.Int64N(c.size)
		if rng.IntN(4) == 0 {
			off = 0
		}
		b, err := c.at(off)
		if want := c.r.(*tracer).b[off:]; err != nil || len(b) == 0 || !bytes.Equal(b, want[:len(b)]) {
			t.Fatalf("at %d: %d bytes, %v", off, len(b), err)
		}
		held := int64(0)
		for i := range cache.slots {
			if u := cache.slots[i].Load(); u != nil {
				held += int64(len(u.data))
			}
		}
		if held != cache.bytes.Load() || held > cache.most {
			t.Fatalf("%d bytes are held, %d counted, at most %d may be", held, cache.bytes.Load(), cache.most)
		}
	}
	for _, c := range places {
		cache.Forget(&Image{meta: c})
	}
	if n := cache.bytes.Load(); n != 0 {
		t.Errorf("%d bytes are left of images that were forgotten", n)
	}
}

// An error of the device is not kept: the next read asks again.
func TestMetaCacheError(t *testing.T) {
	broken := errors.New("not now")
	dev := &flaky{b: pattern(metaUnitMin), err: broken}
	c := newMetaCache(placeImage, dev, metaUnitMin, 12, NewMetadataCache(0))
	if _, err := c.at(0); !errors.Is(err, broken) {
		t.Errorf("error %v, want %v", err, broken)
	}
	dev.err = nil
	if _, err := c.at(0); err != nil {
		t.Error(err)
	}
}

type flaky struct {
	b   []byte
	err error
}

func (r *flaky) ReadAt(p []byte, off int64) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	return copy(p, r.b[off:]), nil
}

// Views and copies of metadata end where the device does.
func TestMetaBounds(t *testing.T) {
	im := newCraft(t).mustOpen()
	for _, c := range []struct {
		off int64
		n   int
	}{{-1, 1}, {craftSize, 1}, {craftSize - 1, 2}, {1 << 62, 1}, {craftSize + 1, 0}} {
		_, err := im.meta.view("test", 1, c.off, c.n)
		wantError(t, err, ErrCorrupt, "beyond the end")
		wantError(t, im.meta.read("test", 1, make([]byte, c.n), c.off), ErrCorrupt, "beyond the end")
	}
	if b, err := im.meta.view("test", 1, craftSize, 0); err != nil || len(b) != 0 {
		t.Errorf("nothing at the end: %v, %v", b, err)
	}
}

// Many readers of one image with a tiny cache get the right bytes; run with
// -race this shows that they share nothing unguarded.
func TestConcurrent(t *testing.T) {
	b, err := os.ReadFile("testdata/seeds/inline.img")
	if err != nil {
		t.Fatal(err)
	}
	im, err := Open(bytes.NewReader(b), int64(len(b)), WithMetadataCache(NewMetadataCache(1)))
	if err != nil {
		t.Fatal(err)
	}
	read := func() (all []byte, err error) {
		err = im.Walk(func(path string, in *Inode) error {
			all = append(all, path...)
			if !in.IsRegular() {
				return nil
			}
			p := make([]byte, in.Size)
			_, err := in.ReadAt(p, 0)
			if errors.Is(err, io.EOF) {
				err = nil
			}
			all = append(all, p...)
			return err
		})
		return all, err
	}
	want, err := read()
	if err != nil || len(want) < disk.DirentSize {
		t.Fatal(len(want), err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				if got, err := read(); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes, %v; want %d", len(got), err, len(want))
				}
			}
		})
	}
	wg.Wait()
}
