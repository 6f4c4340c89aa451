package disk

// Bits of the chunk format in i_u of a chunk-based inode.
const (
	ChunkBlockBitsMask = 0x1f // EROFS_CHUNK_FORMAT_BLKBITS_MASK: log2 of blocks in a chunk
	ChunkIndexes       = 0x20 // EROFS_CHUNK_FORMAT_INDEXES: ChunkIndex, not a block map
	Chunk48Bit         = 0x40 // EROFS_CHUNK_FORMAT_48BIT
	ChunkAll           = 0x7f
)

// Sizes of what a chunk-based inode has for each chunk.
const (
	BlockMapEntrySize = 4 // EROFS_BLOCK_MAP_ENTRY_SIZE
	ChunkIndexSize    = 8
)

// ChunkIndex is struct erofs_inode_chunk_index.
type ChunkIndex struct {
	StartBlkHi uint16 // 0x00 startblk_hi, with Chunk48Bit
	DeviceID   uint16 // 0x02 device_id, more bits than devices
	StartBlk   uint32 // 0x04 startblk_lo
}

// Decode reads the index that b starts with.
func (c *ChunkIndex) Decode(b []byte) {
	_ = b[ChunkIndexSize-1]
	c.StartBlkHi = le.Uint16(b)
	c.DeviceID = le.Uint16(b[2:])
	c.StartBlk = le.Uint32(b[4:])
}
