package nodecache

import (
	"context"
	"fmt"
)

// pull makes sure that the blob of rec is in the store, downloading it from reg
// if needed.
func (s *Store) pull(ctx context.Context, reg *registryClient, rec record, progress *Progress) error {
	for {
		if s.blobPresent(rec.Blob, rec.Size) {
			return nil
		}
		t, fresh, err := s.board(ctx, reg, rec, false)
		if err != nil {
			return err
		}
		if t == nil {
			continue
		}
		progress.set(t.progress)
		tried, err := t.waitWhole(ctx)
		s.leave(t, false)
		// Another's failure may be due to their registry or their credentials:
		// then try ours.
		if err == nil || fresh || ctx.Err() != nil || tried == reg.source {
			return err
		}
	}
}

// waitWhole waits for the blob to be complete, or for a round to fail. It tells which
// source was used last.
func (t *transfer) waitWhole(ctx context.Context) (tried string, err error) {
	select {
	case <-t.opened:
	case <-ctx.Done():
		return "", fmt.Errorf("pull %s: %w", t.what, ended(ctx))
	}
	t.mu.Lock()
	rounds := t.rounds
	for t.err == nil && t.rounds == rounds && !t.complete.Load() && ctx.Err() == nil {
		t.await(ctx, 0)
	}
	tried = t.failedBy
	failed := t.roundErr
	if t.rounds == rounds {
		failed = nil
	}
	err = t.err
	t.mu.Unlock()
	switch {
	case t.complete.Load(), err != nil:
		<-t.done // the next one may begin
		return tried, err
	case failed != nil:
		return tried, failed
	}
	return tried, fmt.Errorf("pull %s: %w", t.what, ended(ctx))
}

// board joins the blob's transfer or starts one (fresh), as one who waits for the whole
// or, lazy, as an image that reads it. It returns nil after having waited for the end
// of a transfer that was left behind.
func (s *Store) board(ctx context.Context, reg *registryClient, rec record, lazy bool) (t *transfer, fresh bool, err error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, false, ErrInterrupted
	}
	t = s.flights[rec.Blob]
	if t != nil && (t.ended || t.waiters+t.users == 0) {
		s.mu.Unlock()
		select {
		case <-t.done: // cancelled: soon
			return nil, false, nil
		case <-ctx.Done():
			return nil, false, fmt.Errorf("pull %s: %w", reg.ref, ended(ctx))
		}
	}
	if t == nil {
		fresh = true
		t = s.newTransfer(reg, rec)
		t.life, t.cancel = context.WithCancel(s.life)
		s.flights[rec.Blob] = t
	}
	if lazy {
		t.users++
		t.wasLazy = true
		t.hurry()
	} else {
		t.waiters++
	}
	if fresh {
		s.running.Add(1)
		go t.run() // it outlives its first waiter
	}
	s.mu.Unlock()
	if !fresh {
		t.addSource(reg)
	}
	return t, fresh, nil
}

// hurry makes the spans those of a lazy image.
func (t *transfer) hurry() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lazy {
		return
	}
	t.lazy, t.span = true, t.store.lazySpan
	if t.ranges == unknown {
		t.span = max(probeSpan, t.span)
	}
}

// leave takes back a board. A transfer that nobody needs stops.
func (s *Store) leave(t *transfer, lazy bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if lazy {
		t.users--
	} else {
		t.waiters--
	}
	if t.waiters+t.users == 0 {
		t.cancel()
	}
}

// acquireLazy opens an image whose blob is not complete, and whose record says what it
// is. It answers nil where it can't be read before it is: then it is to be pulled.
// resumed says that some of it is there, so that no registry is waited for.
func (s *Store) acquireLazy(ctx context.Context, ref reference, reg *registryClient, rec record, resumed bool) (*Image, error) {
	for !s.blobPresent(rec.Blob, rec.Size) {
		t, fresh, err := s.board(ctx, reg, rec, true)
		if err != nil {
			return nil, err
		}
		if t == nil {
			continue
		}
		tried, able, err := t.waitAble(ctx, resumed)
		if err == nil && able {
			img, err := s.openLazy(ref, rec, t)
			if img == nil {
				s.leave(t, true)
			}
			if img != nil || err != nil {
				return img, err
			}
			continue // it is complete by now
		}
		if err == nil {
			// Wait for the whole, without letting go of what runs.
			_, err = t.waitWhole(ctx)
			s.leave(t, true)
			if err == nil {
				continue
			}
		} else {
			s.leave(t, true)
		}
		if fresh || ctx.Err() != nil || tried == reg.source {
			return nil, err
		}
	}
	return s.openStored(ref, rec)
}

// waitAble waits until it is known whether the registry sends parts of the blob, and
// tells, also which source was used last. resumed: nothing but the disk is waited for.
func (t *transfer) waitAble(ctx context.Context, resumed bool) (tried string, able bool, err error) {
	select {
	case <-t.opened:
	case <-ctx.Done():
		return "", false, fmt.Errorf("pull %s: %w", t.what, ended(ctx))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for rounds := t.rounds; ; {
		tried = t.failedBy
		switch {
		case t.err != nil:
			return tried, false, t.err
		case t.complete.Load(), t.ranges == yes, resumed && t.ranges == unknown && t.part != nil:
			return tried, true, nil
		case t.ranges == no:
			return tried, false, nil
		case t.rounds != rounds:
			return tried, false, t.roundErr
		case ctx.Err() != nil:
			return tried, false, fmt.Errorf("pull %s: %w", t.what, ended(ctx))
		}
		t.await(ctx, 0)
	}
}
