package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// bigWorkloads are the workloads that read large files, by the kind of image.
var bigWorkloads = [len(kindred{})]string{plain: "plain", lz4hc: "lz4", zstd: "zstd"}

func (b *bench) measurePlain(ctx context.Context, t *table) error {
	return b.measureSequential(ctx, t, plain, atLeast(1.5))
}

func (b *bench) measureLZ4(ctx context.Context, t *table) error {
	return b.measureSequential(ctx, t, lz4hc, atLeast(1.2))
}

func (b *bench) measureZstd(ctx context.Context, t *table) error {
	return b.measureSequential(ctx, t, zstd, atLeast(1.2))
}

// The steps of warm reads.
const (
	smallStep = 128 << 10
	largeStep = readSize
)

// randomReads is how many blocks a round of cold random reads asks for.
const randomReads = 1000

// measureSequential reads large files: cold, then warm at once, because an idle
// machine may take the pages away, then warm through mappings; then cold again,
// single blocks of them.
func (b *bench) measureSequential(ctx context.Context, t *table, kind int, g *goal) (err error) {
	im := b.big[kind]
	if im == nil {
		return nil // mkfs.erofs can't make it; that was said
	}
	all, err := b.contend(ctx, t, im)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, all.close()) }()
	cold, random := make(results), make(results)
	warm, mapped := map[int]results{}, map[int]results{} // by step
	for _, step := range []int{smallStep, largeStep} {
		warm[step], mapped[step] = make(results), make(results)
	}
	used := make(map[string]cpuTime) // of our servers, for the cold reads
	round := uint64(0)
	err = all.turns(ctx, b.rounds, func(c *contender) error {
		if err := im.coldly(c.set); err != nil {
			return err
		}
		p, spent, err := c.spent(c.set.read)
		if err != nil {
			return err
		}
		used[c.name] = used[c.name].add(spent)
		cold.add(c, rate(c.set.total, p.wall))
		for _, step := range []int{largeStep, smallStep} {
			if p, err = c.set.readIn(step); err != nil {
				return err
			}
			warm[step].add(c, rate(c.set.total, p.wall))
		}
		for _, step := range []int{largeStep, smallStep} {
			if p, err = c.set.readMapped(step); err != nil {
				return err
			}
			mapped[step].add(c, rate(c.set.total, p.wall))
		}
		if err := im.coldly(c.set); err != nil {
			return err
		}
		// The same blocks for all in a round.
		if p, err = c.set.readRandom(randomReads, round/uint64(len(all.list))); err != nil {
			return err
		}
		round++
		random.add(c, micros(p.wall, randomReads))
		return nil
	})
	if err != nil {
		return err
	}
	name := kinds[kind].name
	all.compare(t, "cold sequential read, "+name, "GB/s", cold, g)
	if kind == plain {
		bound := atLeast(0.95)
		all.compare(t, "warm sequential read, 1 MiB steps", "GB/s", warm[largeStep], bound)
		all.compare(t, "warm sequential read, 128 KiB steps", "GB/s", warm[smallStep], bound)
		all.compare(t, "warm read through mmap, 1 MiB steps", "GB/s", mapped[largeStep], bound)
		all.compare(t, "warm read through mmap, 128 KiB steps", "GB/s", mapped[smallStep], bound)
	}
	all.compare(t, "cold random read of 4 KiB, "+name, "µs", random, nil)
	gb := mb(all.list[0].set.total) / 1e3 * float64(b.rounds)
	for _, c := range all.list {
		if c.server == nil {
			continue
		}
		anonymous, err := c.server.anonymous()
		if err != nil {
			return err
		}
		t.note("%s, %s: the server's CPU of the cold sequential read, seconds a GB: %.3f user + %.3f system. Its own memory after all: %.0f MB.",
			c.name, name, used[c.name].user.Seconds()/gb, used[c.name].system.Seconds()/gb, mb(anonymous))
	}
	return nil
}

// spent reads and tells the CPU time that a server of ours used meanwhile.
func (c *contender) spent(read func() (pass, error)) (p pass, used cpuTime, err error) {
	if c.server == nil {
		p, err = read()
		return p, used, err
	}
	before, err := c.server.cpu()
	if err != nil {
		return p, used, err
	}
	if p, err = read(); err != nil {
		return p, used, err
	}
	after, err := c.server.cpu()
	return p, after.sub(before), err
}

// smallFactor is how many times the rounds of other workloads the small files are
// read: a pass takes a tenth of a second.
const smallFactor = 3

// measureSmall opens, reads and closes small files, asks stat(2) of each, and lists
// their directories, with all pages, dentries and inodes in memory: each timed pass
// follows an untimed one at once.
func (b *bench) measureSmall(ctx context.Context, t *table) (err error) {
	all, err := b.contend(ctx, t, b.small10k)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, all.close()) }()
	read, stat, list := make(results), make(results), make(results)
	count := len(all.list[0].set.names)
	err = all.turns(ctx, smallFactor*b.rounds, func(c *contender) error {
		for _, what := range []struct {
			pass func() (pass, error)
			into results
		}{{c.set.read, read}, {c.set.stat, stat}, {c.set.list, list}} {
			if _, err := what.pass(); err != nil {
				return err
			}
			p, err := what.pass()
			if err != nil {
				return err
			}
			what.into.add(c, micros(p.wall, count))
		}
		return nil
	})
	if err != nil {
		return err
	}
	all.compare(t, fmt.Sprintf("warm open+read+close of %d small files", count), "µs/file", read, atMost(1.7))
	all.compare(t, "warm stat of them", "µs/file", stat, nil)
	all.compare(t, "warm readdir of them", "µs/file", list, nil)
	return nil
}

// measureWalk walks the first image of the first pair with nothing of it in memory.
func (b *bench) measureWalk(ctx context.Context, t *table) (err error) {
	im := b.corpus[0].versions[0][plain]
	all, err := b.contend(ctx, t, im)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, all.close()) }()
	cold := make(results)
	entries := make(map[string]int)
	err = all.turns(ctx, b.rounds, func(c *contender) error {
		if err := dropCaches(); err != nil {
			return err
		}
		p, n, err := walk(c.set.dir)
		entries[c.name] = n
		cold.add(c, micros(p.wall, max(n, 1)))
		return err
	})
	if err != nil {
		return err
	}
	for _, c := range all.list {
		// mkfs.ext4 adds lost+found.
		if want := entries[kernelFile]; entries[c.name] != want && c.name != ext4 {
			return fmt.Errorf("%s shows %d names, the kernel %d", c.name, entries[c.name], want)
		}
	}
	all.compare(t, fmt.Sprintf("cold find -ls of %d names", entries[kernelFile]), "µs/name", cold, atMost(2))
	return nil
}

// rate is in GB (10^9 bytes) a second.
func rate(n int64, d time.Duration) float64 { return float64(n) / 1e9 / d.Seconds() }

// micros is the time of each of n things in microseconds.
func micros(d time.Duration, n int) float64 { return d.Seconds() * 1e6 / float64(n) }
