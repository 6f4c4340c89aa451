package main

import (
	"context"
	"fmt"
)

// bench is what the workloads share.
type bench struct {
	*options
	work, state string
	serial      int // of directories below work

	plain, lz4, small10k *image
	pair                 [2]*image
	ideal                *ideal // of the pair
}

// workload is one group of rows of a front's table.
type workload struct {
	name    string
	measure func(b *bench, ctx context.Context, t *table) error
}

func workloads() []workload {
	return []workload{
		{"plain", (*bench).measurePlain},
		{"lz4", (*bench).measureLZ4},
		{"small", (*bench).measureSmall},
		{"cache", (*bench).measureCache},
		{"walk", (*bench).measureWalk},
		{"ready", (*bench).measureReady},
	}
}

func workloadNames() []string {
	var names []string
	for _, w := range workloads() {
		names = append(names, w.name)
	}
	return names
}

func (b *bench) wants(name string) bool { return len(b.only) == 0 || b.only[name] }

// measureFront runs the workloads with one front.
func (b *bench) measureFront(ctx context.Context, front string) (*table, error) {
	t := &table{Front: front}
	for _, w := range workloads() {
		if !b.wants(w.name) {
			continue
		}
		progress("%s: %s", front, w.name)
		if err := w.measure(b, ctx, t); err != nil {
			return nil, fmt.Errorf("%s: %w", w.name, err)
		}
	}
	return t, nil
}

// turns calls each of the two sides once a round, the first of a round last in the
// next, until ctx ends.
func turns(ctx context.Context, rounds int, sides [2]func() error) error {
	for i := range rounds {
		for j := range sides {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := sides[(i+j)%2](); err != nil {
				return err
			}
		}
	}
	return nil
}
