package driver

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mounter makes and removes bind mounts. The real one is sysMounter.
type mounter interface {
	// Bind mounts the directory source at target with flags. After an error
	// nothing is mounted.
	Bind(source, target string, flags mountFlags) error
	// Unmount removes the topmost mount at target; lazily only detaches it.
	Unmount(target string, lazily bool) error
	// Table lists the mounts.
	Table() (mountTable, error)
}

// sysMounter calls mount(2) and umount2(2) itself. The mounter of
// k8s.io/mount-utils runs the programs mount and umount, which the driver's
// image, a single static binary, does not hold.
type sysMounter struct{}

// Bind copies the mount at source, gives the copy its flags, and only then puts it at
// target: from there it goes to other mount namespaces, kubelet's among them, with the
// flags that it has. Flags that are changed later stay in this namespace.
func (sysMounter) Bind(source, target string, flags mountFlags) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_NO_AUTOMOUNT)
	if err == nil {
		defer func() { _ = unix.Close(fd) }() // which unmounts it, if it is at no target
		attr := flags.attributes()
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr)
	}
	switch {
	case errors.Is(err, unix.ENOSYS): // before Linux 5.12
		return bindAndRemount(source, target, flags)
	case err != nil:
		return fmt.Errorf("bind mount of %s with the options %s: %w", source, flags, mountError(err))
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("bind mount of %s at %s: %w", source, target, mountError(err))
	}
	return nil
}

// bindAndRemount binds, then remounts, because mount(2) ignores the flags of a new bind
// mount (do_loopback in fs/namespace.c). In between the mount is as writable
// as its source, which is a read-only file system.
func bindAndRemount(source, target string, flags mountFlags) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind mount of %s at %s: %w", source, target, mountError(err))
	}
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|uintptr(flags), ""); err != nil {
		err = fmt.Errorf("setting the mount options %s at %s: %w", flags, target, mountError(err))
		return errors.Join(err, sysMounter{}.Unmount(target, true))
	}
	return nil
}

// Unmount never follows a symbolic link at target, whose directory kubelet
// shares with pods' files.
func (sysMounter) Unmount(target string, lazily bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazily {
		flags |= unix.MNT_DETACH
	}
	if err := unix.Unmount(target, flags); err != nil {
		return &os.PathError{Op: "unmount", Path: target, Err: mountError(err)}
	}
	return nil
}

func (sysMounter) Table() (mountTable, error) { return readMountTable() }

// mountError adds the fix to the errno that misconfigured nodes get.
func mountError(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (the plugin's container must be privileged)", err)
	}
	return err
}
