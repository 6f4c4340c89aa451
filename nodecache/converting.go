package nodecache

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

// maxConversions run at a time: each may take some hundred MiB of memory for a tree
// of millions of files.
const maxConversions = 2

// converting is the one conversion of a manifest that runs, for all callers that wait
// for it. Like a pull it is cancelled and left behind when nobody waits any more.
type converting struct {
	source  string       // identifies registry, repository and credentials
	size    int64        // of the layers in the registry, in bytes
	read    atomic.Int64 // of these; from 0 again when layers are read again
	cancel  context.CancelFunc
	done    chan struct{}
	err     error  // set before done is closed
	release func() // of the result, if there is one; likewise
	waiters int    // GUARDED_BY(Store.mu); 0: left behind
}

// convert makes sure that the image of p is in the store and returns its record. The
// image is held until release.
func (s *Store) convert(ctx context.Context, reg *registryClient, p plan, progress *Progress) (rec record, release func(), err error) {
	for {
		rec, release, ok, err := s.converted(ctx, p)
		if ok || err != nil {
			return rec, release, err
		}
		c, fresh, err := s.boardConversion(ctx, reg, p)
		if err != nil {
			return record{}, nil, err
		}
		if c == nil {
			continue
		}
		progress.set(c.progress)
		select {
		case <-c.done:
			// Another's failure may be due to their registry or their
			// credentials: then try ours.
			if c.err != nil && (fresh || c.source == reg.source) {
				s.leaveConversion(c)
				return record{}, nil, c.err
			}
			// The result stays held until all who waited have looked for it.
			rec, release, ok, err := s.converted(ctx, p)
			s.leaveConversion(c)
			if ok || err != nil {
				return rec, release, err
			}
		case <-ctx.Done():
			s.leaveConversion(c)
			return record{}, nil, fmt.Errorf("convert %s: %w", reg.ref, ended(ctx))
		}
	}
}

// converted finds what an earlier conversion made of p, and holds it.
func (s *Store) converted(ctx context.Context, p plan) (rec record, release func(), ok bool, err error) {
	done, err := readRecord(s.dir.conversion(p.rec.Manifest))
	if err != nil || !done.isConversion(p.rec.Manifest) {
		return record{}, nil, false, nil //nolint:nilerr // there is none, or a damaged one: convert
	}
	release, err = s.hold(ctx, imageID(done.Blob))
	if err != nil {
		return record{}, nil, false, err
	}
	if !s.blobPresent(done.Blob, done.Size) {
		release()
		return record{}, nil, false, nil
	}
	rec = p.rec
	rec.Blob, rec.Size, rec.MediaType, rec.Converter = done.Blob, done.Size, done.MediaType, done.Converter
	return rec, release, true, nil
}

// boardConversion joins the manifest's conversion or starts one (fresh). It returns
// nil after having waited for the end of one that was left behind.
func (s *Store) boardConversion(ctx context.Context, reg *registryClient, p plan) (c *converting, fresh bool, err error) {
	key := p.rec.Manifest
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, false, ErrInterrupted
	}
	c = s.conversions[key]
	if c != nil && c.waiters == 0 {
		s.mu.Unlock()
		select {
		case <-c.done: // cancelled: soon
			return nil, false, nil
		case <-ctx.Done():
			return nil, false, fmt.Errorf("convert %s: %w", reg.ref, ended(ctx))
		}
	}
	if c == nil {
		fresh = true
		c = &converting{source: reg.source, done: make(chan struct{})}
		for _, l := range p.layers {
			c.size += l.desc.Size
		}
		running, cancel := context.WithCancel(s.life)
		c.cancel = cancel
		s.conversions[key] = c
		s.running.Add(1)
		go s.runConversion(running, c, reg, p, key) //nolint:contextcheck // it outlives its first waiter
	}
	c.waiters++
	s.mu.Unlock()
	return c, fresh, nil
}

func (s *Store) runConversion(ctx context.Context, c *converting, reg *registryClient, p plan, key digest.Digest) {
	defer s.running.Done()
	defer c.cancel()
	s.counters.conversions.begin()
	defer func() { s.counters.conversions.end(c.err) }()
	select {
	case s.converters <- struct{}{}:
		_, c.release, c.err = s.convertLayers(ctx, reg, p, &c.read)
		<-s.converters
	case <-ctx.Done():
		c.err = fmt.Errorf("convert %s: %w", reg.ref, ended(ctx))
	}
	s.mu.Lock()
	delete(s.conversions, key)
	left := c.waiters == 0
	close(c.done)
	s.mu.Unlock()
	if left && c.release != nil {
		c.release()
	}
}

func (s *Store) leaveConversion(c *converting) {
	s.mu.Lock()
	c.waiters--
	last := c.waiters == 0
	ended := false
	select {
	case <-c.done:
		ended = true
	default:
	}
	s.mu.Unlock()
	switch {
	case last && ended && c.release != nil:
		c.release()
	case last:
		c.cancel()
	}
}
