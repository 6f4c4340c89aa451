package nodecache

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
)

// A store counts pulls with how they ended and the bytes with where they came from;
// what is on the node already is none.
func TestCounts(t *testing.T) {
	const size = 300_000
	m := newMirrored(t, size)
	s := m.store(t)
	acquire(t, s, m.ref, AcquireOptions{})
	for _, policy := range []PullPolicy{IfNotPresent, Always, Never} {
		acquire(t, s, m.ref, AcquireOptions{Policy: policy})
	}
	before := s.Counts()
	if before.Received[SourceMirror] <= size || before.Received[SourceMirror] > size+64<<10 || before.Received[SourceRegistry] != 0 {
		t.Errorf("received %v, want the blob and a manifest, of the mirror", before.Received)
	}
	m.mirror.close()
	if _, err := s.Acquire(t.Context(), m.origin.host+"/no/such:v1", AcquireOptions{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v, want ErrNotFound", err)
	}
	ended, end := context.WithCancel(t.Context())
	p := pushImage(t, size+1, size)
	end()
	if _, err := s.Acquire(ended, p.ref, AcquireOptions{}); err == nil {
		t.Error("no error of a call that had ended before")
	}
	acquire(t, s, p.ref, AcquireOptions{})

	got := s.Counts()
	if n := got.Received[SourceRegistry]; n <= size || n > size+64<<10 {
		t.Errorf("received %v, want an image of the registry", got.Received)
	}
	if got.Received[SourceMirror] != before.Received[SourceMirror] {
		t.Errorf("received %v of a mirror that is gone, before %v", got.Received, before.Received)
	}
	want := map[string]int64{}
	for _, name := range Results {
		want[name] = 0
	}
	if got.Conversions.Started != 0 || !maps.Equal(got.Conversions.Finished, want) {
		t.Errorf("conversions %v, want none", got.Conversions)
	}
	want["ok"], want["not_found"] = 2, 1
	if got.Pulls.Started != 3 || !maps.Equal(got.Pulls.Finished, want) {
		t.Errorf("pulls %v, want 3 and %v", got.Pulls, want)
	}
}

// Every class of this package's errors has a result of its own or none at all, and
// every result has a name.
func TestResults(t *testing.T) {
	for err, want := range map[error]string{
		nil:                        "ok",
		ErrNotFound:                "not_found",
		ErrUnauthorized:            "unauthorized",
		ErrUnavailable:             "unavailable",
		ErrNoSpace:                 "no_space",
		ErrDigestMismatch:          "digest_mismatch",
		ErrUnsupportedImage:        "unsupported",
		ErrConfiguration:           "configuration",
		ErrInterrupted:             "cancelled",
		context.Canceled:           "cancelled",
		context.DeadlineExceeded:   "unavailable",
		errors.New("disk is sick"): "error",
	} {
		if err != nil {
			err = fmt.Errorf("pull: %w", err)
		}
		if got := Results[resultOf(err)]; got != want {
			t.Errorf("%v is %q, want %q", err, got, want)
		}
	}
	names := slices.Sorted(slices.Values(Results[:]))
	if slices.Contains(names, "") || len(slices.Compact(names)) != int(resultCount) {
		t.Errorf("results %q: want a name of its own for each", Results)
	}
}
