package main

import (
	"context"
	"errors"
	"fmt"
)

// enough is the part of the content that must still be in memory after the
// figures were taken; else the kernel took pages away meanwhile, the round says
// too little and is done again, up to retries times as often as asked for.
const (
	enough  = 0.995
	retries = 3
)

// measureCache walks both images, reads every file of them, and looks at once by
// how much the page cache grew since the caches were dropped: content, directories
// and metadata, whether of the images, of what we make of them or of the image
// files. What the walk alone brought is metadata, the rest content.
//
// The page cache is counted twice: what the kernel charges to the memory cgroup in
// which this process and the server are, and that of the whole machine, which is
// the same on a machine that does nothing else. The goal is for the first where
// there are memory cgroups. Then mincore(2) tells, for one file of each distinct
// content, whether its pages were still there.
func (b *bench) measureCache(ctx context.Context, t *table) (err error) {
	g, err := enterGroup()
	if err != nil && !errors.Is(err, errNoGroup) {
		return err
	}
	if g != nil {
		defer func() { err = errors.Join(err, g.leave()) }()
	}
	r, err := b.rival(ctx, t.Front, b.pair[0], b.pair[1])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	var charged, content, grown, files [2]sample // MB
	var present sample                           // of ours: resident content as a part of the ideal
	evicted := 0
	side := func(who int) func() error {
		return func() error {
			for range retries {
				c, err := r.cacheRound(b, g, who)
				if err != nil {
					return err
				}
				part := float64(c.resident) / float64(b.ideal.bytes)
				if who == ours && part < enough {
					evicted++
					continue
				}
				charged[who].add(mb(c.charged))
				content[who].add(mb(c.charged - c.walked))
				grown[who].add(mb(c.machine))
				files[who].add(mb(c.images))
				if who == ours {
					present.add(part)
				}
				return nil
			}
			return fmt.Errorf("the kernel takes pages away as fast as they are read: give the machine more free memory than %.0f MB", mb(b.ideal.plain))
		}
	}
	if err := turns(ctx, b.rounds, side(ours), side(kernels)); err != nil {
		return err
	}
	best := sample{mb(b.ideal.bytes)}
	bound := atMost(1.02)
	if g != nil {
		t.compare("page cache of the content of both images of the pair", "MB", "ideal", content[ours], best, bound)
		t.compare("the same with their directories and metadata", "MB", "ideal", charged[ours], best, bound)
		t.compare("all that by the kernel's EROFS, not shared", "MB", "ideal", charged[kernels], best, nil)
		bound = nil
	}
	t.compare("page cache of the machine after both images", "MB", "ideal", grown[ours], best, bound)
	t.compare("the same by the kernel's EROFS", "MB", "ideal", grown[kernels], best, nil)
	t.compare("image files in the page cache", "MB", "kernel", files[ours], files[kernels], none())
	anonymous, err := r.server.anonymous()
	if err != nil {
		return err
	}
	t.note("Content of the pair in memory by mincore(2) right after the page cache was counted: %.2f %% of the ideal's pages in the median; %d rounds were done again because pages had been taken away. Server's own memory: %.0f MB.",
		100*present.median(), evicted, mb(anonymous))
	return nil
}

// cached is what one round found, in bytes.
type cached struct {
	machine  int64 // growth of the whole machine's page cache
	charged  int64 // growth of our group's
	walked   int64 // of it, what the walk brought
	resident int64 // pages in memory of one file of each distinct content
	images   int64 // of the image files' pages in memory
}

// cacheRound drops the caches, reads both images and counts. g may be nil.
func (r *rivals) cacheRound(b *bench, g *group, who int) (c cached, err error) {
	if err := dropCaches(); err != nil {
		return c, err
	}
	before, chargedBefore, err := countNow(g)
	if err != nil {
		return c, err
	}
	for _, set := range r.sets[who] {
		if _, _, err := walk(set.dir); err != nil {
			return c, err
		}
	}
	_, walked, err := countNow(g)
	if err != nil {
		return c, err
	}
	for _, set := range r.sets[who] {
		release, err := set.readHeld()
		defer release()
		if err != nil {
			return c, err
		}
	}
	after, chargedAfter, err := countNow(g)
	if err != nil {
		return c, err
	}
	c.charged, c.walked = chargedAfter-chargedBefore, walked-chargedBefore
	c.machine = after - before
	for _, im := range b.pair {
		n, err := cachedBytes(im.path)
		if err != nil {
			return c, err
		}
		c.images += n
	}
	c.resident, err = r.resident(b.ideal, who)
	return c, err
}

// countNow returns the page cache of the machine and, if there is one, of the group.
func countNow(g *group) (machine, charged int64, err error) {
	if g != nil {
		if charged, err = g.cache(); err != nil {
			return 0, 0, err
		}
	}
	machine, err = pageCache()
	return machine, charged, err
}

// resident sums the pages in memory of one file of each distinct content.
func (r *rivals) resident(d *ideal, who int) (n int64, err error) {
	var numbers [2]map[string]int
	for i, set := range r.sets[who] {
		numbers[i] = set.numbers()
	}
	for _, p := range d.first {
		k, err := r.sets[who][p.tree].resident(numbers[p.tree][p.path])
		if err != nil {
			return 0, err
		}
		n += int64(k) * page
	}
	return n, nil
}

// numbers is the index of each name.
func (s *fileSet) numbers() map[string]int {
	m := make(map[string]int, len(s.names))
	for i, name := range s.names {
		m[string(name[:len(name)-1])] = i
	}
	return m
}
