package erofs

import (
	"io"
	"sync/atomic"
)

// Inode is a decoded inode. It never changes, except for what the first read
// of a compressed inode leaves behind (z), and is safe for concurrent use.
type Inode struct {
	NID       uint64
	Mode      uint32 // st_mode, with the file type bits
	UID       uint32
	GID       uint32
	Nlink     uint32
	Ino       uint32 // i_ino, for 32-bit stat only: not unique in every image
	Size      int64
	MtimeSec  int64
	MtimeNsec uint32
	Rdev      uint32 // as the kernel's new_encode_dev encodes it
	Layout    DataLayout

	im         *Image
	base       int64  // byte address of the inode on the primary device
	headSize   int64  // 32 (compact) or 64 (extended)
	xattrSize  int64  // bytes of inline xattrs behind the inode
	iu         uint32 // raw i_u: start block, compressed blocks, rdev or chunk format
	startHi    uint16 // bits 32..47 of the start block
	nullAddr   bool   // flat-plain: the whole file is a hole
	dotOmitted bool   // directory without an entry for "."
	z          atomic.Pointer[zState]
}

// bodyAddr is the byte address behind the inode and its xattrs: where inline
// data, chunk indexes or the compression header (after alignment) begin.
func (in *Inode) bodyAddr() int64 { return in.base + in.headSize + in.xattrSize }

// IsDir reports whether the inode is a directory.
func (in *Inode) IsDir() bool { return in.Mode&modeFmt == modeDir }

// IsRegular reports whether the inode is a regular file.
func (in *Inode) IsRegular() bool { return in.Mode&modeFmt == modeRegular }

// IsSymlink reports whether the inode is a symbolic link.
func (in *Inode) IsSymlink() bool { return in.Mode&modeFmt == modeSymlink }

// Inode reads the inode nid.
func (im *Image) Inode(nid uint64) (*Inode, error) {
	return nil, fail(ErrUnsupported, "inode", nid, noOffset, "not yet")
}

// ReadAt reads the data of a regular file, or the raw data of a directory or
// symbolic link, with the contract of io.ReaderAt.
func (in *Inode) ReadAt(p []byte, off int64) (int, error) {
	if off >= in.Size {
		return 0, io.EOF
	}
	return in.readCompressed(p, off)
}

// Readlink returns the target of a symbolic link.
func (in *Inode) Readlink() (string, error) {
	return "", in.unsupported("readlink", "not yet")
}
