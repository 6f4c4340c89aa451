package engine

import (
	"math/bits"
	"math/rand/v2"
)

// maxSampled is how many files of a domain a status looks at: each costs its client
// some 20 µs, and the engine a search in the index of every image of the domain.
const maxSampled = 4096

// picked is a file that stands for weight files of about its size.
type picked struct {
	id     uint64
	weight float64
}

// sample picks up to about most of the files that each lists, at random. Files are in
// classes by the power of two of their bytes, and a class has a part of the picks by
// its bytes, so that the few that hold much are looked at one by one. A sum of (bytes
// in memory) times weight is then an estimate of that of all files, and exact when
// all are picked. each is called twice; what comes or goes meanwhile may be missed.
func sample(most int, each func(func(id uint64, size int64) bool)) (list []picked, all bool) {
	var classes [64]class
	total, count, left := int64(0), 0, most
	each(func(_ uint64, size int64) bool {
		c := &classes[bits.Len64(uint64(size))%64]
		c.count++
		c.bytes += size
		total += size
		count++
		return true
	})
	for i := len(classes) - 1; i >= 0; i-- { // what the few large ones leave is the others'
		c := &classes[i]
		if c.quota = c.count; count > most {
			part := float64(left) * float64(c.bytes) / max(float64(total), 1)
			c.quota = min(c.count, max(int(part), most/len(classes)))
		}
		left -= c.quota
		total -= c.bytes
	}
	all = true
	each(func(id uint64, size int64) bool {
		all = classes[bits.Len64(uint64(size))%64].pick(id, size) && all
		return true
	})
	for i := range classes {
		c := &classes[i]
		var bytes int64
		for _, p := range c.picks {
			bytes += p.size
		}
		for _, p := range c.picks {
			list = append(list, picked{p.id, float64(c.seenBytes) / float64(bytes)})
		}
	}
	return list, all
}

// class is the files whose sizes have one highest bit.
type class struct {
	count int   // in the first pass
	bytes int64 // in the first pass
	quota int   // of picks

	picks []struct {
		id   uint64
		size int64
	}
	seen      int
	seenBytes int64
}

// pick takes a file or not, so that in the end each has been taken with the same
// chance (reservoir sampling). It answers whether all were taken so far.
func (c *class) pick(id uint64, size int64) (all bool) {
	c.seen++
	c.seenBytes += size
	p := struct {
		id   uint64
		size int64
	}{id, size}
	if len(c.picks) < c.quota {
		c.picks = append(c.picks, p)
		return true
	}
	if i := rand.IntN(c.seen); i < c.quota { //nolint:gosec // nothing secret
		c.picks[i] = p
	}
	return false
}
