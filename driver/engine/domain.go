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
	name string // as asked for; empty: the domain of one volume
	// trusted: its images' own fingerprints are taken as they are.
	trusted bool
	share   *share.Domain
	fs      *fusefs.FS
	mount   *fusefs.Mount

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

func (e *Engine) makeDomain(ctx context.Context, name string, trusted bool) (*domain, error) {
	dir, err := e.instance.mountpoint(fmt.Sprintf("content-%d", e.serial.Add(1)))
	if err != nil {
		return nil, err
	}
	log := klog.FromContext(ctx)
	d := &domain{name: name, trusted: trusted, share: share.NewDomain(name), limits: make(map[*Front]int64)}
	d.share.OnFailure(func(in share.Inode, err error) {
		log.Error(err, "An image can't supply a file; another one does", "domain", name, "file", in.Path())
	})
	d.fs = fusefs.New(d.share)
	if d.mount, err = fusefs.Serve(ctx, d.fs, dir); err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	if err := d.mount.SetReadahead(d.mount.Window()); err != nil {
		log.Error(err, "Cannot set the readahead: it stays what the machine has", "domain", name)
	}
	log.V(2).Info("Mounted a domain's content", "domain", name, "target", dir)
	return d, nil
}

func (e *Engine) unmakeDomain(d *domain) error {
	ctx := context.WithoutCancel(e.ctx)
	err := e.unmakePassthrough(ctx, d) // first: its open files are of the content mount
	ctx, cancel := context.WithTimeout(ctx, unmountTimeout)
	defer cancel()
	if err := errors.Join(err, d.mount.Unmount(ctx)); err != nil {
		return err
	}
	klog.FromContext(e.ctx).V(2).Info("Unmounted a domain's content", "domain", d.name, "target", d.mount.Dir())
	return os.Remove(d.mount.Dir())
}
