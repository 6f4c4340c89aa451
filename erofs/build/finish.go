package build

import (
	"bytes"
	"crypto/sha256"
	"hash"
	"io"
	"maps"
	"math"
	"slices"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
	"github.com/erofs-csi/erofs-csi/erofs/internal/encode"
)

const (
	// fingerprintName is what mkfs.erofs 1.9 calls a fingerprint; its index has no
	// name in Linux, so that nobody sees it.
	fingerprintName = "erofs.fingerprint.v1"
	fingerprintTag  = "sha256:"
	// fingerprintSize is the size of a fingerprint's entry.
	fingerprintSize = (disk.XattrEntrySize + len(fingerprintTag) + sha256.Size + 3) &^ 3
	// bodyOverhead is what an inode may have behind it besides its attributes.
	bodyOverhead = disk.XattrHeaderSize + int64(fingerprintSize)

	// prefixTable is where the long prefixes are, behind the superblock.
	prefixTable = encode.SuperEnd
)

// finisher is the state of one Finish.
type finisher struct {
	*Builder
	stats   Stats
	inodes  []*inode    // in the order of the image
	names   [][]string  // of the directories, in the same order
	parents []*inode    // likewise
	pool    encode.Pool // attributes
	ids     []uint32    // attributes of an inode
	tails   []int64     // bytes of flat data that go into the metadata, by inode

	meta     int64 // address of the shared attributes
	first    int64 // address of the root
	nids     []uint64
	dirBlock int64
	end      int64

	hash   hash.Hash
	stream *encode.Stream
	cursor encode.Cursor
	body   encode.Body
	packer encode.DirPacker
	buf    []byte
	small  bytes.Buffer
}

// Finish writes the image. It does not sync the file.
func (b *Builder) Finish() (Stats, error) {
	f := &finisher{Builder: b, hash: sha256.New()}
	if err := f.arrange(); err != nil {
		return Stats{}, err
	}
	if err := f.emit(); err != nil {
		return Stats{}, err
	}
	f.stats.Size = f.end
	f.stats.Inodes = uint64(len(f.inodes))
	f.stats.SharedXattr = int64(len(f.pool.Area()))
	return f.stats, nil
}

// order numbers the inodes: a directory, then its entries that are no directories,
// then the directories below it, each list in the order of names. So a small
// directory and its files are near each other.
func (f *finisher) order() error {
	stack := []*inode{f.tree.root}
	f.tree.root.nlink = 2
	for len(stack) > 0 {
		if err := f.ctx.Err(); err != nil {
			return err
		}
		dir := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		f.number(dir)
		names := slices.Sorted(maps.Keys(dir.dir.names))
		f.names = append(f.names, names)
		f.parents = append(f.parents, dir.dir.parent)
		for i := len(names) - 1; i >= 0; i-- {
			in := dir.dir.names[names[i]].in
			if in.dir != nil {
				dir.nlink++
				in.nlink = 2
				stack = append(stack, in)
			}
		}
		for _, name := range names {
			in := dir.dir.names[name].in
			if in.dir != nil {
				continue
			}
			in.nlink++
			if in.index == 0 {
				f.number(in)
			}
		}
	}
	return nil
}

func (f *finisher) number(in *inode) {
	f.inodes = append(f.inodes, in)
	in.index = uint32(len(f.inodes))
	f.attrs.each(in.attrs, func(enc []byte) { f.pool.Intern(enc) })
	if in.mode&modeFmt == modeRegular {
		f.stats.Files++
	}
	if c := in.content; c != nil && !c.live {
		c.live = true
		f.stats.Data += c.size
	}
}

// bodySize is the size of the attributes behind an inode. It leaves in ids which
// they are.
func (f *finisher) bodySize(in *inode) int64 {
	f.ids = f.ids[:0]
	f.attrs.each(in.attrs, func(enc []byte) { f.ids = append(f.ids, f.pool.Find(enc)) })
	_, size := f.pool.Split(f.ids)
	if in.content != nil {
		if size == 0 {
			size = disk.XattrHeaderSize
		}
		size += int64(fingerprintSize)
	}
	return size
}

// arrange decides where everything goes and moves the data there.
func (f *finisher) arrange() error {
	if err := f.order(); err != nil {
		return err
	}
	end, dropped, err := f.compact()
	if err != nil {
		return err
	}
	f.stats.Dropped = dropped
	f.meta = end
	f.first = encode.Align(f.meta+int64(len(f.pool.Area())), encode.SlotSize)
	if f.first%blockSize == 0 {
		f.first += encode.SlotSize // some readers take an inode number 0 for a deleted file
	}
	f.cursor = encode.Cursor{Pos: f.first}
	f.tails = make([]int64, len(f.inodes))
	f.nids = make([]uint64, len(f.inodes))
	dirs := 0
	for i, in := range f.inodes {
		f.tails[i] = f.tail(in, dirs)
		if in.dir != nil {
			dirs++
		}
		at := f.cursor.Next(encode.InodeSize+f.bodySize(in), f.tails[i])
		f.nids[i] = uint64(at.Pos-f.metaBlock()*blockSize) / encode.SlotSize
	}
	f.dirBlock = encode.Align(f.cursor.Pos, blockSize) / blockSize
	f.end = (f.dirBlock + f.cursor.Blocks) * blockSize
	if f.end/blockSize > math.MaxUint32 {
		return beyond("an image of %d bytes; EROFS with blocks of %d bytes has at most 16 TiB", f.end, blockSize)
	}
	return nil
}

func (f *finisher) metaBlock() int64 { return f.first / blockSize }

// tail is how many bytes of data an inode has in the metadata.
func (f *finisher) tail(in *inode, dirs int) int64 {
	switch {
	case in.dir != nil:
		var size encode.DirSize
		f.eachName(f.names[dirs], func(name string) { size.Add(name) })
		return size.Bytes()
	case in.content != nil && in.content.isSmall():
		return in.content.size
	}
	return int64(len(in.target))
}

// eachName calls fn with the names of a directory in byte order, with "." and "..".
func (f *finisher) eachName(names []string, fn func(name string)) {
	dots := []string{".", ".."}
	for _, name := range names {
		for len(dots) > 0 && dots[0] < name {
			fn(dots[0])
			dots = dots[1:]
		}
		fn(name)
	}
	for _, dot := range dots {
		fn(dot)
	}
}

// emit writes the metadata, then the superblock.
func (f *finisher) emit() error {
	if err := f.out.Truncate(f.end); err != nil {
		return err
	}
	f.stream = encode.NewStream(hashing{f.out, f.hash}, f.meta, nil)
	f.stream.Write(f.pool.Area())
	f.cursor = encode.Cursor{Pos: f.first}
	dirs := 0
	for i, in := range f.inodes {
		if i%1024 == 0 && f.ctx.Err() != nil {
			return f.ctx.Err()
		}
		if err := f.inode(i, in, dirs); err != nil {
			return err
		}
		if in.dir != nil {
			dirs++
		}
	}
	f.stream.PadTo(f.dirBlock * blockSize)
	if err := f.stream.Flush(); err != nil {
		return err
	}
	return f.super()
}

// super writes block 0.
func (f *finisher) super() error {
	sec, nsec := f.buildTime()
	sb := encode.Superblock{
		Compat:        disk.CompatPlainXattrPrefix | disk.CompatIshareXattrs,
		Incompat:      disk.IncompatXattrPrefixes,
		RootNID:       uint16(f.nids[0]),
		Inodes:        uint64(len(f.inodes)),
		BuildTime:     sec,
		BuildTimeNsec: nsec,
		Blocks:        uint32(f.end / blockSize),
		MetaBlock:     uint32(f.metaBlock()),
		XattrBlock:    uint32(f.meta / blockSize),
		PrefixCount:   1,
		PrefixStart:   prefixTable / 4,
		VolumeName:    "erofs-csi",
	}
	digest := f.hash.Sum(nil)
	copy(sb.UUID[:], digest)
	sb.UUID[6] = sb.UUID[6]&0x0f | 0x80 // version 8: made by us
	sb.UUID[8] = sb.UUID[8]&0x3f | 0x80
	block := make([]byte, blockSize)
	block[prefixTable] = byte(1 + len(fingerprintName))
	copy(block[prefixTable+3:], fingerprintName)
	sb.Seal(block)
	_, err := f.out.WriteAt(block, 0)
	return err
}

// hashing hashes what is written, in the order of the writes.
type hashing struct {
	w io.WriterAt
	h hash.Hash
}

func (h hashing) WriteAt(p []byte, off int64) (int, error) {
	h.h.Write(p)
	return h.w.WriteAt(p, off)
}

// inode writes an inode and what belongs to it.
func (f *finisher) inode(i int, in *inode, dirs int) error {
	body := f.bodySize(in)
	at := f.cursor.Next(encode.InodeSize+body, f.tails[i])
	enc := encode.Inode{
		Layout: erofs.FlatPlain, Mode: in.mode, UID: in.uid, GID: in.gid, Nlink: in.nlink,
		MtimeSec: in.mtimeSec, MtimeNsec: in.mtimeNsec, Size: uint64(f.tails[i]),
		XattrSize: body, U: in.rdev, Ino: in.index,
	}
	if at.Inline {
		enc.Layout = erofs.FlatInline
	}
	switch c := in.content; {
	case c != nil && !c.isSmall():
		enc.Size = uint64(c.size)
		enc.U = uint32(c.at / blockSize)
	case at.Blocks > 0:
		enc.U = uint32(f.dirBlock + at.Block)
	}
	f.stream.PadTo(at.Pos)
	f.buf = enc.Append(f.buf[:0])
	f.body.Reset()
	n := 0
	f.attrs.each(in.attrs, func(attr []byte) { // ids are those of bodySize
		f.body.Add(&f.pool, f.ids[n], attr, 0)
		n++
	})
	if in.content != nil {
		f.body.AddInline(encode.AppendXattr(nil, disk.XattrLongPrefix, "", fingerprintTag+string(in.content.sum[:])))
	}
	f.buf = f.body.Append(f.buf)
	f.stream.Write(f.buf)
	tail, err := f.data(in, at, dirs)
	if err != nil {
		return err
	}
	f.stream.Write(tail)
	return f.stream.Err()
}

// data writes the blocks of flat data in the metadata and returns what goes behind
// the inode.
func (f *finisher) data(in *inode, at encode.Place, dirs int) ([]byte, error) {
	switch {
	case in.dir != nil:
		return f.directory(in, at, dirs)
	case in.content != nil && in.content.isSmall():
		p, err := f.readSmall(in.content, &f.small)
		if err != nil {
			return nil, err
		}
		return f.last(p, at, 0)
	}
	return f.last([]byte(in.target), at, 0)
}

func (f *finisher) directory(in *inode, at encode.Place, dirs int) ([]byte, error) {
	f.packer.Size = encode.DirSize{}
	n := int64(0)
	var err error
	f.eachName(f.names[dirs], func(name string) {
		to := in
		switch name {
		case ".":
		case "..":
			to = f.parents[dirs]
		default:
			to = in.dir.names[name].in
		}
		block := f.packer.Add(name, f.nids[to.index-1], encode.DirentType(to.mode))
		if block != nil && err == nil {
			err = f.block(block, at, n)
			n++
		}
	})
	if err != nil {
		return nil, err
	}
	return f.last(f.packer.Last(), at, n)
}

// last writes the last, maybe partial block of data as data block n, or returns it
// if it goes behind the inode.
func (f *finisher) last(data []byte, at encode.Place, n int64) ([]byte, error) {
	if at.Inline || len(data) == 0 {
		return data, nil
	}
	var block [blockSize]byte
	copy(block[:], data)
	return nil, f.block(block[:], at, n)
}

func (f *finisher) block(p []byte, at encode.Place, n int64) error {
	_, err := hashing{f.out, f.hash}.WriteAt(p, (f.dirBlock+at.Block+n)*blockSize)
	return err
}
