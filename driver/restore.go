package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/nodecache"
)

const (
	// restoreParallel bounds the rebuilds at a time: each reads an image's
	// metadata from the disk that the others need too.
	restoreParallel = 4
	// restoreTimeout bounds one rebuild, so that a hung mount or a huge image
	// delays its own volume only.
	restoreTimeout = 2 * time.Minute
)

// Restore finds the volumes that an earlier process left and rebuilds them.
//
// Their mounts died with that process' FUSE server, unless a holder kept them: then
// they go on, and nothing is mounted anew. Before Restore returns,
// every such volume is known and locked, and its image kept from eviction until it is
// mounted again; then wait rebuilds them and returns
// when all are done. So the socket can be served at once: a call on a volume
// under rebuild is Aborted, which kubelet repeats, and no volume waits for
// another's rebuild. The alternative, to serve nothing before all is rebuilt,
// would let one hung volume keep every new pod from the node.
//
// A volume that cannot be rebuilt stays known as broken: its health says why,
// and the next Publish or Stage tries again. No registry is waited for: an image that
// was lazy is again, with the node's own credentials until a Publish or Stage brings
// some. Records
// whose paths are all gone are removed.
func (m *volumeManager) Restore(ctx context.Context) (wait func(), err error) {
	logger := klog.FromContext(ctx)
	records, damaged, err := m.saved.load()
	if err != nil {
		return nil, fmt.Errorf("reading the state of the volumes: %w", err)
	}
	for _, err := range damaged {
		logger.Error(err, "Ignoring the damaged state of a volume")
	}
	var jobs []*restoration
	for _, rec := range records {
		locks := []string{volumeLock(rec.VolumeID)}
		for _, p := range rec.paths() {
			locks = append(locks, pathLock(p.Path))
		}
		unlock, ok := m.inflight.acquire(locks...)
		if !ok {
			// Two records name one path; only a hand that edits them can.
			logger.Error(nil, "Ignoring the state of a volume whose path belongs to another", "volumeID", rec.VolumeID)
			continue
		}
		m.put(&volume{record: rec, broken: errRestoring})
		m.keepImage(rec)
		jobs = append(jobs, &restoration{rec, unlock, &volume{record: rec, broken: errRestoring}})
	}
	return func() {
		// First all that goes on: readers wait for it, and the files of a domain are
		// not served before all its images are there.
		inParallel(ctx, jobs, m.resume)
		if err := m.engine.EndResume(ctx); err != nil {
			logger.Error(err, "Something is left of mounts that no volume has any more")
		}
		inParallel(ctx, jobs, func(ctx context.Context, j *restoration) {
			defer j.unlock()
			m.restore(ctx, j.volume)
		})
	}, nil
}

// restoration is a volume that an earlier process left.
type restoration struct {
	record record
	unlock func()
	volume *volume // broken before it is resumed
}

// inParallel does a step of some restorations, and returns when all are done.
func inParallel(ctx context.Context, jobs []*restoration, step func(context.Context, *restoration)) {
	var group sync.WaitGroup
	slots := make(chan struct{}, restoreParallel)
	for _, j := range jobs {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, restoreTimeout)
			defer cancel()
			step(klog.NewContext(ctx, klog.FromContext(ctx).WithValues("volumeID", j.record.VolumeID)), j)
		})
	}
	group.Wait()
}

// restoreOptions open the image of a record without waiting for a registry.
func restoreOptions(rec record) nodecache.AcquireOptions {
	return nodecache.AcquireOptions{Policy: nodecache.Never, Lazy: rec.Attributes.mayBeLazy()}
}

// resume gives a volume its front if that goes on. One that does not, or of which
// something fails, is restore's.
func (m *volumeManager) resume(ctx context.Context, j *restoration) {
	if !m.engine.Holds(j.record.wantFront(), j.record.ImageID) {
		return
	}
	v, err := guard(ctx, func() (*volume, error) { return m.openAgain(ctx, j.record, restoreOptions(j.record)) })
	if err != nil {
		klog.FromContext(ctx).Error(err, "Volume cannot go on as it was", "image", j.record.Reference)
		return
	}
	if !v.front.Resumed() { // lost meanwhile, or another volume's
		if err := m.clearPlaces(ctx, j.record); err != nil {
			klog.FromContext(ctx).Error(err, "What is dead of a volume is still mounted")
		}
	}
	j.volume = v
	m.put(v)
}

// restore rebuilds one volume, or leaves it in the table as broken.
func (m *volumeManager) restore(ctx context.Context, v *volume) {
	logger, rec := klog.FromContext(ctx), v.record
	_, err := guard(ctx, func() (struct{}, error) {
		gone, err := m.allGone(ctx, rec)
		switch {
		case gone:
			logger.V(2).Info("Forgetting a volume whose paths are gone")
			err = m.dismantle(ctx, v)
		case err == nil:
			err = m.repair(ctx, v, "", restoreOptions(rec))
		}
		return struct{}{}, err
	})
	if err == nil {
		logger.V(2).Info("Volume is restored", "image", rec.Reference, "resumed", v.front != nil && v.front.Resumed())
		return
	}
	logger.Error(err, "Volume cannot be rebuilt", "image", rec.Reference)
	if v := m.lookup(rec.VolumeID); v != nil && errors.Is(v.broken, errRestoring) {
		m.put(&volume{record: rec, broken: err})
	}
}

// allGone reports whether no path of the record exists. One that cannot be
// looked at exists.
func (m *volumeManager) allGone(ctx context.Context, rec record) (bool, error) {
	for _, p := range rec.paths() {
		if _, err := m.places.prober.exists(ctx, p.Path); !errors.Is(err, fs.ErrNotExist) {
			return false, ctx.Err()
		}
	}
	return true, nil
}
