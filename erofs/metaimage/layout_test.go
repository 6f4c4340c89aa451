package metaimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs"
)

// TestCursor places random inodes and checks what the kernel demands.
func TestCursor(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	types := []erofs.FileType{erofs.TypeRegular, erofs.TypeDir, erofs.TypeSymlink, erofs.TypeFIFO}
	c := cursor{pos: superOff + superSize}
	used, end, blocks := int64(0), c.pos, int64(0)
	for i := range 20000 {
		typ := types[rnd.IntN(len(types))]
		head := int64(inodeSize)
		if rnd.IntN(2) == 0 {
			head += xattrHeaderSize + 4*rnd.Int64N(1+rnd.Int64N(2000))
		}
		var tail int64
		switch typ {
		case erofs.TypeRegular:
			tail = rnd.Int64N(maxChunks + 1)
		case erofs.TypeDir:
			tail = 15 + rnd.Int64N(1+rnd.Int64N(20000))
			if rnd.IntN(10) == 0 {
				tail = blockSize * (1 + rnd.Int64N(3))
			}
		case erofs.TypeSymlink:
			tail = rnd.Int64N(pathMax)
		default:
		}
		p := c.next(typ, head, tail)
		switch {
		case p.pos%slotSize != 0:
			t.Fatalf("%d: inode at %d", i, p.pos)
		case p.pos/blockSize != (p.pos+inodeSize-1)/blockSize:
			t.Fatalf("%d: inode at %d straddles blocks", i, p.pos)
		case p.pos < end:
			t.Fatalf("%d: inode at %d overlaps what ends at %d", i, p.pos, end)
		case p.inline && p.pos/blockSize != (p.end-1)/blockSize:
			t.Fatalf("%d: %d bytes of data behind the inode at %d straddle blocks", i, tail, p.pos)
		case p.block != blocks:
			t.Fatalf("%d: data at block %d, want %d", i, p.block, blocks)
		}
		if typ == erofs.TypeDir || typ == erofs.TypeSymlink {
			stored := p.blocks * blockSize
			if p.inline {
				stored += tail % blockSize
			}
			if stored < tail {
				t.Fatalf("%d: room for %d of %d bytes", i, stored, tail)
			}
			used += stored - tail
		}
		used += p.pos - end
		end, blocks = p.end, blocks+p.blocks
	}
	if waste := float64(used) / 20000; waste > 600 {
		t.Errorf("%.0f bytes an inode wasted", waste)
	}
}

// TestDirPacker packs directories as mkfs.erofs does and reads them back.
func TestDirPacker(t *testing.T) {
	for _, n := range []int{1, 2, 127, 128, 129, 130, 5000} {
		var p dirPacker
		var size dirSize
		var blocks [][]byte
		var names []string
		for i := range n {
			// 12 + 20 bytes: 128 of them fill a block to the last byte.
			name := fmt.Sprintf("%020d", i)
			if n > 130 {
				name += strings.Repeat("x", i%236) // up to 255 bytes
			}
			names = append(names, name)
			size.add(name)
			if b := p.add(name, uint64(i)+7, erofs.TypeRegular); b != nil {
				blocks = append(blocks, bytes.Clone(b))
			}
		}
		last := p.last()
		if got := int64(len(blocks))*blockSize + int64(len(last)); got != size.bytes() {
			t.Fatalf("%d entries: %d bytes, dirSize says %d", n, got, size.bytes())
		}
		blocks = append(blocks, last)
		var got []string
		for _, b := range blocks {
			le := binary.LittleEndian
			count := int(le.Uint16(b[8:])) / direntSize
			for i := range count {
				e := b[i*direntSize:]
				from, to := int(le.Uint16(e[8:])), len(bytes.TrimRight(b, "\x00"))
				if i+1 < count {
					to = int(le.Uint16(b[(i+1)*direntSize+8:]))
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

// TestChunkFormat: one chunk up to 8 TiB, and never one that ends before the file.
func TestChunkFormat(t *testing.T) {
	for _, c := range []struct {
		size   int64
		log    uint32
		chunks uint64
	}{
		{1, 0, 1},
		{4096, 0, 1},
		{4097, 1, 1},
		{8192, 1, 1},
		{8193, 2, 1},
		{1 << 40, 28, 1},
		{1<<40 + 1, 29, 1},
		{chunkSpan, 31, 1},
		{chunkSpan + 1, 31, 2},
		{chunkSpan * maxChunks, 31, maxChunks},
		{math.MaxInt64, 31, 1 << 20},
	} {
		format, chunks := chunkFormat(c.size)
		if format != chunkIndexes|c.log || chunks != c.chunks {
			t.Errorf("%d bytes: format %#x, %d chunks; want %#x, %d", c.size, format, chunks, chunkIndexes|c.log, c.chunks)
		}
	}
}

// TestEncodedSizes holds the structures to the sizes of the format.
func TestEncodedSizes(t *testing.T) {
	if n := len(appendInode(nil, &erofs.Inode{}, inodeFields{})); n != inodeSize {
		t.Errorf("inode of %d bytes", n)
	}
	if n := len(appendHole(nil)); n != chunkSize {
		t.Errorf("chunk index of %d bytes", n)
	}
	if n := len(appendXattr(nil, 1, "a", "")); n != 8 {
		t.Errorf("xattr of %d bytes", n)
	}
	f := inodeFields{xattrSize: maxXattrBody}
	if icount := binary.LittleEndian.Uint16(appendInode(nil, &erofs.Inode{}, f)[2:]); icount != math.MaxUint16 {
		t.Errorf("the largest xattr body has count %d", icount)
	}
	if len(volumeName) > 15 {
		t.Error("the volume name has no NUL at its end")
	}
}

// TestSeal checks the checksum as the kernel does: of block 0 from the
// superblock on, the field itself zero.
func TestSeal(t *testing.T) {
	block := bytes.Repeat([]byte{0x5a}, blockSize)
	clear(block[:superOff+superSize])
	sb := superblock{source: &erofs.Superblock{BuildTime: -5}}
	sb.seal(block)
	le := binary.LittleEndian
	stored := le.Uint32(block[superOff+4:])
	le.PutUint32(block[superOff+4:], 0)
	crc := ^uint32(0)
	table := crc32.MakeTable(crc32.Castagnoli)
	for _, b := range block[superOff:] {
		crc = table[byte(crc)^b] ^ crc>>8
	}
	if crc != stored {
		t.Errorf("checksum %#x, want %#x", stored, crc)
	}
}

// TestPool: what occurs once stays inline, what repeats is shared once.
func TestPool(t *testing.T) {
	var p xattrPool
	once := p.intern(appendXattr(nil, 1, "once", "value"))
	twice := p.intern(appendXattr(nil, 1, "twice", "v"))
	if again := p.intern(appendXattr(nil, 1, "twice", "v")); again != twice || again == once {
		t.Fatalf("ids %d, %d, then %d", once, twice, again)
	}
	p.intern(appendXattr(nil, 1, "twice", "v"))
	if want := appendXattr(nil, 1, "twice", "v"); !bytes.Equal(p.area, want) {
		t.Errorf("area % x, want % x", p.area, want)
	}
	if n, body := p.split([]uint32{once, twice}); n != 1 || body != xattrHeaderSize+4+16 {
		t.Errorf("split: %d shared, %d bytes", n, body)
	}
	if n, body := p.split(nil); n != 0 || body != 0 {
		t.Errorf("split of nothing: %d, %d", n, body)
	}
	many := make([]uint32, 300)
	for i := range many {
		many[i] = twice
	}
	if n, body := p.split(many); n != maxSharedPerIno || body != xattrHeaderSize+4*255+45*12 {
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
		if index, rest, ok := splitXattr(c.name); index != c.index || rest != c.rest || ok != c.ok {
			t.Errorf("%s: %d %q %v", c.name, index, rest, ok)
		}
	}
}

// TestCheckName: names out of order or impossible are the image's fault.
func TestCheckName(t *testing.T) {
	in := &erofs.Inode{NID: 1}
	for _, c := range []struct{ name, last string }{
		{"", ""}, {"a/b", ""}, {"a\x00", ""}, {strings.Repeat("x", 256), ""}, {"a", "a"}, {"a", "b"},
	} {
		if err := checkName(in, c.name, c.last); !errors.Is(err, erofs.ErrCorrupt) {
			t.Errorf("%q after %q: %v", c.name, c.last, err)
		}
	}
	if err := checkName(in, "b", "a"); err != nil {
		t.Error(err)
	}
}

// TestUnreadPath names an inode for messages, however deep it is.
func TestUnreadPath(t *testing.T) {
	root := &unread{name: "."}
	a := &unread{name: "a", parent: root}
	if got := (&unread{name: "b", parent: a}).path("c"); got != "a/b/c" {
		t.Errorf("path %q", got)
	}
	if got := root.path("c"); got != "c" {
		t.Errorf("path in the root %q", got)
	}
	deep := root
	for range 100000 {
		deep = &unread{name: strings.Repeat("d", 200), parent: deep}
	}
	if got := deep.path("x"); len(got) > 2*pathMax || !strings.HasPrefix(got, ".../") {
		t.Errorf("deep path has %d bytes, starts %.10q", len(got), got)
	}
}

// TestRecord: what META can't show is refused, what no image has is corrupt.
func TestRecord(t *testing.T) {
	for _, c := range []struct {
		name string
		in   *erofs.Inode
		want error
	}{
		{"whiteout", &erofs.Inode{Mode: modeChar, Nlink: 1}, ErrNeedsTree},
		{"no links", &erofs.Inode{Mode: modeFIFO}, ErrNeedsTree},
		{"long target", &erofs.Inode{Mode: modeSymlink, Nlink: 1, Size: pathMax}, ErrNeedsTree},
		{"huge", &erofs.Inode{Mode: modeRegular, Nlink: 1, Size: chunkSpan*maxChunks + 1}, ErrNeedsTree},
		{"no type", &erofs.Inode{Mode: 0o644, Nlink: 1}, erofs.ErrCorrupt},
		{"mode", &erofs.Inode{Mode: modeFIFO | 1<<16, Nlink: 1}, erofs.ErrCorrupt},
		{"nanoseconds", &erofs.Inode{Mode: modeFIFO, Nlink: 1, MtimeNsec: maxNsec}, erofs.ErrCorrupt},
		{"size", &erofs.Inode{Mode: modeRegular, Nlink: 1, Size: -1}, erofs.ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &builder{index: map[uint64]uint32{}}
			_, err := b.record(c.in, func(reason string) error { return needsTree(nil, "x", c.in, reason) })
			if !errors.Is(err, c.want) {
				t.Errorf("record: %v, want %v", err, c.want)
			}
			if len(b.recs) != 0 {
				t.Error("recorded")
			}
		})
	}
}
