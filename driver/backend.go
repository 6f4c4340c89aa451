package driver

import (
	"context"

	"github.com/erofs-csi/erofs-csi/nodecache"
)

// imageStore keeps images on the node: [nodecache.Store] behind storeAdapter.
type imageStore interface {
	// Acquire finds or pulls an image and pins it until its Release.
	Acquire(ctx context.Context, ref string, opts nodecache.AcquireOptions) (image, error)
	// Authorize asks the source of ref whether these credentials may read it.
	Authorize(ctx context.Context, ref string, c nodecache.Credentials) error
	// Keep keeps an image that the store may have, by its ID, from being evicted
	// until release.
	Keep(id string) (release func())
}

// image is a pinned image: [nodecache.Image].
type image interface {
	// ID is the identity of the bytes: equal IDs, equal bytes.
	ID() string
	// Reference finds the same bytes again, without a registry while the node
	// has them.
	Reference() string
	// Digest is "sha256:..." of the blob, "" of an image at a path.
	Digest() string
	// UseCredentials gives an image that is not complete other credentials to be
	// completed with.
	UseCredentials(c nodecache.Credentials) error
	// Release unpins. Idempotent.
	Release()
}

// mountEngine mounts images: driver/engine.Engine behind engineAdapter.
type mountEngine interface {
	// Mount mounts img. The image stays the caller's, who must not release it
	// before the front.
	Mount(ctx context.Context, req frontRequest, img image) (front, error)
	// Holds tells whether Mount of an image, by its ID, would return a front that an
	// engine which is gone has left: see front.Resumed.
	Holds(req frontRequest, imageID string) bool
	// EndResume lets go of such fronts that nobody has asked for.
	EndResume(ctx context.Context) error
}

// frontRequest is what a volume asks of its front.
type frontRequest struct {
	// Domain "" shares with nobody.
	Domain     string
	VolumeID   string
	CacheLimit int64 // of the domain, in bytes; 0: none
	IDMapped   bool  // its mounts can be id-mapped, or it is an error
	// Keep the image's pages when the volume ends: it, or another of its domain,
	// may come back.
	Keep bool
	// Trusted takes the image's own fingerprints as they are.
	Trusted bool
	// Kernel has the kernel's own EROFS mount the image.
	Kernel bool
}

// front is one volume's hold on a mounted tree, which other volumes of its
// domain may hold as well.
type front interface {
	// Path is the directory to bind-mount from.
	Path() string
	// Kind is "overlay", "tree-passthrough", "tree" or "kernel".
	Kind() string
	// Resumed tells that it was there before this process, and that what was bound from
	// it goes on.
	Resumed() bool
	// Engine is "fuse" or "kernel".
	Engine() string
	// Reason says why it is not the best or shares less than it could; "" when it is
	// and does.
	Reason() string
	// Healthy returns nil while the tree can be read.
	Healthy() error
	// Trouble says why the image can't be completed at the moment, nil while it can
	// and when it is.
	Trouble() error
	// Stats returns the size of the image.
	Stats() imageStats
	// Release drops the hold; the last one unmounts the tree. After an error
	// the hold is dropped as well.
	Release(ctx context.Context) error
}

// imageStats is the size of an image.
type imageStats struct {
	Bytes, Inodes uint64
}
