package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/erofs/fusefs"
	"github.com/erofs-csi/erofs-csi/erofs/share"
)

// unmountTimeout bounds the wait for readers when a mount goes. What still waits
// for us after it gets an error.
const unmountTimeout = 10 * time.Second

// domain is a content mount with its shared inodes.
type domain struct {
	name  string // as asked for; empty: the domain of one volume
	share *share.Domain
	fs    *fusefs.FS
	mount *fusefs.Mount
}

func (e *Engine) makeDomain(ctx context.Context, name string) (*domain, error) {
	dir, err := e.instance.mountpoint(fmt.Sprintf("content-%d", e.serial.Add(1)))
	if err != nil {
		return nil, err
	}
	d := &domain{name: name, share: share.NewDomain(name)}
	d.fs = fusefs.New(d.share)
	if d.mount, err = fusefs.Serve(ctx, d.fs, dir); err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	log := klog.FromContext(ctx)
	if err := d.mount.SetReadahead(d.mount.RequestSize()); err != nil {
		log.Error(err, "Cannot raise the readahead: cold sequential reads are slower", "domain", name)
	}
	log.V(2).Info("Mounted a domain's content", "domain", name, "target", dir)
	return d, nil
}

func (e *Engine) unmakeDomain(d *domain) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.ctx), unmountTimeout)
	defer cancel()
	if err := d.mount.Unmount(ctx); err != nil {
		return err
	}
	klog.FromContext(e.ctx).V(2).Info("Unmounted a domain's content", "domain", d.name, "target", d.mount.Dir())
	return os.Remove(d.mount.Dir())
}
