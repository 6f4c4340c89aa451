package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	mount "k8s.io/mount-utils"
)

const (
	// maxStacked bounds the mounts that are removed from one place. The
	// driver never stacks mounts; crashed ones of other programs may.
	maxStacked = 32
	// maxPathLen is PATH_MAX with its terminating NUL.
	maxPathLen = 4096
)

// places are the directories of volumes: target paths, which they are mounted at, and
// staging paths, which they have. Kubelet names them; their last component is never followed as
// a symbolic link.
type places struct {
	mounts mounter
	prober *prober
}

// placeState is what is found at a place.
type placeState int

const (
	placeFree    placeState = iota // no mount; maybe nothing at all
	placeCorrect                   // the wanted directory with the wanted flags
	placeFlags                     // the wanted directory with other flags
	placeDead                      // a mount whose server is gone
	placeForeign                   // anything else
)

// checkPath checks a path of a request and returns it in its shortest form.
func checkPath(what, path string) (string, error) {
	switch {
	case path == "":
		return "", refuse(errInvalid, "%s is missing", what)
	case !filepath.IsAbs(path):
		return "", refuse(errInvalid, "%s %q is not an absolute path", what, path)
	case len(path) >= maxPathLen:
		return "", refuse(errInvalid, "%s has %d bytes, at most %d are allowed", what, len(path), maxPathLen-1)
	case strings.Contains(path, "\x00"):
		return "", refuse(errInvalid, "%s has a NUL byte", what)
	case slices.Contains(strings.Split(path, "/"), ".."):
		return "", refuse(errInvalid, "%s %q has .. in it", what, path)
	}
	path = filepath.Clean(path)
	if path == "/" {
		return "", refuse(errInvalid, "%s is the root directory", what)
	}
	return path, nil
}

// cleanPath is checkPath for a path that is only compared with known ones.
func cleanPath(path string) string {
	clean, err := checkPath("path", path)
	if err != nil {
		return path
	}
	return clean
}

// inspect says what is at path, where the directory source is wanted; source
// "" is never found.
func (p places) inspect(ctx context.Context, path, source string, flags mountFlags) (placeState, mount.MountInfo, error) {
	resolved, err := p.prober.resolve(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return placeFree, mount.MountInfo{}, nil
	}
	if err != nil {
		return 0, mount.MountInfo{}, err
	}
	table, err := p.mounts.Table()
	if err != nil {
		return 0, mount.MountInfo{}, err
	}
	m, ok := table.at(resolved)
	if !ok {
		return placeFree, m, nil
	}
	if source != "" {
		wanted, err := p.prober.resolve(ctx, source)
		if err != nil {
			return 0, m, err
		}
		if d, ok := table.identify(wanted); ok && d.mountedBy(m) {
			if flags.in(m.MountOptions) {
				return placeCorrect, m, nil
			}
			return placeFlags, m, nil
		}
	}
	if _, err := p.prober.lstat(ctx, resolved); dead(err) {
		return placeDead, m, nil
	}
	return placeForeign, m, nil
}

// take makes path an empty directory that nothing is mounted at, and reports
// whether it made the directory. A dead mount is detached; anything else that
// is in the way stays and is an error.
func (p places) take(ctx context.Context, what, path string) (created bool, err error) {
	state, m, err := p.inspect(ctx, path, "", 0)
	if err != nil {
		return false, err
	}
	switch state {
	case placeDead:
		if err := p.clear(ctx, path, true); err != nil {
			return false, err
		}
	case placeForeign, placeCorrect, placeFlags:
		return false, inUse(what, path, m)
	case placeFree:
	}
	info, err := p.prober.lstat(ctx, path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.Mkdir(path, 0o750); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return false, refuse(errPrecondition, "%s %s: its parent directory does not exist", what, path)
			}
			return false, fmt.Errorf("%s: %w", what, err)
		}
		return true, nil
	case err != nil:
		return false, fmt.Errorf("%s: %w", what, err)
	case !info.IsDir():
		return false, refuse(errPrecondition, "%s %s is in use: there is a %s, want a directory; remove it", what, path, kind(info))
	}
	empty, err := p.prober.empty(ctx, path)
	if err != nil {
		return false, fmt.Errorf("%s: %w", what, err)
	}
	if !empty {
		return false, refuse(errPrecondition, "%s %s is in use: the directory is not empty; empty it", what, path)
	}
	return false, nil
}

func inUse(what, path string, m mount.MountInfo) error {
	return refuse(errPrecondition, "%s %s is in use: %s (%s) is mounted there; unmount it", what, path, m.Source, m.FsType)
}

func kind(info os.FileInfo) string {
	switch mode := info.Mode(); {
	case mode.IsRegular():
		return "file"
	case mode.Type() == fs.ModeSymlink:
		return "symbolic link"
	default:
		return "special file"
	}
}

// clear unmounts all that is mounted at path. Mounts are detached lazily only
// if they are dead, by their own answer or by the caller's word: a live one
// would stay mounted in secret. No mount, no directory: success.
func (p places) clear(ctx context.Context, path string, isDead bool) error {
	resolved, err := p.prober.resolve(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for range maxStacked {
		table, err := p.mounts.Table()
		if err != nil {
			return err
		}
		if _, ok := table.at(resolved); !ok {
			return nil
		}
		err = p.unmount(ctx, resolved, false)
		if errors.Is(err, unix.EBUSY) {
			if !isDead {
				_, statErr := p.prober.lstat(ctx, resolved)
				isDead = dead(statErr) || errors.Is(statErr, errNotResponding)
			}
			if !isDead {
				return fmt.Errorf("%w: a process of the host still uses it (see fuser -m)", err)
			}
			err = p.unmount(ctx, resolved, true)
		}
		// EINVAL: somebody else was quicker; the table tells.
		if err != nil && !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	return fmt.Errorf("unmount %s: still a mount point after %d times", path, maxStacked)
}

// unmount is bounded: it waits for the mount's users in the kernel.
func (p places) unmount(ctx context.Context, resolved string, lazily bool) error {
	name := "unmount " + resolved
	if lazily {
		name = "detach " + resolved
	}
	_, err := ask(ctx, p.prober, name, func() (struct{}, error) {
		return struct{}{}, p.mounts.Unmount(resolved, lazily)
	})
	return err
}

// remove removes the empty directory path. Nothing there: success.
func (p places) remove(path string) error {
	// rmdir(2), not os.Remove, which would unlink a file that is not ours.
	err := syscall.Rmdir(path)
	switch {
	case err == nil, errors.Is(err, syscall.ENOENT):
		return nil
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ENOTEMPTY):
		return refuse(errPrecondition, "%s is not removed: it is not an empty directory (%v), so this driver did not make it", path, err)
	}
	return &os.PathError{Op: "rmdir", Path: path, Err: err}
}
