package engine

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mountEROFS mounts an EROFS image by the kernel, read-only. From Linux 6.12 on the
// file itself is mounted, with "directio" where the kernel knows it (6.15), so that
// the file is not in the page cache beside what it holds. Older kernels, and files
// on tmpfs, take a loop device, which goes with the mount.
func mountEROFS(file *os.File, dir string) error {
	source := fmt.Sprintf("/proc/self/fd/%d", file.Fd())
	var errs []error
	for _, opts := range []string{"directio", ""} {
		err := unix.Mount(source, dir, "erofs", unix.MS_RDONLY, opts)
		if err == nil {
			return nil
		}
		if err == unix.ENODEV {
			return fmt.Errorf("the kernel has no EROFS: %w", err)
		}
		errs = append(errs, fmt.Errorf("mount the file as erofs with options %q: %w", opts, err))
	}
	loop, err := attachLoop(file)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer func() { _ = loop.Close() }()
	if err := unix.Mount(loop.Name(), dir, "erofs", unix.MS_RDONLY, ""); err != nil {
		return errors.Join(append(errs, fmt.Errorf("mount %s as erofs: %w", loop.Name(), err))...)
	}
	return nil
}

// loopTries bounds the search for a free loop device, which others look for too.
const loopTries = 16

// attachLoop makes a loop device of a file. It is detached when its last user,
// of which the returned file is one, is gone.
func attachLoop(file *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop device: %w", err)
	}
	defer func() { _ = control.Close() }()
	for range loopTries {
		var n int
		n, err = unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			break
		}
		var dev *os.File
		dev, err = os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDONLY, 0)
		if err != nil {
			break
		}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &unix.LoopConfig{
			Fd:   uint32(file.Fd()),
			Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR},
		})
		if err == nil {
			return dev, nil
		}
		_ = dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	return nil, fmt.Errorf("loop device: %w", err)
}
