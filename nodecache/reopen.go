package nodecache

import (
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Reopen opens the file for reading once more, for others to read it through its
// descriptor: it is the same file, whatever its path leads to by now. Unlike those
// of the blob, their reads are buffered unless they ask for something else, and not
// checked for changes. The caller closes it.
func (b *Blob) Reopen() (*os.File, error) {
	if err := b.file.acquire(); err != nil {
		return nil, &os.PathError{Op: "open", Path: b.path, Err: err}
	}
	defer b.file.release()
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(b.file.fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: b.path, Err: err}
	}
	return os.NewFile(uintptr(fd), b.path), nil
}

// Changed returns an error that wraps [ErrChanged] when a file that is used in place
// is not what it was when it was opened, as far as its size and modification time
// tell; see [Blob].
func (i *Image) Changed() error {
	errs := make([]error, 0, len(i.files.blobs))
	for _, b := range i.files.blobs {
		errs = append(errs, b.changed())
	}
	return errors.Join(errs...)
}

func (b *Blob) changed() error {
	if !b.watch {
		return nil
	}
	if err := b.file.acquire(); err != nil {
		return &os.PathError{Op: "fstat", Path: b.path, Err: err}
	}
	defer b.file.release()
	return b.checkUnchanged()
}
