package disk

// Compression algorithms: bit numbers of available_compr_algs.
const (
	AlgLZ4     = 0 // Z_EROFS_COMPRESSION_LZ4
	AlgLZMA    = 1 // Z_EROFS_COMPRESSION_LZMA
	AlgDeflate = 2 // Z_EROFS_COMPRESSION_DEFLATE
	AlgZstd    = 3 // Z_EROFS_COMPRESSION_ZSTD
	AlgEnd     = 4
)

// PclusterMaxSize bounds the encoded size of a physical cluster in bytes
// (Z_EROFS_PCLUSTER_MAX_SIZE).
const PclusterMaxSize = 1 << 20

// LZ4CfgsSize is the size of LZ4Cfgs.
const LZ4CfgsSize = 14

// LZ4Cfgs is struct z_erofs_lz4_cfgs, one of the length-prefixed records
// behind the superblock.
type LZ4Cfgs struct {
	MaxDistance     uint16   // 0x00 max_distance
	MaxPclusterBlks uint16   // 0x02 max_pclusterblks
	Reserved        [10]byte // 0x04
}

// Decode reads the record that b starts with.
func (c *LZ4Cfgs) Decode(b []byte) {
	_ = b[LZ4CfgsSize-1]
	c.MaxDistance = le.Uint16(b)
	c.MaxPclusterBlks = le.Uint16(b[2:])
	copy(c.Reserved[:], b[4:])
}
