package erofs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/pierrec/lz4/v4"
	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// kernelAtLeast reports whether the running kernel is of that version or later.
func kernelAtLeast(t *testing.T, major, minor int) bool {
	t.Helper()
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	var a, b int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(uts.Release[:]), "%d.%d", &a, &b); err != nil {
		t.Fatal(err)
	}
	return a > major || a == major && b >= minor
}

// mount writes the image to a file, with a root directory that names craftFile
// "file", and mounts it by the kernel.
func (c *craft) mount() (dir string) {
	c.t.Helper()
	c.named()
	if _, err := c.open(); err != nil { // writes the superblock
		c.t.Fatal(err)
	}
	path := filepath.Join(c.t.TempDir(), "image.erofs")
	if err := os.WriteFile(path, c.b, 0o600); err != nil {
		c.t.Fatal(err)
	}
	return images.KernelMount(c.t, path)
}

func (c *craft) named() {
	c.dir(craftRoot, 2, dirBytes(entry{".", craftRoot, 2}, entry{"..", craftRoot, 2}, entry{"file", craftFile, 1}))
}

// lz4Block compresses data to a block of the image, with zeros in front.
func (c *craft) lz4Block(block int64, data []byte) {
	c.t.Helper()
	out := make([]byte, lz4.CompressBlockBound(len(data)))
	n, err := new(lz4.CompressorHC).CompressBlock(data, out)
	if err != nil || n == 0 || n > craftBlock {
		c.t.Fatalf("%d bytes: %v", n, err)
	}
	c.put((block+1)*craftBlock-int64(n), out[:n])
}

// compressed makes craftFile a compressed file with a map header and what follows.
func (c *craft) compressed(layout DataLayout, size int64, h disk.MapHeader, records ...any) {
	c.t.Helper()
	c.configs(disk.LZ4Cfgs{MaxPclusterBlks: 1})
	c.sb.FeatureIncompat |= disk.IncompatLZ4ZeroPadding
	c.file(craftFile, modeRegular|0o644, layout, size, 2)
	at := c.at(craftFile) + disk.InodeExtendedSize
	c.put(at, h)
	at += disk.MapHeaderSize
	if layout == CompressedFull && h.Advise&disk.AdviseExtents == 0 {
		at += disk.FullIndexGap
	} else if h.Advise&disk.AdviseExtents != 0 {
		at = roundUp(at, h.RecordSize())
	}
	for _, r := range records {
		b, err := binary.Append(nil, binary.LittleEndian, r)
		if err != nil {
			c.t.Fatal(err)
		}
		if _, ok := r.(disk.Extent); ok {
			b = b[:h.RecordSize()]
		}
		c.put(at, b)
		at += int64(len(b))
	}
}

// read reads all of craftFile from every offset to every other of a few, and makes
// sure that the kernel, if its version can, reads the same.
func (c *craft) read(want []byte, major, minor int) {
	c.t.Helper()
	in := c.inode(craftFile)
	marks := []int64{0, 1, 4095, 4096, 5000, 8191, 8192, 12_288, 16_000, 20_480, in.Size - 1, in.Size}
	for _, from := range marks {
		for _, to := range marks {
			if from >= to || to > in.Size {
				continue
			}
			p := make([]byte, to-from)
			if n, err := in.ReadAt(p, from); int64(n) != to-from || !bytes.Equal(p, want[from:to]) {
				c.t.Fatalf("bytes %d to %d are wrong: %d, %v", from, to, n, err)
			}
		}
	}
	if !kernelAtLeast(c.t, major, minor) {
		return
	}
	got, err := os.ReadFile(filepath.Join(c.mount(), "file"))
	if err != nil || !bytes.Equal(got, want) {
		c.t.Errorf("the kernel reads %d bytes that are not those wanted (%d): %v", len(got), len(want), err)
	}
}

// head is a full index of a head.
func head(advise uint16, ofs uint16, block uint32) disk.LclusterIndex {
	return disk.LclusterIndex{Advise: advise, ClusterOfs: ofs, BlkAddr: block}
}

// What the format has and no mkfs.erofs writes, read as the kernel reads it.
func TestCraftedIndexes(t *testing.T) {
	one, two := bytes.Repeat([]byte("first "), 2000)[:8192], bytes.Repeat([]byte("second. "), 2000)[:8192]
	const data = craftData / craftBlock
	fill := func(t *testing.T) *craft {
		c := newCraft(t)
		c.lz4Block(data, one)
		c.lz4Block(data+1, two)
		c.put((data+2)*craftBlock, bytes.Repeat([]byte("plain"), craftBlock/5))
		return c
	}
	zeros := func(n int) []byte { return make([]byte, n) }

	t.Run("lclusters of two blocks", func(t *testing.T) {
		c := fill(t)
		c.compressed(CompressedFull, 16_300, disk.MapHeader{ClusterBits: 1}, head(1, 0, data), head(1, 0, data+1))
		c.read(append(bytes.Clone(one), two[:8108]...), 6, 1)
	})
	t.Run("a second algorithm's head", func(t *testing.T) {
		c := fill(t)
		c.compressed(CompressedFull, 16_384, disk.MapHeader{ClusterBits: 1}, head(1, 0, data), head(3, 0, data+1))
		c.read(append(bytes.Clone(one), two...), 6, 1)
	})
	t.Run("holes", func(t *testing.T) {
		c := fill(t)
		nonhead := func(back uint32) disk.LclusterIndex { return disk.LclusterIndex{Advise: 2, BlkAddr: back} }
		c.compressed(CompressedFull, 24_000, disk.MapHeader{},
			head(1|disk.LclusterHole, 0, 0), nonhead(1), head(1, 0, data), nonhead(1), head(1|disk.LclusterHole, 0, 0), nonhead(1))
		c.read(append(append(zeros(8192), one...), zeros(24_000-16_384)...), 7, 2)
	})
	const encoded = disk.AdviseExtents | 2<<1 // records of 16 bytes
	compressed := func(size uint32) uint32 { return 1<<disk.ExtentFormatBit | size }
	t.Run("encoded holes", func(t *testing.T) {
		c := fill(t)
		c.sb.FeatureIncompat |= disk.Incompat48Bit
		c.compressed(CompressedFull, 24_000, disk.MapHeader{Advise: encoded, FragmentOff: 3},
			disk.Extent{Plen: compressed(craftBlock), PstartLo: craftData, LstartLo: 5000}, // after a hole
			disk.Extent{Plen: 0, LstartLo: 13_192},
			disk.Extent{Plen: 4000, PstartLo: craftData + 2*craftBlock, LstartLo: 20_000})
		want := append(zeros(5000), one...)
		want = append(append(want, zeros(20_000-13_192)...), bytes.Repeat([]byte("plain"), 800)...)
		c.read(want, 6, 15)
	})
	t.Run("encoded, no record", func(t *testing.T) {
		c := fill(t)
		c.sb.FeatureIncompat |= disk.Incompat48Bit
		c.compressed(CompressedFull, 9000, disk.MapHeader{Advise: encoded})
		c.read(zeros(9000), 6, 15)
	})
	t.Run("encoded in 8 bytes", func(t *testing.T) {
		c := fill(t)
		c.sb.FeatureIncompat |= disk.Incompat48Bit
		c.compressed(CompressedFull, 24_576, disk.MapHeader{Advise: disk.AdviseExtents | 1<<1, ClusterBits: 1},
			disk.Extent{Plen: compressed(craftBlock), PstartLo: craftData + craftBlock},
			disk.Extent{},
			disk.Extent{Plen: compressed(craftBlock), PstartLo: craftData})
		c.read(append(append(bytes.Clone(two), zeros(8192)...), one...), 6, 15)
	})
	t.Run("encoded in 4 bytes", func(t *testing.T) {
		c := fill(t)
		c.sb.FeatureIncompat |= disk.Incompat48Bit
		c.compressed(CompressedFull, 16_384, disk.MapHeader{Advise: disk.AdviseExtents, ClusterBits: 1},
			uint64(craftData), compressed(craftBlock), compressed(craftBlock))
		c.read(append(bytes.Clone(one), two...), 6, 15)
	})
	t.Run("encoded part", func(t *testing.T) {
		c := fill(t)
		c.sb.FeatureIncompat |= disk.Incompat48Bit
		c.compressed(CompressedFull, 9000, disk.MapHeader{Advise: encoded, FragmentOff: 2},
			disk.Extent{Plen: compressed(craftBlock) | disk.ExtentPartial, PstartLo: craftData},
			disk.Extent{Plen: compressed(craftBlock) | disk.ExtentPartial, PstartLo: craftData + craftBlock, LstartLo: 1000})
		c.read(append(bytes.Clone(one[:1000]), two[:8000]...), 6, 15)
	})
}

// Encoded extents that Linux would take, and we do not; and those out of order,
// of which two readers could get different bytes.
func TestCraftedRefused(t *testing.T) {
	const encoded = disk.AdviseExtents | 2<<1
	compressed := func(size uint32) uint32 { return 1<<disk.ExtentFormatBit | size }
	for _, c := range []struct {
		name    string
		layout  DataLayout
		header  disk.MapHeader
		records []any
		kind    error
		text    string
	}{
		{"small part", CompressedFull, disk.MapHeader{Advise: encoded, FragmentOff: 2}, []any{
			disk.Extent{Plen: compressed(4096) | disk.ExtentPartial, PstartLo: craftData},
			disk.Extent{Plen: 4096, PstartLo: craftData, LstartLo: 511},
		}, ErrUnsupported, "an extent of 511 bytes"},
		{"too much data", CompressedFull, disk.MapHeader{Advise: encoded, FragmentOff: 2}, []any{
			disk.Extent{Plen: compressed(4096), PstartLo: craftData},
			disk.Extent{Plen: 4096, PstartLo: craftData, LstartLo: 4095},
		}, ErrCorrupt, "decodes to 4095"},
		{"out of order", CompressedFull, disk.MapHeader{Advise: encoded, FragmentOff: 3}, []any{
			disk.Extent{Plen: 4096, PstartLo: craftData, LstartLo: 4000},
			disk.Extent{Plen: 4096, PstartLo: craftData, LstartLo: 100},
			disk.Extent{Plen: 4096, PstartLo: craftData, LstartLo: 5000},
		}, ErrCorrupt, "out of order"},
		{"behind the file", CompressedFull, disk.MapHeader{Advise: encoded, FragmentOff: 1}, []any{
			disk.Extent{Plen: 4096, PstartLo: craftData, LstartLo: 9001},
		}, ErrCorrupt, "out of order"},
		{"far away", CompressedFull, disk.MapHeader{Advise: encoded, FragmentOff: 1}, []any{
			disk.Extent{Plen: compressed(4096), PstartLo: 1, PstartHi: 1 << 31},
		}, ErrCorrupt, "beyond any device"},
		{"unknown algorithm", CompressedFull, disk.MapHeader{Advise: encoded, FragmentOff: 1}, []any{
			disk.Extent{Plen: 6<<disk.ExtentFormatBit | 4096, PstartLo: craftData},
		}, ErrUnsupported, "algorithm 5"},
		{"fragment of nothing", CompressedFull, disk.MapHeader{Advise: encoded | disk.AdviseFragment, FragmentOff: 1}, []any{
			disk.Extent{Plen: 4096},
		}, ErrCorrupt, "no packed inode"},
		{"too many records", CompressedFull, disk.MapHeader{Advise: encoded, FragmentOff: 1 << 20}, nil, ErrCorrupt, "do not fit"},
		{"lost size", CompressedFull, disk.MapHeader{Advise: disk.AdviseBigPcluster1}, []any{
			head(1, 0, craftData/craftBlock),
			disk.LclusterIndex{Advise: 2, BlkAddr: disk.LclusterCblkcnt},
			disk.LclusterIndex{Advise: 2, BlkAddr: 2},
		}, ErrCorrupt, "not the pcluster's size"},
		{"a long way back", CompressedFull, disk.MapHeader{Advise: disk.AdviseFragment}, nil, ErrCorrupt, "0 lclusters behind"},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := newCraft(t)
			image.compressed(c.layout, 9000, c.header, c.records...)
			if c.name == "a long way back" {
				image.put(image.at(craftFile)+disk.InodeExtendedSize+16, bytes.Repeat([]byte{2, 0, 0, 0, 0, 0, 0, 0}, 3))
			}
			in := image.inode(craftFile)
			_, err := in.ReadAt(make([]byte, 9000), 0)
			wantError(t, err, c.kind, c.text)
		})
	}
}

// Shared attributes may be in the metabox, and so may inodes and their data.
func TestCraftedMetabox(t *testing.T) {
	const metaboxNID, block = 20, craftData / craftBlock
	c := newCraft(t)
	c.sb.FeatureIncompat |= disk.IncompatMetabox
	c.sb.FeatureCompat |= disk.CompatSharedEAInMetabox
	c.sb.ExtSlots, c.sb.MetaboxNID, c.sb.XattrBlkAddr = 1, metaboxNID, 1
	c.file(metaboxNID, modeRegular, FlatPlain, 2*craftBlock, block)
	// In the metabox: a file at nid 3 with inline data and a shared attribute, which
	// is in the second block.
	const inline = "data behind the inode"
	body, _ := binary.Append(nil, binary.LittleEndian, disk.XattrHeader{SharedCount: 1})
	body = binary.LittleEndian.AppendUint32(body, 100)
	at := int64(block*craftBlock + 3*disk.InodeSlotSize)
	c.put(at, disk.InodeExtended{
		Format: disk.FormatExtended | uint16(FlatInline)<<disk.FormatLayoutBit, Mode: modeRegular | 0o644, Nlink: 1,
		Size: int64(len(inline)), XattrCount: 2,
	})
	c.put(at+disk.InodeExtendedSize, body)
	c.put(at+disk.InodeExtendedSize+int64(len(body)), []byte(inline))
	c.put((block+1)*craftBlock+400, attr(disk.XattrUser, "shared", "in the metabox"))
	const nid = 1<<63 | 3
	c.dir(craftRoot, 2, dirBytes(entry{".", craftRoot, 2}, entry{"..", craftRoot, 2}, entry{"file", nid, 1}))

	im := c.mustOpen()
	in, err := im.Inode(nid)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, len(inline))
	if _, err := in.ReadAt(p, 0); err != nil || string(p) != inline {
		t.Errorf("data %q, %v", p, err)
	}
	if v, err := in.Xattr("user.shared"); err != nil || string(v) != "in the metabox" {
		t.Errorf("attribute %q, %v", v, err)
	}
	if ino := im.Ino(nid); ino != 1<<31|3 || im.NID(ino) != nid {
		t.Errorf("inode number %#x, back %#x", ino, im.NID(ino))
	}
	if _, err := im.Inode(1<<63 | 1<<20); err == nil {
		t.Error("an inode beyond the end of the metabox is read")
	} else {
		wantError(t, err, ErrCorrupt, "end of the metabox")
	}
	if !kernelAtLeast(t, 7, 2) {
		return
	}
	path := filepath.Join(t.TempDir(), "image.erofs")
	if err := os.WriteFile(path, c.b, 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(images.KernelMount(t, path), "file")
	if b, err := os.ReadFile(file); err != nil || string(b) != inline {
		t.Errorf("the kernel reads %q, %v", b, err)
	}
	value := make([]byte, 100)
	if n, err := unix.Getxattr(file, "user.shared", value); err != nil || string(value[:n]) != "in the metabox" {
		t.Errorf("the kernel has the attribute %q, %v", value[:max(n, 0)], err)
	}
}
