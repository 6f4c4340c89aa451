package driver

import (
	"context"
	"errors"

	"k8s.io/klog/v2"
)

// errDismantled is why a volume cannot be used whose teardown did not finish.
var errDismantled = errors.New("the volume is being torn down")

// Unpublish unmounts a volume from a target path and removes the directory.
// An ephemeral volume ends with its last target. What is not there is
// success; a mount at the path of a volume that nobody remembers is unmounted.
func (m *volumeManager) Unpublish(ctx context.Context, volumeID, target string) error {
	end, err := m.begin(volumeID, target)
	if err != nil {
		return err
	}
	defer end()
	m.pulls.cancel(volumeID)
	if other := m.owner(target, volumeID); other != nil {
		return refuse(errPrecondition, "target path %s belongs to volume %q, not to %q", target, other.record.VolumeID, volumeID)
	}
	v := m.lookup(volumeID)
	if v != nil && v.record.Staging != nil && v.record.Staging.Path == target {
		return refuse(errPrecondition, "target path %s is the staging path of volume %q", target, volumeID)
	}
	if err := m.leave(ctx, v, target, true); err != nil {
		return err
	}
	if v == nil || v.record.target(target) < 0 {
		return nil
	}
	rec := v.record.withoutTarget(target)
	v = &volume{record: rec, image: v.image, front: v.front, broken: v.broken}
	if rec.Ephemeral && len(rec.Targets) == 0 {
		return m.dismantle(ctx, v)
	}
	if err := m.saved.save(rec); err != nil {
		return err
	}
	m.put(v)
	return nil
}

// Unstage unmounts a persistent volume from its staging path and ends it.
// What is not there is success.
func (m *volumeManager) Unstage(ctx context.Context, volumeID, staging string) error {
	end, err := m.begin(volumeID, staging)
	if err != nil {
		return err
	}
	defer end()
	m.pulls.cancel(volumeID)
	if other := m.owner(staging, volumeID); other != nil {
		return refuse(errPrecondition, "staging path %s belongs to volume %q, not to %q", staging, other.record.VolumeID, volumeID)
	}
	v := m.lookup(volumeID)
	if v == nil {
		return m.leave(ctx, nil, staging, false)
	}
	switch s := v.record.Staging; {
	case s == nil:
		return refuse(errPrecondition, "volume %q is an inline volume, which is never staged", volumeID)
	case s.Path != staging:
		return refuse(errPrecondition, "volume %q is staged at %s, not at %s", volumeID, s.Path, staging)
	}
	for _, t := range v.record.Targets {
		state, _, err := m.places.inspect(ctx, t.Path, "", 0)
		if err != nil {
			return err
		}
		if state != placeFree {
			return refuse(errPrecondition, "volume %q is still published at %s: unpublish it first", volumeID, t.Path)
		}
	}
	return m.dismantle(ctx, v)
}

// leave unmounts what is at path, and removes the directory if asked to.
func (m *volumeManager) leave(ctx context.Context, v *volume, path string, remove bool) error {
	isDead := v != nil && m.usable(ctx, v) != nil
	if err := m.places.clear(ctx, path, isDead); err != nil {
		return err
	}
	if !remove {
		return nil
	}
	return m.places.remove(path)
}

// dismantle ends a volume: it unmounts its paths, gives back front and image,
// and forgets it. After an error it can be called again.
func (m *volumeManager) dismantle(ctx context.Context, v *volume) error {
	for _, p := range v.record.paths() {
		if err := m.leave(ctx, v, p.Path, p.Created); err != nil {
			return err
		}
	}
	v.release(ctx)
	m.put(&volume{record: v.record, broken: errDismantled})
	if err := m.saved.remove(v.record.VolumeID); err != nil {
		return err
	}
	m.drop(v.record.VolumeID)
	klog.FromContext(ctx).V(2).Info("Unmounted image", "volumeID", v.record.VolumeID, "image", v.record.Reference)
	return nil
}
