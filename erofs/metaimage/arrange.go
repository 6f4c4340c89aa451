package metaimage

import (
	"fmt"
	"math"

	"github.com/erofs-csi/erofs-csi/erofs"
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
func (p *plan) metaBlock() int64 { return p.first >> blockBits }

func (p *plan) blocks() int64 { return p.dirBlock + p.dirBlocks }

// nid is the number of the inode at pos.
func (p *plan) nid(pos int64) int64 { return (pos - p.metaBlock()<<blockBits) / slotSize }

// place is where an inode goes.
type place struct {
	pos    int64 // of the inode
	end    int64 // behind all that follows it
	inline bool  // the last, partial block of its data is behind it
	blocks int64 // data blocks, at dirBlock + block
	block  int64
}

// cursor hands out places, the same ones in both passes.
type cursor struct {
	pos    int64
	blocks int64
}

// next places an inode of head bytes (with its xattrs) and what follows it.
//
// An inode does not straddle blocks, and data behind an inode are in the block
// of the inode, as the kernel wants it for links (erofs_fill_symlink). Data that
// do not fit in what is left of the block go to the next one with their inode, or
// into a block of their own, whichever wastes less.
func (c *cursor) next(t erofs.FileType, head, tail int64) place {
	p := place{block: c.blocks}
	body := head
	rest := int64(0)
	switch t {
	case erofs.TypeRegular:
		if tail > 0 {
			body = align(head, chunkSize) + tail*chunkSize
		}
	case erofs.TypeDir, erofs.TypeSymlink:
		p.blocks, rest = tail>>blockBits, tail&(blockSize-1)
		left := blockSize - c.pos&(blockSize-1)
		switch {
		case rest == 0: // whole blocks, or an empty target
		case head+rest <= left:
			p.inline = true
		case head+rest <= blockSize && left+rest <= blockSize:
			p.inline = true
			c.pos = align(c.pos, blockSize)
		default:
			p.blocks++
		}
		if p.inline {
			body += rest
		}
	default:
	}
	if c.pos&(blockSize-1)+inodeSize > blockSize {
		c.pos = align(c.pos, blockSize)
	}
	p.pos, p.end = c.pos, c.pos+body
	c.pos = align(p.end, slotSize)
	c.blocks += p.blocks
	return p
}

// arrange gives every inode its nid, now that it is known which xattrs repeat.
func (b *builder) arrange() (*plan, error) {
	first := align(superOff+superSize+int64(len(b.pool.area)), slotSize)
	if first&(blockSize-1) == 0 {
		first += slotSize
	}
	p := &plan{first: first}
	c := cursor{pos: first}
	for i := range b.recs {
		r := &b.recs[i]
		_, body := b.pool.split(b.idsOf(i))
		if body > maxXattrBody {
			return nil, &NeedsTreeError{NID: r.nid, Reason: fmt.Sprintf("has %d bytes of attributes", body)}
		}
		at := c.next(r.typ, inodeSize+body, int64(r.tail))
		nid := p.nid(at.pos)
		if nid > math.MaxUint32 {
			return nil, &NeedsTreeError{NID: r.nid, Reason: "does not fit into an image of 128 GiB"}
		}
		r.slot = uint32(nid) //nolint:gosec // checked
	}
	p.dirBlock = align(c.pos, blockSize) >> blockBits
	p.dirBlocks = c.blocks
	if p.blocks() > math.MaxUint32 {
		return nil, &NeedsTreeError{NID: b.recs[0].nid, Path: ".", Reason: "has directories of more than 16 TiB"}
	}
	return p, nil
}
