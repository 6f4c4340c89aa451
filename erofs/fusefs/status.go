package fusefs

import (
	"errors"
	"io"
	"io/fs"
	"syscall"

	"github.com/erofs-csi/erofs-csi/erofs"
)

// errnoOf is the one table of errors and errnos: what a process sees that uses a
// front. The kernel's own EROFS answers EUCLEAN (EFSCORRUPTED) to a damaged
// structure and EOPNOTSUPP to a feature it lacks as well.
func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return 0
	case errors.Is(err, fs.ErrNotExist):
		return syscall.ENOENT
	case errors.Is(err, erofs.ErrNoXattr):
		return syscall.ENODATA
	case errors.Is(err, erofs.ErrCorrupt), errors.Is(err, erofs.ErrFormat):
		return syscall.EUCLEAN
	case errors.Is(err, erofs.ErrUnsupported):
		return syscall.EOPNOTSUPP
	case errors.As(err, &errno):
		return errno
	}
	return syscall.EIO
}

// The file type in st_mode.
const (
	modeType    = syscall.S_IFMT
	modeRegular = syscall.S_IFREG
	modeDir     = syscall.S_IFDIR
)
