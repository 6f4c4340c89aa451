package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// kernelMount mounts an image by the kernel's EROFS, read with O_DIRECT, without
// a loop device (Linux 6.15).
func (b *bench) kernelMount(im *image) (_ *mounted, err error) {
	dir, err := b.mountpoint()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err := unix.Mount(im.path, dir, "erofs", unix.MS_RDONLY|unix.MS_NODEV, "directio"); err != nil {
		return nil, fmt.Errorf("mount %s by the kernel's EROFS with directio: %w (Linux 6.15 or newer)", im.name, err)
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
