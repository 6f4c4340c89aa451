package nodecache

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// openInPlace opens the files of a path reference where they are.
//
// What a path leads to is looked up once, with O_PATH, which neither blocks on
// a FIFO nor wakes a device's driver. All checks are made on that descriptor,
// and the file is then opened through it: there is no moment between check and
// open in which the path could be made to lead elsewhere.
func (s *Store) openInPlace(ctx context.Context, ref reference) (*Image, error) {
	img := &Image{store: s, reference: ref.String(), files: newOpened(nil)}
	id := sha256.New()
	for _, path := range ref.paths {
		b, identity, err := openPath(path, s.allowed)
		if err != nil {
			img.files.drop()
			return nil, err
		}
		img.files.blobs = append(img.files.blobs, b)
		id.Write(identity)
	}
	img.id = pathIDPrefix + hex.EncodeToString(id.Sum(nil))
	img.sidecars = filepath.Join(s.dir.paths, img.id)
	if _, err := s.hold(ctx, img.id); err != nil { // the image's Release ends it
		img.files.drop()
		return nil, err
	}
	return img, nil
}

// openPath opens one file. identity is a fixed number of bytes that change when
// the path leads to another file or the file was changed.
func openPath(path string, allowed []string) (b *Blob, identity []byte, err error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC}
	if allowed != nil {
		// /proc/PID/root and the like lead into other mount namespaces, where
		// a file's path says nothing about our directories.
		how.Resolve = unix.RESOLVE_NO_MAGICLINKS
	}
	fd, err := openat2(path, &how)
	if err != nil {
		if allowed != nil && (errors.Is(err, unix.ELOOP) || !beneathAny(filepath.Clean(path), allowed)) {
			// Not even whether it exists is told.
			return nil, nil, notAllowed(path, allowed)
		}
		return nil, nil, pathError(path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	self := "/proc/self/fd/" + strconv.Itoa(fd)
	actual, err := os.Readlink(self)
	if err != nil {
		return nil, nil, fmt.Errorf("where %s leads: %w", path, err)
	}
	if allowed != nil && !beneathAny(actual, resolveDirs(allowed)) {
		return nil, nil, notAllowed(path, allowed)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, nil, &os.PathError{Op: "fstat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, nil, fmt.Errorf("%w: %s is %s, not a regular file", ErrUnsupportedImage, path, fileKind(st.Mode))
	}
	rfd, direct, err := openDirect(self, 0)
	if err != nil {
		return nil, nil, pathError(path, err)
	}
	b, err = newBlob(rfd, actual, direct, true)
	if err != nil {
		return nil, nil, err
	}
	// From the open file, after the size and mtime that reads are held to were
	// taken: a change in between is seen by the next Acquire as another ID.
	if err := unix.Fstat(rfd, &st); err != nil {
		b.close()
		return nil, nil, &os.PathError{Op: "fstat", Path: path, Err: err}
	}
	for _, v := range []uint64{
		st.Dev, st.Ino, uint64(st.Size), //nolint:gosec // bits, not numbers
		uint64(st.Mtim.Nano()), uint64(st.Ctim.Nano()), //nolint:gosec // bits, not numbers
	} {
		identity = binary.BigEndian.AppendUint64(identity, v)
	}
	return b, identity, nil
}

// openat2 is openat2(2) of an absolute path (Linux 5.6).
func openat2(path string, how *unix.OpenHow) (int, error) {
	for {
		fd, err := unix.Openat2(unix.AT_FDCWD, path, how)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// resolveDirs returns the directories with symbolic links resolved; those that
// do not exist are left out.
func resolveDirs(dirs []string) []string {
	resolved := make([]string, 0, len(dirs))
	for _, dir := range dirs {
		fd, err := openat2(dir, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_DIRECTORY})
		if err != nil {
			continue
		}
		if p, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd)); err == nil {
			resolved = append(resolved, p)
		}
		_ = unix.Close(fd)
	}
	return resolved
}

// beneathAny tells whether path is below one of dirs, comparing text only.
func beneathAny(path string, dirs []string) bool {
	for _, dir := range dirs {
		if dir == "/" || strings.HasPrefix(path, dir+"/") {
			return strings.HasPrefix(path, "/")
		}
	}
	return false
}

func notAllowed(path string, allowed []string) error {
	if len(allowed) == 0 {
		return fmt.Errorf("%w: %s: no directories are configured from which images may be used by path", ErrNotAllowed, path)
	}
	return fmt.Errorf("%w: %s is not below an allowed directory (%s)", ErrNotAllowed, path, strings.Join(allowed, ", "))
}

func pathError(path string, err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENAMETOOLONG) {
		return fmt.Errorf("%w: %s: no such file on this node", ErrNotFound, path)
	}
	return &os.PathError{Op: "open", Path: path, Err: err}
}

func fileKind(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return "a directory"
	case unix.S_IFIFO:
		return "a FIFO"
	case unix.S_IFSOCK:
		return "a socket"
	case unix.S_IFBLK:
		return "a block device"
	case unix.S_IFCHR:
		return "a character device"
	}
	return "something else"
}
