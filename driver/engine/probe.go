package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// TryEROFS mounts an EROFS image at dir as an engine mounts metadata for the overlay,
// calls use, and unmounts it. loop tells that it took a loop device.
//
// The caller's thread is to have a mount namespace of its own.
func TryEROFS(file *os.File, dir string, use func() error) (loop bool, err error) {
	if err := mountEROFS(file, dir); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, unmount(dir)) }()
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	if err != nil || len(infos) != 1 {
		return false, fmt.Errorf("the mount at %s is not there: %w", dir, errors.Join(err, os.ErrNotExist))
	}
	return strings.HasPrefix(infos[0].Source, "/dev/loop"), use()
}

// TryLoop attaches a file to a loop device, and lets go of it.
func TryLoop(file *os.File) error {
	dev, err := attachLoop(file)
	if err != nil {
		return err
	}
	return dev.Close()
}

// TryOverlay asks the kernel whether it has overlayfs; that loads the module. Whether it
// can have data-only layers only a front can tell.
func TryOverlay() error {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// PIDs are the processes that have an engine with a state directory, as they name
// themselves: in the pid namespace of each. Dead ones may be among them.
func PIDs(stateDir string) ([]int, error) {
	sockets, err := statusSockets(stateDir)
	if err != nil {
		return nil, err
	}
	var list []int
	for _, path := range sockets {
		number, _, _ := strings.Cut(filepath.Base(filepath.Dir(path)), "-")
		if pid, err := strconv.Atoi(number); err == nil {
			list = append(list, pid)
		}
	}
	return list, nil
}
