package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// tracer is a device that notes what is read from it.
type tracer struct {
	b     []byte
	mu    sync.Mutex
	reads [][2]int64 // offset, length
	into  []*byte    // where to
}

func (r *tracer) ReadAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	r.reads = append(r.reads, [2]int64{off, int64(len(p))})
	r.into = append(r.into, &p[0])
	r.mu.Unlock()
	return bytes.NewReader(r.b).ReadAt(p, off)
}

// pattern is n bytes that tell their position.
func pattern(n int) []byte {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(uint64(n), 3))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// Aligned reads of plain data go straight into the caller's memory, in one
// aligned read of the device, at the end of the file to the end of the block.
func TestReadAtAligned(t *testing.T) {
	c := newCraft(t)
	data := pattern(2*craftBlock + 100)
	c.file(craftFile, modeRegular, FlatPlain, int64(len(data)), craftData/craftBlock)
	c.put(craftData, data)
	c.put(disk.SuperBlockOffset, c.sb)
	dev := &tracer{b: c.b}
	im, err := Open(dev, craftSize)
	if err != nil {
		t.Fatal(err)
	}
	in, err := im.Inode(craftFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		off, len int64
		n        int
		want     [2]int64
	}{
		{0, 4 * craftBlock, 2*craftBlock + 100, [2]int64{craftData, 3 * craftBlock}},
		{0, 3 * craftBlock, 2*craftBlock + 100, [2]int64{craftData, 3 * craftBlock}},
		{craftBlock, craftBlock, craftBlock, [2]int64{craftData + craftBlock, craftBlock}},
		{2 * craftBlock, craftBlock, 100, [2]int64{craftData + 2*craftBlock, craftBlock}},
		{2 * craftBlock, 100, 100, [2]int64{craftData + 2*craftBlock, 100}},
		{5, 10, 10, [2]int64{craftData + 5, 10}},
	} {
		dev.reads, dev.into = nil, nil
		p := make([]byte, c.len)
		n, err := in.ReadAt(p, c.off)
		if n != c.n || errors.Is(err, io.EOF) != (n < len(p)) || err != nil && !errors.Is(err, io.EOF) {
			t.Errorf("read %d at %d: %d, %v; want %d", c.len, c.off, n, err, c.n)
		}
		if !bytes.Equal(p[:n], data[c.off:][:n]) {
			t.Errorf("read %d at %d: wrong bytes", c.len, c.off)
		}
		if len(dev.reads) != 1 || dev.reads[0] != c.want || dev.into[0] != &p[0] {
			t.Errorf("read %d at %d: device reads %v, want one of %v into the caller's memory", c.len, c.off, dev.reads, c.want)
		}
	}
}

// Neighbouring chunks are read at once; holes and tails are not read at all.
func TestReadAtMerges(t *testing.T) {
	const block = uint32(craftData / craftBlock)
	c := newCraft(t)
	data := pattern(3 * craftBlock)
	c.put(craftData, data)
	c.file(craftFile, modeRegular, ChunkBased, 5*craftBlock, 0) // 4-byte entries, one block a chunk
	c.put(c.at(craftFile)+disk.InodeExtendedSize, []uint32{block, block + 1, ^uint32(0), block + 2, block})
	c.put(disk.SuperBlockOffset, c.sb)
	dev := &tracer{b: c.b}
	im, err := Open(dev, craftSize)
	if err != nil {
		t.Fatal(err)
	}
	in, err := im.Inode(craftFile)
	if err != nil {
		t.Fatal(err)
	}
	dev.reads = nil
	p := bytes.Repeat([]byte{0xee}, 5*craftBlock)
	if n, err := in.ReadAt(p, 0); n != len(p) || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	want := slices.Concat(data[:2*craftBlock], make([]byte, craftBlock), data[2*craftBlock:], data[:craftBlock])
	if !bytes.Equal(p, want) {
		t.Error("wrong bytes")
	}
	if got, want := fmt.Sprint(dev.reads), fmt.Sprint([][2]int64{
		{craftData, 2 * craftBlock}, {craftData + 2*craftBlock, craftBlock}, {craftData, craftBlock},
	}); got != want {
		t.Errorf("device reads %s, want %s", got, want)
	}
	e, err := in.Extent(10)
	if want := (Extent{Off: 10, Len: 2*craftBlock - 10}); e != want || err != nil {
		t.Errorf("extent %+v, %v; want %+v", e, err, want)
	}
	e, err = in.Extent(2*craftBlock + 1)
	if want := (Extent{Off: 2*craftBlock + 1, Len: craftBlock - 1, Hole: true}); e != want || err != nil {
		t.Errorf("extent %+v, %v; want %+v", e, err, want)
	}
	if _, err := in.Extent(5 * craftBlock); !errors.Is(err, io.EOF) {
		t.Errorf("extent at the end: %v", err)
	}
}

// The contract of io.ReaderAt at the edges.
func TestReadAtEdges(t *testing.T) {
	c := newCraft(t)
	c.file(craftFile, modeRegular, FlatInline, 5, 0)
	c.put(c.at(craftFile)+disk.InodeExtendedSize, []byte("hello"))
	c.file(craftFile+10, modeFIFO, FlatPlain, 5, 0)
	in := c.inode(craftFile)
	for _, c := range []struct {
		off  int64
		len  int
		want string
		err  error
	}{
		{0, 5, "hello", nil},
		{0, 6, "hello", io.EOF},
		{4, 1, "o", nil},
		{4, 2, "o", io.EOF},
		{5, 1, "", io.EOF},
		{5, 0, "", io.EOF},
		{0, 0, "", nil},
		{1 << 62, 1, "", io.EOF},
		{-1, 1, "", ErrInvalid},
	} {
		p := make([]byte, c.len)
		n, err := in.ReadAt(p, c.off)
		if string(p[:n]) != c.want || !errors.Is(err, c.err) {
			t.Errorf("read %d at %d: %q, %v; want %q, %v", c.len, c.off, p[:n], err, c.want, c.err)
		}
	}
	_, err := c.inode(craftFile+10).ReadAt(make([]byte, 1), 0)
	wantError(t, err, ErrInvalid, "no data")
}

// Flat data that are all a hole have the address ~0 in the width of the field.
func TestNullAddress(t *testing.T) {
	c := newCraft(t)
	c.put(c.at(craftFile), disk.InodeCompact{Mode: modeRegular, NB: 1, Size: 10000, U: 1<<32 - 1})
	c.put(c.at(craftFile+1), disk.InodeExtended{Format: 1, Mode: modeRegular, Size: 10000, U: 1<<32 - 1, NB: 1<<16 - 1})
	for _, nid := range []uint64{craftFile, craftFile + 1} {
		p := bytes.Repeat([]byte{1}, 10000)
		if n, err := c.inode(nid).ReadAt(p, 0); n != len(p) || err != nil || !bytes.Equal(p, make([]byte, 10000)) {
			t.Errorf("nid %d: %d bytes, %v", nid, n, err)
		}
	}
}

func TestDataRefuses(t *testing.T) {
	beyond := func(c *craft) { c.file(craftFile, modeRegular, FlatPlain, 2*craftBlock, 7) }
	for _, c := range []struct {
		name   string
		change func(c *craft)
		kind   error
		text   string
	}{
		{"half outside", beyond, ErrCorrupt, "beyond the end"},
		{"outside", func(c *craft) { c.file(craftFile, modeRegular, FlatPlain, 1, 8) }, ErrCorrupt, "beyond the end"},
		{"far outside", func(c *craft) {
			c.put(c.at(craftFile), disk.InodeExtended{Format: 1, Mode: modeRegular, Size: 1, NB: 1<<16 - 1})
		}, ErrCorrupt, "beyond the end"},
		{"overflowing", func(c *craft) {
			c.sb.BlockBits, c.sb.Blocks, c.sb.MetaBlkAddr, c.sb.RB = 16, 0, 0, (craftMeta+32)/32
			c.put(c.at(craftFile), disk.InodeExtended{Format: 1, Mode: modeRegular, Size: 1 << 62, NB: 1<<16 - 1, U: 1 << 31})
		}, ErrCorrupt, "out of reach"},
		{"tail over the block's end", func(c *craft) {
			c.file(craftFile, modeRegular, FlatInline, 4000, 0)
		}, ErrCorrupt, "crosses a block boundary"},
		{"chunk table outside", func(c *craft) {
			c.file(craftFile, modeRegular, ChunkBased, 1<<62, disk.ChunkIndexes)
		}, ErrCorrupt, "entries reach beyond the end"},
		{"chunk outside", func(c *craft) {
			c.file(craftFile, modeRegular, ChunkBased, 1, 0)
			c.put(c.at(craftFile)+disk.InodeExtendedSize, uint32(8))
		}, ErrCorrupt, "beyond the end"},
		{"chunk far outside", func(c *craft) {
			c.file(craftFile, modeRegular, ChunkBased, 1, disk.ChunkIndexes|disk.Chunk48Bit)
			c.put(c.at(craftFile)+disk.InodeExtendedSize, disk.ChunkIndex{StartBlkHi: 1<<16 - 2})
		}, ErrCorrupt, "beyond the end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := newCraft(t)
			c.change(image)
			in, err := image.mustOpen().Inode(image.nidOf(craftFile))
			if err != nil {
				t.Fatal(err)
			}
			off := int64(0)
			if in.Layout == ChunkBased && in.Size > 1<<50 {
				off = 1 << 50
			}
			_, err = in.ReadAt(make([]byte, 2*craftBlock), off)
			wantError(t, err, c.kind, c.text)
			if !classified(err) {
				t.Errorf("%v is of no class", err)
			}
		})
	}
}

// nidOf is the number of the inode at at(nid), for the metadata address that
// the superblock now has.
func (c *craft) nidOf(nid uint64) uint64 {
	return uint64(c.at(nid)-int64(c.sb.MetaBlkAddr)<<c.sb.BlockBits) / disk.InodeSlotSize
}

// twoDevices is an image with an empty and a full extra device and a file with
// a chunk on each.
func twoDevices(t *testing.T) *craft {
	t.Helper()
	c := newCraft(t)
	c.sb.FeatureIncompat = disk.IncompatDeviceTable | disk.IncompatChunkedFile
	c.sb.ExtraDevices, c.sb.DevtSlotOff = 2, (craftMeta-256)/disk.DeviceSlotSize
	var tag [64]byte
	copy(tag[:], "sha256:first")
	c.put(craftMeta-256, []disk.DeviceSlot{{Tag: tag, Blocks: 2, UniAddr: 8}, {Blocks: 3, UniAddr: 10}})
	c.file(craftFile, modeRegular, ChunkBased, 4*craftBlock, disk.ChunkIndexes)
	c.put(c.at(craftFile)+disk.InodeExtendedSize, []disk.ChunkIndex{
		{DeviceID: 1, StartBlk: 1},
		{DeviceID: 2 | 0xfff0, StartBlk: 2}, // other bits mean nothing
		{DeviceID: 0, StartBlk: 11},         // block 1 of the second device in the unified space
		{DeviceID: 0, StartBlk: 4},
	})
	return c
}

func TestDevices(t *testing.T) {
	c := twoDevices(t)
	first, second, own := pattern(2*craftBlock), pattern(3*craftBlock), pattern(craftBlock)
	c.put(craftData, own)
	want := slices.Concat(first[craftBlock:], second[2*craftBlock:], second[craftBlock:2*craftBlock], own)
	dev := func(b []byte) Device { return Device{R: bytes.NewReader(b), Size: int64(len(b))} }
	check := func(t *testing.T, im *Image) {
		t.Helper()
		if err := im.CheckDevices(); err != nil {
			t.Error(err)
		}
		in, err := im.Inode(craftFile)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, len(want))
		if n, err := in.ReadAt(p, 0); n != len(p) || err != nil || !bytes.Equal(p, want) {
			t.Errorf("read %d bytes, %v; equal %v", n, err, bytes.Equal(p, want))
		}
	}
	t.Run("given", func(t *testing.T) {
		im := c.mustOpen(WithDevices(dev(first), dev(second)))
		check(t, im)
		sb := im.Superblock()
		if sb.TotalBlocks() != 13 || sb.ExtraDevices[0].Tag != "sha256:first" {
			t.Errorf("superblock %+v", sb)
		}
	})
	t.Run("appended", func(t *testing.T) {
		c.put(disk.SuperBlockOffset, c.sb)
		b := slices.Concat(c.b, first, second)
		im, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		check(t, im)
	})
	t.Run("none", func(t *testing.T) {
		im := c.mustOpen()
		wantError(t, im.CheckDevices(), ErrUnsupported, `extra device 1 of 2 (tag "sha256:first") was not given`)
		in, err := im.Inode(craftFile)
		if err != nil {
			t.Fatal(err)
		}
		_, err = in.ReadAt(make([]byte, 10), 0)
		wantError(t, err, ErrUnsupported, "was not given")
	})
	t.Run("too few", func(t *testing.T) {
		_, err := c.open(WithDevices(dev(first)))
		wantError(t, err, ErrInvalid, "2 extra devices, 1 were given")
	})
	t.Run("too short", func(t *testing.T) {
		im := c.mustOpen(WithDevices(dev(first), dev(second[:craftBlock])))
		wantError(t, im.CheckDevices(), ErrCorrupt, "extra device 2")
		in, err := im.Inode(craftFile)
		if err != nil {
			t.Fatal(err)
		}
		n, err := in.ReadAt(make([]byte, 2*craftBlock), 0)
		if n != craftBlock {
			t.Errorf("%d bytes before the missing ones, want %d", n, craftBlock)
		}
		wantError(t, err, ErrCorrupt, "beyond the end of device 2")
	})
	t.Run("no such device", func(t *testing.T) {
		c.put(c.at(craftFile)+disk.InodeExtendedSize, disk.ChunkIndex{DeviceID: 3, StartBlk: 1})
		in, err := c.mustOpen(WithDevices(dev(first), dev(second))).Inode(craftFile)
		if err != nil {
			t.Fatal(err)
		}
		_, err = in.ReadAt(make([]byte, 10), 0)
		wantError(t, err, ErrCorrupt, "device 3, but the table has 2")
	})
}
