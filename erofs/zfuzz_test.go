package erofs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

const (
	// callMemory bounds what one call may allocate in bytes, the codecs included;
	// see the package's documentation.
	callMemory = 128 << 20
	// callTime bounds what one call with small arguments may take, on a slow machine.
	callTime = 10 * time.Second
)

// bounded calls fn and fails the test if that takes too long or too much memory.
func bounded(t *testing.T, what string, fn func()) {
	t.Helper()
	start, before := time.Now(), allocated()
	fn()
	if d := time.Since(start); d > callTime {
		t.Errorf("%s took %v", what, d)
	}
	if n := allocated() - before; n > callMemory {
		t.Errorf("%s allocated %d bytes", what, n)
	}
}

// allocated is how many bytes the process has allocated so far.
func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// seedImages opens the images in testdata/seeds.
func seedImages(f *testing.F) map[string]*Image {
	f.Helper()
	paths, err := filepath.Glob("testdata/seeds/*.img")
	if err != nil || len(paths) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	all := make(map[string]*Image)
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		if all[path], err = Open(bytes.NewReader(b), int64(len(b))); err != nil {
			f.Fatal(err)
		}
	}
	return all
}

// eachCompressed calls fn with the compressed inodes of the seeds.
func eachCompressed(f *testing.F, fn func(in *Inode, z *zState) error) {
	f.Helper()
	for path, im := range seedImages(f) {
		visit := func(in *Inode) error {
			if in == nil || in.Size == 0 || !in.Layout.Compressed() {
				return nil
			}
			z, err := in.compression()
			if err != nil {
				return err
			}
			return fn(in, z)
		}
		err := im.Walk(func(_ string, in *Inode) error { return visit(in) })
		if err == nil {
			err = visit(im.packed)
		}
		if err != nil {
			f.Fatalf("%s: %v", path, err)
		}
	}
}

// fuzzIndexes fuzzes map headers and what follows them: extents keep the
// invariants of zExtent, follow one another, and are the same from any offset.
func fuzzIndexes(f *testing.F, layout DataLayout, encoded bool) {
	f.Helper()
	seeds := 0
	eachCompressed(f, func(in *Inode, z *zState) error {
		if in.Layout != layout || z.encoded != encoded || z.count == 0 && !encoded {
			return nil
		}
		header := roundUp(in.bodyAddr(), disk.MapHeaderSize)
		size := min(int64(256), in.area.size-header)
		b := make([]byte, size)
		if err := in.area.read("seed", in.NID, b, header); err != nil {
			return err
		}
		seeds++
		f.Add(b, uint32(in.Size-1), in.im.blkSize == 512, uint16(30_000))
		return nil
	})
	if seeds == 0 {
		f.Fatal("no seeds")
	}
	f.Fuzz(func(t *testing.T, index []byte, size uint32, small bool, probe uint16) {
		bits := uint(12)
		if small {
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
		bounded(t, "ReadAt", func() { _, err = in.ReadAt(p, off) })
		zClassified(t, "ReadAt", err)
		if _, err = in.Extent(off); err != nil {
			zClassified(t, "Extent", err)
		}
		followExtents(t, in, z, probe)
	})
}

func followExtents(t *testing.T, in *Inode, z *zState, probe uint16) {
	m := zMapper{in: in, z: z}
	e, err := m.first(0)
	for at := int64(0); ; {
		if err != nil {
			zClassified(t, "mapping", err)
			return
		}
		checkExtent(t, in, &e, at)
		mid := e.la + (e.end-e.la)*int64(probe)/(1<<16)
		other := zMapper{in: in, z: z}
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
}

// checkExtent checks the invariants of an extent that starts at offset at.
func checkExtent(t *testing.T, in *Inode, e *zExtent, at int64) {
	t.Helper()
	n := e.end - e.la
	ok := e.la == at && n > 0 && e.end <= in.Size
	if e.stored() {
		ok = ok && e.plen > 0 && e.plen <= disk.PclusterMaxSize && e.pa >= 0 && (e.pa+e.plen)>>in.im.blkBits <= addr48
	}
	if e.plain() {
		ok = ok && n <= e.plen
	}
	if e.compressed() {
		ok = ok && n <= disk.PclusterMaxDecoded
	}
	if !ok {
		t.Fatalf("extent %+v behind %d of %d", *e, at, in.Size)
	}
}

// fuzzInode makes an inode whose map header and indexes are index, in an image
// of blocks of 1<<bits bytes with a packed inode of zeros.
func fuzzInode(index []byte, size int64, layout DataLayout, bits uint) *Inode {
	data := append(make([]byte, 64), index...)
	im := &Image{
		id: imageIDs.Add(1), r: bytes.NewReader(data), size: int64(len(data)), blkBits: bits, blkSize: 1 << bits,
		decoded: NewDecodedCache(1 << 20),
		meta:    newMetaCache(placeImage, bytes.NewReader(data), int64(len(data)), bits, NewMetadataCache(1<<16)),
	}
	im.sb.FeatureIncompat = disk.IncompatComprCfgs
	im.algorithms = 1<<disk.AlgEnd - 1
	im.packed = &Inode{NID: 2, Mode: modeRegular, Size: 32 << 20, nullAddr: true, im: im, area: im.meta}
	return &Inode{NID: 1, Mode: modeRegular, Size: size, Layout: layout, im: im, area: im.meta, headSize: 64}
}

func FuzzFullIndex(f *testing.F)    { fuzzIndexes(f, CompressedFull, false) }
func FuzzCompactIndex(f *testing.F) { fuzzIndexes(f, CompressedCompact, false) }
func FuzzRecords(f *testing.F)      { fuzzIndexes(f, CompressedFull, true) }

// FuzzCodec: whatever the data of a pcluster are, a codec fills no more than it
// is asked for, and piece by piece the same as at once.
func FuzzCodec(f *testing.F) {
	seeds := make(map[zKind]int)
	eachCompressed(f, func(in *Inode, z *zState) error {
		m := zMapper{in: in, z: z}
		for e, err := m.first(0); ; e, err = m.extent() {
			if err != nil {
				return err
			}
			if e.compressed() {
				src, buf, err := in.pcluster(&e)
				if err != nil {
					return err
				}
				if src, err = in.strip(&e, src); err != nil {
					return err
				}
				f.Add(uint8(e.kind), bytes.Clone(src), uint32(e.end-e.la), e.partial, uint16(700))
				seeds[e.kind]++
				if buf != nil {
					buf.put()
				}
			}
			if e.end == in.Size {
				return nil
			}
		}
	})
	if len(seeds) != disk.AlgEnd {
		f.Fatalf("seeds: %v", seeds)
	}
	f.Fuzz(func(t *testing.T, kind uint8, src []byte, total uint32, partial bool, step uint16) {
		if len(src) == 0 || src[0] == 0 {
			return // strip leaves no such data
		}
		x := zExtent{kind: zKind(kind % disk.AlgEnd), end: int64(total%(1<<20)) + 1, partial: partial}
		const guard = 64
		dst := bytes.Repeat([]byte{0xa5}, int(x.end)+guard)
		var d zDecoder
		var n int
		var err error
		bounded(t, "decode", func() {
			if err = d.start(x.kind, src, x.partial); err == nil {
				n, err = d.decode(dst[:x.end], 0)
			}
			d.stop()
		})
		if n < 0 || int64(n) > x.end {
			t.Fatalf("%d of %d bytes", n, x.end)
		}
		if !bytes.Equal(dst[x.end:], bytes.Repeat([]byte{0xa5}, guard)) {
			t.Fatal("bytes behind the destination were written")
		}
		if err != nil || int64(n) < x.end {
			return
		}
		// What is good at once is good piece by piece.
		entry := &zEntry{key: zKey{kind: x.kind}}
		for need := int64(0); need < x.end; {
			need = min(need+int64(step)+1, x.end)
			if _, err := entry.fill(&x, need, src); err != nil {
				t.Fatalf("at once all of %d bytes are good, but up to %d: %v", x.end, need, err)
			}
		}
		if !bytes.Equal(entry.buf.b[:x.end], dst[:x.end]) {
			t.Error("piece by piece it is something else")
		}
		entry.free()
	})
}

// FuzzSuperblock: whatever is in the place of the superblock of a good image.
func FuzzSuperblock(f *testing.F) {
	const size = 256 // with the algorithms' records
	bases := make([][]byte, 0, 32)
	for _, im := range seedImages(f) {
		b := make([]byte, im.size)
		if err := readFull(im.r, b, 0); err != nil {
			f.Fatal(err)
		}
		f.Add(b[disk.SuperBlockOffset:][:size], uint8(len(bases)))
		bases = append(bases, b)
	}
	f.Fuzz(func(t *testing.T, sb []byte, base uint8) {
		b := bytes.Clone(bases[int(base)%len(bases)])
		copy(b[disk.SuperBlockOffset:], sb[:min(len(sb), size)])
		noChecksum(b)
		var im *Image
		var err error
		bounded(t, "open", func() { im, err = Open(bytes.NewReader(b), int64(len(b))) })
		if err != nil {
			if !classified(err) {
				t.Errorf("open: %v is of no class", err)
			}
			return
		}
		root, err := im.Root()
		if err != nil {
			t.Fatalf("opened, but its root: %v", err)
		}
		exerciseInode(t, root, func(what string, err error) {
			if err != nil && !errors.Is(err, io.EOF) && !classified(err) {
				t.Errorf("%s: %v is of no class", what, err)
			}
		})
	})
}

// FuzzInode: whatever an inode and what follows it are.
func FuzzInode(f *testing.F) {
	for path, im := range seedImages(f) {
		err := im.Walk(func(_ string, in *Inode) error {
			b := make([]byte, min(200, in.area.size-in.base))
			err := in.area.read("seed", in.NID, b, in.base)
			f.Add(b)
			return err
		})
		if err != nil {
			f.Fatalf("%s: %v", path, err)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c := newCraft(t)
		c.configs(disk.LZ4Cfgs{}, disk.LZMACfgs{DictSize: 1 << 20}, disk.DeflateCfgs{}, disk.ZstdCfgs{})
		c.prefixes("\x01long.", "\x00erofs.fingerprint.v1")
		c.sb.FeatureIncompat |= disk.IncompatFragments
		c.sb.FeatureCompat |= disk.CompatIshareXattrs | disk.CompatXattrFilter
		c.sb.IsharePrefixID, c.sb.PackedNID = 1, 2
		c.file(2, modeRegular, FlatPlain, 10_000, craftData/craftBlock)
		copy(c.b[c.at(craftFile):craftData], b)
		im := c.mustOpen()
		in, err := im.Inode(craftFile)
		if err != nil {
			if !classified(err) {
				t.Errorf("inode: %v is of no class", err)
			}
			return
		}
		exerciseInode(t, in, func(what string, err error) {
			if err != nil && !errors.Is(err, io.EOF) && !classified(err) {
				t.Errorf("%s: %v is of no class", what, err)
			}
		})
	})
}
