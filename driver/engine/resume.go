package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/driver/holder"
	"github.com/erofs-csi/erofs-csi/erofs/fusefs"
	"github.com/erofs-csi/erofs-csi/erofs/share"
	"github.com/erofs-csi/erofs-csi/nodecache/filestore"
)

// resumePatience is how long requests of a resumed domain wait at the most for the
// images that had fronts in it. Then they are answered as far as can be.
const resumePatience = 10 * time.Second

// resumed is what an engine that is gone left in the holder, and is not in use again.
type resumed struct {
	mu      sync.Mutex
	domains map[string]*resumedDomain  // by domainKey; GUARDED_BY(mu)
	fronts  map[frontKey]*resumedFront // GUARDED_BY(mu)
	found   map[frontKey]bool          // all fronts that there were; GUARDED_BY(mu)
}

// resumedDomain is a domain whose sessions are served again. Their requests wait until
// it is loaded.
type resumedDomain struct {
	domain  *domain
	taken   bool                  // an image has joined it
	waiting map[frontKey]struct{} // fronts whose images it waits for
	load    sync.Once
}

// resumedFront is a front that is mounted somewhere, if only in the holder.
type resumedFront struct {
	meta   keptMeta
	kept   *kept
	domain *domain // that it shows the files of
}

// resume takes over what an engine that is gone left in the holder. What can't be taken
// over ends, with the mounts of it; that is logged.
func (e *Engine) resume(ctx context.Context) error {
	items, err := e.cfg.Holder.Items()
	if err != nil {
		return fmt.Errorf("what the last engine left in the holder: %w", err)
	}
	start := time.Now()
	e.resumed.domains = make(map[string]*resumedDomain)
	e.resumed.fronts = make(map[frontKey]*resumedFront)
	e.resumed.found = make(map[frontKey]bool)
	byKind := make(map[string][]heldItem)
	for _, it := range items {
		h := heldItem{Item: it}
		if err := json.Unmarshal(it.Meta, &h.meta); err != nil || h.meta.Version != keptVersion {
			if err == nil {
				err = fmt.Errorf("it is of version %d, this release knows %d", h.meta.Version, keptVersion)
			}
			e.giveUp(ctx, it, err)
			continue
		}
		switch h.meta.Kind {
		case keptContent, keptPassthrough, keptFront, keptKernel:
			byKind[h.meta.Kind] = append(byKind[h.meta.Kind], h)
		default:
			e.giveUp(ctx, it, fmt.Errorf("of an unknown kind, %q", h.meta.Kind))
		}
	}
	for _, h := range byKind[keptContent] {
		if err := e.resumeDomain(ctx, h); err != nil {
			e.giveUp(ctx, h.Item, err)
		}
	}
	for _, h := range byKind[keptPassthrough] {
		if err := e.resumePassthrough(ctx, h); err != nil {
			e.giveUp(ctx, h.Item, err)
		}
	}
	for _, h := range byKind[keptFront] {
		if err := e.resumeFront(h); err != nil {
			e.giveUp(ctx, h.Item, err)
		}
	}
	for _, h := range byKind[keptKernel] {
		e.kernelDomains.recall(h.meta.KernelNames)
	}
	if len(byKind[keptKernel]) == 0 {
		if err := e.keepKernelDomains(); err != nil {
			return err
		}
	}
	if n := len(e.resumed.domains); n > 0 {
		klog.FromContext(ctx).Info("Resumed the mounts of an engine that is gone", "domains", n, "fronts", len(e.resumed.fronts), "duration", time.Since(start))
	}
	for _, d := range e.resumed.domains {
		if len(d.waiting) == 0 {
			e.load(d) // no volume of it is left, only who has its files open
		} else {
			time.AfterFunc(resumePatience, func() { e.load(d) })
		}
	}
	return nil
}

// heldItem is an item of the holder.
type heldItem struct {
	holder.Item
	meta keptMeta
}

// giveUp lets go of what can't be resumed: with its last descriptor a session ends, and
// what waits for it gets an error.
func (e *Engine) giveUp(ctx context.Context, it holder.Item, why error) {
	klog.FromContext(ctx).Error(why, "Mounts of an engine that is gone are lost: they can't be resumed", "key", it.Key)
	e.lost.Add(1)
	closeAll(it.Files)
	if err := e.cfg.Holder.Delete(it.Key); err != nil {
		klog.FromContext(ctx).Error(err, "The holder may still keep mounts that are lost", "key", it.Key)
	}
}

// errItem says that an item has not the descriptors that its kind has.
var errItem = errors.New("it has not the descriptors of its kind")

// takeMount mounts a session's mount at a directory of this engine, and copies it again.
func (e *Engine) takeMount(name string, copies []*os.File) (dir string, err error) {
	dir, err = e.instance.mountpoint(fmt.Sprintf("%s-%d", name, e.serial.Add(1)))
	if err != nil {
		return "", err
	}
	if err := moveMount(copies, dir); err != nil {
		return "", errors.Join(err, os.Remove(dir))
	}
	return dir, nil
}

func (e *Engine) resumeDomain(ctx context.Context, h heldItem) (err error) {
	if len(h.Files) < 5 || e.resumed.domains[h.meta.Domain] != nil {
		return errItem
	}
	channel, ledgers, copies := h.Files[0], h.Files[1:4], h.Files[4:]
	dir, err := e.takeMount("content", copies)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unmount(dir), os.Remove(dir))
		}
	}()
	d := e.newDomain(e.ctx, h.meta.Domain, h.meta.Name, h.meta.Trusted) //nolint:contextcheck // it outlives the call
	if err := d.fs.Recall(ledgers[0], ledgers[1], ledgers[2]); err != nil {
		return err
	}
	if d.mount, err = fusefs.Resume(d.fs, dir, channel, h.meta.Session); err != nil {
		return err
	}
	e.resumed.domains[h.meta.Domain] = &resumedDomain{domain: d, waiting: make(map[frontKey]struct{})}
	d.kept = e.keepAgain(ctx, h.Key, h.meta, dir, d.mount.Channel(), copies, ledgers...)
	return nil
}

// keepAgain keeps a mount that was taken from the holder: with copies of it as it is
// mounted now.
func (e *Engine) keepAgain(ctx context.Context, key string, meta keptMeta, dir string, channel *os.File, copies []*os.File, ledgers ...*os.File) *kept {
	k, err := e.keepMount(key, meta, dir, channel, ledgers...)
	if err != nil {
		notKept(ctx, errors.Join(err, e.cfg.Holder.Delete(key)), "A mount", "key", key)
	}
	closeAll(copies)
	return k
}

func (e *Engine) resumePassthrough(ctx context.Context, h heldItem) (err error) {
	r := e.resumed.domains[h.meta.Domain]
	if len(h.Files) < 3 || r == nil || r.domain.passthrough != nil {
		return errItem
	}
	channel, ledger, copies := h.Files[0], h.Files[1], h.Files[2:]
	dir, err := e.takeMount("passthrough", copies)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unmount(dir), os.Remove(dir))
		}
	}()
	p := &passthrough{fs: fusefs.NewPassthrough()}
	p.fs.OpenElsewhere(e.openElsewhere(r.domain))
	if err := p.fs.Recall(ledger); err != nil {
		return err
	}
	if p.mount, err = fusefs.ResumePassthrough(ctx, p.fs, dir, channel, h.meta.Session); err != nil {
		return err
	}
	p.recalled = true
	p.kept = e.keepAgain(ctx, h.Key, h.meta, dir, p.mount.Channel(), copies, ledger)
	r.domain.passthrough = p
	return nil
}

func (e *Engine) resumeFront(h heldItem) error {
	r := e.resumed.domains[h.meta.Domain]
	key := frontKey{domain: h.meta.Domain, image: h.meta.Image, idMapped: h.meta.IDMapped}
	if len(h.Files) == 0 || r == nil || e.resumed.fronts[key] != nil {
		return errItem
	}
	e.resumed.fronts[key] = &resumedFront{meta: h.meta, kept: &kept{key: h.Key, mounts: h.Files}, domain: r.domain}
	e.resumed.found[key] = true
	r.waiting[key] = struct{}{}
	return nil
}

// takeDomain returns a resumed domain to the first that joins it, or nil.
func (e *Engine) takeDomain(key string) *domain {
	e.resumed.mu.Lock()
	defer e.resumed.mu.Unlock()
	r := e.resumed.domains[key]
	if r == nil || r.taken {
		return nil
	}
	r.taken = true
	return r.domain
}

// takeFront returns a resumed front, or nil. Whoever gets one tells by e.settle when its
// image has joined, or can't.
func (e *Engine) takeFront(key frontKey) *resumedFront {
	e.resumed.mu.Lock()
	defer e.resumed.mu.Unlock()
	f := e.resumed.fronts[key]
	delete(e.resumed.fronts, key)
	return f
}

// putBack leaves a front to a later call: its image could not join.
func (e *Engine) putBack(key frontKey, f *resumedFront) error {
	e.resumed.mu.Lock()
	over := e.resumed.fronts == nil
	if !over {
		e.resumed.fronts[key] = f
	}
	e.resumed.mu.Unlock()
	if over {
		return e.unkeep(f.kept)
	}
	return nil
}

// Holds tells, before EndResume, whether a front was there that an engine left which is
// gone, and that Mount would return for a request for an image, by its ID.
func (e *Engine) Holds(req Request, imageID string) bool {
	e.resumed.mu.Lock()
	defer e.resumed.mu.Unlock()
	return !req.Kernel && e.resumed.found[frontKey{domain: domainKey(req), image: imageID, idMapped: req.IDMapped}]
}

// settle notes that a domain need not wait for a front any more.
func (e *Engine) settle(key frontKey) {
	e.resumed.mu.Lock()
	r := e.resumed.domains[key.domain]
	last := false
	if r != nil {
		delete(r.waiting, key)
		last = len(r.waiting) == 0
	}
	e.resumed.mu.Unlock()
	if last {
		e.load(r)
	}
}

// load has a resumed domain answer requests.
func (e *Engine) load(r *resumedDomain) {
	r.load.Do(func() {
		d := r.domain
		log := klog.FromContext(e.ctx).WithValues("domain", d.name)
		start := time.Now()
		n, err := d.fs.Load()
		if err != nil {
			log.Error(err, "Some of what the kernel knows of a domain is lost")
		}
		opened := 0
		d.passthroughMu.Lock()
		p := d.passthrough
		d.passthroughMu.Unlock()
		if p != nil && p.recalled {
			if opened, err = p.fs.Load(); err != nil {
				log.Error(err, "Some of a domain's open files are lost")
			}
		}
		log.V(2).Info("A domain is served again", "inodes", n.Inodes, "orphans", n.Orphans, "merged", n.Merged, "lost", n.Lost, "opened", opened, "duration", time.Since(start))
		go func() {
			if n := d.fs.Verify(d.mount); n > 0 {
				log.V(2).Info("The kernel had forgotten files that the last engine knew", "files", n)
			}
		}()
	})
}

// EndResume ends what is left of an engine that is gone and that no Mount has asked for.
// It is to be called when all volumes that are to go on are mounted.
func (e *Engine) EndResume(ctx context.Context) error {
	e.resumed.mu.Lock()
	domains, fronts := e.resumed.domains, e.resumed.fronts
	e.resumed.domains, e.resumed.fronts, e.resumed.found = nil, nil, nil
	e.resumed.mu.Unlock()
	var errs []error
	for key, f := range fronts {
		klog.FromContext(ctx).Info("Letting go of a mount that no volume wants", "image", key.image, "domain", f.meta.Domain, "front", f.meta.Front)
		errs = append(errs, e.unkeep(f.kept))
	}
	for _, r := range domains {
		e.load(r)
		if !r.taken {
			errs = append(errs, e.unmakeDomain(r.domain)) //nolint:contextcheck // it has a limit of its own
		}
	}
	return errors.Join(errs...)
}

// errNotItsDomain says that a front shows the files of a domain that EndResume has ended,
// because no volume that was to go on wanted it.
var errNotItsDomain = errors.New("its domain has ended before it was asked for")

// errNamedByContent says that a front names files by what they share, of an image that came
// back as a lazy one, which does not know that.
var errNamedByContent = errors.New("it is of the complete image, which is not on the node any more")

// adopt makes a resumed front the front of an image that has joined.
func (e *Engine) adopt(ctx context.Context, f *front, r *resumedFront) (err error) {
	if r.domain != f.domain {
		return errNotItsDomain
	}
	if r.meta.Shares && f.lazy {
		return errNamedByContent
	}
	f.dir, err = e.takeMount("front", r.kept.mounts)
	if err != nil {
		return err
	}
	f.undo = append(f.undo, func() error { return errors.Join(unmount(f.dir), os.Remove(f.dir)) })
	layer := e.layer(f)
	if !r.meta.Stored {
		layer = nil
	}
	if layer != nil {
		holdFiles(layer, f.joined)
	}
	switch r.meta.Front {
	case FrontTree:
		if err := f.domain.fs.RestoreTree(f.member, r.meta.Tree); err != nil {
			return err
		}
		f.tree, f.session = r.meta.Tree, f.domain.mount
	case FrontPassthrough:
		f.domain.passthroughMu.Lock()
		p := f.domain.passthrough
		f.domain.passthroughMu.Unlock()
		if p == nil || !p.recalled {
			return fmt.Errorf("%s: its superblock was not resumed", r.meta.Front)
		}
		if err := p.fs.RestoreTree(f.member, r.meta.Tree, f.domain.contentDirs(layer)...); err != nil {
			return err
		}
		f.shown, f.session = passthroughTree{on: p, tree: r.meta.Tree, stored: layer != nil}, p.mount
	}
	f.kind, f.reason = r.meta.Front, r.meta.Reason
	k := e.keepAgain(ctx, r.kept.key, r.meta, f.dir, nil, r.kept.mounts)
	f.undo = append(f.undo, func() error { return e.unkeep(k) })
	return nil
}

// holdFiles holds the image's files that the domain's layer has.
func holdFiles(l *filestore.Layer, j *joined) {
	for _, key := range j.large() {
		if name := share.ContentPath(key); l.Hold(name) {
			j.mu.Lock()
			j.stored = append(j.stored, name)
			j.mu.Unlock()
		}
	}
}

// large lists the contents of an image's files of minStored and more, from its index.
func (j *joined) large() (keys []share.Key) {
	ix := j.fingerprints()
	if ix == nil {
		return nil
	}
	for i := range ix.Len() {
		if f := ix.Entry(i); f.Size >= minStored {
			keys = append(keys, share.Key{Sum: f.Sum, Size: f.Size})
		}
	}
	return keys
}
