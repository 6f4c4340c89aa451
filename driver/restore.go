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
// Their mounts died with that process' FUSE server. Before Restore returns,
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
	type job struct {
		record record
		unlock func()
	}
	var jobs []job
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
		jobs = append(jobs, job{rec, unlock})
	}
	return func() {
		var group sync.WaitGroup
		slots := make(chan struct{}, restoreParallel)
		for _, j := range jobs {
			slots <- struct{}{}
			group.Go(func() {
				defer func() { <-slots }()
				defer j.unlock()
				ctx, cancel := context.WithTimeout(ctx, restoreTimeout)
				defer cancel()
				m.restore(ctx, j.record)
			})
		}
		group.Wait()
	}, nil
}

// restore rebuilds one volume, or leaves it in the table as broken.
func (m *volumeManager) restore(ctx context.Context, rec record) {
	logger := klog.FromContext(ctx).WithValues("volumeID", rec.VolumeID)
	ctx = klog.NewContext(ctx, logger)
	v := &volume{record: rec, broken: errRestoring}
	_, err := guard(ctx, func() (struct{}, error) {
		gone, err := m.allGone(ctx, rec)
		switch {
		case gone:
			logger.V(2).Info("Forgetting a volume whose paths are gone")
			err = m.dismantle(ctx, v)
		case err == nil:
			err = m.repair(ctx, v, "", nodecache.AcquireOptions{Policy: nodecache.Never, Lazy: rec.Attributes.mayBeLazy()})
		}
		return struct{}{}, err
	})
	if err == nil {
		logger.V(2).Info("Rebuilt volume", "image", rec.Reference)
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
		if _, err := m.places.prober.lstat(ctx, p.Path); !errors.Is(err, fs.ErrNotExist) {
			return false, ctx.Err()
		}
	}
	return true, nil
}
