package driver

import (
	"context"
	"errors"
	"io/fs"

	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/nodecache"
)

// Stage makes a persistent volume. Nothing is mounted at its staging path: see
// volumeManager.
func (m *volumeManager) Stage(ctx context.Context, req mountRequest) error {
	end, err := m.begin(req.VolumeID, req.Path)
	if err != nil {
		return err
	}
	defer end()
	v := m.lookup(req.VolumeID)
	if v == nil {
		return m.create(ctx, req)
	}
	if err := v.matches(req); err != nil {
		return err
	}
	v.useCredentials(ctx, req)
	staging := *v.record.Staging
	if staging.Path != req.Path {
		_, err := m.places.prober.lstat(ctx, staging.Path)
		if err == nil {
			return refuse(errExists, "volume %q is already staged at %s", req.VolumeID, staging.Path)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	} else if staging.Flags != req.Flags {
		return refuse(errExists, "volume %q is already staged with mount options %s, asked for are %s", req.VolumeID, staging.Flags, req.Flags)
	} else if m.usable(ctx, v) == nil {
		return nil
	}
	// The volume is known but not in order.
	if len(v.record.Targets) == 0 {
		if err := m.dismantle(ctx, v); err != nil {
			return err
		}
		return m.create(ctx, req)
	}
	if staging.Path != req.Path {
		rec := v.record
		rec.Staging = &recordPath{Path: req.Path, Flags: req.Flags}
		v = &volume{record: rec, image: v.image, front: v.front, broken: v.broken}
	}
	return m.repair(ctx, v, req.Path, repairOptions(v, req))
}

// Publish mounts a volume at a target path, and makes it first if it is
// ephemeral.
func (m *volumeManager) Publish(ctx context.Context, req mountRequest) error {
	end, err := m.begin(req.VolumeID, req.Path)
	if err != nil {
		return err
	}
	defer end()
	v := m.lookup(req.VolumeID)
	switch {
	case v == nil && req.Ephemeral:
		return m.create(ctx, req)
	case v == nil:
		return refuse(errPrecondition, "volume %q is not staged on this node: call NodeStageVolume first", req.VolumeID)
	}
	if err := v.matches(req); err != nil {
		return err
	}
	v.useCredentials(ctx, req)
	if s := v.record.Staging; s != nil && s.Path != req.StagingPath {
		return refuse(errPrecondition, "volume %q is staged at %s, not at %s", req.VolumeID, s.Path, req.StagingPath)
	}
	known := v.record.target(req.Path)
	if known >= 0 && v.record.Targets[known].Flags != req.Flags {
		return refuse(errExists, "volume %q is already published at %s with mount options %s, asked for are %s",
			req.VolumeID, req.Path, v.record.Targets[known].Flags, req.Flags)
	}
	if m.usable(ctx, v) != nil {
		if err := m.repair(ctx, v, req.Path, repairOptions(v, req)); err != nil {
			return err
		}
		v = m.lookup(req.VolumeID)
	}
	if known >= 0 {
		state, _, err := m.places.inspect(ctx, req.Path, v.front.Path(), req.Flags)
		if err != nil {
			return err
		}
		if state == placeCorrect {
			return nil
		}
		return m.repair(ctx, v, req.Path, repairOptions(v, req))
	}
	return m.addTarget(ctx, v, req)
}

// matches returns errExists if the volume is another than the one asked for.
func (v *volume) matches(req mountRequest) error {
	switch {
	case v.record.Ephemeral != req.Ephemeral:
		return refuse(errExists, "volume %q exists as the other kind of volume (inline or persistent)", req.VolumeID)
	case req.Attributes == nil:
		return nil
	case v.record.Attributes != *req.Attributes, v.record.Domain != req.Domain:
		return refuse(errExists, "volume %q exists with other attributes: image %s in domain %q; use another volume handle",
			req.VolumeID, v.record.Attributes.Image, v.record.Domain)
	}
	return nil
}

// create makes a volume and mounts it at req.Path.
func (m *volumeManager) create(ctx context.Context, req mountRequest) (err error) {
	if req.Attributes == nil {
		return checkImage("")
	}
	var u undo
	defer u.end(ctx, &err)

	what := "staging path"
	if req.Ephemeral {
		what = "target path"
	}
	created, err := m.takePlace(ctx, &u, what, req.Path)
	if err != nil {
		return err
	}
	if req.Ephemeral {
		// An image that another pod's secret brought to the node is not
		// thereby this pod's. Always is no exception: its Acquire may ask a
		// mirror, which may give to all what the registry gives to some.
		if err := m.store.Authorize(ctx, req.Attributes.Image, req.credentials()); err != nil {
			return hintSecret(err, req)
		}
	}
	img, f, err := m.open(ctx, &u, wantFront(req.VolumeID, req.Domain, req.Ephemeral, req.Attributes), req.Attributes.Image, nodecache.AcquireOptions{
		Policy:       req.Attributes.PullPolicy,
		DockerConfig: req.DockerConfig,
		Tokens:       req.Tokens,
		Lazy:         req.Attributes.mayBeLazy(),
	})
	if err != nil {
		return hintSecret(err, req)
	}
	stats := f.Stats()
	rec := record{
		VolumeID:   req.VolumeID,
		Ephemeral:  req.Ephemeral,
		Attributes: *req.Attributes,
		Domain:     req.Domain,
		Reference:  img.Reference(),
		Digest:     img.Digest(),
		ImageID:    img.ID(),
		Bytes:      stats.Bytes,
		Inodes:     stats.Inodes,
	}
	place := recordPath{Path: req.Path, Flags: req.Flags, Created: created}
	if req.Ephemeral {
		rec.Targets = []recordPath{place}
	} else {
		rec.Staging = &place
	}
	u.add(func(context.Context) error { return m.saved.remove(req.VolumeID) })
	if err := m.saved.save(rec); err != nil {
		return err
	}
	if req.Ephemeral {
		if err := m.bind(ctx, f, req.Path, req.Flags); err != nil {
			return err
		}
	} else if err := ctx.Err(); err != nil { // given up meanwhile
		return err
	}
	m.put(&volume{record: rec, image: img, front: f})
	u.keep()
	return nil
}

// addTarget mounts a volume at a new target path.
func (m *volumeManager) addTarget(ctx context.Context, v *volume, req mountRequest) (err error) {
	var u undo
	defer u.end(ctx, &err)
	created, err := m.takePlace(ctx, &u, "target path", req.Path)
	if err != nil {
		return err
	}
	rec := v.record.withTarget(recordPath{Path: req.Path, Flags: req.Flags, Created: created})
	u.add(func(context.Context) error { return m.saved.save(v.record) })
	if err := m.saved.save(rec); err != nil {
		return err
	}
	if err := m.bind(ctx, v.front, req.Path, req.Flags); err != nil {
		return err
	}
	m.put(&volume{record: rec, image: v.image, front: v.front})
	u.keep()
	return nil
}

// takePlace is places.take for a path that no other volume has.
func (m *volumeManager) takePlace(ctx context.Context, u *undo, what, path string) (created bool, err error) {
	if other := m.owner(path, ""); other != nil {
		return false, refuse(errPrecondition, "%s %s is in use by volume %q", what, path, other.record.VolumeID)
	}
	created, err = m.places.take(ctx, what, path)
	if created {
		u.add(func(context.Context) error { return m.places.remove(path) })
	}
	return created, err
}

// bind mounts a front at a place, unless the call was given up meanwhile.
func (m *volumeManager) bind(ctx context.Context, f front, path string, flags mountFlags) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := m.places.mounts.Bind(f.Path(), path, flags); err != nil {
		return err
	}
	klog.FromContext(ctx).V(2).Info("Mounted volume", "path", path, "options", flags.String(), "front", f.Kind())
	return nil
}
