package erofs

import (
	"math"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

func TestInodeCompact(t *testing.T) {
	c := newCraft(t)
	c.sb.Epoch, c.sb.FixedNsec = 1<<40, 77
	c.put(c.at(craftFile), disk.InodeCompact{
		Mode: modeRegular | 0o4644, NB: 3, Size: 5, Mtime: math.MaxUint32, U: 4, Ino: 9, UID: 65535, GID: 2,
	})
	in := c.inode(craftFile)
	if in.Mode != 0o104644 || in.Nlink != 3 || in.Size != 5 || in.MtimeSec != 1<<40+math.MaxUint32 || in.MtimeNsec != 77 ||
		in.UID != 65535 || in.GID != 2 || in.Ino != 9 || in.Layout != FlatPlain || in.Rdev != 0 {
		t.Errorf("decoded %+v", in)
	}
	// One link said by a bit leaves the field to the block number.
	c.put(c.at(craftFile), disk.InodeCompact{Format: disk.FormatNlink1, Mode: modeRegular, NB: 1, Size: 5})
	if in := c.inode(craftFile); in.Nlink != 1 || in.startBlock() != 1<<32 {
		t.Errorf("%d links, block %d; want 1, 2^32", in.Nlink, in.startBlock())
	}
}

func TestInodeExtended(t *testing.T) {
	c := newCraft(t)
	c.put(c.at(craftFile), disk.InodeExtended{
		Format: disk.FormatExtended, Mode: modeChar | 0o600, U: 0xabcde123, Mtime: -5, MtimeNsec: 999999999,
		UID: 1 << 31, GID: math.MaxUint32, Nlink: 70000, Ino: 8,
	})
	in := c.inode(craftFile)
	if in.Rdev != 0xabcde123 || in.MtimeSec != -5 || in.MtimeNsec != 999999999 || in.UID != 1<<31 ||
		in.GID != math.MaxUint32 || in.Nlink != 70000 || in.Ino != 8 || in.Type() != TypeChar {
		t.Errorf("decoded %+v", in)
	}
}

// An extended inode may cross a block boundary and the end of a cache unit.
func TestInodeAcrossUnits(t *testing.T) {
	c := newCraft(t)
	nid := uint64(metaUnitMin-craftMeta)/disk.InodeSlotSize - 1
	if c.at(nid)+disk.InodeCompactSize != metaUnitMin {
		t.Fatalf("nid %d is at %d", nid, c.at(nid))
	}
	c.file(nid, modeRegular|0o640, FlatPlain, 12345, 0)
	if in := c.inode(nid); in.Size != 12345 || in.Nlink != 1 {
		t.Errorf("size %d, %d links; want 12345, 1", in.Size, in.Nlink)
	}
}

func TestInodeRefuses(t *testing.T) {
	last := uint64(craftSize-craftMeta) / disk.InodeSlotSize
	for _, c := range []struct {
		name   string
		nid    uint64
		change func(c *craft)
		kind   error
		text   string
	}{
		{"metabox", 1 << 63, nil, ErrCorrupt, "metabox"},
		{"far outside", 1<<63 - 1, nil, ErrCorrupt, "beyond the end"},
		{"overflowing", 1 << 59, nil, ErrCorrupt, "beyond the end"},
		{"just outside", last, nil, ErrCorrupt, "beyond the end"},
		{"extended cut off", last - 1, func(c *craft) {
			c.put(c.at(last-1), disk.InodeCompact{Format: disk.FormatExtended, Mode: modeRegular})
		}, ErrCorrupt, "beyond the end"},
		{"attributes cut off", last - 1, func(c *craft) {
			c.put(c.at(last-1), disk.InodeCompact{XattrCount: 1, Mode: modeRegular})
		}, ErrCorrupt, "beyond the end"},
		{"format", craftFile, func(c *craft) {
			c.put(c.at(craftFile), disk.InodeCompact{Format: 0x20, Mode: modeRegular})
		}, ErrUnsupported, "format 0x20"},
		{"layout", craftFile, func(c *craft) { c.file(craftFile, modeRegular, 5, 0, 0) }, ErrUnsupported, "layout 5"},
		{"type", craftFile, func(c *craft) { c.file(craftFile, 0o644, FlatPlain, 0, 0) }, ErrCorrupt, "no file type"},
		{"size", craftFile, func(c *craft) {
			c.file(craftFile, modeRegular, FlatPlain, math.MinInt64, 0)
		}, ErrCorrupt, "2^63 bytes"},
		{"chunk format", craftFile, func(c *craft) {
			c.file(craftFile, modeRegular, ChunkBased, 1, 0x80)
		}, ErrUnsupported, "chunk format 0x80"},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := newCraft(t)
			if c.change != nil {
				c.change(image)
			}
			_, err := image.mustOpen().Inode(c.nid)
			wantError(t, err, c.kind, c.text)
		})
	}
}

func TestReadlink(t *testing.T) {
	c := newCraft(t)
	c.file(craftFile, modeSymlink|0o777, FlatPlain, 6, craftData/craftBlock)
	c.put(craftData, []byte("target"))
	if got, err := c.inode(craftFile).Readlink(); got != "target" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	c.put(craftData, []byte("tar\x00et"))
	_, err := c.inode(craftFile).Readlink()
	wantError(t, err, ErrCorrupt, "NUL")
	for _, size := range []int64{0, 4096, 1 << 62} {
		c.file(craftFile, modeSymlink|0o777, FlatPlain, size, craftData/craftBlock)
		_, err := c.inode(craftFile).Readlink()
		wantError(t, err, ErrCorrupt, "a target of")
	}
	_, err = c.inode(craftRoot).Readlink()
	wantError(t, err, ErrInvalid, "no symbolic link")
}
