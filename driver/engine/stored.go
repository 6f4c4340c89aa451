package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/erofs/share"
	"github.com/erofs-csi/erofs-csi/nodecache/filestore"
)

// minStored is the size in bytes from which a file is worth a place in the store of
// files: of a smaller one most of the time goes into opening it.
const minStored = 256 << 10

// storeWorkers is how many files of an image are decoded and written at a time.
const storeWorkers = 2

// storeTime bounds how long a mount waits for the store.
const storeTime = 20 * time.Second

// layer returns the layer of the store of files for a front, or nil when it is to
// have none: without a store, without a domain, where the page cache has a limit,
// which does not see the pages of plain files, and where nothing is hashed, because
// what is stored has been.
func (e *Engine) layer(f *front) *filestore.Layer {
	d := f.domain
	if e.files == nil || d.name == "" || d.trusted || f.limited || d.fs.CacheLimit() > 0 {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.layer == nil {
		l, err := e.files.Layer(d.name)
		if err != nil {
			klog.FromContext(e.ctx).Error(err, "Large files are not stored", "domain", d.name)
			return nil
		}
		d.layer = l
	}
	return d.layer
}

// storeFiles puts the image's large files into its domain's layer, the smaller ones
// first, as long as there are room and time, and holds them until the image leaves.
// It must be done before the front is mounted: which layer a file comes from is
// decided when it is first opened.
//
// A file that the kernel knows from the content mount is left to that: it would
// otherwise be in memory twice.
func storeFiles(ctx context.Context, l *filestore.Layer, j *joined, candidates []share.Key) {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	candidates = slices.SortedFunc(slices.Values(candidates), func(a, b share.Key) int { return cmp.Compare(a.Size, b.Size) })
	work := make(chan share.Key)
	var wg sync.WaitGroup
	var bytes int64           // GUARDED_BY(j.mu)
	var failure, noRoom error // GUARDED_BY(j.mu)
	var full atomic.Bool
	for range storeWorkers {
		wg.Go(func() {
			for key := range work {
				name := share.ContentPath(key)
				held := l.Hold(name)
				var err error
				if !held && !j.domain.share.Known(name) && !full.Load() && ctx.Err() == nil {
					held, err = storeFile(ctx, l, j.domain.share, key, name)
				}
				j.mu.Lock()
				switch {
				case held:
					j.stored = append(j.stored, name)
					bytes += key.Size
				case errors.Is(err, filestore.ErrFull):
					full.Store(true)
					noRoom = err
				case err != nil && !errors.Is(err, filestore.ErrBusy) && ctx.Err() == nil:
					failure = err
				}
				j.mu.Unlock()
			}
		})
	}
	for _, key := range candidates {
		work <- key
	}
	close(work)
	wg.Wait()
	log := klog.FromContext(ctx).WithValues("image", j.reference, "domain", j.domain.name)
	if failure != nil {
		log.Error(failure, "Large files are not stored")
	}
	if noRoom != nil {
		log = log.WithValues("noRoom", noRoom)
	}
	if len(candidates) > 0 {
		log.V(2).Info("Stored large files", "files", len(j.storedNames()), "bytes", bytes, "candidates", len(candidates))
	}
}

// storeFile stores a file, unless the kernel came to know it meanwhile. A bug of the
// reader that one image meets must not take down the node's other volumes: a panic is
// that file's error.
func storeFile(ctx context.Context, l *filestore.Layer, d *share.Domain, key share.Key, name string) (held bool, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	if err := l.Put(ctx, name, d.Content(key)); err != nil {
		return false, err
	}
	if d.Known(name) {
		l.Remove(name)
		return false, nil
	}
	return true, nil
}

// storedNames are the names of its files in the domain's layer.
func (j *joined) storedNames() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.stored)
}

// unstore lets go of an image's stored files.
func (j *joined) unstore() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, name := range j.stored {
		j.domain.layer.Release(name)
	}
	j.stored = nil
}
