package erofs

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// The classes of failure. Every error of this package that the image itself
// causes wraps exactly one of them; an error of the underlying reader is
// wrapped as it is.
var (
	// ErrFormat says that the bytes are not an EROFS image.
	ErrFormat = errors.New("not an EROFS image")
	// ErrUnsupported says that the image may be valid but needs a feature, which
	// the message names, that this package does not read.
	ErrUnsupported = errors.New("unsupported EROFS feature")
	// ErrCorrupt says that the image contradicts itself or its size.
	ErrCorrupt = errors.New("corrupt EROFS image")
	// ErrNoXattr says that an inode has no extended attribute of that name.
	ErrNoXattr = errors.New("no such extended attribute")
	// ErrInvalid says that the caller's argument makes no sense for the inode,
	// such as a lookup in a regular file. The image is not to blame.
	ErrInvalid = errors.New("invalid argument")
)

// noOffset is the Off of a FormatError that concerns no single place.
const noOffset = -1

// FormatError is an error with the place in the image that caused it.
type FormatError struct {
	Op  string // what was being read: "superblock", "inode", "dirent", ...
	NID uint64 // the inode concerned, 0 when there is none
	Off int64  // byte offset in the image or, for file data, in the file; -1: none
	Err error  // wraps a sentinel of this package or an I/O error
}

func (e *FormatError) Error() string {
	var b strings.Builder
	b.WriteString("erofs: ")
	b.WriteString(e.Op)
	if e.NID != 0 {
		b.WriteString(" of nid ")
		b.WriteString(strconv.FormatUint(e.NID, 10))
	}
	if e.Off >= 0 {
		b.WriteString(" at ")
		b.WriteString(strconv.FormatInt(e.Off, 10))
	}
	b.WriteString(": ")
	b.WriteString(e.Err.Error())
	return b.String()
}

// Unwrap returns the cause.
func (e *FormatError) Unwrap() error { return e.Err }

// fail builds a FormatError of the class kind, one of the sentinels.
func fail(kind error, op string, nid uint64, off int64, format string, args ...any) error {
	return &FormatError{Op: op, NID: nid, Off: off, Err: fmt.Errorf("%w: %s", kind, fmt.Sprintf(format, args...))}
}

// corrupt reports an inconsistency found while doing op for in. Off is an
// image offset, or -1.
func (in *Inode) corrupt(op string, off int64, format string, args ...any) error {
	return fail(ErrCorrupt, op, in.NID, off, format, args...)
}

// unsupported reports a feature that in needs and this package lacks.
func (in *Inode) unsupported(op string, format string, args ...any) error {
	return fail(ErrUnsupported, op, in.NID, noOffset, format, args...)
}
