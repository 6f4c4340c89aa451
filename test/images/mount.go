package images

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// KernelMount mounts an image, with its extra devices in the order of its
// device table, by the kernel's own EROFS and returns the directory. It mounts
// the file itself and has the kernel read it with O_DIRECT where it can (Linux
// 6.12), else loop devices. The test's end unmounts it.
func KernelMount(t testing.TB, image string, devices ...string) string {
	t.Helper()
	Need(t, "root", os.Getuid() == 0)
	Need(t, "EROFS in the kernel", hasErofs())
	dir := t.TempDir()
	err := mountErofs(image, dir, "directio", devices)
	if err != nil {
		err = mountErofs(image, dir, "", devices)
	}
	if errors.Is(err, unix.ENOTBLK) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		loops := make([]string, len(devices))
		for i, d := range devices {
			loops[i] = Loop(t, d)
		}
		err = mountErofs(Loop(t, image), dir, "", loops)
	}
	if err != nil {
		t.Fatalf("mount %s: %v", image, err)
	}
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

func mountErofs(image, dir, options string, devices []string) error {
	data := []string{}
	if options != "" {
		data = append(data, options)
	}
	for _, d := range devices {
		data = append(data, "device="+d)
	}
	return unix.Mount(image, dir, "erofs", unix.MS_RDONLY|unix.MS_NODEV, strings.Join(data, ","))
}

func hasErofs() bool {
	list, err := os.ReadFile("/proc/filesystems")
	if err != nil || strings.Contains(string(list), "\terofs\n") {
		return err == nil
	}
	_, err = os.Stat("/sys/module/erofs")
	return err == nil
}

// unmount waits a little for whoever still looks at the mount.
func unmount(t testing.TB, dir string) {
	t.Helper()
	var err error
	for range 50 {
		if err = unix.Unmount(dir, 0); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		t.Errorf("unmount %s: %v", dir, err)
		_ = unix.Unmount(dir, unix.MNT_DETACH) // so that the directory can be removed
	}
}

// Loop attaches a file to a loop device, read-only, until the test's end, and
// returns the device.
func Loop(t testing.TB, file string) string {
	t.Helper()
	Need(t, "root", os.Getuid() == 0)
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	Need(t, "/dev/loop-control", err == nil)
	defer func() { _ = control.Close() }()
	backing, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = backing.Close() }()
	for range 20 { // another process may take the free device first
		dev, err := attach(control, backing)
		if err == nil {
			path := dev.Name()
			t.Cleanup(func() {
				if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
					t.Errorf("detach %s: %v", path, err)
				}
				_ = dev.Close()
			})
			return path
		}
		if !errors.Is(err, unix.EBUSY) {
			t.Fatalf("loop device for %s: %v", file, err)
		}
	}
	t.Fatalf("loop device for %s: all are busy", file)
	return ""
}

func attach(control, backing *os.File) (*os.File, error) {
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, err
	}
	dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_READ_ONLY}}
	if err := unix.IoctlLoopConfigure(int(dev.Fd()), &config); err != nil {
		_ = dev.Close()
		return nil, err
	}
	return dev, nil
}
