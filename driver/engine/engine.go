// Package engine turns images into mounted fronts that share memory.
//
// For each domain it mounts one content superblock (package fusefs) that holds
// the domain's shared inodes; for each image in a domain one front, which shows
// the image's tree over those inodes and is what volumes bind-mount:
//
//   - "overlay": overlayfs over META, a small EROFS image of our own making that
//     holds the image's metadata, with the content mount as data-only layer. Needs
//     Linux 6.5 and kernel EROFS.
//   - "tree": a subdirectory of the content mount. Needs FUSE alone; equal files
//     share memory only where their metadata agree as well. It takes over by itself
//     where the overlay can't be had, and says why.
//
// # Limits
//
// All mounts are in one private directory below the state directory, mode 0700.
// The caller must have CAP_SYS_ADMIN. Mounts die with the process; the next engine
// with the same state directory removes what is left of them.
package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/nodecache"
	"github.com/erofs-csi/erofs-csi/nodecache/filestore"
)

// The fronts, as log, status and --front name them.
const (
	FrontAuto    = "auto"
	FrontOverlay = "overlay"
	FrontTree    = "tree"
)

// ErrClosed says that the engine is being closed.
var ErrClosed = errors.New("the engine is closed")

// Config says where an engine keeps its mounts, and which front it makes.
type Config struct {
	// StateDir is on a file system that does not outlive the kernel's mounts,
	// usually /run/erofs-csi. Several engines may share it.
	StateDir string
	// Front is FrontAuto, also when empty, or the only front to try.
	Front string
	// Files says where overlay fronts keep large files of domains as plain ones, and
	// how much they may take: nothing with a limit of 0. See package filestore.
	Files filestore.Config
}

// Engine makes and keeps fronts. It is safe for concurrent use.
type Engine struct {
	cfg      Config
	instance *instance
	status   *statusServer

	domains *pool[string, *domain]
	fronts  *pool[frontKey, *front]
	files   *filestore.Store // nil: none
	idle    idleImages
	indexes indexer
	serial  atomic.Uint64 // names of mount directories

	ctx    context.Context // ends when the engine is closed; carries the logger
	cancel context.CancelFunc
	closed sync.Once
}

// New starts an engine, after removing what dead engines left below the same state
// directory. The logger is taken from ctx; its end does not end the engine.
func New(ctx context.Context, cfg Config) (*Engine, error) {
	switch cfg.Front {
	case "":
		cfg.Front = FrontAuto
	case FrontAuto, FrontOverlay, FrontTree:
	default:
		return nil, fmt.Errorf("front %q: want %s, %s or %s", cfg.Front, FrontAuto, FrontOverlay, FrontTree)
	}
	removeDeadInstances(ctx, cfg.StateDir)
	in, err := newInstance(ctx, cfg.StateDir)
	if err != nil {
		return nil, err
	}
	e := &Engine{cfg: cfg, instance: in, idle: idleImages{check: idleCheck}}
	e.ctx, e.cancel = context.WithCancel(context.WithoutCancel(ctx))
	e.domains = newPool[string](e.unmakeDomain)
	e.fronts = newPool[frontKey](e.unmakeFront)
	if cfg.Files.Limit > 0 {
		if e.files, err = filestore.Open(cfg.Files); err != nil {
			e.cancel()
			return nil, errors.Join(err, in.remove(ctx))
		}
	}
	if e.status, err = e.serveStatus(in.path(statusSocket)); err != nil {
		e.cancel()
		e.closeFiles()
		return nil, errors.Join(err, in.remove(ctx))
	}
	return e, nil
}

// Request asks for a front.
type Request struct {
	// Domain is the set of volumes that may share memory. Empty: the volume shares
	// with nobody but other mounts of the same VolumeID.
	Domain string
	// VolumeID names the volume in the status and, without a domain, is what other
	// mounts must have in common with it to share memory.
	VolumeID string
	// Image stays the caller's, to release after the front.
	Image *nodecache.Image
	// Keep leaves the image in its domain after the last front of it is released,
	// so that the next one finds its pages in memory, as long as the kernel has not
	// reclaimed them. It is for volumes that may come back, and must be the same in
	// all requests for one front.
	Keep bool
	// CacheLimit bounds the page cache of the domain in bytes; 0: no bound. Where
	// volumes of one domain differ, the smallest limit holds for all.
	CacheLimit int64
}

// Mount returns a front that shows the image. Fronts of one image in one domain
// are one mount. The end of ctx ends the waiting; hashing an image that is new to
// the node goes on, so that the next call need not begin again.
func (e *Engine) Mount(ctx context.Context, req Request) (*Front, error) {
	if e.ctx.Err() != nil {
		return nil, ErrClosed
	}
	if req.CacheLimit != 0 && req.CacheLimit < MinCacheLimit {
		return nil, fmt.Errorf("cache limit of %d bytes: want at least %d", req.CacheLimit, MinCacheLimit)
	}
	key := frontKey{domain: domainKey(req), image: req.Image.ID()}
	it, err := e.fronts.acquire(ctx, key, func() (*front, error) { return e.makeFront(ctx, key, req) })
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", req.Image.Reference(), err)
	}
	f := &Front{engine: e, item: it, front: it.val, volume: req.VolumeID}
	it.val.addUser(req.VolumeID)
	it.val.domain.limit(f, req.CacheLimit)
	return f, nil
}

// domainKey keeps the names of domains and of volumes without one apart.
func domainKey(req Request) string {
	if req.Domain != "" {
		return "domain:" + req.Domain
	}
	return "volume:" + req.VolumeID
}

// Close ends the engine. Fronts must have been released; the mounts of those that
// were not are detached, and whoever still uses them gets errors.
func (e *Engine) Close(ctx context.Context) (err error) {
	e.closed.Do(func() {
		e.cancel()
		e.status.close()
		for _, f := range e.fronts.snapshot() {
			klog.FromContext(ctx).Info("Front is still in use", "image", f.reference, "domain", f.domain.name, "volumes", f.volumes())
			err = errors.Join(err, e.unmakeFront(f))
		}
		err = errors.Join(err, e.forget(e.idle.takeAll(query{})), e.indexes.wait(ctx), e.instance.remove(ctx))
		e.closeFiles()
	})
	return err
}

func (e *Engine) closeFiles() {
	if e.files != nil {
		e.files.Close()
	}
}
