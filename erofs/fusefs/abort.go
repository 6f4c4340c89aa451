package fusefs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// connectionsDir is where fusectl is usually mounted; in a container it often is not.
const connectionsDir = "/sys/fs/fuse/connections"

// abort ends the connection by force, for the reason given: every request fails
// with ENOTCONN, now and later.
func (m *Mount) abort(why error) error {
	err := abortBelow(connectionsDir, m.device)
	if errors.Is(err, os.ErrNotExist) {
		err = abortByOwnMount(filepath.Dir(m.dir), m.device)
	}
	if err != nil {
		return fmt.Errorf("%w; abort the connection: %w", why, err)
	}
	<-m.served
	return why
}

func abortBelow(dir string, device uint64) error {
	name := strconv.FormatUint(uint64(unix.Minor(device)), 10)
	f, err := os.OpenFile(filepath.Join(dir, name, "abort"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("1")
	return errors.Join(err, f.Close())
}

// abortByOwnMount mounts fusectl for the moment, in a directory below parent: a
// container may have no other that can be written.
func abortByOwnMount(parent string, device uint64) error {
	dir, err := os.MkdirTemp(parent, "fusectl-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(dir) }()
	if err := unix.Mount("fusectl", dir, "fusectl", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount fusectl: %w", err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) }()
	return abortBelow(dir, device)
}
