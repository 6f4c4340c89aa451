package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// kernelMount mounts an image by the kernel's EROFS, read with O_DIRECT, without
// a loop device (Linux 6.15).
func (b *bench) kernelMount(im *image) (*mounted, error) {
	return b.fileMount(im, "directio")
}

// oldKernelMount is kernelMount, or where the kernel has no such mounts, one by a loop
// device that reads with O_DIRECT.
func (b *bench) oldKernelMount(im *image) (*mounted, error) {
	m, err := b.kernelMount(im)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTBLK) {
		return b.loopMount(im.path, "erofs", true)
	}
	return m, err
}

// shares is the option by which the kernel's EROFS shares page cache between
// mounts, by the fingerprints in the images (Linux 7.3).
const shares = "inode_share"

// errNoShare says that the kernel does not share between mounts of an image.
var errNoShare = errors.New("the kernel does not share page cache between mounts")

// sharedMount is kernelMount with the kernel's own sharing. A kernel that has it
// leaves it off, without an error, for an image without fingerprints.
func (b *bench) sharedMount(im *image) (*mounted, error) {
	m, err := b.fileMount(im, shares+",domain_id="+domain+",directio")
	if err != nil {
		return nil, errors.Join(errNoShare, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, errors.Join(err, m.unmount())
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == m.dir && strings.Contains(line, shares) {
			return m, nil
		}
	}
	return nil, errors.Join(errNoShare, m.unmount())
}

func (b *bench) fileMount(im *image, options string) (*mounted, error) {
	dir, err := b.mountpoint()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err := unix.Mount(im.path, dir, "erofs", unix.MS_RDONLY|unix.MS_NODEV, options); err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s by the kernel's EROFS with %s: %w (Linux 6.15 or newer)", im.name, options, err), os.Remove(dir))
	}
	return &mounted{dir: dir, took: time.Since(start), unmount: func() error { return unmountSoon(dir) }}, nil
}

// mounted is an image at a directory.
type mounted struct {
	dir     string
	took    time.Duration // until it could be used
	unmount func() error
}

// mountpoint makes an empty directory.
func (b *bench) mountpoint() (string, error) {
	b.serial++
	dir := filepath.Join(b.work, fmt.Sprintf("mount-%d", b.serial))
	return dir, os.Mkdir(dir, 0o755)
}

// unmountSoon waits a little for whoever still looks at the mount.
func unmountSoon(dir string) error {
	var err error
	for range 100 {
		if err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("unmount %s: %w", dir, err), unix.Unmount(dir, unix.MNT_DETACH))
	}
	return os.Remove(dir)
}
