package engine

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/fingerprint"
	"github.com/erofs-csi/erofs-csi/erofs/fusefs"
	"github.com/erofs-csi/erofs-csi/erofs/share"
)

// ErrNoPassthrough says that the kernel can't have fronts of this kind.
var ErrNoPassthrough = fusefs.ErrNoPassthrough

// passthrough is the superblock of a domain's fronts of that kind.
type passthrough struct {
	fs    *fusefs.Passthrough
	mount *fusefs.Mount
}

// passthroughTree is where a passthrough superblock shows an image.
type passthroughTree struct {
	on     *passthrough // nil: nowhere
	path   string
	stored bool // content is looked for in the domain's layer, too
}

// passthroughOf returns the passthrough superblock of a domain, which it makes for the
// first front that wants it, or when the last one's session has ended.
func (e *Engine) passthroughOf(ctx context.Context, d *domain) (*passthrough, error) {
	d.passthroughMu.Lock()
	defer d.passthroughMu.Unlock()
	if p := d.passthrough; p != nil {
		if p.mount.Alive() == nil {
			return p, nil
		}
		if err := e.unmakePassthrough(context.WithoutCancel(ctx), d); err != nil {
			klog.FromContext(ctx).Error(err, "A front's dead session left something behind", "domain", d.name)
		}
	}
	dir, err := e.instance.mountpoint(fmt.Sprintf("passthrough-%d", e.serial.Add(1)))
	if err != nil {
		return nil, err
	}
	p := &passthrough{fs: fusefs.NewPassthrough()}
	if p.mount, err = fusefs.ServePassthrough(ctx, p.fs, dir); err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	d.passthrough = p
	klog.FromContext(ctx).V(2).Info("Mounted a domain's trees", "domain", d.name, "target", dir)
	return p, nil
}

// unmakePassthrough takes the passthrough superblock away, if there is one, and with it
// its hold on the content mount. d.passthroughMu is held, or nobody else has d.
func (e *Engine) unmakePassthrough(ctx context.Context, d *domain) error {
	p := d.passthrough
	if p == nil {
		return nil
	}
	d.passthrough = nil
	ctx, cancel := context.WithTimeout(ctx, unmountTimeout)
	defer cancel()
	if err := p.mount.Unmount(ctx); err != nil {
		return err
	}
	return os.Remove(p.mount.Dir())
}

// mountPassthrough shows the image by a bind mount of its tree in the domain's
// passthrough superblock. What it did is undone when it fails.
func (e *Engine) mountPassthrough(ctx context.Context, f *front) error {
	p, err := e.passthroughOf(ctx, f.domain)
	if err != nil {
		return err
	}
	if f.idMapped {
		if err := idMappable(p.mount); err != nil {
			return err
		}
	}
	dirs := []string{f.domain.mount.Dir()}
	layer := e.layer(f)
	if layer != nil {
		large, err := largeFiles(f.erofs, f.member)
		if err != nil {
			return err
		}
		f.unstore()
		storeFiles(ctx, layer, f.joined, large)
		dirs = []string{layer.Dir(), dirs[0]}
	}
	if t := f.shown; t.on != p || t.stored != (layer != nil) {
		f.hide()
		path, err := p.fs.AddTree(f.member, dirs...)
		if err != nil {
			return err
		}
		f.shown = passthroughTree{on: p, path: path, stored: layer != nil}
	}
	if err := unix.Mount(p.mount.Dir()+f.shown.path, f.dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind the tree at %s: %w", f.dir, err)
	}
	f.session = p.mount
	f.undo = append(f.undo, func() error { return unmount(f.dir) })
	return nil
}

// hide takes an image out of the passthrough superblock.
func (j *joined) hide() {
	if j.shown.on != nil {
		j.shown.on.fs.RemoveTree(j.member)
		j.shown = passthroughTree{}
	}
}

// largeFiles are the contents of an image that are worth a place in the store of
// files, each once.
func largeFiles(im *erofs.Image, m *share.Member) (large []share.Key, err error) {
	files, err := fingerprint.Files(im)
	if err != nil {
		return nil, err
	}
	found := make(map[share.Key]bool)
	for _, f := range files {
		if f.Size < minStored {
			continue
		}
		if k, ok := m.Key(f.NID, f.Size); ok && !found[k] {
			found[k] = true
			large = append(large, k)
		}
	}
	return large, nil
}
