package erofs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

func TestSuperblock(t *testing.T) {
	c := newCraft(t)
	c.sb.UUID = [16]byte{1, 2, 3}
	copy(c.sb.VolumeName[:], "volume")
	c.sb.Epoch, c.sb.BuildTime, c.sb.FixedNsec = 1000, 23, 5
	c.sb.FeatureCompat = disk.CompatMtime | 0x8000
	c.sb.FeatureIncompat = disk.IncompatChunkedFile
	sb := c.mustOpen().Superblock()
	if sb.BlockSize != 4096 || sb.Blocks != 8 || sb.RootNID != craftRoot || sb.UUID[2] != 3 || sb.VolumeName != "volume" ||
		sb.BuildTime != 1023 || sb.BuildTimeNsec != 5 || sb.Epoch != 1000 {
		t.Errorf("decoded %+v", sb)
	}
	if got, want := sb.Features(), []string{"mtime", "compat_0x8000", "chunked_file"}; !slices.Equal(got, want) {
		t.Errorf("features %q, want %q", got, want)
	}
}

// Whatever Open can't read it refuses by a class and a name.
func TestOpenRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(c *craft)
		kind   error
		text   string
	}{
		{"magic", func(c *craft) { c.sb.Magic++ }, ErrFormat, "0xe0f5e1e3"},
		{"too small", func(c *craft) { c.b = c.b[:1024+127] }, ErrFormat, "1151 bytes"},
		{"empty", func(c *craft) { c.b = nil }, ErrFormat, "0 bytes"},
		{"block size too small", func(c *craft) { c.sb.BlockBits = 8 }, ErrUnsupported, "2^8"},
		{"block size too large", func(c *craft) { c.sb.BlockBits = 17 }, ErrUnsupported, "2^17"},
		{"unknown feature", func(c *craft) { c.sb.FeatureIncompat = 0x40000200 }, ErrUnsupported, "0x40000200"},
		{"metabox in an old superblock", func(c *craft) { c.sb.FeatureIncompat = disk.IncompatMetabox }, ErrCorrupt, "without a nid"},
		{"metabox in itself", metabox(1<<63 | 5), ErrCorrupt, "in itself"},
		{"metabox outside", metabox(1 << 40), ErrCorrupt, "beyond the end"},
		{"metabox no file", metabox(craftRoot), ErrCorrupt, "not a regular file"},
		{"packed inode in a metabox", packed(1<<63 | 5), ErrCorrupt, "packed inode is in the metabox"},
		{"packed inode no file", packed(craftRoot), ErrCorrupt, "not a regular file"},
		{"unknown algorithm", algorithms(0x100), ErrUnsupported, "0x100"},
		{"no LZ4 record", algorithms(1), ErrCorrupt, "empty record"},
		{"short LZ4 record", func(c *craft) {
			algorithms(1)(c)
			c.put(disk.SuperBlockOffset+disk.SuperBlockSize, uint16(13))
		}, ErrCorrupt, "13 bytes"},
		{"huge pcluster", func(c *craft) {
			algorithms(1)(c)
			c.put(disk.SuperBlockOffset+disk.SuperBlockSize, uint16(disk.LZ4CfgsSize))
			c.put(disk.SuperBlockOffset+disk.SuperBlockSize+2, disk.LZ4Cfgs{MaxPclusterBlks: 257})
		}, ErrCorrupt, "257 blocks"},
		{"directory blocks", func(c *craft) { c.sb.DirBlockBits = 1 }, ErrUnsupported, "dirblkbits"},
		{"shared xattrs in no metabox", func(c *craft) { c.sb.FeatureCompat = disk.CompatSharedEAInMetabox }, ErrCorrupt, "metabox"},
		{"cut off", func(c *craft) { c.sb.Blocks = 9 }, ErrCorrupt, "32768 bytes of 9 blocks"},
		{"metadata outside", func(c *craft) { c.sb.MetaBlkAddr = 9 }, ErrCorrupt, "metadata start"},
		{"metadata far outside", func(c *craft) { c.sb.MetaBlkAddr = 1<<32 - 1 }, ErrCorrupt, "metadata start"},
		{"root outside", func(c *craft) { c.sb.RB = 65535 }, ErrCorrupt, "beyond the end"},
		{"root no directory", func(c *craft) { c.file(craftRoot, modeRegular, FlatPlain, 0, 0) }, ErrCorrupt, "not a directory"},
		{"root without a type", func(c *craft) { c.sb.RB = 90 }, ErrCorrupt, "no file type"},
		{"checksum", func(c *craft) { c.sb.FeatureCompat = disk.CompatSBChecksum }, ErrCorrupt, "checksum"},
		{"device table outside", func(c *craft) {
			c.sb.FeatureIncompat, c.sb.ExtraDevices, c.sb.DevtSlotOff = disk.IncompatDeviceTable, 65535, 65535
		}, ErrCorrupt, "65535 slots"},
		{"prefixes outside", func(c *craft) {
			c.sb.FeatureIncompat, c.sb.PrefixCount, c.sb.PrefixStart = disk.IncompatXattrPrefixes, 1, 1<<32-1
		}, ErrCorrupt, "beyond the end"},
		{"empty prefix", func(c *craft) {
			c.sb.FeatureIncompat, c.sb.PrefixCount, c.sb.PrefixStart = disk.IncompatXattrPrefixes, 1, craftData/4
		}, ErrCorrupt, "empty record"},
		{"long prefix", func(c *craft) {
			c.sb.FeatureIncompat, c.sb.PrefixCount, c.sb.PrefixStart = disk.IncompatXattrPrefixes, 1, craftData/4
			c.put(craftData, uint16(257))
		}, ErrCorrupt, "256 bytes"},
		{"fingerprint prefix", func(c *craft) {
			c.sb.FeatureIncompat, c.sb.FeatureCompat = disk.IncompatXattrPrefixes, disk.CompatIshareXattrs
		}, ErrCorrupt, "prefix 0 of 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := newCraft(t)
			c.change(image)
			_, err := image.open()
			wantError(t, err, c.kind, c.text)
			if !classified(err) {
				t.Errorf("%v is of no class", err)
			}
		})
	}
}

// metabox makes an image announce a metabox.
func metabox(nid uint64) func(c *craft) {
	return func(c *craft) {
		c.sb.FeatureIncompat, c.sb.ExtSlots, c.sb.MetaboxNID = disk.IncompatMetabox, 1, nid
	}
}

// packed makes an image announce a packed inode.
func packed(nid uint64) func(c *craft) {
	return func(c *craft) { c.sb.FeatureIncompat, c.sb.PackedNID = disk.IncompatFragments, nid }
}

// algorithms makes an image announce compression algorithms.
func algorithms(bits uint16) func(c *craft) {
	return func(c *craft) { c.sb.FeatureIncompat, c.sb.ComprAlgs = disk.IncompatComprCfgs, bits }
}

// The checksum covers the rest of the block, for blocks up to 1024 bytes one
// block from the superblock on.
func TestChecksum(t *testing.T) {
	for bits, covered := range map[uint8]int{9: 512, 10: 1024, 11: 1024, 12: 3072, 16: 64512} {
		b := make([]byte, 128<<10)
		sb := disk.SuperBlock{
			Magic: disk.Magic, BlockBits: bits, FeatureCompat: disk.CompatSBChecksum,
			MetaBlkAddr: uint32(66 << 10 >> bits), RB: 64,
		}
		if bits == 16 {
			sb.MetaBlkAddr = 1
		}
		root := int64(sb.MetaBlkAddr)<<bits + int64(sb.RB)*disk.InodeSlotSize
		raw, _ := binary.Append(nil, binary.LittleEndian, disk.InodeCompact{Mode: modeDir, NB: 2})
		copy(b[root:], raw)
		raw, _ = binary.Append(nil, binary.LittleEndian, sb)
		copy(b[disk.SuperBlockOffset:], raw)
		b[disk.SuperBlockOffset+covered-1] = 77

		sum := ^crc32.Update(0, crc32.MakeTable(crc32.Castagnoli), b[disk.SuperBlockOffset:disk.SuperBlockOffset+covered])
		binary.LittleEndian.PutUint32(b[disk.SuperBlockOffset+4:], sum)
		if _, err := Open(bytes.NewReader(b), int64(len(b))); err != nil {
			t.Errorf("block bits %d: %v", bits, err)
		}
		b[disk.SuperBlockOffset+covered-1] = 78
		if _, err := Open(bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrCorrupt) {
			t.Errorf("block bits %d: a changed last byte gives %v", bits, err)
		}
	}
}

// The records of all algorithms follow each other behind the superblock, also
// behind its extension slots, and each is checked.
func TestCompressionConfigs(t *testing.T) {
	good := []any{
		disk.LZ4Cfgs{MaxDistance: 4096, MaxPclusterBlks: 16},
		disk.LZMACfgs{DictSize: 8 << 20},
		disk.DeflateCfgs{WindowBits: 15},
		disk.ZstdCfgs{WindowLog: 10},
	}
	open := func(slots uint8, cfgs []any) error {
		c := newCraft(t)
		c.sb.ExtSlots = slots
		c.configs(cfgs...)
		_, err := c.open()
		return err
	}
	for _, slots := range []uint8{0, 1, 3} {
		if err := open(slots, good); err != nil {
			t.Errorf("%d extension slots: %v", slots, err)
		}
	}
	all := newCraft(t)
	all.configs(good...)
	sb := all.mustOpen().Superblock()
	if want := []string{"LZ4", "LZMA", "DEFLATE", "Zstandard"}; !slices.Equal(sb.Algorithms, want) {
		t.Errorf("algorithms %q, want %q", sb.Algorithms, want)
	}
	for _, c := range []struct {
		bad  any
		kind error
		text string
	}{
		{disk.LZ4Cfgs{MaxPclusterBlks: 257}, ErrCorrupt, "257 blocks"},
		{disk.LZMACfgs{DictSize: 8<<20 + 1}, ErrCorrupt, "8388609 bytes"},
		{disk.LZMACfgs{DictSize: 4095}, ErrCorrupt, "4095 bytes"},
		{disk.LZMACfgs{DictSize: 4096, Format: 2}, ErrUnsupported, "LZMA format 0x2"},
		{disk.DeflateCfgs{WindowBits: 16}, ErrUnsupported, "2^16"},
		{disk.ZstdCfgs{Format: 1}, ErrUnsupported, "Zstandard format 0x1"},
		{disk.ZstdCfgs{WindowLog: 11}, ErrUnsupported, "2^21"},
	} {
		cfgs := slices.Clone(good)
		i := slices.IndexFunc(cfgs, func(g any) bool { return fmt.Sprintf("%T", g) == fmt.Sprintf("%T", c.bad) })
		cfgs[i] = c.bad
		wantError(t, open(0, cfgs), c.kind, c.text)
	}
}

// An I/O error is neither swallowed nor taken for corruption.
func TestOpenReadError(t *testing.T) {
	broken := errors.New("the disk is on fire")
	_, err := Open(failingReader{broken}, craftSize)
	if !errors.Is(err, broken) || errors.Is(err, ErrCorrupt) || errors.Is(err, ErrFormat) {
		t.Errorf("error %v, want only %v", err, broken)
	}
	// A reader that is shorter than it says is a cut off image.
	if _, err := Open(bytes.NewReader(nil), craftSize); !errors.Is(err, ErrFormat) {
		t.Errorf("error %v, want ErrFormat", err)
	}
}

type failingReader struct{ err error }

func (r failingReader) ReadAt([]byte, int64) (int, error) { return 0, r.err }

var _ io.ReaderAt = failingReader{}
