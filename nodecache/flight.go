package nodecache

import (
	"context"
	"fmt"
)

// flight is the one pull of a blob that runs, for all callers that wait for it.
//
// A flight that nobody waits for any more is cancelled and left behind: who
// comes then waits for its end, so that its file and room are gone, and starts
// anew.
type flight struct {
	source  string // identifies registry, repository and credentials
	cancel  context.CancelFunc
	done    chan struct{}
	err     error // set before done is closed
	waiters int   // GUARDED_BY(Store.mu); 0: left behind
}

// pull makes sure that the blob of rec is in the store, downloading it from reg
// if needed.
func (s *Store) pull(ctx context.Context, reg *registryClient, rec record) error {
	for {
		if s.blobPresent(rec.Blob, rec.Size) {
			return nil
		}
		f, fresh, err := s.board(ctx, reg, rec)
		if err != nil {
			return err
		}
		if f == nil {
			continue
		}
		select {
		case <-f.done:
			// Another's failure may be due to their registry or their
			// credentials: then try ours.
			if f.err == nil || fresh || f.source == reg.source {
				return f.err
			}
		case <-ctx.Done():
			s.leave(f)
			return fmt.Errorf("pull %s: %w", reg.ref, ended(ctx))
		}
	}
}

// board joins the blob's flight or starts one (fresh). It returns nil after
// having waited for the end of a flight that was left behind.
func (s *Store) board(ctx context.Context, reg *registryClient, rec record) (f *flight, fresh bool, err error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, false, ErrInterrupted
	}
	f = s.flights[rec.Blob]
	if f != nil && f.waiters == 0 {
		s.mu.Unlock()
		select {
		case <-f.done: // cancelled: soon
			return nil, false, nil
		case <-ctx.Done():
			return nil, false, fmt.Errorf("pull %s: %w", reg.ref, ended(ctx))
		}
	}
	if f == nil {
		fresh = true
		f = &flight{source: reg.source, done: make(chan struct{})}
		flying, cancel := context.WithCancel(s.life)
		f.cancel = cancel
		s.flights[rec.Blob] = f
		s.running.Add(1)
		go s.fly(flying, f, reg, rec) //nolint:contextcheck // a pull outlives its first waiter
	}
	f.waiters++
	s.mu.Unlock()
	return f, fresh, nil
}

func (s *Store) fly(ctx context.Context, f *flight, reg *registryClient, rec record) {
	defer s.running.Done()
	f.err = s.download(ctx, reg, rec)
	f.cancel()
	s.mu.Lock()
	delete(s.flights, rec.Blob)
	s.mu.Unlock()
	close(f.done)
}

func (s *Store) leave(f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.waiters--
	if f.waiters == 0 {
		f.cancel()
	}
}
