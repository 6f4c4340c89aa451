package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/fingerprint"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

// indexSidecar is the file beside an image that keeps its fingerprints.
const indexSidecar = "index"

// indexer computes the fingerprints of images, each once, at most one image at a
// time: one uses every CPU already.
type indexer struct {
	mu    sync.Mutex
	tasks map[string]*indexTask // by image; GUARDED_BY(mu)
	turn  sync.Mutex            // held by the task that hashes
	all   sync.WaitGroup
}

// indexTask is an index being computed. Its results are there when done is closed.
type indexTask struct {
	done  chan struct{}
	index *fingerprint.Index
	err   error
}

// index returns the fingerprints of an image's files: those kept on the node, else
// computed now. They are the caller's to close. When ctx ends first the work goes on
// for the next caller.
func (e *Engine) index(ctx context.Context, img *nodecache.Image) (*fingerprint.Index, error) {
	ix, err := loadIndex(img)
	if err == nil {
		return ix, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		klog.FromContext(ctx).Error(err, "Computing an image's fingerprints anew", "image", img.Reference())
	}

	x := &e.indexes
	x.mu.Lock()
	task := x.tasks[img.ID()]
	if task == nil {
		task = &indexTask{done: make(chan struct{})}
		if x.tasks == nil {
			x.tasks = make(map[string]*indexTask)
		}
		x.tasks[img.ID()] = task
		own := img.Clone()
		x.all.Go(func() {
			defer own.Release()
			x.turn.Lock()
			task.index, task.err = e.computeIndex(own)
			x.turn.Unlock()
			x.mu.Lock()
			delete(x.tasks, own.ID())
			x.mu.Unlock()
			close(task.done)
		})
	}
	x.mu.Unlock()

	select {
	case <-task.done:
		if task.err != nil {
			return nil, task.err
		}
		if ix, err := loadIndex(img); err == nil {
			return ix, nil // a mapping of its own, instead of memory
		}
		return task.index, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("fingerprints are still being computed: %w", context.Cause(ctx))
	}
}

// wait returns when no index is being computed any more.
func (x *indexer) wait(ctx context.Context) error {
	idle := make(chan struct{})
	go func() {
		x.all.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("fingerprints are still being computed: %w", context.Cause(ctx))
	}
}

func loadIndex(img *nodecache.Image) (*fingerprint.Index, error) {
	f, err := os.Open(img.SidecarPath(indexSidecar))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return fingerprint.Open(f, img.ID())
}

// computeIndex hashes an image and keeps the result beside it. That it can't be
// kept is logged, and costs the time of computing it the next time.
func (e *Engine) computeIndex(img *nodecache.Image) (*fingerprint.Index, error) {
	im, size, err := openImage(img, e.metadata)
	if err != nil {
		return nil, err
	}
	defer e.metadata.Forget(im)
	files, err := fingerprint.Files(im)
	if err != nil {
		return nil, err
	}
	log := klog.FromContext(e.ctx)
	start := time.Now()
	ix, r, err := fingerprint.Build(e.ctx, im, files, size)
	if err != nil {
		return nil, err
	}
	log.V(2).Info("Computed an image's fingerprints", "image", img.Reference(),
		"files", r.Files, "bytes", r.Bytes, "duration", time.Since(start))
	e.hashed.Add(1)
	e.unreadable.Add(int64(r.Unreadable))
	e.forged.Add(int64(r.Forged))
	if r.FirstError != nil {
		log.Error(r.FirstError, "Files of an image are not shared", "image", img.Reference(), "unreadable", r.Unreadable, "forged", r.Forged)
	}
	err = img.WriteSidecar(indexSidecar, func(f *os.File) error { return ix.Write(f, img.ID()) })
	if err != nil {
		log.Error(err, "Cannot keep an image's fingerprints", "image", img.Reference())
	}
	return ix, nil
}

// metadataCache is how much of the images' metadata the process keeps in memory, of
// all images together, in bytes.
const metadataCache = 16 << 20

// openImage opens an image of the store. size counts its extra devices.
func openImage(img *nodecache.Image, cache *erofs.MetadataCache) (im *erofs.Image, size int64, err error) {
	size = img.Blob().Size()
	devices := make([]erofs.Device, 0, len(img.Devices()))
	for _, b := range img.Devices() {
		devices = append(devices, erofs.Device{R: b, Size: b.Size()})
		size += b.Size()
	}
	im, err = erofs.Open(img.Blob(), img.Blob().Size(), erofs.WithDevices(devices...), erofs.WithMetadataCache(cache))
	if err != nil {
		return nil, 0, err
	}
	return im, size, im.CheckDevices()
}
