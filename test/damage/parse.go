package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"regexp"
	"strconv"

	"github.com/erofs-csi/erofs-csi/erofs"
)

// Where the superblock and its fields are; include/erofs_fs.h of erofs-utils.
const (
	sbAt          = 1024
	sbSize        = 128
	sbChecksum    = sbAt + 0x04
	sbCompat      = sbAt + 0x08
	sbBlkBits     = sbAt + 0x0c
	sbExtSlots    = sbAt + 0x0d
	sbRoot        = sbAt + 0x0e
	sbBlocks      = sbAt + 0x24
	sbMeta        = sbAt + 0x28
	sbXattr       = sbAt + 0x2c
	sbUUID        = sbAt + 0x30
	sbIncompat    = sbAt + 0x50
	sbAlgorithms  = sbAt + 0x54
	sbDevices     = sbAt + 0x56
	sbDeviceSlot  = sbAt + 0x58
	sbDirBlkBits  = sbAt + 0x5a
	sbPrefixes    = sbAt + 0x5b
	sbPrefixStart = sbAt + 0x5c
	sbPacked      = sbAt + 0x60
	sbDigest      = sbAt + 0x69
	sbRoot8       = sbAt + 0x70
	sbMetabox     = sbAt + 0x80
)

var le = binary.LittleEndian

// image is a good image with the places of its structures.
type image struct {
	kind       *kind
	tools      tools
	path, blob string // blob "": there is none
	b          []byte
	blk        int64 // bytes of a block
	open       *erofs.Image
	nodes      map[string]*node
	metabox    []extent // where its data are, if they are not compressed
}

// node is an inode with the places of its parts in the image.
type node struct {
	*erofs.Inode
	at    int64 // of the inode; -1: in a compressed metabox
	xattr int64 // of the attributes' header
	body  int64 // of what comes behind them: tail, chunk indexes or map header
}

// extent is a run of a file's data.
type extent struct {
	la, n    int64 // in the file
	pa, plen int64 // in the image
}

func (im *image) u16(at int64) uint16 { return le.Uint16(im.b[at:]) }
func (im *image) u32(at int64) uint32 { return le.Uint32(im.b[at:]) }
func (im *image) u64(at int64) uint64 { return le.Uint64(im.b[at:]) }

// openBytes opens the bytes of an image and the file with its extra device, if
// it has one. The caller calls done, unless that is nil, when it is through.
func openBytes(b []byte, blob string) (im *erofs.Image, done func(), err error) {
	if blob == "" {
		im, err := erofs.Open(bytes.NewReader(b), int64(len(b)))
		return im, func() {}, err
	}
	f, err := os.Open(blob)
	if err != nil {
		return nil, nil, err
	}
	done = func() { f.Close() }
	st, err := f.Stat()
	if err != nil {
		return nil, done, err
	}
	im, err = erofs.Open(bytes.NewReader(b), int64(len(b)), erofs.WithDevices(erofs.Device{R: f, Size: st.Size()}))
	return im, done, err
}

// parse finds the image's inodes.
func (im *image) parse(ctx context.Context) error {
	im.blk = 1 << im.b[sbBlkBits]
	opened, done, err := openBytes(im.b, im.blob)
	if err != nil {
		return err
	}
	defer done()
	im.open = opened
	sb := opened.Superblock()
	if sb.MetaboxNID != 0 {
		in, err := opened.Inode(sb.MetaboxNID)
		if err != nil {
			return err
		}
		if !in.Layout.Compressed() {
			if im.metabox, err = im.extents(ctx, in.NID); err != nil {
				return err
			}
		}
	}
	im.nodes = make(map[string]*node)
	add := func(path string, in *erofs.Inode) error {
		im.nodes[path] = im.node(in)
		return nil
	}
	if err := opened.Walk(add); err != nil {
		return err
	}
	for path, nid := range map[string]uint64{"(packed)": sb.PackedNID, "(metabox)": sb.MetaboxNID} {
		if nid != 0 {
			in, err := opened.Inode(nid)
			if err != nil {
				return err
			}
			im.nodes[path] = im.node(in)
		}
	}
	return nil
}

func (im *image) node(in *erofs.Inode) *node {
	n := &node{Inode: in, at: int64(im.u32(sbMeta))*im.blk + int64(in.NID)*32}
	if in.NID>>63 != 0 {
		n.at = im.inMetabox(int64(in.NID<<1>>1) * 32)
	}
	if n.at < 0 {
		return n
	}
	n.xattr = n.at + 32
	if im.b[n.at]&1 != 0 {
		n.xattr = n.at + 64
	}
	n.body = n.xattr
	if count := int64(im.u16(n.at + 2)); count > 0 {
		n.body += 12 + 4*(count-1)
	}
	return n
}

// inMetabox is the place in the image of a byte of the metabox, -1: it has none.
func (im *image) inMetabox(off int64) int64 {
	for _, e := range im.metabox {
		if off >= e.la && off < e.la+e.n {
			return e.pa + off - e.la
		}
	}
	return -1
}

// dumpLine is a line of the table that dump.erofs -e prints: the number of the
// extent, its start and end in the file and its length, and the same in the image.
var dumpLine = regexp.MustCompile(`(?m)^ *\d+: *(\d+)\.\. *\d+ \| *(\d+) : *(\d+)\.\. *\d+ \| *(\d+)`)

// extents asks dump.erofs where a file's data are.
func (im *image) extents(ctx context.Context, nid uint64) ([]extent, error) {
	args := []string{"-e", "--nid=" + strconv.FormatUint(nid, 10), im.path}
	if im.blob != "" {
		args = append([]string{"--device=" + im.blob}, args...)
	}
	out, err := im.tools.run(ctx, "dump.erofs", args...)
	if err != nil {
		return nil, err
	}
	var list []extent
	for _, line := range dumpLine.FindAllStringSubmatch(string(out), -1) {
		var v [4]int64
		for i := range v {
			v[i], _ = strconv.ParseInt(line[i+1], 10, 64)
		}
		list = append(list, extent{v[0], v[1], v[2], v[3]})
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("dump.erofs knows no extents of nid %d: %s", nid, out)
	}
	return list, nil
}

// entry is one entry of a directory block.
type entry struct {
	at   int64 // of the entry
	base int64 // of its block
	name int64 // of its name
	text string
}

// entries are those of block i of a flat directory, whose last block may be a
// tail behind the inode.
func (im *image) entries(n *node, i int64) []entry {
	base, size := int64(im.u32(n.at+16))*im.blk+i*im.blk, min(im.blk, n.Size-i*im.blk)
	if n.Layout == erofs.FlatInline && i == (n.Size-1)/im.blk {
		base = n.body
	}
	var list []entry
	count := int64(im.u16(base+8)) / 12
	for k := range count {
		at := base + k*12
		name, end := base+int64(im.u16(at+8)), base+size
		if k+1 < count {
			end = base + int64(im.u16(at+12+8))
		}
		text, _, _ := bytes.Cut(im.b[name:end], []byte{0})
		list = append(list, entry{at: at, base: base, name: name, text: string(text)})
	}
	return list
}
