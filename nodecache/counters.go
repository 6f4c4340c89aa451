package nodecache

import (
	"context"
	"errors"
	"sync/atomic"
)

// Counts are what a store has done since it was opened. Nothing is counted of images
// at paths, nor of those that were on the node.
type Counts struct {
	// Pulls are images that were not on the node, by how bringing them there ended;
	// a caller that joins another's pull counts as well. Conversions are those of
	// images from their layers, each once.
	Pulls, Conversions Jobs
	// Transfers are the blobs that are coming in at present, for pulls or for images
	// that are read before they are complete, whose pulls have ended.
	Transfers int
	// Received are the bytes of manifests and blobs, by source: what is asked
	// for again counts again.
	Received  map[string]int64
	Evictions int64 // images evicted or removed
}

// Jobs are the beginnings and ends of something. What runs is the difference.
type Jobs struct {
	Started  int64
	Finished map[string]int64 // by one of Results, all of which are there
}

// Sources of bytes.
const (
	SourceRegistry = "registry"
	SourceMirror   = "mirror"
	SourceWeb      = "web" // of an https:// reference
)

// result is how a job ended.
type result int

const (
	resultOK result = iota
	resultCancelled
	resultNotFound
	resultUnauthorized
	resultUnavailable
	resultNoSpace
	resultDigestMismatch
	resultUnsupported
	resultConfiguration
	resultError // of no class, such as one of the disk
	resultCount
)

// Results are the keys of Jobs.Finished.
var Results = [resultCount]string{
	"ok", "cancelled", "not_found", "unauthorized", "unavailable", "no_space",
	"digest_mismatch", "unsupported", "configuration", "error",
}

// resultClasses are in the order in which they count for an error of several.
var resultClasses = []struct {
	class  error
	result result
}{
	{context.Canceled, resultCancelled},
	{ErrInterrupted, resultCancelled},
	{ErrNotFound, resultNotFound},
	{ErrUnauthorized, resultUnauthorized},
	{ErrUnavailable, resultUnavailable},
	{context.DeadlineExceeded, resultUnavailable},
	{ErrNoSpace, resultNoSpace},
	{ErrDigestMismatch, resultDigestMismatch},
	{ErrUnsupportedImage, resultUnsupported},
	{ErrConfiguration, resultConfiguration},
}

func resultOf(err error) result {
	if err == nil {
		return resultOK
	}
	for _, c := range resultClasses {
		if errors.Is(err, c.class) {
			return c.result
		}
	}
	return resultError
}

// counters are what a store counts.
type counters struct{ pulls, conversions jobs }

type jobs struct {
	started  atomic.Int64
	finished [resultCount]atomic.Int64
}

func (j *jobs) begin() { j.started.Add(1) }

func (j *jobs) end(err error) { j.finished[resultOf(err)].Add(1) }

func (j *jobs) count() Jobs {
	finished := make(map[string]int64, resultCount)
	for i := range j.finished {
		finished[Results[i]] = j.finished[i].Load()
	}
	return Jobs{Started: j.started.Load(), Finished: finished} // started last: none ends before it began
}

// received counts the bytes of answers.
type received struct{ registry, mirror, web atomic.Int64 }

// from is the counter for answers of an endpoint.
func (r *received) from(ref reference, e *endpoint) *atomic.Int64 {
	switch {
	case !e.server:
		return &r.mirror
	case ref.isWeb():
		return &r.web
	}
	return &r.registry
}

// Counts tells what the store has done.
func (s *Store) Counts() Counts {
	s.mu.Lock()
	transfers := len(s.flights)
	s.mu.Unlock()
	r := &s.registries.received
	return Counts{
		Transfers:   transfers,
		Pulls:       s.counters.pulls.count(),
		Conversions: s.counters.conversions.count(),
		Received: map[string]int64{
			SourceRegistry: r.registry.Load(), SourceMirror: r.mirror.Load(), SourceWeb: r.web.Load(),
		},
		Evictions: s.evictions.Load(),
	}
}
