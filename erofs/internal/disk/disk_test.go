package disk

import (
	"encoding/binary"
	"math/rand/v2"
	"reflect"
	"testing"
)

// decoder is a pointer to one of the structures.
type decoder interface{ Decode([]byte) }

var structures = []struct {
	name string
	size int // of the format, from the build-time checks in erofs_fs.h
	make func() decoder
}{
	{"super block", 144, func() decoder { return new(SuperBlock) }},
	{"device slot", 128, func() decoder { return new(DeviceSlot) }},
	{"compact inode", 32, func() decoder { return new(InodeCompact) }},
	{"extended inode", 64, func() decoder { return new(InodeExtended) }},
	{"chunk index", 8, func() decoder { return new(ChunkIndex) }},
	{"dirent", 12, func() decoder { return new(Dirent) }},
	{"xattr header", 12, func() decoder { return new(XattrHeader) }},
	{"xattr entry", 4, func() decoder { return new(XattrEntry) }},
	{"lz4 configuration", 14, func() decoder { return new(LZ4Cfgs) }},
	{"lzma configuration", 14, func() decoder { return new(LZMACfgs) }},
	{"deflate configuration", 6, func() decoder { return new(DeflateCfgs) }},
	{"zstd configuration", 6, func() decoder { return new(ZstdCfgs) }},
	{"extent", 32, func() decoder { return new(Extent) }},
}

func TestSizes(t *testing.T) {
	for _, s := range structures {
		if got := binary.Size(s.make()); got != s.size {
			t.Errorf("%s: %d bytes, the format has %d", s.name, got, s.size)
		}
	}
	for name, pair := range map[string][2]int{
		"SuperBlockMax":     {SuperBlockMax, 144},
		"DeviceSlotSize":    {DeviceSlotSize, 128},
		"InodeCompactSize":  {InodeCompactSize, 32},
		"InodeExtendedSize": {InodeExtendedSize, 64},
		"ChunkIndexSize":    {ChunkIndexSize, 8},
		"DirentSize":        {DirentSize, 12},
		"XattrHeaderSize":   {XattrHeaderSize, 12},
		"XattrEntrySize":    {XattrEntrySize, 4},
		"LZ4CfgsSize":       {LZ4CfgsSize, 14},
		"LZMACfgsSize":      {LZMACfgsSize, 14},
		"DeflateCfgsSize":   {DeflateCfgsSize, 6},
		"ZstdCfgsSize":      {ZstdCfgsSize, 6},
		"ExtentSize":        {ExtentSize, 32},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s is %d, want %d", name, pair[0], pair[1])
		}
	}
}

// Every Decode reads the same as encoding/binary does from the declared
// fields, so that an offset can't drift from its field.
func TestDecode(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, s := range structures {
		b := make([]byte, s.size)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		got, want := s.make(), s.make()
		got.Decode(b)
		if _, err := binary.Decode(b, binary.LittleEndian, want); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", s.name, got, want)
		}
	}
}

func TestXattrBodySize(t *testing.T) {
	for count, want := range map[uint16]int64{0: 0, 1: 12, 2: 16, 65535: 12 + 4*65534} {
		if got := XattrBodySize(count); got != want {
			t.Errorf("count %d: %d bytes, want %d", count, got, want)
		}
	}
}
