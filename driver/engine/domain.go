package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/erofs/fusefs"
	"github.com/erofs-csi/erofs-csi/erofs/share"
	"github.com/erofs-csi/erofs-csi/nodecache/filestore"
)

// unmountTimeout bounds the wait for readers when a mount goes. What still waits
// for us after it gets an error.
const unmountTimeout = 10 * time.Second

// domain is a content mount with its shared inodes.
type domain struct {
	key  string // domainKey
	name string // as asked for; empty: the domain of one volume
	// trusted: its images' own fingerprints are taken as they are.
	trusted bool
	share   *share.Domain
	fs      *fusefs.FS
	mount   *fusefs.Mount
	kept    *kept // nil: it goes with this process

	passthroughMu sync.Mutex
	passthrough   *passthrough // of fronts of this kind, nil before the first; GUARDED_BY(passthroughMu)

	mu     sync.Mutex
	limits map[*Front]int64 // what its volumes ask for; GUARDED_BY(mu)
	layer  *filestore.Layer // of its large files, nil before the first; set once, GUARDED_BY(mu)
}

// limit notes the limit that a volume asks for, if any.
func (d *domain) limit(f *Front, bytes int64) {
	if bytes == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.limits[f] = bytes
	d.setLimit()
}

// unlimit forgets a volume's limit. The last one stays, for what remains in memory.
func (d *domain) unlimit(f *Front) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.limits[f]; ok {
		delete(d.limits, f)
		d.setLimit()
	}
}

// setLimit makes the smallest limit hold; d.mu is held.
func (d *domain) setLimit() {
	if len(d.limits) > 0 {
		d.fs.SetCacheLimit(slices.Min(slices.Collect(maps.Values(d.limits))))
	}
}

// newDomain is a domain that is not mounted.
func (e *Engine) newDomain(ctx context.Context, key, name string, trusted bool) *domain {
	log := klog.FromContext(ctx)
	d := &domain{key: key, name: name, trusted: trusted, share: share.NewDomain(name), limits: make(map[*Front]int64)}
	d.share.OnFailure(func(in share.Inode, err error) {
		log.Error(err, "An image can't supply a file; another one does", "domain", name, "file", in.Path())
	})
	d.fs = fusefs.New(d.share)
	d.fs.NoResend = e.cfg.noResend
	return d
}

// makeDomain mounts a domain's content, or takes it over from an engine that is gone.
func (e *Engine) makeDomain(ctx context.Context, key, name string, trusted bool) (*domain, error) {
	if d := e.takeDomain(key); d != nil {
		return d, nil
	}
	dir, err := e.instance.mountpoint(fmt.Sprintf("content-%d", e.serial.Add(1)))
	if err != nil {
		return nil, err
	}
	log := klog.FromContext(ctx).WithValues("domain", name)
	d := e.newDomain(e.ctx, key, name, trusted) //nolint:contextcheck // it outlives the call
	ledgers, err := e.ledgers("inodes", "nodes", "requests")
	if err == nil && ledgers != nil {
		err = d.fs.Keep(ledgers[0], ledgers[1], ledgers[2])
	}
	if err == nil {
		d.mount, err = fusefs.Serve(ctx, d.fs, dir)
	}
	if err != nil {
		closeAll(ledgers)
		return nil, errors.Join(err, os.Remove(dir))
	}
	if err := d.mount.SetReadahead(d.mount.Window()); err != nil {
		log.Error(err, "Cannot set the readahead: it stays what the machine has")
	}
	if ledgers != nil {
		meta := keptMeta{Kind: keptContent, Domain: key, Name: name, Trusted: trusted, Session: d.mount.State()}
		if d.kept, err = e.keepMount(newKey(keptContent), meta, dir, d.mount.Channel(), ledgers...); err != nil {
			notKept(ctx, err, "A domain", "domain", name)
		}
	}
	log.V(2).Info("Mounted a domain's content", "target", dir)
	return d, nil
}

func (e *Engine) unmakeDomain(d *domain) error {
	ctx := context.WithoutCancel(e.ctx)
	err := e.unmakePassthrough(ctx, d) // first: its open files are of the content mount
	ctx, cancel := context.WithTimeout(ctx, unmountTimeout)
	defer cancel()
	err = errors.Join(err, e.unkeep(d.kept), d.mount.Unmount(ctx))
	d.kept.close()
	if err != nil {
		return err
	}
	klog.FromContext(e.ctx).V(2).Info("Unmounted a domain's content", "domain", d.name, "target", d.mount.Dir())
	return os.Remove(d.mount.Dir())
}

// contentDirs are where the content of the domain's files is, the plain copies first, if
// there is a layer of them.
func (d *domain) contentDirs(layer *filestore.Layer) []string {
	if layer == nil {
		return []string{d.mount.Dir()}
	}
	return []string{layer.Dir(), d.mount.Dir()}
}
