package driver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	mount "k8s.io/mount-utils"

	"github.com/erofs-csi/erofs-csi/erofs/apart"
)

// probeTimeout bounds one look at a path. A healthy FUSE mount answers in well
// under a millisecond, a busy one within a read of the disk.
const probeTimeout = 5 * time.Second

// prober asks questions that a hung mount never answers, in goroutines of
// their own. While one hangs, the next question of the same name waits for
// that one instead of starting another: at most one goroutine a name leaks,
// until the mount answers or its connection is aborted.
//
// Safe for concurrent use.
type prober struct {
	timeout time.Duration

	mu      sync.Mutex
	pending map[string]*probe // GUARDED_BY mu
}

// probe is one question under way; answer and err are set before done is
// closed.
type probe struct {
	done   chan struct{}
	answer any
	err    error
}

func newProber(timeout time.Duration) *prober {
	return &prober{timeout: timeout, pending: make(map[string]*probe)}
}

// ask runs fn, or joins the fn of the same name that still runs. It returns
// errNotResponding after the timeout and the context's error when that ends
// first. Equal names must mean equal types T.
func ask[T any](ctx context.Context, p *prober, name string, fn func() (T, error)) (T, error) {
	p.mu.Lock()
	q, ok := p.pending[name]
	if !ok {
		q = &probe{done: make(chan struct{})}
		p.pending[name] = q
		go func() {
			q.answer, q.err = guard(ctx, fn)
			p.mu.Lock()
			delete(p.pending, name)
			p.mu.Unlock()
			close(q.done)
		}()
	}
	p.mu.Unlock()

	var none T
	timer := time.NewTimer(p.timeout)
	defer timer.Stop()
	select {
	case <-q.done:
		answer, _ := q.answer.(T)
		return answer, q.err
	case <-ctx.Done():
		return none, ctx.Err()
	case <-timer.C:
		return none, refuse(errNotResponding, "%s: no answer within %s", name, p.timeout)
	}
}

// lstat is os.Lstat, bounded.
func (p *prober) lstat(ctx context.Context, path string) (os.FileInfo, error) {
	return ask(ctx, p, "lstat "+path, func() (info os.FileInfo, err error) {
		err = apart.Run(func() (err error) {
			info, err = os.Lstat(path)
			return err
		})
		return info, err
	})
}

// exists tells whether there is something at path, in the error of lstat(2), and does not
// ask a file system that is mounted there.
func (p *prober) exists(ctx context.Context, path string) (struct{}, error) {
	return ask(ctx, p, "find "+path, func() (struct{}, error) {
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, 0, &st)
		if err != nil {
			err = &os.PathError{Op: "statx", Path: path, Err: err}
		}
		return struct{}{}, err
	})
}

// empty reports whether the directory path has no entries.
func (p *prober) empty(ctx context.Context, path string) (bool, error) {
	return ask(ctx, p, "readdir "+path, func() (is bool, err error) {
		err = apart.Run(func() (err error) {
			is, err = isEmpty(path)
			return err
		})
		return is, err
	})
}

func isEmpty(path string) (bool, error) {
	d, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(d) }()
	buf := make([]byte, 4096) // several entries: the first two may be "." and ".."
	n, err := unix.ReadDirent(d, buf)
	if err != nil {
		return false, &os.PathError{Op: "readdir", Path: path, Err: err}
	}
	_, names, _ := unix.ParseDirent(buf[:n], 1, nil)
	return names == 0, nil
}

// resolve returns path as the mount table spells it, with the symbolic links
// of its parent followed (kubelet's root may be one). The last component
// stays: a link there is never followed. Without a parent, fs.ErrNotExist.
func (p *prober) resolve(ctx context.Context, path string) (string, error) {
	return ask(ctx, p, "resolve "+path, func() (string, error) {
		parent, err := filepath.EvalSymlinks(filepath.Dir(path))
		if err != nil {
			return "", err
		}
		return filepath.Join(parent, filepath.Base(path)), nil
	})
}

// dead reports whether err is how a mount without a server answers: ENOTCONN
// of FUSE, and what k8s.io/mount-utils adds to it.
func dead(err error) bool {
	var pathErr *os.PathError
	return errors.As(err, &pathErr) && mount.IsCorruptedMnt(pathErr)
}
