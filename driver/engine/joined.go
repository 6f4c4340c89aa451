package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/fingerprint"
	"github.com/erofs-csi/erofs-csi/erofs/fusefs"
	"github.com/erofs-csi/erofs-csi/erofs/share"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

// joined is an image in a domain. It has a front, or is idle.
type joined struct {
	key       frontKey
	reference string
	image     *nodecache.Image
	erofs     *erofs.Image
	super     erofs.Superblock
	files     int   // that hold data, hard links counted once
	bytes     int64 // their sizes; 0 when the domain's account has them
	private   int   // beside files: those that could share and have no fingerprint to do so

	domain     *domain
	domainItem *item[string, *domain]
	member     *share.Member
	lazy       bool        // the image was not complete when it joined
	watched    *watch      // of a lazy one
	tree       fusefs.Tree // in the content mount, 0 before it has one
	shown      passthroughTree

	mu     sync.Mutex
	index  *fingerprint.Index // nil: without a domain, and of a lazy one at first; GUARDED_BY(mu)
	stored []string           // names of files that it holds in the domain's layer; GUARDED_BY(mu)
}

// join opens an image and adds it to its domain, which it makes if need be.
func (e *Engine) join(ctx context.Context, key frontKey, req Request) (_ *joined, err error) {
	j := &joined{key: key, reference: req.Image.Reference(), image: req.Image.Clone()}
	defer func() {
		if err == nil {
			return
		}
		if ix := j.fingerprints(); ix != nil {
			ix.Close()
		}
		if j.erofs != nil {
			e.metadata.Forget(j.erofs)
		}
		if j.domainItem != nil {
			err = errors.Join(err, e.domains.release(j.domainItem))
		}
		j.image.Release()
	}()
	if j.erofs, _, err = openImage(j.image, e.metadata); err != nil {
		return nil, err
	}
	j.super = j.erofs.Superblock()
	j.lazy = !j.image.Complete()
	if err := e.identify(ctx, j, req); err != nil {
		return nil, err
	}
	j.domainItem, err = e.domains.acquire(ctx, key.domain, func() (*domain, error) { return e.makeDomain(ctx, key.domain, req.Domain, req.Trusted) })
	if err != nil {
		return nil, err
	}
	j.domain = j.domainItem.val
	if j.member, err = j.domain.share.Join(j.erofs, share.NewTag(key.image), j.fingerprints()); err != nil {
		return nil, err
	}
	if j.lazy {
		e.watchLazy(j, req.Domain != "" && !req.Trusted) //nolint:contextcheck // it outlives the call
	}
	return j, nil
}

// identify finds out what the files of an image may share by.
func (e *Engine) identify(ctx context.Context, j *joined, req Request) (err error) {
	if req.Domain != "" && !req.Trusted && !j.lazy {
		if j.index, err = e.index(ctx, j.image); err != nil {
			return err
		}
		j.files, j.private = j.index.Len(), j.index.LeftOut()
		return nil
	}
	files, err := fingerprint.Files(j.erofs)
	if err != nil {
		return err
	}
	if req.Domain != "" && req.Trusted {
		if j.index, err = fingerprint.Claimed(j.erofs, files); err != nil {
			return err
		}
		j.files, j.private = j.index.Len(), j.index.LeftOut()
		return nil
	}
	j.files = len(files) // nothing is shared, or not yet, and no hash needed
	for _, f := range files {
		j.bytes += f.Size
	}
	return nil
}

// fingerprints are those of the image's files, nil as long as they share with none.
func (j *joined) fingerprints() *fingerprint.Index {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.index
}

// sharesLess says why files of the image share with no other though the domain
// would let them; it is empty when all share.
func (j *joined) sharesLess() string {
	switch {
	case j.private == 0:
		return ""
	case j.domain.trusted:
		return fmt.Sprintf("%d of %d files have no fingerprint in the image, so that they share with none", j.private, j.files+j.private)
	}
	return fmt.Sprintf("%d of %d files cannot be read or are not what the image says of them, so that they share with none", j.private, j.files+j.private)
}

// joinReasons makes one text of those that are not empty.
func joinReasons(reasons ...string) string {
	return strings.Join(slices.DeleteFunc(reasons, func(s string) bool { return s == "" }), "; ")
}

// leave takes an image out of its domain, and the domain away with its last image.
// The mounts that show it must be gone.
func (e *Engine) leave(j *joined) error {
	log := klog.FromContext(e.ctx)
	e.unwatchLazy(j)
	if j.tree != 0 {
		j.domain.fs.RemoveTree(j.member)
	}
	j.hide()
	j.unstore()
	orphans := j.member.Leave()
	if _, images := j.domain.share.Len(); images > 0 {
		if err := j.domain.fs.Drop(orphans); err != nil {
			log.Error(err, "Cannot drop all pages of an image that is gone", "image", j.reference)
		}
	}
	if ix := j.fingerprints(); ix != nil {
		ix.Close()
	}
	e.metadata.Forget(j.erofs)
	err := e.domains.release(j.domainItem)
	j.image.Release()
	log.V(2).Info("Let go of an image", "image", j.reference, "domain", j.domain.name)
	return err
}

// maxIdle bounds the images that are kept for volumes to come, for what they cost:
// an open file and a content mount.
const maxIdle = 32

// idleCheck is how often idle images are looked at that may have left the node.
const idleCheck = 30 * time.Second

// idleImages are the images that no volume shows, the one first that is so for the
// longest.
type idleImages struct {
	check time.Duration // idleCheck but in tests

	mu     sync.Mutex
	images []*joined   // GUARDED_BY(mu)
	timer  *time.Timer // runs while there are some; GUARDED_BY(mu)
}

// rest keeps an image for the next volume that shows it, in place of others that
// rest longer or have left the node.
func (e *Engine) rest(j *joined) error {
	klog.FromContext(e.ctx).V(2).Info("Keeping the pages of an image", "image", j.reference, "domain", j.domain.name)
	j.image.Rest() // before anybody can take it
	l := &e.idle
	l.mu.Lock()
	l.images = append(l.images, j)
	var surplus []*joined
	if n := len(l.images) - maxIdle; n > 0 {
		surplus = slices.Clone(l.images[:n])
		l.images = slices.Delete(l.images, 0, n)
	}
	if l.timer == nil {
		l.timer = time.AfterFunc(l.check, e.forgetUnlinked)
	}
	l.mu.Unlock()
	return e.forget(surplus)
}

// forgetUnlinked lets go of idle images that have left the node.
func (e *Engine) forgetUnlinked() {
	l := &e.idle
	l.mu.Lock()
	gone := l.remove(func(j *joined) bool { return j.image.Unlinked() })
	if len(l.images) > 0 {
		l.timer.Reset(l.check)
	} else {
		l.timer = nil
	}
	l.mu.Unlock()
	if err := e.forget(gone); err != nil {
		klog.FromContext(e.ctx).Error(err, "Letting go of idle images left something behind")
	}
}

// forget takes images out of their domains.
func (e *Engine) forget(images []*joined) error {
	errs := make([]error, 0, len(images))
	for _, j := range images {
		errs = append(errs, e.leave(j))
	}
	return errors.Join(errs...)
}

// take returns the image of a key, which is idle no more, or nil.
func (l *idleImages) take(key frontKey) *joined {
	l.mu.Lock()
	defer l.mu.Unlock()
	if found := l.remove(func(j *joined) bool { return j.key == key }); len(found) > 0 {
		return found[0]
	}
	return nil
}

// takeImage returns those of one image, by its nodecache.Image.ID.
func (l *idleImages) takeImage(id string) []*joined {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.remove(func(j *joined) bool { return j.key.image == id })
}

// takeDead returns those whose domain answers no more: a new one must be made.
func (l *idleImages) takeDead() []*joined {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.remove(func(j *joined) bool { return j.domain.mount.Alive() != nil })
}

// takeAll returns those that a query picks.
func (l *idleImages) takeAll(q query) []*joined {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.remove(func(j *joined) bool { return q.picks(j, nil) })
}

// remove takes out and returns those that f picks; l.mu is held.
func (l *idleImages) remove(f func(*joined) bool) (removed []*joined) {
	l.images = slices.DeleteFunc(l.images, func(j *joined) bool {
		if f(j) {
			removed = append(removed, j)
			return true
		}
		return false
	})
	return removed
}

// list returns them all.
func (l *idleImages) list() []*joined {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.images)
}
