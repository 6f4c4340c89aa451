package engine

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/driver/holder"
	"github.com/erofs-csi/erofs-csi/erofs/fusefs"
)

// Holder keeps descriptors beyond the process, under keys: a [holder.Client].
type Holder interface {
	Items() ([]holder.Item, error)
	Put(key string, meta []byte, files ...*os.File) error
	Delete(keys ...string) error
	// Open opens a file below a directory, in the holder, with O_PATH or O_RDONLY.
	Open(dir *os.File, path string, flags int) (fd int, err error)
}

// LogHolder logs when a holder is lost, and when it is there again.
func LogHolder(ctx context.Context, c *holder.Client, socket string) {
	log := klog.FromContext(ctx).WithValues("socket", socket)
	c.OnChange(func(s holder.Status) {
		if s.Connected {
			log.Info("The holder is there again", "items", s.Items)
		} else {
			log.Error(s.Err, "The holder is gone: until it is back, mounts do not outlive this process")
		}
	})
}

// keptVersion is that of what is put into the holder. An engine resumes what engines of
// the same version left; it must grow when an older engine could not serve what a newer
// one left, or the other way round.
const keptVersion = 1

// The kinds of what is kept, by which its keys begin.
const (
	keptContent     = "content"
	keptPassthrough = "passthrough"
	keptFront       = "front"
	keptKernel      = "kernel"
)

// keptMeta is what is kept beside descriptors. Fields of other kinds are empty.
type keptMeta struct {
	Version int    `json:"version"`
	Kind    string `json:"kind"`

	// Domain is the key of the domain: domainKey.
	Domain string `json:"domain,omitempty"`

	// Of content mounts and passthrough superblocks.
	Name    string       `json:"name,omitempty"` // of the domain, as asked for
	Trusted bool         `json:"trusted,omitempty"`
	Session fusefs.State `json:"session,omitzero"`

	// Of fronts.
	Image    string      `json:"image,omitempty"` // frontKey.image
	IDMapped bool        `json:"idMapped,omitempty"`
	Front    string      `json:"front,omitempty"`
	Reason   string      `json:"reason,omitempty"`
	Tree     fusefs.Tree `json:"tree,omitempty"`
	Stored   bool        `json:"stored,omitempty"` // large files are looked for in the domain's layer
	Shares   bool        `json:"shares,omitempty"` // the image had fingerprints: its files may be named by their content

	// KernelNames is what the names of the kernel's domains are made of: kernelDomains.
	KernelNames []byte `json:"kernelNames,omitempty"`
}

// clones is how many copies of a mount are kept. A mount is taken from one of them, for
// good, and then copied again: a process that is killed between the two leaves one less.
const clones = 2

// kept is something that the holder keeps for this engine.
type kept struct {
	key     string
	mounts  []*os.File // copies of the mount, which keep it mounted
	ledgers []*os.File
}

// newKey makes a key that no engine has used.
func newKey(kind string) string { return kind + "-" + rand.Text() }

// keepMount has the holder keep the mount at dir, in place of what it keeps under the
// key. ledgers are taken over, also after an error; channel is not, and may be nil.
func (e *Engine) keepMount(key string, meta keptMeta, dir string, channel *os.File, ledgers ...*os.File) (_ *kept, err error) {
	k := &kept{key: key, ledgers: ledgers}
	defer func() {
		if err != nil {
			k.close()
			err = fmt.Errorf("keep a mount beyond this process: %w", err)
		}
	}()
	for range clones {
		f, err := cloneMount(dir)
		if err != nil {
			return nil, err
		}
		k.mounts = append(k.mounts, f)
	}
	meta.Version = keptVersion
	text, err := json.Marshal(meta)
	if err != nil {
		return nil, err
	}
	files := slices.Concat(ledgers, k.mounts)
	if channel != nil {
		files = slices.Insert(files, 0, channel)
	}
	if err := e.cfg.Holder.Put(k.key, text, files...); err != nil {
		return nil, err
	}
	return k, nil
}

// unkeep ends the keeping of a mount, which can be unmounted then. The ledgers stay open
// until close.
func (e *Engine) unkeep(k *kept) error {
	if k == nil {
		return nil
	}
	err := e.cfg.Holder.Delete(k.key)
	closeAll(k.mounts)
	k.mounts = nil
	return err
}

// close closes what is open here; what the holder keeps it still keeps.
func (k *kept) close() {
	if k == nil {
		return
	}
	closeAll(k.mounts)
	closeAll(k.ledgers)
	k.mounts, k.ledgers = nil, nil
}

// cloneMount returns a copy of the mount at dir that is mounted nowhere. It does not ask
// the file system.
func cloneMount(dir string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_NO_AUTOMOUNT|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return nil, fmt.Errorf("copy the mount at %s: %w", dir, err)
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// moveMount mounts one of the copies at dir: the first that can be.
func moveMount(copies []*os.File, dir string) error {
	errs := []error{fmt.Errorf("no copy of the mount can be put at %s", dir)}
	for _, f := range copies {
		err := unix.MoveMount(int(f.Fd()), "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// ledgers makes files without a name, in memory, for ledgers; nil without a holder.
func (e *Engine) ledgers(names ...string) (files []*os.File, err error) {
	if e.cfg.Holder == nil {
		return nil, nil
	}
	for _, name := range names {
		fd, err := unix.MemfdCreate("erofs-csi:"+name, unix.MFD_CLOEXEC)
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("ledger in memory: %w", err)
		}
		files = append(files, os.NewFile(uintptr(fd), name))
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// notKept logs that a mount would not outlive the process.
func notKept(ctx context.Context, err error, what string, keysAndValues ...any) {
	klog.FromContext(ctx).Error(err, what+" does not outlive this process", keysAndValues...)
}

// openElsewhere has the files of a domain's content mount opened by the holder, nil if it
// does not keep the mount.
func (e *Engine) openElsewhere(d *domain) fusefs.Elsewhere {
	if d.kept == nil {
		return nil
	}
	dir := d.kept.mounts[0]
	return func(path string, flags int) (int, error) {
		fd, err := e.cfg.Holder.Open(dir, strings.TrimPrefix(path, "/"), flags)
		if errors.Is(err, holder.ErrLost) {
			return 0, fmt.Errorf("%w: %w", fusefs.ErrNotThere, err)
		}
		return fd, err
	}
}
