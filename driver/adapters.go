package driver

import (
	"context"

	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

// storeAdapter makes a [nodecache.Store] an imageStore: its images are
// interfaces.
type storeAdapter struct{ store *nodecache.Store }

func (a storeAdapter) Acquire(ctx context.Context, ref string, opts nodecache.AcquireOptions) (image, error) {
	img, err := a.store.Acquire(ctx, ref, opts)
	if err != nil {
		return nil, err
	}
	return img, nil
}

func (a storeAdapter) Authorize(ctx context.Context, ref string, c nodecache.Credentials) error {
	return a.store.Authorize(ctx, ref, c)
}

func (a storeAdapter) Keep(id string) (release func()) { return a.store.Keep(id) }

// engineAdapter makes an [engine.Engine] a mountEngine. It mounts images of a
// storeAdapter only.
type engineAdapter struct{ engine *engine.Engine }

func (a engineAdapter) Mount(ctx context.Context, req frontRequest, img image) (front, error) {
	r := req.toEngine()
	r.Image = img.(*nodecache.Image)
	f, err := a.engine.Mount(ctx, r)
	if err != nil {
		return nil, err
	}
	return frontAdapter{f}, nil
}

func (a engineAdapter) Holds(req frontRequest, imageID string) bool {
	return a.engine.Holds(req.toEngine(), imageID)
}

func (a engineAdapter) EndResume(ctx context.Context) error { return a.engine.EndResume(ctx) }

// toEngine is the engine's request, without an image.
func (r frontRequest) toEngine() engine.Request {
	return engine.Request{
		Domain:     r.Domain,
		VolumeID:   r.VolumeID,
		Keep:       r.Keep,
		CacheLimit: r.CacheLimit,
		IDMapped:   r.IDMapped,
		Trusted:    r.Trusted,
		Kernel:     r.Kernel,
	}
}

// frontAdapter makes an [engine.Front] a front: its Stats are ours.
type frontAdapter struct{ *engine.Front }

func (f frontAdapter) Stats() imageStats {
	s := f.Front.Stats()
	return imageStats{Bytes: s.Bytes, Inodes: s.Inodes}
}
