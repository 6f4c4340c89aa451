package erofs

import "fmt"

// ZCounts is how often each way to store compressed data occurred, by its name:
// a test over an image without one of them would say nothing about it. Names are
// index forms ("full", "compact", "encoded-4", ...), parts of compact indexes
// ("initial", "packed", "trailing"), and of extents the algorithms,
// "shifted", "interlaced", "hole", "fragment", "inline", "partial", "big"
// (pclusters of more than a block), "offset" (plain ones that start inside a
// block), "unaligned" (pclusters) and "long" (more than 2 MiB).
type ZCounts map[string]int

// AddImage counts the extents of all compressed files and of the packed inode.
func (c ZCounts) AddImage(im *Image) error {
	err := im.Walk(func(_ string, in *Inode) error {
		if !in.Layout.Compressed() || !in.IsRegular() {
			return nil
		}
		return c.Add(in)
	})
	if err == nil && im.packed != nil && im.packed.Layout.Compressed() {
		err = c.Add(im.packed)
	}
	return err
}

// Add counts the extents of a compressed file.
func (c ZCounts) Add(in *Inode) error {
	if in.Size == 0 {
		return nil
	}
	z, err := in.compression()
	if err != nil {
		return err
	}
	c["files"]++
	switch {
	case z.encoded:
		c[fmt.Sprintf("encoded-%d", z.records.size)]++
	case z.tailHead == 0 && z.tail.kind == zPacked && z.count == 0:
		c["whole-fragment"]++
	case in.Layout == CompressedFull:
		c["full"]++
	default:
		c["compact"]++
		c["initial"] += int(min(z.initial, z.count))
		c["packed"] += int(z.packed)
		c["trailing"] += int(max(z.count-z.initial-z.packed, 0))
	}
	m := zMapper{in: in, z: z}
	for e, err := m.first(0); ; e, err = m.extent() {
		if err != nil {
			return err
		}
		c.extent(in, &e)
		if e.end == in.Size {
			return nil
		}
	}
}

func (c ZCounts) extent(in *Inode, e *zExtent) {
	is := func(name string, yes bool) {
		if yes {
			c[name]++
		}
	}
	if e.compressed() {
		c[algorithmNames[e.kind]]++
		is("inline", e.inline)
		is("big", e.plen > in.im.blkSize)
	}
	is("inline-plain", e.inline && e.plain())
	is("shifted", e.kind == zShifted)
	is("interlaced", e.kind == zInterlaced)
	is("hole", e.kind == zHole)
	is("fragment", e.kind == zPacked)
	is("partial", e.partial)
	is("offset", e.plain() && e.la%in.im.blkSize != 0)
	is("unaligned", e.stored() && !e.inline && (e.pa|e.plen)%in.im.blkSize != 0)
	is("long", e.end-e.la > 2<<20)
}
