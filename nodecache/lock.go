package nodecache

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// lockDirectory takes the store's lock, which the kernel frees when the
// returned file is closed or the process dies in whatever way. A disk that is
// full or became read-only is no obstacle: what the store has can be read.
func lockDirectory(dir layout) (*os.File, error) {
	f, err := os.OpenFile(dir.lock, os.O_CREATE|os.O_RDWR|noFollow, 0o600)
	if readOnly := err; errors.Is(readOnly, unix.EROFS) {
		f, err = os.OpenFile(dir.lock, os.O_RDONLY|noFollow, 0)
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("image store: %w, and %s holds no store; mount it read-write or use another directory", readOnly, dir.root)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		defer func() { _ = f.Close() }()
		return nil, fmt.Errorf("%w: %s is locked by %s; stop it or use another directory", ErrLocked, dir.root, lockOwner(f))
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("image store: lock %s: %w", dir.lock, err)
	}
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0) // for people: lockOwner
	}
	return f, nil
}

// lockOwner is for people: the pid may be one of another pid namespace.
func lockOwner(f io.ReaderAt) string {
	var text [20]byte
	n, _ := f.ReadAt(text[:], 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text[:n])))
	if err != nil {
		return "another process"
	}
	return fmt.Sprintf("process %d", pid)
}
