package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// smallFactor is how many times the rounds of other workloads the small files are
// read: a pass takes a tenth of a second.
const smallFactor = 3

// measureSmall opens, reads and closes small files whose pages, dentries and inodes
// are all in memory: each timed pass follows an untimed one at once.
func (b *bench) measureSmall(ctx context.Context, t *table) (err error) {
	r, err := b.rival(ctx, t.Front, b.small10k)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	var warm [2]sample // µs a file
	side := func(who int) func() error {
		set := r.sets[who][0]
		return func() error {
			if _, err := set.read(); err != nil {
				return err
			}
			p, err := set.read()
			if err != nil {
				return err
			}
			warm[who].add(micros(p.wall, len(set.names)))
			return nil
		}
	}
	if err := turns(ctx, smallFactor*b.rounds, side(ours), side(kernels)); err != nil {
		return err
	}
	t.compare(fmt.Sprintf("warm open+read+close of %d small files", len(r.sets[ours][0].names)), "µs/file", "kernel",
		warm[ours], warm[kernels], atMost(2.5))
	return nil
}

// micros is the time of each of n things in microseconds.
func micros(d time.Duration, n int) float64 { return d.Seconds() * 1e6 / float64(n) }
