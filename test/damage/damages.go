package main

import (
	"context"
	"fmt"
	"slices"
)

// damage is one change of an image.
type damage struct {
	kind  *kind
	group string // its row of the table
	what  string
	at    int64
	put   []byte // at that place
	cut   int64  // instead: the image ends there; 0: it does not
}

// name is unique among all damages.
func (d *damage) name() string { return d.kind.name + ": " + d.group + ": " + d.what }

// apply returns a damaged copy of the image.
func (d *damage) apply(b []byte) []byte {
	if d.cut > 0 {
		return slices.Clone(b[:d.cut])
	}
	b = slices.Clone(b)
	copy(b[d.at:], d.put)
	return b
}

// maker collects the damages of an image. It keeps the first error.
type maker struct {
	ctx   context.Context
	im    *image
	group string
	list  []damage
	err   error
}

// damage runs the kind's functions.
func (im *image) damage(ctx context.Context) ([]damage, error) {
	m := &maker{ctx: ctx, im: im}
	for _, fn := range im.kind.damages {
		fn(m)
	}
	names := make(map[string]bool)
	for i := range m.list {
		if names[m.list[i].name()] {
			m.fail("%q is there twice", m.list[i].name())
		}
		names[m.list[i].name()] = true
	}
	return m.list, m.err
}

func (m *maker) fail(format string, args ...any) {
	if m.err == nil {
		m.err = fmt.Errorf("image %s: %s", m.im.kind.name, fmt.Sprintf(format, args...))
	}
}

// put adds a damage: other bytes at a place.
func (m *maker) put(what string, at int64, put ...byte) {
	if at < 0 || at+int64(len(put)) > int64(len(m.im.b)) {
		m.fail("%s: no such place: %d", what, at)
		return
	}
	if slices.Equal(m.im.b[at:at+int64(len(put))], put) {
		m.fail("%s: the bytes at %d are %x already", what, at, put)
		return
	}
	m.list = append(m.list, damage{kind: m.im.kind, group: m.group, what: what, at: at, put: put})
}

func (m *maker) u16(what string, at int64, v uint16) { m.put(what, at, le.AppendUint16(nil, v)...) }
func (m *maker) u32(what string, at int64, v uint32) { m.put(what, at, le.AppendUint32(nil, v)...) }
func (m *maker) u64(what string, at int64, v uint64) { m.put(what, at, le.AppendUint64(nil, v)...) }

// xor changes bits of a byte.
func (m *maker) xor(what string, at int64, bits byte) { m.put(what, at, m.im.b[at]^bits) }

// cut adds a damage: the image ends early.
func (m *maker) cut(what string, size int64) {
	m.list = append(m.list, damage{kind: m.im.kind, group: m.group, what: what, cut: size})
}

// node returns a file's inode.
func (m *maker) node(path string) *node {
	n := m.im.nodes[path]
	if n == nil || n.at < 0 {
		m.fail("%s can't be reached", path)
		return m.im.nodes["."]
	}
	return n
}

// extents are a file's.
func (m *maker) extents(n *node) []extent {
	list, err := m.im.extents(m.ctx, n.NID)
	if err != nil {
		m.fail("%v", err)
	}
	return list
}

// pclusters are a compressed file's extents that have a pcluster which is
// smaller than its data.
func (m *maker) pclusters(n *node) []extent {
	return slices.DeleteFunc(m.extents(n), func(e extent) bool { return e.plen == 0 || e.plen >= e.n })
}

// far is a block, or a nid, that no image has.
const far = 0x00ffffff
