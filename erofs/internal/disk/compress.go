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

// Sizes of the algorithms' configurations, length-prefixed records behind the
// superblock.
const (
	LZ4CfgsSize     = 14
	LZMACfgsSize    = 14
	DeflateCfgsSize = 6
	ZstdCfgsSize    = 6
)

// Limits of the algorithms' windows.
const (
	LZMADictMin       = 4096
	LZMADictMax       = 8 << 20 // Z_EROFS_LZMA_MAX_DICT_SIZE
	DeflateWindowBits = 15      // MAX_WBITS
	ZstdDictMaxBits   = 20      // log2 of Z_EROFS_ZSTD_MAX_DICT_SIZE
	ZstdWindowLogMin  = 10      // what ZstdCfgs.WindowLog counts from
)

// LZ4Cfgs is struct z_erofs_lz4_cfgs.
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

// LZMACfgs is struct z_erofs_lzma_cfgs.
type LZMACfgs struct {
	DictSize uint32  // 0x00 dict_size, bytes
	Format   uint16  // 0x04 format
	Reserved [8]byte // 0x06
}

// Decode reads the record that b starts with.
func (c *LZMACfgs) Decode(b []byte) {
	_ = b[LZMACfgsSize-1]
	c.DictSize = le.Uint32(b)
	c.Format = le.Uint16(b[4:])
	copy(c.Reserved[:], b[6:])
}

// DeflateCfgs is struct z_erofs_deflate_cfgs.
type DeflateCfgs struct {
	WindowBits uint8   // 0x00 windowbits
	Reserved   [5]byte // 0x01
}

// Decode reads the record that b starts with.
func (c *DeflateCfgs) Decode(b []byte) {
	_ = b[DeflateCfgsSize-1]
	c.WindowBits = b[0]
	copy(c.Reserved[:], b[1:])
}

// ZstdCfgs is struct z_erofs_zstd_cfgs.
type ZstdCfgs struct {
	Format    uint8   // 0x00 format
	WindowLog uint8   // 0x01 windowlog, above ZstdWindowLogMin
	Reserved  [4]byte // 0x02
}

// Decode reads the record that b starts with.
func (c *ZstdCfgs) Decode(b []byte) {
	_ = b[ZstdCfgsSize-1]
	c.Format = b[0]
	c.WindowLog = b[1]
	copy(c.Reserved[:], b[2:])
}
