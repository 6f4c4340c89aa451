package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/erofs/fingerprint"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

// watch follows a lazy image until it is complete and its files share, or it leaves.
type watch struct {
	cancel context.CancelFunc
	ended  chan struct{}
}

// lazyUse counts by blob how many domains have a lazy image.
type lazyUse struct {
	mu    sync.Mutex
	count map[*nodecache.Blob]int // GUARDED_BY(mu)
}

func (u *lazyUse) add(img *nodecache.Image, n int) (left int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.count == nil {
		u.count = make(map[*nodecache.Blob]int)
	}
	u.count[img.Blob()] += n
	left = u.count[img.Blob()]
	if left == 0 {
		delete(u.count, img.Blob())
	}
	return left
}

// imageKey is the identity of an image's bytes: its ID, but for those whose blob was
// spoiled before.
func imageKey(img *nodecache.Image) string {
	if take := img.Take(); take > 0 {
		return fmt.Sprintf("%s~%d", img.ID(), take)
	}
	return img.ID()
}

// watchLazy begins to follow a lazy image. hash: its files are to share when it is
// complete.
func (e *Engine) watchLazy(j *joined, hash bool) {
	e.lazy.add(j.image, 1)
	w := &watch{ended: make(chan struct{})}
	var ctx context.Context
	ctx, w.cancel = context.WithCancel(e.ctx)
	j.watched = w
	go func() {
		defer close(w.ended)
		select {
		case <-j.image.Settled():
			e.settled(ctx, j, hash)
		case <-ctx.Done():
		}
	}()
}

// unwatchLazy ends that; it must be done before the image leaves its domain. Reads that
// wait for a registry fail, for nobody can wait for them.
func (e *Engine) unwatchLazy(j *joined) {
	if j.watched == nil {
		return
	}
	j.watched.cancel()
	<-j.watched.ended
	if e.lazy.add(j.image, -1) == 0 {
		j.image.Abandon()
	}
}

// settled lets the files of an image that is complete share, or takes out one that is
// spoiled. What it reads of our own mounts is nothing.
func (e *Engine) settled(ctx context.Context, j *joined, hash bool) {
	log := klog.FromContext(ctx).WithValues("image", j.reference, "domain", j.domain.name)
	if err := j.image.Spoiled(); err != nil {
		log.Error(err, "A lazy image is not what its digest says: taken out")
		j.member.Fail(err) // first: what is dropped must not come again
		if err := j.domain.fs.DropPages(j.member); err != nil {
			log.Error(err, "Cannot drop all pages of an image that is taken out")
		}
		return
	}
	log.V(2).Info("A lazy image is complete")
	if !hash {
		return
	}
	ix, err := e.index(ctx, j.image)
	if err != nil {
		if ctx.Err() == nil {
			log.Error(err, "The files of a lazy image share with none")
		}
		return
	}
	j.identify(ix)
	log.V(2).Info("The files of a lazy image share now", "files", ix.Len(), "private", j.member.Private())
}

// forgetNames makes the kernel forget what it knows of the files of a lazy image from
// another life of the image in its domain.
func (j *joined) forgetNames(ctx context.Context) error {
	if !j.lazy {
		return nil
	}
	var listed error
	err := j.domain.fs.ForgetNames(ctx, j.member.Tag(), func(yield func(uint64) bool) {
		var files []fingerprint.File
		files, listed = fingerprint.Files(j.erofs)
		for _, f := range files {
			if !yield(f.NID) {
				return
			}
		}
	})
	if err = errors.Join(err, listed); err != nil {
		return fmt.Errorf("names of an earlier life of the image: %w", err)
	}
	return nil
}

// identify gives the image's files what they share by.
func (j *joined) identify(ix *fingerprint.Index) {
	j.mu.Lock()
	j.index = ix
	j.mu.Unlock()
	j.member.Identify(ix)
}

// why says why the front is not the best, or shares less than it could.
func (f *front) why() string {
	return joinReasons(f.reason, f.lazyReason())
}

func (f *front) lazyReason() string {
	switch {
	case !f.lazy:
		return ""
	case !f.image.Complete():
		have, size := f.image.Progress()
		return fmt.Sprintf("lazy %d %%", have*100/max(size, 1))
	case f.domain.name == "" || f.domain.trusted:
		return ""
	case f.fingerprints() == nil:
		return "its files are being hashed, and share with none before"
	}
	if n := f.member.Private(); n > 0 {
		return fmt.Sprintf("%d files were opened before the image was complete, and share with none as long as they are known to the kernel", n)
	}
	return ""
}
