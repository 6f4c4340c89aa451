package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/apart"
	"github.com/erofs-csi/erofs-csi/erofs/fusefs"
)

// frontKey names a front: an image in a domain.
type frontKey struct {
	domain string // domainKey
	image  string // imageKey

	idMapped bool // Request.IDMapped
}

// front is what all volumes of one image in one domain show.
type front struct {
	*joined
	reference string // by which the image was asked for
	kind      string // FrontOverlay, FrontPassthrough or FrontTree
	reason    string // why not the overlay, or why it shares less than it could; but see why
	dir       string
	session   *fusefs.Mount  // that answers for its tree; nil for an overlay
	idMapped  bool           // Request.IDMapped
	undo      []func() error // how to take the mounts away, the last made first
	keep      bool           // the image stays in its domain when the mounts are gone
	limited   bool           // its page cache is to have a limit
	layered   bool           // large files come from the domain's layer
	resumed   bool           // it is that of an engine that is gone
	unmade    sync.Once
	users
}

// users are the volumes that show a front.
type users struct {
	mu   sync.Mutex
	list []string // volume ids, one for each hold; GUARDED_BY(mu)
}

// Front is a caller's hold on a front, until Release.
type Front struct {
	path, kind string
	resumed    bool
	stats      Stats
	reason     func() string
	healthy    func() error
	trouble    func() error
	release    func() error

	once sync.Once
	err  error
}

// Path is the directory to bind-mount from.
func (f *Front) Path() string { return f.path }

// Resumed tells that it was mounted by an engine that is gone: what is bound from it goes
// on. See Config.Holder.
func (f *Front) Resumed() bool { return f.resumed }

// Kind is one of Fronts but FrontAuto, or FrontKernel.
func (f *Front) Kind() string { return f.kind }

// Engine is what serves the front: EngineFUSE or EngineKernel.
func (f *Front) Engine() string { return engineOf(f.kind) }

func engineOf(front string) string {
	if front == FrontKernel {
		return EngineKernel
	}
	return EngineFUSE
}

// Reason says why a front is not the best that there is, or shares less than it
// could; it is empty for one that is and does.
func (f *Front) Reason() string { return f.reason() }

// Stats is the size of an image.
type Stats struct {
	Bytes  uint64 // blocks in use times their size
	Inodes uint64
}

// Stats returns the size of the image shown.
func (f *Front) Stats() Stats { return f.stats }

func statsOf(s erofs.Superblock) Stats {
	return Stats{Bytes: s.Blocks * uint64(s.BlockSize), Inodes: s.Inodes}
}

// Healthy tells whether the content mount still answers, and the front's own. Behind a
// front of the kernel's there is none; there it tells whether an image that is used in
// place is still what it was. A lazy image that turned out to be another than its digest
// says is not healthy: [nodecache.Image.Spoiled].
func (f *Front) Healthy() error { return f.healthy() }

// Trouble returns why a lazy image can't be completed at the moment; reads of what is
// not on the node fail or wait. The front is healthy for all that.
func (f *Front) Trouble() error { return f.trouble() }

// Release lets go of the front; the last one unmounts it. The image stays in its
// domain, so that its pages are there for the next front, if that was asked for
// (Request.Keep). Mounts bound from Path should be gone: those that are not keep
// what is in memory, and get errors for the rest.
func (f *Front) Release(context.Context) error {
	f.once.Do(func() { f.err = f.release() })
	return f.err
}

func (u *users) addUser(volume string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.list = append(u.list, volume)
}

func (u *users) removeUser(volume string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if i := slices.Index(u.list, volume); i >= 0 {
		u.list = slices.Delete(u.list, i, i+1)
	}
}

// volumes lists the volumes that show the front, in order, each once.
func (u *users) volumes() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	list := slices.Clone(u.list)
	slices.Sort(list)
	return slices.Compact(list)
}

// makeFront mounts an image in a domain. What it did is undone when it fails.
func (e *Engine) makeFront(ctx context.Context, key frontKey, req Request) (_ *front, err error) {
	start := time.Now()
	if err := e.forget(e.idle.takeDead()); err != nil {
		klog.FromContext(ctx).Error(err, "Letting go of images of a dead session left something behind")
	}
	held := e.takeFront(key)
	if held != nil {
		defer e.settle(key)
	}
	f := &front{joined: e.idle.take(key), reference: req.Image.Reference(), limited: req.CacheLimit > 0, idMapped: req.IDMapped}
	warm := f.joined != nil
	if warm {
		f.image.Wake()
	} else {
		if f.joined, err = e.join(ctx, key, req); err != nil {
			if held != nil {
				err = errors.Join(err, e.putBack(key, held))
			}
			return nil, err
		}
	}
	if held != nil {
		err := e.adopt(ctx, f, held)
		f.resumed = err == nil
		if err != nil {
			klog.FromContext(ctx).Error(err, "A mount of an engine that is gone is lost", "image", f.reference, "domain", req.Domain)
			e.lost.Add(1)
			err = errors.Join(f.undoMounts(), e.unkeep(held.kept))
		}
		if err != nil {
			return nil, errors.Join(err, e.unmakeFront(f))
		}
	}
	if !f.resumed {
		if held != nil {
			e.settle(key) // what is to be forgotten waits for it
		}
		if err := f.forgetNames(ctx); err != nil {
			return nil, errors.Join(err, e.unmakeFront(f))
		}
		if err := e.mountFront(ctx, f); err != nil {
			return nil, errors.Join(err, e.unmakeFront(f))
		}
	}
	f.reason = joinReasons(f.reason, f.sharesLess())
	f.keep = req.Keep
	log := klog.FromContext(ctx).WithValues("image", f.reference, "domain", req.Domain, "engine", EngineFUSE, "front", f.kind)
	if f.reason != "" {
		log = log.WithValues("reason", f.reason)
	}
	log.Info("Mounted an image", "files", f.files, "warm", warm, "resumed", f.resumed, "target", f.dir, "duration", time.Since(start))
	return f, nil
}

// alive tells whether what answers for the front still does.
func (f *front) alive() error {
	if err := f.image.Spoiled(); err != nil {
		return err
	}
	if f.session != nil {
		if err := f.session.Alive(); err != nil {
			return err
		}
	}
	return f.domain.mount.Alive()
}

// mountFront tries the fronts that the configuration allows, the best first.
func (e *Engine) mountFront(ctx context.Context, f *front) error {
	var err error
	if f.dir, err = e.instance.mountpoint(fmt.Sprintf("front-%d", e.serial.Add(1))); err != nil {
		return err
	}
	f.undo = append(f.undo, func() error { return os.Remove(f.dir) })
	var reasons []string // why not a better one
	switch {
	case e.cfg.Front == FrontPassthrough, e.cfg.Front == FrontTree:
		reasons = append(reasons, "the configuration asks for it")
	case f.idMapped:
		reasons = append(reasons, "an overlay cannot be id-mapped")
	}
	var errs []error
	for _, kind := range e.kinds(f) {
		err := e.mountKind(ctx, f, kind)
		if err == nil {
			f.kind, f.reason = kind, strings.Join(reasons, "; ")
			e.keepFront(ctx, f)
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		errs = append(errs, err)
		reasons = append(reasons, err.Error())
	}
	return errors.Join(errs...)
}

// kinds are the fronts to try, the best first.
func (e *Engine) kinds(f *front) []string {
	switch {
	case e.cfg.Front != FrontAuto:
		return []string{e.cfg.Front}
	case f.idMapped:
		return []string{FrontPassthrough, FrontTree}
	}
	return []string{FrontOverlay, FrontPassthrough, FrontTree}
}

// keepFront has the holder keep a front that is mounted.
func (e *Engine) keepFront(ctx context.Context, f *front) {
	if e.cfg.Holder == nil || f.domain.kept == nil {
		return
	}
	meta := keptMeta{
		Kind: keptFront, Domain: f.key.domain, Image: f.key.image, IDMapped: f.idMapped,
		Front: f.kind, Reason: f.reason, Stored: f.layered, Shares: f.fingerprints() != nil,
	}
	switch f.kind {
	case FrontTree:
		meta.Tree = f.tree
	case FrontPassthrough:
		meta.Tree = f.shown.tree
	}
	k, err := e.keepMount(newKey(keptFront), meta, f.dir, nil)
	if err != nil {
		notKept(ctx, err, "A volume's mount", "image", f.reference)
		return
	}
	f.undo = append(f.undo, func() error { return e.unkeep(k) })
}

func (e *Engine) mountKind(ctx context.Context, f *front, kind string) (err error) {
	switch kind {
	case FrontPassthrough:
		err = e.mountPassthrough(ctx, f)
	case FrontTree:
		err = e.mountTree(f)
	default:
		err = e.mountOverlay(ctx, f)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	return nil
}

// ErrNotIDMapped says that mounts of a front can't be id-mapped.
var ErrNotIDMapped = errors.New("its mounts can't be id-mapped")

// idMappable tells whether mounts of a FUSE superblock can be id-mapped.
func idMappable(m *fusefs.Mount) error {
	if !m.IDMappable() {
		return fmt.Errorf("%w: volumes of pods in user namespaces need Linux 6.12 or newer", ErrNotIDMapped)
	}
	return nil
}

// mountTree shows the image by a bind mount of its tree in the content mount.
func (e *Engine) mountTree(f *front) (err error) {
	if f.idMapped {
		if err := idMappable(f.domain.mount); err != nil {
			return err
		}
	}
	if f.tree == 0 {
		if f.tree, err = f.domain.fs.AddTree(f.member); err != nil {
			return err
		}
	}
	if err := bindTree(f.domain.mount.Dir()+f.tree.Path(), f.dir); err != nil {
		return err
	}
	f.session = f.domain.mount
	f.undo = append(f.undo, func() error { return unmount(f.dir) })
	return nil
}

// bindTree binds a directory of a mount of ours.
func bindTree(tree, dir string) error {
	err := apart.Run(func() error { return unix.Mount(tree, dir, "", unix.MS_BIND, "") })
	if err != nil {
		return fmt.Errorf("bind the tree at %s: %w", dir, err)
	}
	return nil
}

// unmakeFront takes a front away, as far as it was made. It goes on after an error,
// so that nothing is left that could be taken away.
func (e *Engine) unmakeFront(f *front) (err error) {
	f.unmade.Do(func() {
		err = f.undoMounts()
		if f.keep && e.ctx.Err() == nil && f.image.Spoiled() == nil && f.domain.mount.Alive() == nil {
			err = errors.Join(err, e.rest(f.joined))
		} else {
			err = errors.Join(err, e.leave(f.joined))
		}
	})
	return err
}

// undoMounts takes the mounts away, the last made first.
func (f *front) undoMounts() (err error) {
	for i := len(f.undo) - 1; i >= 0; i-- {
		err = errors.Join(err, f.undo[i]())
	}
	f.undo = nil
	return err
}

// unmount takes a mount of ours away. One that is still in use is detached: who
// uses it keeps it, and nobody else finds it.
func unmount(dir string) error {
	err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if err == unix.EBUSY {
		err = unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}
