package main

import (
	"math"
	"slices"
)

// sample is what was measured on one side, in the order of the rounds.
type sample []float64

func (s *sample) add(v float64) { *s = append(*s, v) }

// quantile interpolates between the two nearest values; 0 <= q <= 1. The sample
// must not be empty.
func (s sample) quantile(q float64) float64 {
	sorted := slices.Sorted(slices.Values(s))
	at := q * float64(len(sorted)-1)
	low := int(math.Floor(at))
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

func (s sample) median() float64 { return s.quantile(0.5) }

// spread is the distance of the quartiles, as a part of the median.
func (s sample) spread() float64 {
	m := s.median()
	if m == 0 {
		return 0
	}
	return (s.quantile(0.75) - s.quantile(0.25)) / math.Abs(m)
}

// noisy is the spread from which a median of a few rounds says little.
const noisy = 0.15
