package erofs

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// The cache gives the device's bytes from every offset, reads whole aligned
// units, each once while it has room, and keeps no more than it may.
func TestMetaCache(t *testing.T) {
	const size = 5*metaUnitMin + 100
	dev := &tracer{b: pattern(size)}
	c := newMetaCache(placeImage, dev, size, 12, 3*metaUnitMin) // rounds down to two units
	if len(c.slots) != 2 {
		t.Fatalf("%d slots, want 2", len(c.slots))
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
		if r[0]%metaUnitMin != 0 || r[1] != min(metaUnitMin, size-r[0]) {
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
		{16, 1 << 20, 16, 16},
		{12, 0, 14, 1},
		{12, -5, 14, 1},
	} {
		m := newMetaCache(placeImage, nil, 0, c.blkBits, c.bytes)
		if m.unitBits != c.unitBits || len(m.slots) != c.slots {
			t.Errorf("%+v: 2^%d bytes × %d", c, m.unitBits, len(m.slots))
		}
	}
}

// An error of the device is not kept: the next read asks again.
func TestMetaCacheError(t *testing.T) {
	broken := errors.New("not now")
	dev := &flaky{b: pattern(metaUnitMin), err: broken}
	c := newMetaCache(placeImage, dev, metaUnitMin, 12, 0)
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
	im, err := Open(bytes.NewReader(b), int64(len(b)), WithMetadataCache(1))
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
