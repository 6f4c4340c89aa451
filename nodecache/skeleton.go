package nodecache

import (
	"context"
	"errors"
	"os"
)

var errSkeleton = errors.New("nodecache: not written yet")

// Config says where a store is and what it may do.
type Config struct {
	Dir          string
	AllowedPaths []string
	PlainHTTP    func(host string) bool
	ReserveBytes int64
}

// AcquireOptions are the options of [Store.Acquire].
type AcquireOptions struct {
	Policy       PullPolicy
	DockerConfig []byte
}

// Store is an open store directory.
type Store struct{ _ int }

// Open opens, locks and repairs a store directory.
func Open(Config) (*Store, error) { return nil, errSkeleton }

// Close releases the directory.
func (*Store) Close() error { return nil }

// Acquire finds or pulls an image and pins it until its Release.
func (*Store) Acquire(context.Context, string, AcquireOptions) (*Image, error) {
	return nil, errSkeleton
}

// Authorize asks the registry whether these credentials may read ref.
func (*Store) Authorize(context.Context, string, []byte) error { return errSkeleton }

// Image is a pinned image.
type Image struct{ _ int }

// ID is the stable identity of the bytes.
func (*Image) ID() string { return "" }

// Reference is what the image was resolved to.
func (*Image) Reference() string { return "" }

// Digest is the blob's digest, "" for a path.
func (*Image) Digest() string { return "" }

// Blob is the primary device.
func (*Image) Blob() *Blob { return nil }

// Devices are the extra devices.
func (*Image) Devices() []*Blob { return nil }

// SidecarPath is the path of the sidecar called name.
func (*Image) SidecarPath(string) string { return "" }

// WriteSidecar writes a sidecar durably.
func (*Image) WriteSidecar(string, func(*os.File) error) error { return errSkeleton }

// Release unpins.
func (*Image) Release() {}

// Blob is one file of an image.
type Blob struct{ _ int }

// ReadAt is io.ReaderAt.
func (*Blob) ReadAt([]byte, int64) (int, error) { return 0, errSkeleton }

// Size is the number of bytes.
func (*Blob) Size() int64 { return 0 }

// Path is the path of the file.
func (*Blob) Path() string { return "" }
