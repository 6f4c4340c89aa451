package erofs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// craft is an image made by hand, to have in it what no mkfs.erofs writes.
// Blocks have 4096 bytes. Block 0 has the superblock; nid 0 is at craftMeta;
// the root is nid 1.
type craft struct {
	t  *testing.T
	sb disk.SuperBlock
	b  []byte
}

const (
	craftBlock = 4096
	craftMeta  = 1 * craftBlock
	craftData  = 4 * craftBlock // blocks from here on are free for data
	craftSize  = 8 * craftBlock
	craftRoot  = 1
	craftFile  = 4 // a nid for a file to experiment with: has room up to nid 100
)

// newCraft makes an image with an empty root directory in block 2.
func newCraft(t *testing.T) *craft {
	t.Helper()
	c := &craft{t: t, b: make([]byte, craftSize), sb: disk.SuperBlock{
		Magic: disk.Magic, BlockBits: 12, RB: craftRoot, Inodes: 1,
		Blocks: craftSize / craftBlock, MetaBlkAddr: craftMeta / craftBlock,
	}}
	c.dir(craftRoot, 2, dirBytes(entry{".", craftRoot, 2}, entry{"..", craftRoot, 2}))
	return c
}

// put writes a structure or bytes at an address.
func (c *craft) put(off int64, what any) {
	c.t.Helper()
	b, err := binary.Append(nil, binary.LittleEndian, what)
	if err != nil {
		c.t.Fatal(err)
	}
	if off < int64(len(c.b)) { // a test may have cut the image
		copy(c.b[off:], b)
	}
}

// at is the address of an inode.
func (c *craft) at(nid uint64) int64 { return craftMeta + int64(nid)*disk.InodeSlotSize }

// file writes an extended inode of a layout.
func (c *craft) file(nid uint64, mode uint16, layout DataLayout, size int64, u uint32) {
	c.t.Helper()
	c.put(c.at(nid), disk.InodeExtended{
		Format: disk.FormatExtended | uint16(layout)<<disk.FormatLayoutBit, Mode: mode, Size: size, U: u, Nlink: 1,
	})
}

// dir writes a flat-plain directory whose data are one piece from block on.
func (c *craft) dir(nid uint64, block uint32, data []byte) {
	c.t.Helper()
	c.file(nid, modeDir|0o755, FlatPlain, int64(len(data)), block)
	c.put(int64(block)*craftBlock, data)
}

// configs gives the image the first compression algorithms and their records.
func (c *craft) configs(list ...any) {
	c.t.Helper()
	c.sb.FeatureIncompat |= disk.IncompatComprCfgs
	c.sb.ComprAlgs = 1<<len(list) - 1
	at := int64(disk.SuperBlockOffset + disk.SuperBlockSize + int(c.sb.ExtSlots)*disk.ExtSlotSize)
	for _, cfgs := range list {
		size := binary.Size(cfgs)
		c.put(at, uint16(size))
		c.put(at+2, cfgs)
		at = roundUp(at+2+int64(size), 4)
	}
}

// open opens the image; the superblock is written now.
func (c *craft) open(opts ...Option) (*Image, error) {
	c.t.Helper()
	sb, _ := binary.Append(nil, binary.LittleEndian, c.sb)
	if c.sb.ExtSlots == 0 {
		sb = sb[:disk.SuperBlockSize]
	}
	c.put(disk.SuperBlockOffset, sb)
	return Open(bytes.NewReader(c.b), int64(len(c.b)), opts...)
}

// mustOpen opens an image that must be good.
func (c *craft) mustOpen(opts ...Option) *Image {
	c.t.Helper()
	im, err := c.open(opts...)
	if err != nil {
		c.t.Fatal(err)
	}
	return im
}

// inode opens the image and reads an inode, both must be good.
func (c *craft) inode(nid uint64) *Inode {
	c.t.Helper()
	in, err := c.mustOpen().Inode(nid)
	if err != nil {
		c.t.Fatal(err)
	}
	return in
}

type entry struct {
	name string
	nid  uint64
	kind uint8
}

// dirBytes is one directory block, as long as its names need.
func dirBytes(entries ...entry) []byte {
	var head, names []byte
	for _, e := range entries {
		d := disk.Dirent{NID: e.nid, NameOff: uint16(len(entries)*disk.DirentSize + len(names)), Type: e.kind}
		head, _ = binary.Append(head, binary.LittleEndian, d)
		names = append(names, e.name...)
	}
	return append(head, names...)
}

// classified reports whether an error is of one of the classes that an image
// can cause, and not something that slipped through.
func classified(err error) bool {
	for _, kind := range []error{ErrFormat, ErrUnsupported, ErrCorrupt, ErrNoXattr, fs.ErrNotExist} {
		if errors.Is(err, kind) {
			var at *FormatError
			return errors.As(err, &at)
		}
	}
	return false
}

// wantError checks that an error is of a class and says something.
func wantError(t *testing.T, err, kind error, text string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("error %v, want one of %q", err, kind)
	} else if !bytes.Contains([]byte(err.Error()), []byte(text)) {
		t.Errorf("error %q does not say %q", err, text)
	}
}
