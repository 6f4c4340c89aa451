package erofs

import (
	"errors"
	"io"
	"strings"
)

// pathMax bounds a link's target in bytes, as Linux does (PATH_MAX without
// the NUL).
const pathMax = 4095

// Readlink returns the target of a symbolic link: 1 to 4095 bytes, no NUL.
//
// Errors: ErrInvalid for another type of file, those of the format, or what
// the device returned.
func (in *Inode) Readlink() (string, error) {
	if !in.IsSymlink() {
		return "", fail(ErrInvalid, "readlink", in.NID, noOffset, "mode %#o is no symbolic link", in.Mode)
	}
	if in.Size == 0 || in.Size > pathMax {
		return "", in.corrupt("symbolic link", in.base, "a target of %d bytes", in.Size)
	}
	p := make([]byte, in.Size)
	if _, err := in.ReadAt(p, 0); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	target := string(p)
	if strings.IndexByte(target, 0) >= 0 {
		return "", in.corrupt("symbolic link", in.base, "a NUL in the target")
	}
	return target, nil
}
