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
				m := zMapper{in: in, z: z}
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

// TestCompressedRefused sets what no file of these images can have: each is
// refused by its name.
func TestCompressedRefused(t *testing.T) {
	built := map[string][]byte{}
	for _, tt := range []struct {
		layout DataLayout
		opt    string
		at     int64 // in the map header
		set    byte
		kind   error
		want   string
	}{
		{CompressedCompact, "-zlz4", 7, 0x80, ErrCorrupt, "no packed inode"},
		{CompressedCompact, "-zlz4", 4, disk.AdviseFragment, ErrCorrupt, "no packed inode"},
		{CompressedCompact, "-zlz4", 4, disk.AdviseBigPcluster1, ErrCorrupt, "without that feature"},
		{CompressedCompact, "-zlz4", 6, 1, ErrCorrupt, "LZMA, which the superblock does not announce"},
		{CompressedCompact, "-zlz4", 6, 3, ErrCorrupt, "Zstandard, which the superblock does not announce"},
		{CompressedCompact, "-zlz4", 6, 9, ErrUnsupported, "compression algorithm 9 (of HEAD1)"},
		{CompressedCompact, "-zlz4", 6, 0x40, ErrUnsupported, "compression algorithm 4 (of HEAD2)"},
		{CompressedCompact, "-zlz4", 7, 1, ErrUnsupported, "2-byte indexes of logical clusters of 2^13 bytes"},
		{CompressedCompact, "-zlz4", 7, 4, ErrUnsupported, "compact indexes of logical clusters of 2^16 bytes"},
		{CompressedFull, "-Elegacy-compress", 4, disk.AdviseExtents, ErrCorrupt, "extent: "},
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
			if !errors.Is(err, tt.kind) || !bytes.Contains([]byte(err.Error()), []byte(tt.want)) {
				t.Errorf("byte %d | %#x: %v, want %v with %q", tt.at, tt.set, err, tt.kind, tt.want)
			}
			return nil
		})
		if err != nil || !found {
			t.Errorf("byte %d | %#x: found %t, %v", tt.at, tt.set, found, err)
		}
	}
}
