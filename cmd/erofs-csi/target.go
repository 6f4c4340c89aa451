package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/erofs/apart"
)

// unmountPatience is how long a busy directory is given at exit before it is
// detached under its users' feet.
const unmountPatience = 5 * time.Second

// maxStacked bounds how many dead mounts on one directory are removed.
const maxStacked = 64

// target is a directory onto which this process has bound a front.
type target struct {
	dir    string
	device uint64 // st_dev of the front's file system
	record *targetRecord
	// detached says that unmount found the directory in use. The front and the
	// content mount then stay busy as well.
	detached bool
}

// mountDirectory returns the absolute path without symbolic links of a
// directory to mount onto. It takes away what a process that died has left
// there: a FUSE mount without a server, which answers ENOTCONN to everything,
// or an overlay over one. But with a holder such a mount may be served again, so
// that it stays, and is returned.
func mountDirectory(ctx context.Context, f *mountFlags, name string) (dir string, left *targetRecord, err error) {
	for range maxStacked {
		if left, err = leftoverAt(f.stateDir, name); err != nil {
			return "", nil, err
		}
		if left != nil {
			if f.holder != "" && left.Holder == f.holder {
				return left.Dir, left, nil
			}
			if err := left.end(ctx); err != nil {
				return "", nil, err
			}
			continue
		}
		_, err := os.Stat(name)
		if !errors.Is(err, unix.ENOTCONN) {
			break
		}
		if err := unix.Unmount(name, unix.MNT_DETACH); err != nil {
			return "", nil, fmt.Errorf("dead mount at %s: %w: unmount it", name, err)
		}
	}
	info, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil, failf("%s: no such directory: create it first", name)
	case err != nil:
		return "", nil, err
	case !info.IsDir():
		return "", nil, failf("%s is not a directory: give an existing directory to mount onto", name)
	}
	if dir, err = filepath.EvalSymlinks(name); err != nil {
		return "", nil, err
	}
	dir, err = filepath.Abs(dir)
	return dir, nil, err
}

// bindFront binds the front at source onto dir, read-only. kept is the name by which a
// holder keeps it, if any.
func bindFront(f *mountFlags, kept, source, dir string) (*target, error) {
	if err := unix.Mount(source, dir, "", unix.MS_BIND, ""); err != nil {
		return nil, fmt.Errorf("mount onto %s: %w", dir, err)
	}
	t := &target{dir: dir}
	err := remountReadOnly(dir)
	if err == nil {
		t.device, err = deviceOf(dir)
	}
	if err == nil {
		t.record, err = recordTarget(f, kept, dir, t.device)
	}
	if err != nil {
		_ = unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		return nil, fmt.Errorf("mount onto %s: %w", dir, err)
	}
	return t, nil
}

// takeTarget takes over a directory onto which a process that is gone has bound the
// front at source. nil: something else is mounted there.
func takeTarget(f *mountFlags, kept, source, dir string) (*target, error) {
	device, err := deviceOf(source)
	if err != nil {
		return nil, err
	}
	if there, err := deviceOf(dir); err != nil || there != device {
		return nil, err
	}
	t := &target{dir: dir, device: device}
	t.record, err = recordTarget(f, kept, dir, device)
	return t, err
}

// remountReadOnly makes the bind mount at dir read-only and keeps the flags
// that it has from its source.
func remountReadOnly(dir string) error {
	var st unix.Statfs_t
	if err := apart.Run(func() error { return unix.Statfs(dir, &st) }); err != nil {
		return err
	}
	// ST_NOSUID, ST_NODEV, ST_NOEXEC, ST_NOATIME, ST_NODIRATIME and
	// ST_RELATIME of statfs(2) have the values of their MS_ twins but the last.
	flags := uintptr(st.Flags) & (unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME) //nolint:gosec // a set of bits
	if st.Flags&unix.ST_RELATIME != 0 {
		flags |= unix.MS_RELATIME
	}
	return unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|flags, "")
}

// unmount takes the front off the directory. Somebody else may have done so
// already and mounted something else there; that stays. A directory that is
// still busy after unmountPatience is detached: its users keep what they have
// open for as long as the process lives.
func (t *target) unmount(ctx context.Context) error {
	deadline := time.Now().Add(unmountPatience)
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		if device, err := deviceOf(t.dir); err == nil && device != t.device || errors.Is(err, fs.ErrNotExist) {
			break
		}
		err := unix.Unmount(t.dir, unix.UMOUNT_NOFOLLOW)
		if err == nil || errors.Is(err, unix.EINVAL) { // EINVAL: not a mount point
			break
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("unmount %s: %w", t.dir, err)
		}
		if time.Now().After(deadline) {
			klog.FromContext(ctx).Info("Busy at exit, detached: files open below it will fail", "dir", t.dir, "waited", unmountPatience)
			if err := unix.Unmount(t.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("detach %s: %w", t.dir, err)
			}
			t.detached = true
			break
		}
		time.Sleep(wait)
	}
	return t.record.remove()
}

// deviceOf is st_dev, by which a mount's file system is known. It does not
// need the server of a FUSE file system.
func deviceOf(path string) (uint64, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, 0, &st)
	if err != nil {
		return 0, &fs.PathError{Op: "statx", Path: path, Err: err}
	}
	return unix.Mkdev(st.Dev_major, st.Dev_minor), nil
}
