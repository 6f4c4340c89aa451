// Package build writes EROFS images: of tar archives, of the layers of container
// images, of directories and of other EROFS images.
//
// A [Builder] takes entries one after the other, lays each layer over those before
// it as overlayfs would, and keeps the tree in memory and the data of files in two
// files of the caller. [Builder.Finish] drops the data of what later layers deleted
// or replaced and writes the metadata behind the rest:
//
//	0     1024         1152                    1
//	+-----+------------+-------------+---------+------+---------------+--------+------------------+
//	|  0  | superblock | long prefix | zeros   | data | shared xattrs | inodes | directory blocks |
//	+-----+------------+-------------+---------+------+---------------+--------+------------------+
//
// A file below 4 KiB has its data behind its inode, as far as it fits; a larger one
// has whole blocks of its own, aligned and in one piece, which is what is read
// fastest. Files of equal content have their blocks once. Nothing is compressed.
// Each file that is not empty carries its fingerprint, as mkfs.erofs
// --xattr-inode-digest writes it.
//
// Limits. See [Limits]. 4 KiB blocks, at most 16 TiB. The image needs Linux 6.4 for
// its long prefix of fingerprints, if the kernel mounts it. Holes of sparse files are
// stored as zeros. Sockets and whole-file compression there are none.
//
// Memory. About 300 bytes an entry, and names, targets and attributes themselves;
// of the data some MiB, whatever their size.
//
// Equal layers and options give equal bytes, on every machine: nothing of the time,
// the order of maps or the files' places goes in. The UUID is a digest of the image.
//
// Input is not trusted: names never lead out of the tree, symbolic links on the way
// to an entry are followed within it, counts and sizes are bounded before memory or
// disk is taken, and each error that the input causes wraps [ErrLayer] or [ErrLimit]
// and names layer and entry.
package build

import (
	"context"
	"errors"
	"io"
	"math"
	"time"
)

// The classes of failure that the input causes. What the caller's files and readers
// return comes out as it is.
var (
	// ErrLayer: an entry that no file system could have, or bytes that are not in
	// the format they should be in.
	ErrLayer = errors.New("malformed layer")
	// ErrLimit: a layer that goes beyond [Limits].
	ErrLimit = errors.New("layer beyond a limit")
)

// Limits bound what hostile layers can take. The zero value of a field means its
// default.
type Limits struct {
	// Entries of all layers together, deleted ones included: 2 Mi.
	Entries int
	// Bytes of files in all layers together: 256 GiB.
	Bytes int64
	// Metadata bounds names, targets and attributes in bytes: 256 MiB.
	Metadata int64
}

func (l Limits) withDefaults() Limits {
	if l.Entries == 0 {
		l.Entries = 2 << 20
	}
	if l.Bytes == 0 {
		l.Bytes = 256 << 30
	}
	if l.Metadata == 0 {
		l.Metadata = 256 << 20
	}
	return l
}

// Archive is how many bytes an uncompressed archive may have: twice those of files,
// for what is around them, and as much as a tar archive ends with.
func (l Limits) Archive() int64 {
	n := l.withDefaults().Bytes
	if n > math.MaxInt64/4 {
		return math.MaxInt64
	}
	return 2*n + 1<<20
}

// Options are what an image depends on besides its layers.
type Options struct {
	Limits Limits
	// Time is the image's build time and the mtime of directories that no layer has
	// an entry for. The zero time means the epoch.
	Time time.Time
	// ClampMtime gives entries that are newer than Time the mtime Time.
	ClampMtime bool
}

// File is where bytes go. Its content does not matter at first. *os.File is one.
type File interface {
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
}

// Stats say what an image holds.
type Stats struct {
	Size        int64  // of the image, in bytes, whole blocks
	Inodes      uint64 // hard links counted once
	Files       uint64 // regular files, likewise
	Data        int64  // bytes of distinct contents
	Dropped     int64  // bytes that were written and then deleted or replaced by a later layer
	SharedXattr int64  // bytes of attributes that several inodes have
}

// Builder builds one image. Its methods are for one goroutine. After an error it is
// of no use.
type Builder struct {
	ctx   context.Context
	limit Limits
	opts  Options

	out   File
	data  appender // of out
	small appender // files below a block

	tree     tree
	layer    string // name of the one in hand, for messages
	bytes    int64  // of Limits.Bytes, used
	metadata int64  // of Limits.Metadata, used
	contents contents
	attrs    attributeSets
}

// New begins an image in out. Files below 4 KiB wait in scratch, another file, which
// is of no use later. ctx ends all methods.
func New(ctx context.Context, out, scratch File, opts Options) *Builder {
	b := &Builder{ctx: ctx, limit: opts.Limits.withDefaults(), opts: opts, out: out}
	b.data = appender{w: out, off: firstData}
	b.small = appender{w: scratch}
	b.tree.init(b.impliedDir())
	b.contents.bySum = map[sum]*content{}
	b.attrs.init()
	return b
}

// Layer begins a layer. What follows lies over all before. name is for messages.
func (b *Builder) Layer(name string) {
	b.layer = name
	b.tree.layer++
}

// impliedDir is a directory that has no entry of its own.
func (b *Builder) impliedDir() *inode {
	sec, nsec := b.buildTime()
	return newDir(&inode{mode: modeDir | 0o755, mtimeSec: sec, mtimeNsec: nsec})
}

func (b *Builder) buildTime() (sec int64, nsec uint32) {
	if b.opts.Time.IsZero() {
		return 0, 0
	}
	return b.opts.Time.Unix(), uint32(b.opts.Time.Nanosecond())
}
