package erofs

import "strconv"

// DataLayout says how an inode's data are stored. The values are those of the
// image.
type DataLayout uint8

// The data layouts of the format.
const (
	FlatPlain         DataLayout = 0 // one run of blocks
	CompressedFull    DataLayout = 1 // compressed, 8-byte indexes
	FlatInline        DataLayout = 2 // one run of blocks, the tail behind the inode
	CompressedCompact DataLayout = 3 // compressed, packed indexes
	ChunkBased        DataLayout = 4 // fixed-size chunks on any device

	layoutEnd = 5
)

var layoutNames = [layoutEnd]string{"flat-plain", "compressed-full", "flat-inline", "compressed-compact", "chunk-based"}

// String returns the name of the layout as used in messages and summaries.
func (l DataLayout) String() string {
	if int(l) < len(layoutNames) {
		return layoutNames[l]
	}
	return "layout " + strconv.Itoa(int(l))
}

// Compressed reports whether the inode's data need a decompressor.
func (l DataLayout) Compressed() bool { return l == CompressedFull || l == CompressedCompact }

// FileType is the type of a directory entry. The values are those of the image.
type FileType uint8

// The file types of directory entries.
const (
	TypeUnknown FileType = 0
	TypeRegular FileType = 1
	TypeDir     FileType = 2
	TypeChar    FileType = 3
	TypeBlock   FileType = 4
	TypeFIFO    FileType = 5
	TypeSocket  FileType = 6
	TypeSymlink FileType = 7
)

// The file type bits of Inode.Mode, as in stat(2).
const (
	modeFmt     = 0o170000
	modeFIFO    = 0o010000
	modeChar    = 0o020000
	modeDir     = 0o040000
	modeBlock   = 0o060000
	modeRegular = 0o100000
	modeSymlink = 0o120000
	modeSocket  = 0o140000
)
