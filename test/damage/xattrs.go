package main

import "fmt"

// inlineXattrs are the places of an inode's inline attributes.
func (im *image) inlineXattrs(n *node) []int64 {
	var list []int64
	for at := n.xattr + 12 + 4*int64(im.b[n.xattr+4]); at < n.body; {
		list = append(list, at)
		size := int64(4) + int64(im.b[at]) + int64(im.u16(at+2))
		at += (size + 3) &^ 3
	}
	return list
}

// sharedXattrs are the places of an inode's shared attributes.
func (im *image) sharedXattrs(n *node) []int64 {
	var list []int64
	for i := range int64(im.b[n.xattr+4]) {
		id := int64(im.u32(n.xattr + 12 + 4*i))
		list = append(list, int64(im.u32(sbXattr))*im.blk+4*id)
	}
	return list
}

// inlineXattrs damages the attributes of one inode, and what is in front of them.
func inlineXattrs(m *maker) {
	m.group = "extended attributes"
	n := m.node("tail")
	inline, shared := m.im.inlineXattrs(n), m.im.sharedXattrs(n)
	if len(inline) < 2 || len(shared) < 2 {
		m.fail("%d inline and %d shared attributes", len(inline), len(shared))
		return
	}
	m.put("255 shared", n.xattr+4, 255)
	m.put("one shared more", n.xattr+4, byte(len(shared)+1))
	m.put("one shared less", n.xattr+4, byte(len(shared)-1))
	m.u32("shared id beyond the image", n.xattr+12, 0xffffffff)
	m.u32("shared id beyond the image, by little", n.xattr+12, uint32(len(m.im.b)/4))
	m.u32("shared id between two", n.xattr+12, m.im.u32(n.xattr+12)+1)
	m.u32("the same shared id twice", n.xattr+12, m.im.u32(n.xattr+16))
	m.u32("filter excludes all", n.xattr, 0xffffffff)
	m.u32("filter excludes none", n.xattr, 0)
	m.xattr("inline", inline[0])
	m.u16("last inline: value 4 bytes longer", inline[len(inline)-1]+2, m.im.u16(inline[len(inline)-1]+2)+4)
}

// sharedXattrs damages one of the shared attributes.
func sharedXattrs(m *maker) {
	m.group = "extended attributes"
	shared := m.im.sharedXattrs(m.node("tail"))
	if len(shared) == 0 {
		m.fail("no shared attributes")
		return
	}
	m.xattr("shared", shared[0])
}

// xattr damages the entry of an attribute.
func (m *maker) xattr(where string, at int64) {
	what := func(s string) string { return where + ": " + s }
	m.put(what("name of 255 bytes"), at, 255)
	m.put(what("name a byte longer"), at, m.im.b[at]+1)
	m.put(what("name of 0 bytes"), at, 0)
	m.u16(what("value of 65535 bytes"), at+2, 65535)
	m.u16(what("value 4 bytes shorter"), at+2, m.im.u16(at+2)-4)
	for _, index := range []byte{0, 7, 0xff} {
		m.put(what(fmt.Sprintf("name index %d", index)), at+1, index)
	}
	m.put(what("NUL in the name"), at+5, 0)
	m.xor(what("a byte of the value"), at+4+int64(m.im.b[at]), 1)
}
