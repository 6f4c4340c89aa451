// Package engine turns images into mounted fronts that share memory.
//
// For each domain it mounts one content superblock (package fusefs) that holds
// the domain's shared inodes; for each image in a domain one front, which shows
// the image's tree over those inodes and is what volumes bind-mount:
//
//   - "overlay": overlayfs over META, a small EROFS image of our own making that
//     holds the image's metadata, with the content mount as data-only layer. Needs
//     Linux 6.5 and kernel EROFS.
//   - "tree-passthrough": a subdirectory of a FUSE superblock of the domain's, whose
//     open files the kernel reads from the content mount. Needs Linux 6.9; opens come
//     to us. Its mounts can be id-mapped (6.12).
//   - "tree": a subdirectory of the content mount. Needs FUSE alone; equal files
//     share memory only where their metadata agree as well.
//   - "kernel": the kernel's own EROFS mount of the image, which shares between its
//     mounts (Linux 7.3). Only for those who ask for it: the image's bytes are the
//     kernel's to parse, and nothing of the above has a part in it.
//
// The first that can be had is taken, in this order but for the last, and why not a
// better one is told.
//
// # Limits
//
// All mounts are in one private directory below the state directory, mode 0700.
// The caller must have CAP_SYS_ADMIN. Without a holder, mounts die with the process but
// for those of the kernel's EROFS; the next engine with the same state directory removes
// what is left of them. With one they wait for the next engine: see Config.Holder.
package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/fusefs"
	"github.com/erofs-csi/erofs-csi/nodecache"
	"github.com/erofs-csi/erofs-csi/nodecache/filestore"
)

// The fronts, as log, status and --front name them.
const (
	FrontAuto        = "auto"
	FrontOverlay     = "overlay"
	FrontPassthrough = "tree-passthrough"
	FrontTree        = "tree"
	FrontKernel      = "kernel" // chosen by Request.Kernel, never by Config.Front
)

// The engines.
const (
	EngineFUSE   = "fuse"
	EngineKernel = "kernel"
)

// MountSource is how the fronts of EngineFUSE show in the mount table: what dies with the
// process that serves them.
const MountSource = fusefs.Source

// ServedFSTypes are the types of file systems of MountSource.
var ServedFSTypes = []string{fusefs.FSType, "overlay"}

// Fronts are the values of Config.Front.
var Fronts = []string{FrontAuto, FrontOverlay, FrontPassthrough, FrontTree}

// GCPercent is what a process with an engine is to give to debug.SetGCPercent. What
// lives is bounded and grows slowly, and what comes on top of it is made while images
// are mounted: with Go's 100, mounting ten images of 20,000 files took 58 to 64 MB at the
// most (RssAnon) and 5.2 to 5.3 s, with 40 it took 40 MB and 5.6 to 7.5 s, on a busy machine.
const GCPercent = 40

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
	// Images is the store that all images come from, or nil. It shows in the status,
	// answers to AskCache, and gets images back that no volume shows when it wants to
	// evict them.
	Images *nodecache.Store
	// Holder keeps what the mounts need to outlive this process, nil: they do not. What
	// an engine that is gone left there is taken over: Mount returns its fronts. Nobody
	// else may use the same keys. See EndResume.
	Holder Holder

	noResend bool // of tests: see fusefs.FS
	watch    pace // of tests: see watchReads
}

// Engine makes and keeps fronts. It is safe for concurrent use.
type Engine struct {
	cfg      Config
	instance *instance
	status   *statusServer

	domains *pool[string, *domain]
	fronts  *pool[frontKey, *front]
	kernels *pool[frontKey, *kernelFront]
	metas   *pool[metaKey, *meta]
	files   *filestore.Store // nil: none
	idle    idleImages
	// yielding is held while images are given back to the store: Close waits for it.
	yielding sync.Mutex
	indexes  indexer
	lazy     lazyUse
	// metadata is the cache of all images.
	metadata *erofs.MetadataCache
	scans    chan struct{} // maxScans images at a time
	serial   atomic.Uint64 // names of mount directories

	hashed, unreadable, forged atomic.Int64 // see Counts

	kernelDomains kernelDomains
	resumed       resumed
	lost          atomic.Int64 // see Counts

	ctx    context.Context // ends when the engine is closed; carries the logger
	cancel context.CancelFunc
	closed sync.Once
}

// New starts an engine, after removing what dead engines left below the same state
// directory. The logger is taken from ctx; its end does not end the engine.
func New(ctx context.Context, cfg Config) (*Engine, error) {
	cfg.Front = cmp.Or(cfg.Front, FrontAuto)
	if !slices.Contains(Fronts, cfg.Front) {
		return nil, fmt.Errorf("front %q: want one of %s", cfg.Front, strings.Join(Fronts, ", "))
	}
	in, err := newInstance(ctx, cfg.StateDir)
	if err != nil {
		return nil, err
	}
	e := &Engine{cfg: cfg, instance: in, idle: idleImages{check: idleCheck}, kernelDomains: newKernelDomains()}
	e.metadata = erofs.NewMetadataCache(metadataCache)
	e.scans = make(chan struct{}, maxScans)
	e.ctx, e.cancel = context.WithCancel(context.WithoutCancel(ctx))
	e.domains = newPool[string](e.unmakeDomain)
	e.fronts = newPool[frontKey](e.unmakeFront)
	e.kernels = newPool[frontKey](e.unmakeKernelFront)
	e.metas = newPool[metaKey](unmakeMeta)
	if cfg.Files.Limit > 0 {
		if e.files, err = filestore.Open(cfg.Files); err != nil {
			e.cancel()
			return nil, errors.Join(err, in.remove(ctx))
		}
	}
	if cfg.Holder != nil {
		if err := e.resume(ctx); err != nil {
			e.cancel()
			e.closeFiles()
			return nil, errors.Join(err, in.remove(ctx))
		}
	}
	removeDeadInstances(ctx, cfg.StateDir) // the holder has what goes on of their mounts
	if cfg.Images != nil {
		cfg.Images.OnLetGo(e.LetGo)
	}
	if e.status, err = e.serveStatus(in.path(statusSocket)); err != nil { //nolint:contextcheck // it lives as long as the engine
		e.cancel()
		e.closeFiles()
		return nil, errors.Join(err, in.remove(ctx))
	}
	go e.watchReads(cmp.Or(e.cfg.watch, pace{long: longRead, each: watchEach}))
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
	// Image stays the caller's, to release after the front. One that is not complete is
	// shown as soon as its metadata is there. Its files share with no other until it is
	// complete and hashed, unless Trusted; then as Member.Identify of package share says.
	// Once the last front of it is released it can't be mounted again: it is abandoned.
	Image *nodecache.Image
	// Keep leaves the image in its domain after the last front of it is released,
	// so that the next one finds its pages in memory, as long as the kernel has not
	// reclaimed them. It is for volumes that may come back, and must be the same in
	// all requests for one front.
	Keep bool
	// IDMapped asks for a front whose mounts can be id-mapped (mount_setattr(2)), as
	// container runtimes do for pods in user namespaces.
	IDMapped bool
	// CacheLimit bounds the page cache of the domain in bytes; 0: no bound. Where
	// volumes of one domain differ, the smallest limit holds for all.
	CacheLimit int64
	// Trusted takes the fingerprints that the image itself carries as they are, without
	// reading its files; a file that has none shares with no other. Volumes with it are
	// in a domain of their own, beside that of the same name without it, so that no
	// image's word decides what a volume shows whose files were hashed.
	Trusted bool
	// Kernel has the kernel's own EROFS mount the image, and share page cache if there
	// is a domain: FrontKernel. Neither Keep nor a CacheLimit is possible there; the
	// former does nothing, the latter is an error.
	Kernel bool
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
	if req.Kernel { // whose mounts can be id-mapped
		return e.mountByKernel(ctx, req)
	}
	key := frontKey{domain: domainKey(req), image: imageKey(req.Image), idMapped: req.IDMapped}
	it, err := e.fronts.acquire(ctx, key, func() (*front, error) { return e.makeFront(ctx, key, req) })
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", req.Image.Reference(), err)
	}
	shown := it.val
	f := &Front{
		path: shown.dir, kind: shown.kind, resumed: shown.resumed, reason: shown.why, stats: statsOf(shown.super),
		healthy: shown.alive, trouble: shown.image.Trouble,
	}
	f.release = func() error {
		shown.removeUser(req.VolumeID)
		shown.domain.unlimit(f)
		return e.fronts.release(it)
	}
	shown.addUser(req.VolumeID)
	shown.domain.limit(f, req.CacheLimit)
	return f, nil
}

// domainKey keeps apart the names of domains, of domains that trust the images'
// fingerprints, and of volumes without a domain.
func domainKey(req Request) string {
	switch {
	case req.Domain == "":
		return "volume:" + req.VolumeID
	case req.Trusted:
		return "trusted:" + req.Domain
	}
	return "domain:" + req.Domain
}

// Close ends the engine. Fronts must have been released; the mounts of those that
// were not are detached, and whoever still uses them gets errors.
func (e *Engine) Close(ctx context.Context) (err error) {
	e.closed.Do(func() {
		e.cancel()
		e.status.close()
		e.yielding.Lock()
		defer e.yielding.Unlock()
		for _, f := range e.fronts.snapshot() {
			klog.FromContext(ctx).Info("Front is still in use", "image", f.reference, "domain", f.domain.name, "volumes", f.volumes())
			err = errors.Join(err, e.unmakeFront(f))
		}
		for _, f := range e.kernels.snapshot() {
			klog.FromContext(ctx).Info("Front is still in use", "image", f.reference, "domain", f.domain, "volumes", f.volumes())
			err = errors.Join(err, e.unmakeKernelFront(f))
		}
		err = errors.Join(err, e.EndResume(ctx), e.forget(e.idle.takeAll(query{})), e.indexes.wait(ctx), e.instance.remove(ctx))
		if e.cfg.Holder != nil {
			err = errors.Join(err, e.cfg.Holder.Delete(keptKernel))
		}
		e.closeFiles()
	})
	return err
}

func (e *Engine) closeFiles() {
	if e.files != nil {
		e.files.Close()
	}
}
