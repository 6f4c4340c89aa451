package driver

import (
	"bytes"
	"context"
	"sync"
	"time"

	"github.com/erofs-csi/erofs-csi/nodecache"
)

// pullLinger is how long a pulled image waits for the next call of its volume.
// Kubelet repeats a call within two minutes and two seconds (the cap of its
// exponential backoff), more slowly only when the node is overloaded.
const pullLinger = 10 * time.Minute

// answerMargin is how long before its end a call is answered, so that the answer arrives:
// who gave it the time no longer listens afterwards. Of a call with less than ten times
// as much it is a tenth.
const answerMargin = 3 * time.Second

// pulls lets a pull outlive the call that began it. Kubelet gives a call two
// minutes, which a big image exceeds: the call then ends with
// DeadlineExceeded, as it must, the pull goes on, and the next call of the
// same volume finds it. If the pull ended with its call, each call would begin
// anew and none would ever end. The error says how far the pull is: kubelet makes an
// event of it.
//
// The pull ends early when the volume is undone (cancel). There is one a
// volume at most, and one waiter at most: the volume's lock sees to that.
// Safe for concurrent use.
type pulls struct {
	store  imageStore
	linger time.Duration

	mu      sync.Mutex
	running map[string]*pull // GUARDED_BY mu; by volume id
}

// pull is one Acquire. image and err are set before done is closed.
type pull struct {
	ref    string
	opts   nodecache.AcquireOptions
	cancel context.CancelFunc
	done   chan struct{}
	image  image
	err    error

	waited  bool        // GUARDED_BY pulls.mu; a call waits
	expires *time.Timer // GUARDED_BY pulls.mu; set while done and not waited
}

func newPulls(store imageStore) *pulls {
	return &pulls{store: store, linger: pullLinger, running: make(map[string]*pull)}
}

// acquire is store.Acquire for a volume. Shortly before ctx's deadline it returns
// errPulling, when ctx ends sooner ctx's error, and leaves the pull to the next call.
func (p *pulls) acquire(ctx context.Context, volumeID, ref string, opts nodecache.AcquireOptions) (image, error) {
	q := p.join(ctx, volumeID, ref, opts)
	late, stop := timeToAnswer(ctx)
	defer stop()
	select {
	case <-q.done:
		p.mu.Lock()
		defer p.mu.Unlock()
		p.forget(volumeID, q)
		return q.image, q.err
	case <-late:
		p.leave(volumeID, q)
		return nil, refuse(errPulling, "the image %s is not on the node yet: %s; this goes on, and the next call finds it", ref, q.opts.Progress)
	case <-ctx.Done():
		p.leave(volumeID, q)
		return nil, ctx.Err()
	}
}

// timeToAnswer fires shortly before the deadline of ctx, never without one.
func timeToAnswer(ctx context.Context) (late <-chan time.Time, stop func()) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return nil, func() {}
	}
	left := time.Until(deadline)
	timer := time.NewTimer(left - min(answerMargin, left/10))
	return timer.C, func() { timer.Stop() }
}

// leave leaves a pull to the next call.
func (p *pulls) leave(volumeID string, q *pull) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q.waited = false
	select {
	case <-q.done:
		p.keep(volumeID, q)
	default:
	}
}

// join finds the volume's pull or starts one. A pull of something else, or
// with another secret, is given up; one with another token is not, since kubelet
// renews tokens.
func (p *pulls) join(ctx context.Context, volumeID, ref string, opts nodecache.AcquireOptions) *pull {
	p.mu.Lock()
	defer p.mu.Unlock()
	if q := p.running[volumeID]; q != nil {
		if q.ref == ref && q.opts.Policy == opts.Policy && q.opts.Lazy == opts.Lazy && bytes.Equal(q.opts.DockerConfig, opts.DockerConfig) {
			q.waited = true
			if q.expires != nil {
				q.expires.Stop()
			}
			return q
		}
		p.giveUp(volumeID, q)
	}
	opts.Progress = new(nodecache.Progress)
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	q := &pull{ref: ref, opts: opts, cancel: cancel, done: make(chan struct{}), waited: true}
	p.running[volumeID] = q
	go p.run(ctx, volumeID, q)
	return q
}

func (p *pulls) run(ctx context.Context, volumeID string, q *pull) {
	defer q.cancel()
	img, err := guard(ctx, func() (image, error) { return p.store.Acquire(ctx, q.ref, q.opts) })
	p.mu.Lock()
	defer p.mu.Unlock()
	q.image, q.err = img, err
	close(q.done)
	switch {
	case p.running[volumeID] != q: // given up
		if err == nil {
			img.Release()
		}
	case !q.waited:
		p.keep(volumeID, q)
	}
}

// keep keeps a finished pull for the next call, for a while; a failed one it
// forgets. Locked: mu.
func (p *pulls) keep(volumeID string, q *pull) {
	if q.err != nil {
		p.forget(volumeID, q)
		return
	}
	q.expires = time.AfterFunc(p.linger, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.running[volumeID] == q && !q.waited {
			p.giveUp(volumeID, q)
		}
	})
}

// forget takes a pull out of the table. Locked: mu.
func (p *pulls) forget(volumeID string, q *pull) {
	if p.running[volumeID] == q {
		delete(p.running, volumeID)
	}
}

// giveUp ends a pull that no call waits for. Locked: mu.
func (p *pulls) giveUp(volumeID string, q *pull) {
	p.forget(volumeID, q)
	q.cancel()
	if q.expires != nil {
		q.expires.Stop()
	}
	select {
	case <-q.done:
		if q.err == nil {
			q.image.Release()
		}
	default: // run releases
	}
}

// cancel ends the pull of a volume that is undone. Under the volume's lock.
func (p *pulls) cancel(volumeID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if q := p.running[volumeID]; q != nil {
		p.giveUp(volumeID, q)
	}
}
