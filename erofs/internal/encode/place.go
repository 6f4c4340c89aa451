package encode

// Place is where an inode goes.
type Place struct {
	Pos    int64 // of the inode
	End    int64 // behind all that follows it
	Inline bool  // the last, partial block of its data is behind it
	Blocks int64 // data blocks, from Block on
	Block  int64 // counted from the first of all data blocks that the cursor gave
}

// Cursor hands out places one after the other.
type Cursor struct {
	Pos    int64 // address of the next inode
	Blocks int64 // data blocks given so far
}

// Next places an inode of head bytes, with what belongs to it, and data bytes of
// flat data.
//
// An inode does not straddle blocks, and data behind an inode are in the block
// of the inode, as the kernel wants it for links (erofs_fill_symlink). Data that
// do not fit in what is left of the block go to the next one with their inode, or
// into a block of their own, whichever wastes less.
func (c *Cursor) Next(head, data int64) Place {
	p := Place{Block: c.Blocks, Blocks: data >> BlockBits}
	body := head
	rest := data & (BlockSize - 1)
	left := BlockSize - c.Pos&(BlockSize-1)
	switch {
	case rest == 0: // whole blocks, or nothing
	case head+rest <= left:
		p.Inline = true
	case head+rest <= BlockSize && left+rest <= BlockSize:
		p.Inline = true
		c.Pos = Align(c.Pos, BlockSize)
	default:
		p.Blocks++
	}
	if p.Inline {
		body += rest
	}
	if c.Pos&(BlockSize-1)+InodeSize > BlockSize {
		c.Pos = Align(c.Pos, BlockSize)
	}
	p.Pos, p.End = c.Pos, c.Pos+body
	c.Pos = Align(p.End, SlotSize)
	c.Blocks += p.Blocks
	return p
}
