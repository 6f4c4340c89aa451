package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// measureWalk walks the first image of the pair with nothing of it in memory.
func (b *bench) measureWalk(ctx context.Context, t *table) (err error) {
	r, err := b.rival(ctx, t.Front, b.pair[0])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	var cold [2]sample // µs a name
	var entries [2]int
	side := func(who int) func() error {
		dir := r.sets[who][0].dir
		return func() error {
			if err := dropCaches(); err != nil {
				return err
			}
			p, n, err := walk(dir)
			if err != nil {
				return err
			}
			entries[who] = n
			cold[who].add(micros(p.wall, n))
			return nil
		}
	}
	if err := turns(ctx, b.rounds, side(ours), side(kernels)); err != nil {
		return err
	}
	if entries[ours] != entries[kernels] {
		return fmt.Errorf("we show %d names, the kernel %d", entries[ours], entries[kernels])
	}
	t.compare(fmt.Sprintf("cold find -ls of %d names", entries[ours]), "µs/name", "kernel", cold[ours], cold[kernels], nil)
	return nil
}

// measureReady mounts the first image of the pair: new to the node, so that it has
// to be hashed, and known to it. Both with nothing in memory, the program included.
func (b *bench) measureReady(ctx context.Context, t *table) error {
	im := b.pair[0]
	var first, again, direct sample // ms
	for range b.rounds {
		cache := b.freshCache()
		for _, s := range []*sample{&first, &again} {
			took, err := b.readyOnce(ctx, t.Front, cache, im)
			if err != nil {
				return err
			}
			s.add(took.Seconds() * 1e3)
		}
		if err := dropCaches(); err != nil {
			return err
		}
		m, err := b.kernelMount(im)
		if err != nil {
			return err
		}
		direct.add(m.took.Seconds() * 1e3)
		if err := m.unmount(); err != nil {
			return err
		}
	}
	size := fmt.Sprintf("an image of %.0f MB", mb(im.size))
	t.compare("start to ready, "+size+" new to the node", "ms", "kernel", first, direct, nil)
	t.compare("start to ready, "+size+" known to it", "ms", "kernel", again, direct, nil)
	return nil
}

func (b *bench) readyOnce(ctx context.Context, front, cache string, im *image) (time.Duration, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if err := dropCaches(); err != nil {
		return 0, err
	}
	s, err := b.serve(ctx, front, filepath.Clean(cache), im)
	if err != nil {
		return 0, err
	}
	return s.took, s.close()
}
