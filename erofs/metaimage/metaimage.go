// Package metaimage writes META, the EROFS image with an image's metadata alone
// that the kernel mounts below overlayfs:
//
//	lowerdir=META::CONTENT,metacopy=on,redirect_dir=follow
//
// CONTENT, the data-only layer, has a file for every distinct content. META has
// every inode of the image with its own mode, owner, times, link count, device
// number, extended attributes and link target; a regular file that is not empty
// is a hole of its size that carries
//
//	trusted.overlay.metacopy  (no value)
//	trusted.overlay.redirect  the absolute path of its content in CONTENT
//
// so that overlayfs takes the metadata from META and opens the content lazily.
// An empty file is a plain empty file: it has nothing to fetch.
//
// Limits. META is for Linux 6.5 and later, which have data-only layers, but uses
// no structure that EROFS of Linux 6.1 lacks: 4 KiB blocks, extended inodes, flat
// and inline directories and links, chunk indexes for the holes, inline and
// shared xattrs. Sizes of directories equal those of the image if that has 4 KiB
// blocks and was packed as mkfs.erofs packs. Inode numbers are META's own.
// It refuses with [ErrNeedsTree] what overlayfs would show differently from the
// image; see [NeedsTreeError].
//
// Trust. Nothing is copied from the image: each structure is decoded and checked
// by package erofs and encoded anew, so that the kernel parses only what this
// package wrote. The names, values and targets inside are the image's.
//
// Memory. About 140 bytes an inode while writing, plus the shared xattrs
// themselves, at most 32 MiB.
package metaimage

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/internal/encode"
)

// ContentPath returns the absolute path in the content mount of the data of a
// regular file, such as "/ab/cdef". It is asked twice for each file that is not
// empty and must answer the same both times.
type ContentPath func(in *erofs.Inode) string

// Stats says what META holds.
type Stats struct {
	Size        int64  // bytes of META, whole blocks
	Inodes      uint64 // hard links counted once
	Directories uint64
	Files       uint64 // regular files whose data are in the content mount
	SharedXattr int64  // bytes of the shared xattr area
}

// ErrNeedsTree is wrapped by every [NeedsTreeError].
var ErrNeedsTree = errors.New("image can't be shown through overlayfs")

// NeedsTreeError says why overlayfs can't show an image as it is: an inode with
// trusted.overlay.* attributes of its own, which would steer overlayfs (a
// redirect could name any content of the domain); a character device 0:0, which
// overlayfs takes for a deleted file; an inode without links; or a size or a set
// of xattrs that the structures META is limited to can't hold. The image is to
// be served by the tree front.
type NeedsTreeError struct {
	NID    uint64 // in the image
	Path   string // in the image, relative, the end of it if it is long; "" if not known
	Reason string
}

func (e *NeedsTreeError) Error() string {
	if e.Path == "" {
		return fmt.Sprintf("%v: nid %d %s", ErrNeedsTree, e.NID, e.Reason)
	}
	return fmt.Sprintf("%v: %q (nid %d) %s", ErrNeedsTree, e.Path, e.NID, e.Reason)
}

// Unwrap returns ErrNeedsTree.
func (e *NeedsTreeError) Unwrap() error { return ErrNeedsTree }

// Write writes the META of im to w, which must be empty. Equal images and
// content paths give equal bytes. What is written before an error is not
// an image: block 0 may be missing.
//
// Errors: ErrNeedsTree, those of package erofs, those of w and of ctx.
func Write(ctx context.Context, w io.WriterAt, im *erofs.Image, content ContentPath) (Stats, error) {
	b := &builder{ctx: ctx, im: im, content: content}
	if err := b.scan(); err != nil {
		return Stats{}, err
	}
	p, err := b.arrange()
	if err != nil {
		return Stats{}, err
	}
	if err := b.emit(w, p); err != nil {
		return Stats{}, err
	}
	return Stats{
		Size:        p.blocks() * encode.BlockSize,
		Inodes:      uint64(len(b.recs)),
		Directories: uint64(len(b.parents)),
		Files:       b.files,
		SharedXattr: int64(len(b.pool.Area())),
	}, nil
}

// builder is the state of one Write.
type builder struct {
	ctx     context.Context
	im      *erofs.Image
	content ContentPath

	// Filled by scan, in the order of the inodes in META.
	recs    []record
	ids     []uint32          // xattrs of recs[i]: ids[recs[i].xattr:recs[i+1].xattr]
	parents []uint32          // of the directories, in their order: index into recs
	index   map[uint64]uint32 // nid in the image → index into recs
	pool    encode.Pool
	files   uint64

	scratch []byte // of xattrs
}

// record is what is known of an inode between the passes: 24 bytes.
type record struct {
	nid   uint64 // in the image
	slot  uint32 // nid in META, from arrange
	xattr uint32 // first of its ids
	// tail is the size of what follows the inode: a directory's entries or a
	// link's target in bytes, or the number of a regular file's chunks.
	tail uint32
	typ  erofs.FileType
}

// idsOf returns the xattrs of recs[i].
func (b *builder) idsOf(i int) []uint32 {
	end := len(b.ids)
	if i+1 < len(b.recs) {
		end = int(b.recs[i+1].xattr)
	}
	return b.ids[b.recs[i].xattr:end]
}
