package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/nodecache"
)

// repairOptions lets a call's secret bring back a blob that the node lost.
// The tag is not asked again: a repaired volume keeps its bytes.
func repairOptions(v *volume, req mountRequest) nodecache.AcquireOptions {
	return nodecache.AcquireOptions{Policy: nodecache.IfNotPresent, DockerConfig: req.DockerConfig, Tokens: req.Tokens, Lazy: v.record.Attributes.mayBeLazy()}
}

// repair puts a known volume in order: a front that can be read, mounted at
// each target path. A path whose directory is gone is forgotten, unless
// it is wanted, the one that the caller asks for: that is made. The bytes are
// those that the volume had, or it fails.
func (m *volumeManager) repair(ctx context.Context, v *volume, wanted string, opts nodecache.AcquireOptions) error {
	replaced := false
	if why := m.usable(ctx, v); why != nil {
		klog.FromContext(ctx).V(2).Info("Rebuilding volume", "volumeID", v.record.VolumeID, "image", v.record.Reference, "reason", why.Error())
		var err error
		if v, err = m.replaceFront(ctx, v, opts); err != nil {
			return err
		}
		replaced = !v.front.Resumed()
	}
	var errs []error
	rec := v.record
	for _, p := range rec.Targets {
		gone, err := m.rebind(ctx, v, p, p.Path == wanted, replaced)
		if err != nil {
			errs = append(errs, err)
		}
		if gone {
			rec = rec.withoutTarget(p.Path)
		}
	}
	if err := m.saved.save(rec); err != nil {
		errs = append(errs, err)
	}
	m.put(&volume{record: rec, image: v.image, front: v.front})
	m.pods.repair(ctx, rec.VolumeID, v.front.Path())
	return errors.Join(errs...)
}

// replaceFront gives a volume a new front in place of a broken one. After an
// error the volume is in the table as broken.
func (m *volumeManager) replaceFront(ctx context.Context, v *volume, opts nodecache.AcquireOptions) (_ *volume, err error) {
	rec := v.record
	broken := func(why error) (*volume, error) {
		why = fmt.Errorf("volume %q cannot be rebuilt: %w", rec.VolumeID, why)
		m.put(&volume{record: rec, broken: why})
		return nil, why
	}
	if err := m.clearPlaces(ctx, rec); err != nil {
		// The volume keeps its front, which is still to be released.
		return nil, fmt.Errorf("volume %q cannot be rebuilt: %w", rec.VolumeID, err)
	}
	m.keepImage(rec) // while nobody has it open
	v.release(ctx)
	v, err = m.openAgain(ctx, rec, opts)
	if err != nil {
		return broken(err)
	}
	return v, nil
}

// clearPlaces unmounts what is dead at the places of a volume.
func (m *volumeManager) clearPlaces(ctx context.Context, rec record) error {
	for _, p := range rec.paths() {
		if err := m.clearDead(ctx, rec.VolumeID, p.Path); err != nil {
			return err
		}
	}
	return nil
}

// clearDead unmounts what is dead at a place of a volume. Pods may have copies of it.
func (m *volumeManager) clearDead(ctx context.Context, volumeID, path string) error {
	if err := m.pods.remember(ctx, m.places.mounts, volumeID, path); err != nil {
		klog.FromContext(ctx).Error(err, "Pods may keep a dead mount", "volumeID", volumeID, "path", path)
	}
	return m.places.clear(ctx, path, true)
}

// openAgain opens the image of a record again, and mounts its front.
func (m *volumeManager) openAgain(ctx context.Context, rec record, opts nodecache.AcquireOptions) (_ *volume, err error) {
	var u undo
	defer u.end(ctx, &err)
	img, f, err := m.open(ctx, &u, rec.wantFront(), rec.Reference, opts)
	if err != nil {
		return nil, err
	}
	if img.ID() != rec.ImageID {
		return nil, refuse(errPrecondition, "image %s has other bytes now (%s, was %s); delete the pods that use it and create them again",
			rec.Reference, img.ID(), rec.ImageID)
	}
	v := &volume{record: rec, image: img, front: f}
	if err := m.usable(ctx, v); err != nil {
		return nil, err
	}
	u.keep()
	return v, nil
}

// rebind makes p a mount of a volume's front. What is mounted there of an earlier front is
// unmounted first. gone: the directory does not exist and nobody wants it.
func (m *volumeManager) rebind(ctx context.Context, v *volume, p recordPath, wanted, replaced bool) (gone bool, err error) {
	f := v.front
	state, info, err := m.places.inspect(ctx, p.Path, f.Path(), p.Flags)
	if err != nil {
		return false, err
	}
	switch state {
	case placeCorrect:
		return false, nil
	case placeForeign:
		if !replaced {
			return false, inUse("path", p.Path, info)
		}
	case placeFree, placeFlags, placeDead:
	}
	if replaced || state == placeDead {
		err = m.clearDead(ctx, v.record.VolumeID, p.Path)
	} else {
		err = m.places.clear(ctx, p.Path, false)
	}
	if err != nil {
		return false, err
	}
	if _, err := m.places.prober.lstat(ctx, p.Path); errors.Is(err, fs.ErrNotExist) && !wanted {
		return true, nil
	}
	created, err := m.places.take(ctx, "path", p.Path)
	if err != nil {
		return false, err
	}
	if err := m.bind(ctx, f, p.Path, p.Flags); err != nil {
		if created {
			err = errors.Join(err, os.Remove(p.Path))
		}
		return false, err
	}
	return false, nil
}
