package erofs

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// zBytes returns the bytes of an image of zTree.
func zBytes(t testing.TB, mkfs images.Mkfs, opts ...string) []byte {
	t.Helper()
	data, err := os.ReadFile(images.Build(t, mkfs, append(opts, "-Enosbcrc"), zTree(t, 120)))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func openBytes(t testing.TB, data []byte) *Image {
	t.Helper()
	im, err := Open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// zClassified fails the test unless err is nil, the end of the file, or of one
// of the classes that a hostile image may cause.
func zClassified(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
		t.Errorf("%s: the error has no class: %v", what, err)
	}
}

// TestHostileCompressed damages the map header, the indexes and the data of
// files and reads them, whole and in parts: no panic, errors of a class, no
// read that takes long.
func TestHostileCompressed(t *testing.T) {
	for name, opts := range map[string][]string{
		"compact":     {"-zlz4"},
		"compact big": {"-zlz4", "-C65536"},
		"full":        {"-zlz4", "-Elegacy-compress"},
		"full big":    {"-zlz4", "-C1048576", "-Elegacy-compress"},
	} {
		t.Run(name, func(t *testing.T) {
			data := zBytes(t, images.NewestMkfs(t), opts...)
			rng := rand.New(rand.NewPCG(7, 8))
			var refused, accepted int
			var slowest time.Duration
			p := make([]byte, 256<<10)
			hit := func(nid uint64, at int64, what string) {
				t.Helper()
				old := data[at]
				data[at] ^= byte(1 << rng.IntN(8))
				if rng.IntN(3) == 0 {
					data[at] = byte(rng.Uint32())
				}
				defer func() { data[at] = old }()
				in, err := openBytes(t, data).Inode(nid)
				if err != nil {
					t.Fatal(err)
				}
				failed := false
				for off := int64(0); off < min(in.Size, 3<<20); off += int64(len(p)) {
					start := time.Now()
					n, err := in.ReadAt(p, off)
					slowest = max(slowest, time.Since(start))
					zClassified(t, what, err)
					failed = failed || err != nil && off+int64(n) < in.Size
				}
				for range 3 {
					off := rng.Int64N(in.Size)
					_, err := in.ReadAt(p[:1+rng.IntN(9000)], off)
					zClassified(t, what, err)
				}
				if failed {
					refused++
				} else {
					accepted++
				}
			}
			err := openBytes(t, data).Walk(func(_ string, in *Inode) error {
				if !in.IsRegular() || !in.Layout.Compressed() || rng.IntN(3) != 0 && in.Size < 1<<20 {
					return nil
				}
				z, err := in.compression()
				if err != nil {
					return err
				}
				header := roundUp(in.bodyAddr(), disk.MapHeaderSize)
				for at := header; at < z.index; at++ {
					hit(in.NID, at, "map header")
				}
				length := z.count * 2
				if in.Layout == CompressedFull {
					length = z.count * disk.LclusterIndexSize
				}
				for range 60 {
					hit(in.NID, z.index+rng.Int64N(length), "index")
				}
				m := zMapper{in: in, z: z, end: in.Size}
				e, err := m.first(rng.Int64N(in.Size))
				if err != nil {
					return err
				}
				for range 30 {
					hit(in.NID, e.pa+rng.Int64N(e.plen), "data")
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d damages refused, %d not noticed, slowest read %v", refused, accepted, slowest)
			if refused < 300 || accepted == 0 {
				t.Errorf("%d damages refused, %d not noticed: the test does not reach the readers", refused, accepted)
			}
			if slowest > 5*time.Second {
				t.Errorf("a read of %d bytes took %v", len(p), slowest)
			}
		})
	}
}

// TestCompressedUnsupported sets the bits of what is not supported: each is
// refused by its name.
func TestCompressedUnsupported(t *testing.T) {
	built := map[string][]byte{}
	for _, tt := range []struct {
		layout DataLayout
		opt    string
		at     int64 // in the map header
		set    byte
		want   string
	}{
		{CompressedCompact, "-zlz4", 7, 0x80, "fragments"},
		{CompressedCompact, "-zlz4", 4, disk.AdviseFragment, "fragments"},
		{CompressedCompact, "-zlz4", 4, disk.AdviseInline, "ztailpacking"},
		{CompressedCompact, "-zlz4", 6, 1, "LZMA compression"},
		{CompressedCompact, "-zlz4", 6, 3, "Zstandard compression"},
		{CompressedCompact, "-zlz4", 6, 9, "unknown compression"},
		{CompressedCompact, "-zlz4", 7, 1, "logical clusters of 2 blocks"},
		{CompressedFull, "-Elegacy-compress", 4, disk.AdviseExtents, "encoded extents"},
	} {
		if built[tt.opt] == nil {
			built[tt.opt] = zBytes(t, images.NewestMkfs(t), "-zlz4", tt.opt)
		}
		data := bytes.Clone(built[tt.opt])
		found := false
		err := openBytes(t, data).Walk(func(_ string, in *Inode) error {
			if found || in.Layout != tt.layout {
				return nil
			}
			found = true
			data[roundUp(in.bodyAddr(), disk.MapHeaderSize)+tt.at] |= tt.set
			again, err := openBytes(t, data).Inode(in.NID)
			if err != nil {
				return err
			}
			_, err = again.ReadAt(make([]byte, 10), 0)
			if !errors.Is(err, ErrUnsupported) || !bytes.Contains([]byte(err.Error()), []byte(tt.want)) {
				t.Errorf("byte %d | %#x: %v, want %v with %q", tt.at, tt.set, err, ErrUnsupported, tt.want)
			}
			return nil
		})
		if err != nil || !found {
			t.Errorf("byte %d | %#x: found %t, %v", tt.at, tt.set, found, err)
		}
	}
}

// fuzzInode makes an inode whose map header and indexes are index, in an image
// of blocks of 1<<bits bytes.
func fuzzInode(index []byte, size int64, layout DataLayout, bits uint) *Inode {
	data := append(make([]byte, 64), index...)
	im := &Image{
		id: imageIDs.Add(1), r: bytes.NewReader(data), size: int64(len(data)), blkBits: bits, blkSize: 1 << bits,
		meta: newMetaCache(bytes.NewReader(data), int64(len(data)), bits, 1<<16),
	}
	im.sb.FeatureIncompat = disk.IncompatLZ4ZeroPadding
	return &Inode{NID: 1, Mode: modeRegular, Size: size, Layout: layout, im: im, headSize: 64}
}

// FuzzIndex maps the whole of a file and reads pieces of it: extents keep the
// invariants of zExtent, follow one another, and are the same from any offset.
func FuzzIndex(f *testing.F) {
	for _, opts := range [][]string{{"-zlz4"}, {"-zlz4", "-C65536"}, {"-zlz4", "-Elegacy-compress"}} {
		data := zBytes(f, images.NewestMkfs(f), opts...)
		n := 0
		err := openBytes(f, data).Walk(func(_ string, in *Inode) error {
			if !in.IsRegular() || !in.Layout.Compressed() || n > 8 || in.Size < 20_000 || in.Size > 1<<20 {
				return nil
			}
			n++
			header := roundUp(in.bodyAddr(), disk.MapHeaderSize)
			f.Add(data[header:header+16+8*(in.Size>>12+1)], uint32(in.Size), in.Layout == CompressedFull, uint16(77))
			return nil
		})
		if err != nil || n == 0 {
			f.Fatal(n, err)
		}
	}
	f.Fuzz(func(t *testing.T, index []byte, size uint32, full bool, probe uint16) {
		layout, bits := CompressedCompact, uint(12)
		if full {
			layout = CompressedFull
		}
		if probe%5 == 0 {
			bits = 9
		}
		in := fuzzInode(index, int64(size%(64<<20))+1, layout, bits)
		z, err := in.compression()
		if err != nil {
			zClassified(t, "header", err)
			return
		}
		p := make([]byte, 5000)
		off := in.Size * int64(probe) / (1 << 16)
		_, err = in.ReadAt(p, off)
		zClassified(t, "ReadAt", err)

		m := zMapper{in: in, z: z, end: in.Size}
		e, err := m.first(0)
		for at := int64(0); ; {
			if err != nil {
				zClassified(t, "mapping", err)
				return
			}
			if e.la != at || e.end <= e.la || e.end > in.Size || e.end-e.la > disk.PclusterMaxDecoded || !e.whole ||
				e.plen <= 0 || e.plen > disk.PclusterMaxSize || (e.pa|e.plen)&(1<<bits-1) != 0 {
				t.Fatalf("extent %+v behind %d of %d", e, at, in.Size)
			}
			mid := e.la + (e.end-e.la)*int64(probe)/(1<<16)
			other := zMapper{in: in, z: z, end: in.Size}
			o, err2 := other.first(mid)
			if err2 == nil && o != e {
				t.Fatalf("from %d the extent is %+v, in order %+v", mid, o, e)
			}
			zClassified(t, "mapping back", err2)
			if at = e.end; at == in.Size {
				return
			}
			e, err = m.extent()
		}
	})
}
