package main

import (
	"context"
	"fmt"
	"slices"
)

// bench is what the workloads share.
type bench struct {
	*options
	work, state string
	serial      int // of directories below work

	corpus   []*pair // the first is of the smallest images
	big      kindred
	small10k *image
	// baseline is the memory that the kernel's mounts take, by collection and holder.
	baseline map[string]map[string]*held
	coded    []*image // one tree by each codec
	inodes   *image   // of many empty files
	pulled   *image   // from a registry
	far      *image   // the same, over a slow wire
}

// workload is one group of rows of a table.
type workload struct {
	name    string
	measure func(b *bench, ctx context.Context, t *table) error
}

// workloads measure one front.
func workloads() []workload {
	return []workload{
		{"cache", (*bench).measureCache},
		{"workloads", (*bench).measureRunning},
		{"ready", (*bench).measureReady},
		{"lazy", (*bench).measureLazy},
	}
}

// peerWorkloads measure all fronts and other file systems together.
func peerWorkloads() []workload {
	return []workload{
		{"plain", (*bench).measurePlain},
		{"lz4", (*bench).measureLZ4},
		{"zstd", (*bench).measureZstd},
		{"small", (*bench).measureSmall},
		{"walk", (*bench).measureWalk},
	}
}

// packageWorkloads measure package erofs alone, without a mount of ours.
func packageWorkloads() []workload {
	return []workload{
		{"codecs", (*bench).measureCodecs},
		{"metadata", (*bench).measureMetadata},
		{"convert", (*bench).measureConvert},
	}
}

// registryWorkloads measure how images come to the node.
func registryWorkloads() []workload {
	return []workload{
		{"pull", (*bench).measurePull},
	}
}

func workloadNames() []string {
	var names []string
	for _, w := range slices.Concat(workloads(), peerWorkloads(), packageWorkloads(), registryWorkloads()) {
		names = append(names, w.name)
	}
	return names
}

func (b *bench) wants(name string) bool { return len(b.only) == 0 || b.only[name] }

// measure runs those of the workloads that are wanted, for one front or none.
func (b *bench) measure(ctx context.Context, title, front string, list []workload) (*table, error) {
	t := &table{Title: title, Front: front}
	for _, w := range list {
		if !b.wants(w.name) {
			continue
		}
		progress("%s: %s", title, w.name)
		if err := w.measure(b, ctx, t); err != nil {
			return nil, fmt.Errorf("%s, %s: %w", title, w.name, err)
		}
	}
	return t, nil
}

// turns calls each side once a round, the first of a round last in the next, until
// ctx ends.
func turns(ctx context.Context, rounds int, sides ...func() error) error {
	for i := range rounds {
		for j := range sides {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := sides[(i+j)%len(sides)](); err != nil {
				return err
			}
		}
	}
	return nil
}
