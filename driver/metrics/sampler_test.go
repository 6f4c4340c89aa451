package metrics

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A scrape takes a sample when the last one is old, and waits for it, but not for
// long; there is never more than one under way.
func TestSampler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		taken, takes := 0, time.Second
		s := &sampler{ctx: t.Context(), take: func(context.Context) (Sample, error) {
			taken++
			time.Sleep(takes)
			return Sample{Unhealthy: map[string]int{"n": taken}}, nil
		}}
		want := func(n int, wait time.Duration) {
			t.Helper()
			start := time.Now()
			got, _ := s.get()
			if took := time.Since(start); took != wait {
				t.Errorf("the scrape waited %v, want %v", took, wait)
			}
			switch {
			case n == 0 && got != nil:
				t.Errorf("sample %v, want none", got)
			case n > 0 && (got == nil || got.Unhealthy["n"] != n):
				t.Errorf("sample %v, want number %d", got, n)
			}
		}
		want(1, takes)
		want(1, 0)
		time.Sleep(SamplePeriod - takes - time.Nanosecond)
		want(1, 0)
		time.Sleep(time.Nanosecond)
		want(2, takes)

		takes = time.Hour // what hangs
		time.Sleep(SamplePeriod)
		want(2, sampleWait)
		time.Sleep(SamplePeriod)
		want(2, sampleWait)
		if taken != 3 {
			t.Errorf("%d samples were begun, want 3", taken)
		}
		time.Sleep(takes)
		synctest.Wait()
		takes = 0
		want(4, 0) // of an hour ago is old
	})
}

// What fails or panics is counted, and what there is of the sample is told.
func TestSamplerFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		panics := false
		s := &sampler{ctx: t.Context(), take: func(context.Context) (Sample, error) {
			if panics {
				panic("a bug")
			}
			return Sample{Unhealthy: map[string]int{}}, errors.New("no disk")
		}}
		if got, failures := s.get(); got == nil || got.Unhealthy == nil || failures != 1 {
			t.Errorf("sample %v, %d failures; want a part and 1", got, failures)
		}
		panics = true
		time.Sleep(SamplePeriod)
		if got, failures := s.get(); got == nil || got.Unhealthy != nil || failures != 2 {
			t.Errorf("sample %v, %d failures; want an empty one and 2", got, failures)
		}
	})
}
