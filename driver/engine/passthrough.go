package engine

import (
	"context"
	"errors"
	"fmt"
	"os"

	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/erofs/fusefs"
)

// ErrNoPassthrough says that the kernel can't have fronts of this kind.
var ErrNoPassthrough = fusefs.ErrNoPassthrough

// passthrough is the superblock of a domain's fronts of that kind.
type passthrough struct {
	fs       *fusefs.Passthrough
	mount    *fusefs.Mount
	kept     *kept // nil: it goes with this process
	recalled bool  // it was made by an engine that is gone
}

// passthroughTree is where a passthrough superblock shows an image.
type passthroughTree struct {
	on     *passthrough // nil: nowhere
	tree   fusefs.Tree
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
	p.fs.OpenElsewhere(e.openElsewhere(d))
	ledgers, err := e.ledgers("opens")
	if err == nil && ledgers != nil {
		err = p.fs.Keep(ledgers[0])
	}
	if err == nil {
		p.mount, err = fusefs.ServePassthrough(ctx, p.fs, dir)
	}
	if err != nil {
		closeAll(ledgers)
		return nil, errors.Join(err, os.Remove(dir))
	}
	if ledgers != nil {
		meta := keptMeta{Kind: keptPassthrough, Domain: d.key, Session: p.mount.State()}
		if p.kept, err = e.keepMount(newKey(keptPassthrough), meta, dir, p.mount.Channel(), ledgers...); err != nil {
			notKept(ctx, err, "A domain's trees", "domain", d.name)
		}
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
	err := errors.Join(e.unkeep(p.kept), p.mount.Unmount(ctx))
	p.kept.close()
	if err != nil {
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
	layer := e.layer(f)
	if layer != nil {
		f.unstore()
		storeFiles(ctx, layer, f.joined, f.large())
		f.layered = true
	}
	if t := f.shown; t.on != p || t.stored != (layer != nil) {
		f.hide()
		tree, err := p.fs.AddTree(f.member, f.domain.contentDirs(layer)...)
		if err != nil {
			return err
		}
		f.shown = passthroughTree{on: p, tree: tree, stored: layer != nil}
	}
	if err := bindTree(p.mount.Dir()+f.shown.tree.PassthroughPath(), f.dir); err != nil {
		return err
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
