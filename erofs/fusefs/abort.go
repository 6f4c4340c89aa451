package fusefs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// connectionsDir is where fusectl is usually mounted; in a container it often is not.
const connectionsDir = "/sys/fs/fuse/connections"

// abort ends the connection by force, for the reason given: every request fails
// with ENOTCONN, now and later.
func (m *Mount) abort(why error) error {
	dir, err := m.control()
	if err == nil {
		err = errors.Join(abortIn(dir), dir.Close())
	}
	if err != nil {
		return fmt.Errorf("%w; abort the connection: %w", why, err)
	}
	<-m.served
	return why
}

func abortIn(dir *os.Root) error {
	f, err := dir.OpenFile("abort", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("1")
	return errors.Join(err, f.Close())
}

// waiting is how many requests the kernel has that are not finished. dir is of control.
func waiting(dir *os.Root) (int, error) {
	text, err := dir.ReadFile("waiting") // empty when the connection has ended
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// control opens the directory by which the kernel lets the connection be looked at and
// aborted.
func (m *Mount) control() (*os.Root, error) {
	dir, err := openControl(connectionsDir, m.device)
	if errors.Is(err, os.ErrNotExist) {
		return openOwnControl(filepath.Dir(m.dir), m.device)
	}
	return dir, err
}

func openControl(dir string, device uint64) (*os.Root, error) {
	return os.OpenRoot(filepath.Join(dir, strconv.FormatUint(uint64(unix.Minor(device)), 10)))
}

// openOwnControl mounts fusectl for the moment, in a directory below parent: a
// container may have no other that can be written.
func openOwnControl(parent string, device uint64) (*os.Root, error) {
	dir, err := os.MkdirTemp(parent, "fusectl-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.Remove(dir) }()
	if err := unix.Mount("fusectl", dir, "fusectl", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return nil, fmt.Errorf("mount fusectl: %w", err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) }()
	return openControl(dir, device)
}
