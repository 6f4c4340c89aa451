package engine

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/nodecache"
)

// ErrKernel says that the kernel engine was asked for and that this kernel, or the
// file system that the image is on, can't be it. No other engine takes its place.
var ErrKernel = errors.New("not possible with engine kernel")

// The first kernel that shares whatever the way of reading. Linux 7.0 to 7.2 know the
// option, but what sendfile(2) and splice(2) read of a shared file gets pages of its
// own there.
const sharingMajor, sharingMinor = 7, 3

// checkSharing tells whether the kernel shares page cache between EROFS mounts, by
// trying the option on a mount that is never made.
//
// Errors: ErrKernel, with the kernel's release and what to do.
func checkSharing() error {
	release, major, minor := kernelRelease()
	refuse := func(why string) error {
		return fmt.Errorf("%w: %s %s; sharing needs Linux %d.%d or later with CONFIG_EROFS_FS_PAGE_CACHE_SHARE: use engine auto or fuse here, or no domain",
			ErrKernel, release, why, sharingMajor, sharingMinor)
	}
	fs, err := openFS()
	if err != nil {
		return err
	}
	defer fs.close()
	if err := fs.flag("inode_share"); errors.Is(err, unix.EINVAL) {
		return refuse("has no page cache sharing for EROFS")
	} else if err != nil {
		return fmt.Errorf("%w: %w", ErrKernel, err)
	}
	// A kernel built without it takes the option and says so in the log alone.
	if text := fs.log(); text != "" {
		return refuse("was built without page cache sharing for EROFS (" + text + ")")
	}
	if major < sharingMajor || major == sharingMajor && minor < sharingMinor {
		return refuse("does not share what sendfile and splice read")
	}
	return nil
}

// mountKernel mounts an image by the kernel's own EROFS. With a domain id other than
// "" its files share page cache with those of other mounts with that id, as far as
// the image has fingerprints.
//
// note says what is less good than it could be.
//
// Errors: ErrKernel, with what the kernel says.
func mountKernel(img *nodecache.Image, dir, domainID string) (note string, err error) {
	fs, err := openFS()
	if err != nil {
		return "", err
	}
	defer fs.close()
	for i, b := range append([]*nodecache.Blob{img.Blob()}, img.Devices()...) {
		file, err := b.Reopen()
		if err != nil {
			return "", err
		}
		defer func() { _ = file.Close() }() // when the mount is made, it has its own
		key := "device"
		if i == 0 {
			key = "source"
		}
		if err := fs.set(key, fmt.Sprintf("/proc/self/fd/%d", file.Fd())); err != nil {
			return "", fmt.Errorf("%w: %w", ErrKernel, err)
		}
	}
	if err := fs.flag("directio"); err != nil { // before Linux 6.15
		note = "this kernel caches the image's file beside what is in it (Linux 6.15 does not)"
	}
	if domainID != "" {
		if err := errors.Join(fs.flag("inode_share"), fs.set("domain_id", domainID)); err != nil {
			return "", fmt.Errorf("%w: %w", ErrKernel, err)
		}
	}
	if err := fs.mount(dir); err != nil {
		if errors.Is(err, unix.ENOTBLK) {
			err = fmt.Errorf("%w: the file system of %s can't have mounted images, keep them on a disk (and Linux 6.12 or later is needed)", err, img.Blob().Path())
		}
		return "", fmt.Errorf("%w: %w", ErrKernel, err)
	}
	return note, nil
}

// kernelRelease is the kernel's name and its version.
func kernelRelease() (name string, major, minor int) {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "this kernel", 0, 0
	}
	release := unix.ByteSliceToString(u.Release[:])
	_, _ = fmt.Sscanf(release, "%d.%d", &major, &minor)
	return "Linux " + release, major, minor
}

// fsContext is an EROFS mount in the making (fsopen(2)). Its errors have what the
// kernel says of the reason.
type fsContext int

func openFS() (fsContext, error) {
	fd, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("%w: this kernel has no EROFS: %w", ErrKernel, err)
	}
	return fsContext(fd), nil
}

func (c fsContext) close() { _ = unix.Close(int(c)) }

func (c fsContext) flag(key string) error {
	return c.explain("option "+key, unix.FsconfigSetFlag(int(c), key))
}

func (c fsContext) set(key, value string) error {
	return c.explain("option "+key, unix.FsconfigSetString(int(c), key, value))
}

// mount makes the mount, read-only and without device files.
func (c fsContext) mount(dir string) error {
	if err := c.flag("ro"); err != nil {
		return err
	}
	if err := c.explain("mount as erofs", unix.FsconfigCreate(int(c))); err != nil {
		return err
	}
	fd, err := unix.Fsmount(int(c), unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return c.explain("mount as erofs", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: dir, Err: err}
	}
	return nil
}

// explain adds the kernel's log to an error.
func (c fsContext) explain(what string, err error) error {
	if err == nil {
		return nil
	}
	if text := c.log(); text != "" {
		return fmt.Errorf("%s: %w (%s)", what, err, text)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// log takes the messages out of the context: one a read, as "e erofs: text".
func (c fsContext) log() string {
	var texts []string
	buf := make([]byte, 4096)
	for len(texts) < 16 { // the kernel keeps 8
		n, err := unix.Read(int(c), buf)
		if err != nil || n <= 2 {
			break
		}
		texts = append(texts, strings.TrimSpace(string(buf[2:n])))
	}
	return strings.Join(texts, "; ")
}
