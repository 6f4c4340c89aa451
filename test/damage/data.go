package main

import "fmt"

// codecs are the groups of the data of the kinds of images.
var codecs = map[string]string{
	"lz4": "LZ4 data", "lz4-big": "LZ4 data", "lzma": "MicroLZMA data", "deflate": "DEFLATE data", "zstd": "Zstandard data",
	"digests-lzma": "compressed data with a digest", "digests-zstd": "compressed data with a digest",
}

// compressedData damages the data of pclusters.
func compressedData(m *maker) {
	m.group = codecs[m.im.kind.name]
	for _, path := range []string{"text", "mixed"} {
		list := m.pclusters(m.node(path))
		if len(list) == 0 {
			m.fail("%s has no compressed extent", path)
			return
		}
		m.flips(path, len(list)/2, list[len(list)/2])
	}
}

// cluster damages the data of a file's first pcluster.
func (m *maker) cluster(name string, n *node) {
	list := m.pclusters(n)
	if len(list) == 0 {
		m.fail("%s: nothing is compressed", name)
		return
	}
	m.flips(name, 0, list[0])
}

// flips damages bytes of pcluster i of a file, and the zeros in front.
func (m *maker) flips(path string, i int, e extent) {
	start := e.pa
	for m.im.b[start] == 0 {
		start++
	}
	n := e.pa + e.plen - start
	what := func(s string) string { return fmt.Sprintf("%s: pcluster %d: %s", path, i, s) }
	if start > e.pa {
		m.put(what("the padding"), e.pa, 0x55)
	}
	m.put(what("first byte 0"), start, 0)
	m.xor(what("first byte"), start, 0x11)
	m.xor(what("byte 7"), start+7, 0x04)
	m.xor(what("the middle"), start+n/2, 0x40)
	m.xor(what("three quarters"), start+3*n/4, 0x01)
	m.xor(what("last byte"), start+n-1, 0x02)
	m.put(what("four zeros at the end"), start+n-4, 0, 0, 0, 0)
	m.put(what("all ones in the middle"), start+n/2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
}

// inlineClusters damages pclusters behind the indexes.
func inlineClusters(m *maker) {
	m.group = "inline pcluster"
	for i, path := range []string{"dir/some09", "again"} {
		n := m.node(path)
		at, list := n.header(), m.extents(n)
		what := func(s string) string { return path + ": " + s }
		size := m.im.u16(at + 2)
		if m.im.u16(at+4)&8 == 0 || size == 0 {
			m.fail("%s has no inline pcluster", path)
			return
		}
		last := list[len(list)-1]
		m.u16(what("size 0"), at+2, 0)
		m.u16(what("size 1"), at+2, 1)
		m.u16(what("a byte less"), at+2, size-1)
		m.u16(what("a byte more"), at+2, size+1)
		m.u16(what("of a block"), at+2, uint16(m.im.blk))
		m.u16(what("of 65535 bytes"), at+2, 65535)
		m.u16(what("without its flag"), at+4, m.im.u16(at+4)&^8)
		if i == 0 {
			m.flips(path, len(list)-1, last)
		}
	}
}

// packed damages the packed inode and what names it.
func packed(m *maker) {
	m.group = "packed inode"
	n := m.node("(packed)")
	m.u64("nid beyond the image", sbPacked, far)
	m.u64("nid 0", sbPacked, 0)
	m.u64("nid of a directory", sbPacked, m.node("dir").NID)
	m.u64("nid of another file", sbPacked, m.node("text").NID)
	m.u64("nid in the metabox", sbPacked, 1<<63|n.NID)
	m.u16("mode of a directory", n.at+4, 0o040755)
	m.u16("layout 6", n.at, m.im.u16(n.at)|6<<1)
	m.u32("a block less", n.at+8, uint32(n.Size-m.im.blk))
	m.u32("of 0 bytes", n.at+8, 0)
	m.u32("of 2 GiB", n.at+8, 1<<31)
	m.put("has a fragment", n.header()+4, m.im.b[n.header()+4]|0x20)
	m.put("is a fragment", n.header()+7, m.im.b[n.header()+7]|0x80)
}

// packedData damages the data of the packed inode, and a file's place in it.
func packedData(m *maker) {
	m.group = "packed inode"
	m.cluster("data", m.node("(packed)"))
	file := m.node("tail").header()
	m.u32("fragment beyond its end", file, 0x7fffffff)
	m.u32("fragment elsewhere", file, m.im.u32(file)^1)
}

// metaboxes damages the metabox and what names it.
func metaboxes(m *maker) {
	m.group = "metabox"
	n := m.node("(metabox)")
	m.u64("nid beyond the image", sbMetabox, far)
	m.u64("nid 0", sbMetabox, 0)
	m.u64("nid in itself", sbMetabox, 1<<63|n.NID)
	m.put("no extension slot", sbExtSlots, 0)
	m.u32("without its feature", sbIncompat, m.im.u32(sbIncompat)&^0x100)
	m.u64("root beyond its end", sbRoot8, 1<<63|far)
	m.u64("root outside of it", sbRoot8, n.NID)
	m.u16("mode of a directory", n.at+4, 0o040755)
	m.u16("layout 6", n.at, m.im.u16(n.at)|6<<1)
	m.u32("a block less", n.at+8, uint32(n.Size-m.im.blk))
	m.u32("of 0 bytes", n.at+8, 0)
	m.u32("of 2 GiB", n.at+8, 1<<31)
	m.put("its data in the packed inode", n.header()+7, 0x80)
	m.cluster("data", n)
}

// inMetabox damages what is in a metabox whose data are not compressed.
func inMetabox(m *maker) {
	m.group = "metabox"
	m.u32("data beyond the image", m.node("(metabox)").at+16, far)
	file := m.node("tail")
	m.u16("file: unknown format bit", file.at, m.im.u16(file.at)|0x20)
	m.u16("file: 65535 words of attributes", file.at+2, 65535)
	m.u16("file: mode without a type", file.at+4, 0o644)
	m.u32("file: start block beyond the image", file.at+16, far)
	e := m.im.entries(m.node("dir"), 0)
	m.xor("entry: nid outside of it", e[len(e)/2].at+7, 0x80)
	m.u64("entry: nid beyond its end", e[len(e)/2].at, 1<<63|far)
	m.put("entry: type 8", e[len(e)/2].at+10, 8)
}
