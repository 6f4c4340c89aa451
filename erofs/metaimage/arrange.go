package metaimage

import (
	"fmt"
	"math"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/internal/encode"
)

// plan says where the parts of META are:
//
//	0     1024         1152                                        blocks
//	+-----+------------+---------------+--------+------------------+
//	|  0  | superblock | shared xattrs | inodes | directory blocks |
//	+-----+------------+---------------+--------+------------------+
//	                                   ^ first  ^ dirBlock
//
// Inodes are 32-byte aligned, directory blocks are whole blocks. The order is
// what makes a lookup cheap: a small directory has its entries right behind its
// inode, and the inodes of its files after that.
type plan struct {
	first     int64 // address of the root's inode
	dirBlock  int64 // first of the directory blocks
	dirBlocks int64 // their number; of the blocks of long link targets as well
}

// metaBlock is the block of nid 0. The root is in it, but not at its start:
// some readers of directories take an inode number 0 for a deleted file.
func (p *plan) metaBlock() int64 { return p.first >> encode.BlockBits }

func (p *plan) blocks() int64 { return p.dirBlock + p.dirBlocks }

// nid is the number of the inode at pos.
func (p *plan) nid(pos int64) int64 { return (pos - p.metaBlock()<<encode.BlockBits) / encode.SlotSize }

// arrange gives every inode its nid, now that it is known which xattrs repeat.
func (b *builder) arrange() (*plan, error) {
	first := encode.Align(encode.SuperEnd+int64(len(b.pool.Area())), encode.SlotSize)
	if first&(encode.BlockSize-1) == 0 {
		first += encode.SlotSize
	}
	p := &plan{first: first}
	c := encode.Cursor{Pos: first}
	for i := range b.recs {
		r := &b.recs[i]
		_, body := b.pool.Split(b.idsOf(i))
		if body > encode.MaxXattrBody {
			return nil, &NeedsTreeError{NID: r.nid, Reason: fmt.Sprintf("has %d bytes of attributes", body)}
		}
		at := b.place(&c, r, body)
		nid := p.nid(at.Pos)
		if nid > math.MaxUint32 {
			return nil, &NeedsTreeError{NID: r.nid, Reason: "does not fit into an image of 128 GiB"}
		}
		r.slot = uint32(nid) //nolint:gosec // checked
	}
	p.dirBlock = encode.Align(c.Pos, encode.BlockSize) >> encode.BlockBits
	p.dirBlocks = c.Blocks
	if p.blocks() > math.MaxUint32 {
		return nil, &NeedsTreeError{NID: b.recs[0].nid, Path: ".", Reason: "has directories of more than 16 TiB"}
	}
	return p, nil
}

// place places a record's inode, the same way in both passes.
func (b *builder) place(c *encode.Cursor, r *record, xattrs int64) encode.Place {
	head := encode.InodeSize + xattrs
	switch {
	case r.typ == erofs.TypeDir, r.typ == erofs.TypeSymlink:
		return c.Next(head, int64(r.tail))
	case r.tail > 0:
		head = encode.Align(head, chunkSize) + int64(r.tail)*chunkSize
	}
	return c.Next(head, 0)
}
