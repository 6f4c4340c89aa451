package metaimage

import (
	"crypto/sha256"
	"math/bits"

	"github.com/erofs-csi/erofs-csi/erofs/internal/encode"
)

const (
	chunkSize    = 8    // chunk index
	chunkIndexes = 0x20 // of the chunk format: 8-byte indexes
	maxChunkBits = 31   // of the chunk format: blocks in a chunk, as a power of two
)

// The longest file with one chunk index, and the most indexes a file may have.
// Nothing reads them; they are there because the format has an index for each
// chunk, and an image of a few MiB could ask for TiB of them.
const (
	chunkSpan = int64(encode.BlockSize) << maxChunkBits // 8 TiB
	maxChunks = 16
)

// volumeName is at most 15 bytes: Linux 6.5 wants a NUL at the end.
const volumeName = "erofs-csi-meta"

// deriveUUID makes META's UUID (version 8) from the image's: overlayfs tells
// layers apart by it.
func deriveUUID(source [16]byte) (uuid [16]byte) {
	sum := sha256.Sum256(append([]byte("erofs-csi metaimage\x00"), source[:]...))
	copy(uuid[:], sum[:])
	uuid[6] = uuid[6]&0x0f | 0x80
	uuid[8] = uuid[8]&0x3f | 0x80
	return uuid
}

// chunkFormat returns the chunk format for a hole of size bytes and the number
// of its chunks: one, as long as a chunk can be that large.
func chunkFormat(size int64) (format uint32, chunks uint64) {
	blocks := uint64(size-1)>>encode.BlockBits + 1 //nolint:gosec // size > 0
	log := min(bits.Len64(blocks-1), maxChunkBits)
	return chunkIndexes | uint32(log), (blocks-1)>>log + 1 //nolint:gosec // at most maxChunkBits
}

// appendHole appends a chunk index without a block.
func appendHole(dst []byte) []byte {
	return append(dst, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff)
}
