package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// instancesDir holds one directory an engine, below the state directory:
//
//	engines/start.lock            flock(2)ed while one is made or dead ones removed
//	engines/<pid>-<random>/lock      flock(2)ed while the engine lives
//	                      /sock      answers the status
//	                      /m/…       its mounts
const (
	instancesDir = "engines"
	lockFile     = "lock"
	statusSocket = "sock"
	mountsDir    = "m"
	startLock    = "start.lock"
)

// instance is the directory of one engine.
type instance struct {
	dir  string
	lock *os.File
}

func newInstance(ctx context.Context, stateDir string) (*instance, error) {
	base, err := filepath.Abs(filepath.Join(stateDir, instancesDir))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(base, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	// Symlinks would hide our mounts from a search by path in mountinfo.
	if base, err = filepath.EvalSymlinks(base); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	unlock, err := lockInstances(base)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	defer unlock()
	in := &instance{}
	if in.dir, err = os.MkdirTemp(base, fmt.Sprintf("%d-", os.Getpid())); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := in.setUp(); err != nil {
		return nil, errors.Join(fmt.Errorf("state directory: %w", err), in.remove(ctx))
	}
	return in, nil
}

// lockInstances keeps an engine that starts from taking another one's half-made
// directory for that of a dead one.
func lockInstances(base string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(base, startLock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { _ = f.Close() }, nil
}

func (in *instance) setUp() (err error) {
	if in.lock, err = os.OpenFile(in.path(lockFile), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return err
	}
	if err := unix.Flock(int(in.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock %s: %w", in.lock.Name(), err)
	}
	m := in.path(mountsDir)
	if err := os.Mkdir(m, 0o700); err != nil {
		return err
	}
	// Our inner mounts must not appear in other mount namespaces, which would keep
	// them alive: a mount of its own that propagates nothing.
	if err := unix.Mount(m, m, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w (CAP_SYS_ADMIN is needed)", m, err)
	}
	if err := unix.Mount("", m, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", m, err)
	}
	return nil
}

func (in *instance) path(name string) string { return filepath.Join(in.dir, name) }

// mountpoint makes an empty directory to mount on.
func (in *instance) mountpoint(name string) (string, error) {
	dir := filepath.Join(in.dir, mountsDir, name)
	return dir, os.Mkdir(dir, 0o700)
}

// remove unmounts what is left below the directory and removes it.
func (in *instance) remove(ctx context.Context) error {
	err := removeInstance(ctx, in.dir)
	if in.lock != nil {
		_ = in.lock.Close()
	}
	return err
}

// removeDeadInstances removes the directories of engines that live no more, with
// their mounts. What can't be removed is logged; it is in nobody's way.
func removeDeadInstances(ctx context.Context, stateDir string) {
	log := klog.FromContext(ctx)
	base, err := filepath.EvalSymlinks(filepath.Join(stateDir, instancesDir))
	if err != nil {
		return // nothing there yet
	}
	unlock, err := lockInstances(base)
	if err != nil {
		log.Error(err, "Cannot look for dead engines")
		return
	}
	defer unlock()
	entries, err := os.ReadDir(base)
	if err != nil {
		log.Error(err, "Cannot look for dead engines")
		return
	}
	for _, d := range entries {
		if !d.IsDir() {
			continue
		}
		dir := filepath.Join(base, d.Name())
		lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR, 0)
		if errors.Is(err, os.ErrNotExist) {
			_ = os.Remove(dir) // died half made, before it could mount anything
			continue
		}
		if err != nil {
			log.Error(err, "Cannot look at an engine's directory", "dir", dir)
			continue
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			log.V(2).Info("Removing the mounts of a dead engine", "dir", dir)
			if err := removeInstance(ctx, dir); err != nil {
				log.Error(err, "Cannot remove the directory of a dead engine", "dir", dir)
			}
		}
		_ = lock.Close()
	}
}

// removeInstance detaches every mount below dir, the youngest first, and removes
// what is then left. It does not touch a file system that is mounted there: one
// whose server is dead or hung could block it.
func removeInstance(ctx context.Context, dir string) error {
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return i.Mountpoint != dir && !strings.HasPrefix(i.Mountpoint, dir+"/"), false
	})
	if err != nil {
		return fmt.Errorf("list mounts below %s: %w", dir, err)
	}
	slices.SortFunc(infos, func(a, b *mountinfo.Info) int { return b.ID - a.ID })
	for _, i := range infos {
		err := unix.Unmount(i.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && err != unix.EINVAL { // EINVAL: gone meanwhile
			return fmt.Errorf("detach %s: %w", i.Mountpoint, err)
		}
		klog.FromContext(ctx).V(2).Info("Detached a mount", "target", i.Mountpoint, "fsType", i.FSType)
	}
	return os.RemoveAll(dir)
}
