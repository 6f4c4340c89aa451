package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/driver/engine"
)

// kernel names it. What it can do the other checks try.
func (n *node) kernel(context.Context) Finding {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fail("", "%v", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err == nil && (major < 6 || major == 6 && minor < 5) {
		return warn("Linux 6.5 or later, where files share whatever their metadata", "Linux %s %s", release, runtime.GOARCH)
	}
	return ok("Linux %s %s", release, runtime.GOARCH)
}

// mayMount tells whether the process may mount.
func mayMount() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	if os.Geteuid() != 0 || data[0].Effective&(1<<unix.CAP_SYS_ADMIN) == 0 {
		return errors.New("not root, or without CAP_SYS_ADMIN")
	}
	return nil
}

func (n *node) privileges(context.Context) Finding {
	if err := mayMount(); err != nil {
		return fail("run as root, in a pod with privileged: true; nothing that mounts was tried", "%v", err)
	}
	return ok("root with CAP_SYS_ADMIN")
}

func (n *node) fuse(context.Context) Finding {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return fail("load the module: modprobe fuse; in a pod mount the node's /dev", "%v", err)
	}
	_ = f.Close()
	return ok("can be opened")
}

// fusectl is how a mount whose server hangs is ended.
func (n *node) fusectl(context.Context) Finding {
	dir := filepath.Join(n.Scratch, "fusectl")
	err := apart(func() error {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := unix.Mount("fusectl", dir, "fusectl", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount fusectl: %w", err)
		}
		_, err := os.ReadDir(dir)
		return errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH))
	})
	if err != nil {
		return warn("load the module fuse; without fusectl a mount that hangs can't be ended", "%v", err)
	}
	return ok("can be mounted, to end mounts that hang")
}

func (n *node) erofs(context.Context) Finding {
	const fix = "load the module: modprobe erofs (in the package linux-modules-extra or kernel-modules-extra of some distributions); without it there is no front overlay"
	image, err := os.Open(n.Meta)
	if err != nil {
		return fail("see the check of the cache directory", "%v", err)
	}
	defer func() { _ = image.Close() }()
	dir := filepath.Join(n.Scratch, "erofs")
	var loop bool
	err = apart(func() error {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		var err error
		loop, err = engine.TryEROFS(image, dir, func() error {
			st, err := os.Stat(filepath.Join(dir, n.Name))
			if err == nil && st.Size() != int64(len(n.Content)) {
				err = fmt.Errorf("the kernel says that %s has %d bytes", n.Name, st.Size())
			}
			return err
		})
		return err
	})
	if err != nil {
		return warn(fix, "%v", err)
	}
	if loop {
		return ok("the kernel mounts an image by a loop device (Linux 6.12: from its file)")
	}
	n.fromFiles.Store(true)
	return ok("the kernel mounts an image from its file")
}

func (n *node) loop(context.Context) Finding {
	image, err := os.Open(n.Image)
	if err != nil {
		return fail("see the check of the cache directory", "%v", err)
	}
	defer func() { _ = image.Close() }()
	if err := engine.TryLoop(image); err != nil {
		if n.fromFiles.Load() {
			return ok("none, and none is needed: %v", err)
		}
		return warn("load the module: modprobe loop; in a pod mount the node's /dev; before Linux 6.12 the front overlay takes one for each image", "%v", err)
	}
	return ok("one was attached")
}

func (n *node) overlayfs(context.Context) Finding {
	if err := engine.TryOverlay(); err != nil {
		return warn("load the module: modprobe overlay; without it there is no front overlay", "%v", err)
	}
	return ok("in the kernel")
}

// compare reads the file of the image that is mounted at dir.
func (n *node) compare(dir string) error {
	got, err := os.ReadFile(filepath.Join(dir, n.Name))
	if err != nil {
		return err
	}
	if string(got) != n.Content {
		return fmt.Errorf("%s has %d bytes that are not those of the image", n.Name, len(got))
	}
	return nil
}

// apart runs f on a thread with a mount namespace of its own, which ends with it.
func apart(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			result <- fmt.Errorf("a mount namespace: %w", err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			result <- fmt.Errorf("a private mount namespace: %w", err)
			return
		}
		result <- f()
	}()
	return <-result
}
