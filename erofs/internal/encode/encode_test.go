package encode

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// TestCursor places random inodes and checks what the kernel demands.
func TestCursor(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	types := []erofs.FileType{erofs.TypeRegular, erofs.TypeDir, erofs.TypeSymlink, erofs.TypeFIFO}
	c := Cursor{Pos: SuperEnd}
	used, end, blocks := int64(0), c.Pos, int64(0)
	for i := range 20000 {
		typ := types[rnd.IntN(len(types))]
		head := int64(InodeSize)
		if rnd.IntN(2) == 0 {
			head += disk.XattrHeaderSize + 4*rnd.Int64N(1+rnd.Int64N(2000))
		}
		var tail int64
		switch typ {
		case erofs.TypeRegular:
			head += 8 * rnd.Int64N(17) // chunk indexes
		case erofs.TypeDir:
			tail = 15 + rnd.Int64N(1+rnd.Int64N(20000))
			if rnd.IntN(10) == 0 {
				tail = BlockSize * (1 + rnd.Int64N(3))
			}
		case erofs.TypeSymlink:
			tail = rnd.Int64N(MaxTarget + 1)
		default:
		}
		p := c.Next(head, tail)
		switch {
		case p.Pos%SlotSize != 0:
			t.Fatalf("%d: inode at %d", i, p.Pos)
		case p.Pos/BlockSize != (p.Pos+InodeSize-1)/BlockSize:
			t.Fatalf("%d: inode at %d straddles blocks", i, p.Pos)
		case p.Pos < end:
			t.Fatalf("%d: inode at %d overlaps what ends at %d", i, p.Pos, end)
		case p.Inline && p.Pos/BlockSize != (p.End-1)/BlockSize:
			t.Fatalf("%d: %d bytes of data behind the inode at %d straddle blocks", i, tail, p.Pos)
		case p.Block != blocks:
			t.Fatalf("%d: data at block %d, want %d", i, p.Block, blocks)
		}
		if typ == erofs.TypeDir || typ == erofs.TypeSymlink {
			stored := p.Blocks * BlockSize
			if p.Inline {
				stored += tail % BlockSize
			}
			if stored < tail {
				t.Fatalf("%d: room for %d of %d bytes", i, stored, tail)
			}
			used += stored - tail
		}
		used += p.Pos - end
		end, blocks = p.End, blocks+p.Blocks
	}
	if waste := float64(used) / 20000; waste > 600 {
		t.Errorf("%.0f bytes an inode wasted", waste)
	}
}

// TestDirPacker packs directories as mkfs.erofs does and reads them back.
func TestDirPacker(t *testing.T) {
	for _, n := range []int{1, 2, 127, 128, 129, 130, 5000} {
		var p DirPacker
		var size DirSize
		var blocks [][]byte
		var names []string
		for i := range n {
			// 12 + 20 bytes: 128 of them fill a block to the last byte.
			name := fmt.Sprintf("%020d", i)
			if n > 130 {
				name += strings.Repeat("x", i%236) // up to 255 bytes
			}
			names = append(names, name)
			size.Add(name)
			if b := p.Add(name, uint64(i)+7, erofs.TypeRegular); b != nil {
				blocks = append(blocks, bytes.Clone(b))
			}
		}
		last := p.Last()
		if got := int64(len(blocks))*BlockSize + int64(len(last)); got != size.Bytes() {
			t.Fatalf("%d entries: %d bytes, DirSize says %d", n, got, size.Bytes())
		}
		blocks = append(blocks, last)
		var got []string
		for _, b := range blocks {
			le := binary.LittleEndian
			count := int(le.Uint16(b[8:])) / DirentSize
			for i := range count {
				e := b[i*DirentSize:]
				from, to := int(le.Uint16(e[8:])), len(bytes.TrimRight(b, "\x00"))
				if i+1 < count {
					to = int(le.Uint16(b[(i+1)*DirentSize+8:]))
				}
				if nid := le.Uint64(e); nid != uint64(len(got))+7 || e[10] != byte(erofs.TypeRegular) {
					t.Fatalf("entry %d: nid %d, type %d", len(got), nid, e[10])
				}
				got = append(got, string(b[from:to]))
			}
		}
		if len(got) != len(names) {
			t.Fatalf("%d of %d entries", len(got), n)
		}
		for i := range names {
			if got[i] != names[i] {
				t.Fatalf("entry %d: %q, want %q", i, got[i], names[i])
			}
		}
	}
}

// TestSeal checks the checksum as the kernel does: of block 0 from the
// superblock on, the field itself zero.
func TestSeal(t *testing.T) {
	block := bytes.Repeat([]byte{0x5a}, BlockSize)
	clear(block[:SuperEnd])
	sb := Superblock{BuildTime: -5}
	sb.Seal(block)
	le := binary.LittleEndian
	stored := le.Uint32(block[disk.SuperBlockOffset+4:])
	le.PutUint32(block[disk.SuperBlockOffset+4:], 0)
	crc := ^uint32(0)
	table := crc32.MakeTable(crc32.Castagnoli)
	for _, b := range block[disk.SuperBlockOffset:] {
		crc = table[byte(crc)^b] ^ crc>>8
	}
	if crc != stored {
		t.Errorf("checksum %#x, want %#x", stored, crc)
	}
}

// TestPool: what occurs once stays inline, what repeats is shared once.
func TestPool(t *testing.T) {
	var p Pool
	once := p.Intern(AppendXattr(nil, 1, "once", "value"))
	twice := p.Intern(AppendXattr(nil, 1, "twice", "v"))
	if again := p.Intern(AppendXattr(nil, 1, "twice", "v")); again != twice || again == once {
		t.Fatalf("ids %d, %d, then %d", once, twice, again)
	}
	p.Intern(AppendXattr(nil, 1, "twice", "v"))
	if want := AppendXattr(nil, 1, "twice", "v"); !bytes.Equal(p.area, want) {
		t.Errorf("area % x, want % x", p.area, want)
	}
	if n, body := p.Split([]uint32{once, twice}); n != 1 || body != disk.XattrHeaderSize+4+16 {
		t.Errorf("split: %d shared, %d bytes", n, body)
	}
	if n, body := p.Split(nil); n != 0 || body != 0 {
		t.Errorf("split of nothing: %d, %d", n, body)
	}
	many := make([]uint32, 300)
	for i := range many {
		many[i] = twice
	}
	if n, body := p.Split(many); n != maxSharedPerIno || body != disk.XattrHeaderSize+4*255+45*12 {
		t.Errorf("split of 300: %d shared, %d bytes", n, body)
	}
}

// TestSplitXattr: a name is split as the kernel's handlers do it.
func TestSplitXattr(t *testing.T) {
	for _, c := range []struct {
		name  string
		index byte
		rest  string
		ok    bool
	}{
		{"user.comment", 1, "comment", true},
		{"system.posix_acl_access", 2, "", true},
		{"system.posix_acl_access.x", 0, "", false},
		{"system.posix_acl_default", 3, "", true},
		{"trusted.a.b", 4, "a.b", true},
		{"security.selinux", 6, "selinux", true},
		{"system.nfs4_acl", 0, "", false},
		{"nonsense", 0, "", false},
	} {
		if index, rest, ok := SplitXattr(c.name); index != c.index || rest != c.rest || ok != c.ok {
			t.Errorf("%s: %d %q %v", c.name, index, rest, ok)
		}
	}
}

// TestEncodedSizes holds the structures to the sizes of the format.
func TestEncodedSizes(t *testing.T) {
	if n := len((&Inode{}).Append(nil)); n != InodeSize {
		t.Errorf("inode of %d bytes", n)
	}
	if n := len(AppendXattr(nil, 1, "a", "")); n != 8 {
		t.Errorf("xattr of %d bytes", n)
	}
	in := Inode{XattrSize: MaxXattrBody}
	if icount := binary.LittleEndian.Uint16(in.Append(nil)[2:]); icount != math.MaxUint16 {
		t.Errorf("the largest xattr body has count %d", icount)
	}
}
