package metrics

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

const (
	// SamplePeriod is how old a sample gets before a scrape has another one taken.
	SamplePeriod = 30 * time.Second
	// sampleWait is how long a scrape waits for that; then it takes the one before.
	sampleWait = 3 * time.Second
)

// sampler takes samples when they are asked for, one at a time, in a goroutine of its
// own. Safe for concurrent use.
type sampler struct {
	ctx  context.Context // of take
	take func(context.Context) (Sample, error)

	mu       sync.Mutex
	last     *Sample       // nil before the first; GUARDED_BY mu
	running  chan struct{} // closed at the end of the one under way; nil: none. GUARDED_BY mu
	failures int           // GUARDED_BY mu
}

// get returns the last sample, nil if there is none, and how many were not complete.
// If one is due or under way it waits for it, for sampleWait at most.
func (s *sampler) get() (*Sample, int) {
	if running := s.start(); running != nil {
		timer := time.NewTimer(sampleWait)
		defer timer.Stop()
		select {
		case <-running:
		case <-timer.C:
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, s.failures
}

// start starts a sample if one is due, and returns the one under way.
func (s *sampler) start() chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	due := s.last == nil || time.Since(s.last.taken) >= SamplePeriod
	if s.running == nil && due && s.ctx.Err() == nil {
		s.running = make(chan struct{})
		go s.run(s.running)
	}
	return s.running
}

func (s *sampler) run(running chan struct{}) {
	defer close(running)
	start := time.Now()
	got, err := s.takeGuarded()
	if err != nil && s.ctx.Err() == nil {
		klog.FromContext(s.ctx).Error(err, "A part of the metrics could not be sampled")
	}
	got.taken, got.took = start, time.Since(start)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.failures++
	}
	s.last, s.running = &got, nil
}

// takeGuarded makes a panic an error: it would end the process, and with it the
// mounts of the node.
func (s *sampler) takeGuarded() (got Sample, err error) {
	defer func() {
		if p := recover(); p != nil {
			got, err = Sample{}, fmt.Errorf("panic: %v", p)
		}
	}()
	return s.take(s.ctx)
}
