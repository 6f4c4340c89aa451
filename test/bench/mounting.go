package main

import (
	"context"
	"fmt"
	"time"
)

// measureReady mounts the first image of the pair: new to the node, so that it has
// to be hashed, and known to it. Both with nothing in memory, the program included.
func (b *bench) measureReady(ctx context.Context, t *table) error {
	im := b.corpus[0].versions[0][plain]
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
		m, err := b.oldKernelMount(im)
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
	s, err := b.serve(ctx, front, domain, cache, im)
	if err != nil {
		return 0, err
	}
	return s.took, s.close()
}
