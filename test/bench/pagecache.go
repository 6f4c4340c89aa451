package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

const (
	// enough is the part of the content that must still be in memory after the
	// figures were taken; else the kernel took pages away meanwhile, the round says
	// too little and is done again, up to retries times as often as asked for.
	enough  = 0.995
	retries = 3
	// cacheRounds bounds the rounds of measureCache, in which little is by chance.
	cacheRounds = 3
)

// collection is images that are mounted together.
type collection struct {
	name   string
	images []*image
	ideal  *ideal
}

// collectionKinds are the kinds of images, and mixed.
func collectionKinds() []string {
	var names []string
	for _, k := range kinds {
		names = append(names, k.suffix)
	}
	return append(names, mixed)
}

// mixed is one version plain and the other compressed.
const mixed = "mixed"

// collections are each pair by each kind of image that is wanted, and all pairs at
// once.
func (b *bench) collections() (list []collection) {
	names := collectionKinds()
	fleets := make([][]*image, len(names))
	label := func(i int) string {
		if names[i] == mixed {
			return "A plain, B " + kinds[zstd].name
		}
		return kinds[i].name
	}
	for _, p := range b.corpus {
		for i, name := range names {
			if len(b.kinds) > 0 && !slices.Contains(b.kinds, name) {
				continue
			}
			first, second := i, i
			if name == mixed {
				first, second = plain, zstd
			}
			if images := p.kind(first, second); images != nil {
				list = append(list, collection{name: p.name + ", " + label(i), images: images})
				fleets[i] = append(fleets[i], images...)
			}
		}
	}
	for i, images := range fleets {
		if len(b.corpus) > 1 && len(images) == 2*len(b.corpus) {
			list = append(list, collection{name: fmt.Sprintf("all %d, %s", len(images), label(i)), images: images})
		}
	}
	if b.fleet {
		list = slices.DeleteFunc(list, func(c collection) bool { return len(c.images) == 2 })
	}
	for i := range list {
		var trees []contents
		for _, im := range list[i].images {
			trees = append(trees, im.want)
		}
		list[i].ideal = newIdeal(trees...)
	}
	return list
}

// measureCache mounts images, walks them, reads every file of them, and looks at
// once by how much the page cache grew since before they were mounted: content,
// directories and metadata, whether of the images, of what we make of them or of the
// image files. What mounting and walking brought is metadata, the rest content.
//
// The page cache is what the kernel charges to the memory cgroup in which this
// process and the server are; where there are no memory cgroups it is that of the
// whole machine, which is the same on a machine that does nothing else. Then
// mincore(2) tells, for one file of each distinct content, whether its pages were
// still there. Nothing else is dropped: mounts that are new have nothing in memory,
// and our files on the disk are taken out of it.
func (b *bench) measureCache(ctx context.Context, t *table) (err error) {
	g, err := enterGroup()
	if err != nil && !errors.Is(err, errNoGroup) {
		return err
	}
	if g != nil {
		defer func() { err = errors.Join(err, g.leave()) }()
	}
	if b.baseline == nil {
		b.baseline = make(map[string]map[string]*held)
	}
	m := t.matrix("Page cache after every file of both images was read. In parentheses: of the ideal, which is each distinct content once.")
	share, err := b.canShare(b.corpus[0].versions[0][plain])
	if err != nil {
		return err
	}
	evicted := 0
	for _, c := range b.collections() {
		progress("%s: %s", t.Title, c.name)
		found := b.baseline[c.name] // of the kernel, which no front of ours changes
		if found == nil {
			found = make(map[string]*held)
			b.baseline[c.name] = found
		}
		for _, im := range c.images { // somebody may have read them
			if err := forget(im.path); err != nil {
				return err
			}
		}
		var holders []holder
		if found[notShared] == nil {
			holders = append(holders, b.kernelHolder(notShared, b.oldKernelMount))
			if share {
				holders = append(holders, b.kernelHolder(kernelShare, b.sharedMount))
			}
		}
		shared := b.ourHolder("ours", t.Front, domain)
		if err := shared.known(ctx, c.images); err != nil {
			return err
		}
		holders = append(holders, shared, b.ourHolder(ownAlone, t.Front, ""))
		own := map[string]*held{}
		sides := make([]func() error, 0, len(holders))
		for i, h := range holders {
			into := own
			if h.name == notShared || h.name == kernelShare {
				into = found
			}
			into[h.name] = &held{}
			sides = append(sides, func() error {
				n, err := b.hold(ctx, g, holders[i], c, into[h.name])
				evicted += n
				return err
			})
		}
		if err := turns(ctx, min(b.rounds, cacheRounds), sides...); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		best := sample{mb(c.ideal.bytes)}
		r := m.row(c.name, "MB")
		m.set(r, "ideal", best, nil, nil)
		m.set(r, notShared, found[notShared].all, best, nil)
		m.set(r, ownAlone, own[ownAlone].all, best, nil)
		m.set(r, "ours, content", own["ours"].content, best, atMost(1.02))
		m.set(r, "ours, all", own["ours"].all, best, nil)
		if s := found[kernelShare]; s != nil {
			m.set(r, kernelShare+", content", s.content, best, nil)
			m.set(r, kernelShare+", all", s.all, best, nil)
		}
		if files := own["ours"].files.median(); files > 0.1 {
			t.note("%s: %.1f MB of the image files are in the page cache.", c.name, files)
		}
	}
	where := "the memory cgroup of reader and server"
	if g == nil {
		where = "the whole machine: there are no memory cgroups"
	}
	t.note("content: what reading the files brought; all: with what mounting and walking brought, which is directories and metadata. Page cache of %s. No domain: our mounts that share nothing. By mincore(2) at least %.1f %% of the ideal's pages were there when it was counted; %d rounds were done again because pages had been taken away.",
		where, 100*enough, evicted)
	return nil
}

// held is the memory of a holder, in MB a round.
type held struct {
	content, all, files sample
	verified            bool
}

// hold measures a holder once. It tells how often that was done in vain.
func (b *bench) hold(ctx context.Context, g *group, h holder, c collection, into *held) (evicted int, err error) {
	for range retries {
		n, err := b.cacheRound(ctx, g, h, c, into)
		if err != nil {
			return evicted, fmt.Errorf("%s: %w", h.name, err)
		}
		if float64(n.resident) < enough*float64(c.ideal.bytes) {
			evicted++
			continue
		}
		into.all.add(mb(n.charged))
		into.content.add(mb(n.charged - n.walked))
		into.files.add(mb(n.images))
		return evicted, nil
	}
	return evicted, fmt.Errorf("%s: the kernel takes pages away as fast as they are read: give the machine more free memory than %.0f MB", h.name, mb(c.ideal.plain))
}

// cached is what one round found, in bytes.
type cached struct {
	charged  int64 // growth of the page cache
	walked   int64 // of it, what the mount and the walk brought
	resident int64 // pages in memory of one file of each distinct content
	images   int64 // of the image files' pages in memory
}

// cacheRound mounts, reads all files, counts, and unmounts. g may be nil. The first
// time it compares every file with the one it was made of.
func (b *bench) cacheRound(ctx context.Context, g *group, h holder, col collection, into *held) (c cached, err error) {
	before, err := countBefore(g)
	if err != nil {
		return c, err
	}
	dirs, release, err := h.mount(ctx, col.images)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, release()) }()
	var sets []*fileSet
	defer func() {
		for _, s := range sets {
			s.close()
		}
	}()
	for i, im := range col.images {
		if _, _, err := walk(dirs[i]); err != nil {
			return c, err
		}
		s, err := openSet(im, dirs[i])
		if err != nil {
			return c, err
		}
		sets = append(sets, s)
	}
	walked, err := countNow(g)
	if err != nil {
		return c, err
	}
	least := heldFrom(sets)
	for _, s := range sets {
		unlock, err := s.readHeld(least)
		defer unlock()
		if err != nil {
			return c, err
		}
	}
	// Metadata is not locked: what the kernel took away since comes back.
	for _, dir := range dirs {
		if _, _, err := walk(dir); err != nil {
			return c, err
		}
	}
	after, err := countNow(g)
	if err != nil {
		return c, err
	}
	c.charged, c.walked = after-before, walked-before
	for _, im := range col.images {
		n, err := cachedBytes(im.path)
		if err != nil {
			return c, err
		}
		c.images += n
	}
	if c.resident, err = resident(sets, col.ideal); err != nil || into.verified {
		return c, err
	}
	for i, im := range col.images {
		if err := im.verify(ctx, dirs[i]); err != nil {
			return c, err
		}
	}
	into.verified = true
	return c, nil
}

// countBefore is countNow with nothing mounted.
func countBefore(g *group) (int64, error) {
	if g != nil {
		return g.before()
	}
	return pageCache()
}

// countNow returns the page cache of the group, or of the machine when there is none.
func countNow(g *group) (int64, error) {
	if g != nil {
		return g.cache()
	}
	return pageCache()
}

// resident sums the pages in memory of one file of each distinct content.
func resident(sets []*fileSet, d *ideal) (n int64, err error) {
	numbers := make([]map[string]int, len(sets))
	for i, set := range sets {
		numbers[i] = set.numbers()
	}
	for _, p := range d.first {
		k, err := sets[p.tree].resident(numbers[p.tree][p.path])
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
