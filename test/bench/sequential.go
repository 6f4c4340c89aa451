package main

import (
	"context"
	"errors"
	"time"
)

func (b *bench) measurePlain(ctx context.Context, t *table) error {
	return b.measureSequential(ctx, t, b.plain, "plain", atLeast(1))
}

func (b *bench) measureLZ4(ctx context.Context, t *table) error {
	return b.measureSequential(ctx, t, b.lz4, "LZ4", nil)
}

// measureSequential reads large files: cold, then warm at once, because an idle
// machine may take the pages away, then warm through mappings.
func (b *bench) measureSequential(ctx context.Context, t *table, im *image, what string, g *goal) (err error) {
	r, err := b.rival(ctx, t.Front, im)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	var cold, warm, mapped [2]sample // GB/s
	var reader [2]time.Duration      // CPU of the cold reads
	var used cpuTime                 // of the server, for the cold reads
	side := func(who int) func() error {
		set := r.sets[who][0]
		return func() error {
			if err := im.coldly(set); err != nil {
				return err
			}
			before, err := r.server.cpu()
			if err != nil {
				return err
			}
			p, err := set.read()
			if err != nil {
				return err
			}
			after, err := r.server.cpu()
			if err != nil {
				return err
			}
			if who == ours {
				used = used.add(after.sub(before))
			}
			reader[who] += p.cpu
			cold[who].add(rate(set.total, p.wall))
			if p, err = set.read(); err != nil {
				return err
			}
			warm[who].add(rate(set.total, p.wall))
			if p, err = set.readMapped(); err != nil {
				return err
			}
			mapped[who].add(rate(set.total, p.wall))
			return nil
		}
	}
	if err := turns(ctx, b.rounds, side(ours), side(kernels)); err != nil {
		return err
	}
	t.compare("cold sequential read, "+what, "GB/s", "kernel", cold[ours], cold[kernels], g)
	if what == "plain" {
		t.compare("warm sequential read", "GB/s", "kernel", warm[ours], warm[kernels], nil)
		t.compare("warm read through mmap", "GB/s", "kernel", mapped[ours], mapped[kernels], nil)
	}
	gb := float64(r.sets[ours][0].total) * float64(b.rounds) / 1e9
	anonymous, err := r.server.anonymous()
	if err != nil {
		return err
	}
	t.note("CPU of the cold read of %s, seconds a GB: server %.3f user + %.3f system, its reader %.3f; the kernel's reader %.3f (without kernel threads). Server's own memory after it: %.0f MB.",
		what, used.user.Seconds()/gb, used.system.Seconds()/gb, reader[ours].Seconds()/gb, reader[kernels].Seconds()/gb, mb(anonymous))
	return nil
}

// rate is in GB (10^9 bytes) a second.
func rate(n int64, d time.Duration) float64 { return float64(n) / 1e9 / d.Seconds() }
