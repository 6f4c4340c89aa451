package main

import (
	"fmt"

	"github.com/erofs-csi/erofs-csi/erofs"
)

// header is where the map header of a compressed inode is.
func (n *node) header() int64 { return (n.body + 7) &^ 7 }

// headers damages the map header.
func headers(m *maker) {
	m.group = "map header"
	n := m.node("text")
	at := n.header()
	advise := m.im.u16(at + 4)
	m.put("algorithm LZMA", at+6, 1)
	m.put("algorithm Zstandard of HEAD2", at+6, 0x30)
	m.put("algorithm 9", at+6, 9)
	m.xor("2-byte indexes, or encoded extents", at+4, 1)
	m.u16("big pclusters of HEAD1", at+4, advise|0x2)
	m.u16("big pclusters of HEAD2", at+4, advise|0x4)
	m.u16("big pclusters", at+4, advise|0x6)
	m.u16("inline pcluster without a size", at+4, advise|0x8)
	m.put("inline pcluster of 5000 bytes", at, 0, 0, 0x88, 0x13, byte(advise)|0x8)
	m.put("inline pcluster of 100 bytes", at, 0, 0, 100, 0, byte(advise)|0x8)
	m.u16("interlaced", at+4, advise|0x10)
	m.u16("fragment without a packed inode", at+4, advise|0x20)
	m.put("all in the packed inode", at+7, 0x80)
	m.u16("unknown advise", at+4, advise|0x8000)
	m.put("lclusters of two blocks", at+7, 1)
	m.put("lclusters of 2^15 blocks", at+7, 15)
	m.put("unknown bits of the cluster size", at+7, 0x70)
	mixed := m.node("mixed").header()
	m.u16("interlaced, with plain pclusters", mixed+4, m.im.u16(mixed+4)|0x10)
}

// fullIndexes damages indexes of 8 bytes.
func fullIndexes(m *maker) {
	m.group = "full indexes"
	n := m.node("text")
	count := (n.Size-1)/m.im.blk + 1
	heads, others := 0, 0
	for i := range count {
		at := n.header() + 16 + i*8
		what := func(s string) string { return fmt.Sprintf("lcluster %d: %s", i, s) }
		if m.im.u16(at)&3 == 2 {
			if others++; others > 1 {
				continue
			}
			m.u16(what("a HEAD instead"), at, 1)
			m.u16(what("distance back 0"), at+4, 0)
			m.u16(what("distance back 1 more"), at+4, m.im.u16(at+4)+1)
			m.u16(what("distance back 1000"), at+4, 1000)
			m.u16(what("pcluster of 0 blocks"), at+4, 0x800)
			m.u16(what("pcluster of 200 blocks"), at+4, 0x800+200)
			m.u16(what("distance forward 0"), at+6, 0)
			m.u16(what("distance forward 1 more"), at+6, m.im.u16(at+6)+1)
			m.u16(what("distance forward 1000"), at+6, 1000)
			continue
		}
		if heads++; heads > 2 {
			continue
		}
		m.u16(what("a NONHEAD instead"), at, m.im.u16(at)&^3|2)
		m.u16(what("PLAIN instead"), at, m.im.u16(at)&^3)
		m.u16(what("HEAD2 instead"), at, m.im.u16(at)&^3|3)
		m.u16(what("partial"), at, m.im.u16(at)^0x8000)
		m.u16(what("a hole"), at, m.im.u16(at)|0x4000)
		m.u16(what("starts behind its lcluster"), at+2, uint16(m.im.blk))
		m.u16(what("starts a byte later"), at+2, m.im.u16(at+2)+1)
		if m.im.u16(at+2) > 0 {
			m.u16(what("starts a byte earlier"), at+2, m.im.u16(at+2)-1)
		}
		m.u32(what("block beyond the image"), at+4, far)
		m.u32(what("block 2^32-1"), at+4, 0xffffffff)
		m.u32(what("next block"), at+4, m.im.u32(at+4)+1)
	}
	if heads == 0 || others == 0 {
		m.fail("%d heads and %d others in the full indexes", heads, others)
	}
}

// compactIndexes damages indexes in packs: of 4 bytes up to a 32-byte boundary,
// of 2 bytes, then of 4 bytes to the end.
func compactIndexes(m *maker) {
	m.group = "compact indexes"
	n := m.node("text")
	start := n.header() + 8
	count := (n.Size-1)/m.im.blk + 1
	initial := (32 - start%32) % 32 / 4
	twos := int64(0)
	if m.im.u16(n.header()+4)&1 != 0 && initial < count {
		twos = (count - initial) / 16 * 16
	}
	if twos == 0 {
		m.fail("no indexes of 2 bytes")
	}
	pack := func(name string, at, size int64, width uint, entries []int64) {
		addr := at + size - 4
		m.u32(name+": base block beyond the image", addr, far)
		m.u32(name+": base block one more", addr, m.im.u32(addr)+1)
		for _, i := range entries {
			what := func(s string) string { return fmt.Sprintf("%s: entry %d: %s", name, i, s) }
			bit := uint(i) * width
			old := le.Uint32(m.im.b[at+int64(bit/8):]) >> (bit % 8)
			kind, lo := old>>12&3, old&0xfff
			set := func(s string, kind, lo uint32) {
				word := le.Uint32(m.im.b[at+int64(bit/8):])
				word = word&^(0x3fff<<(bit%8)) | (kind<<12|lo)<<(bit%8)
				m.u32(what(s), at+int64(bit/8), word)
			}
			for other, s := range []string{"PLAIN", "HEAD", "NONHEAD", "HEAD2"} {
				if uint32(other) != kind {
					set(s+" instead", uint32(other), lo)
				}
			}
			for _, bits := range []uint32{1, 2, 0x400, 0x800} {
				set(fmt.Sprintf("value with 0x%x turned", bits), kind, lo^bits)
			}
		}
	}
	if initial > 0 {
		pack("first pack", start, 8, 16, []int64{1})
	}
	pack("pack of 16", start+initial*4, 32, 14, []int64{1, 15})
	if count == initial+twos {
		m.fail("no last pack")
	}
	last := start + initial*4 + twos*2
	m.u32("last pack: base block one more", last+4, m.im.u32(last+4)+1)
	m.u16("last pack: entry 0: PLAIN, or NONHEAD", last, m.im.u16(last)^0x2000)
}

// records damages the records of encoded extents.
func records(m *maker) {
	m.group = "extent records"
	n := m.node("text")
	at := n.header()
	advise := m.im.u16(at + 4)
	size := int64(4) << (advise >> 1 & 3)
	if n.Layout != erofs.CompressedFull || advise&1 == 0 || size != 16 {
		m.fail("no records of 16 bytes: layout %v, advise %#x", n.Layout, advise)
		return
	}
	if m.im.kind.name == "extents" {
		m.recordHeader(at, advise)
	}
	first := (at + 8 + size - 1) / size * size
	for i := range int64(2) {
		m.record(i, first+i*size, n.Size)
	}
}

// recordHeader damages the map header of encoded extents.
func (m *maker) recordHeader(at int64, advise uint16) {
	m.u32("header: no extents", at, 0)
	m.u32("header: one extent more", at, m.im.u32(at)+1)
	m.u32("header: one extent less", at, m.im.u32(at)-1)
	m.u32("header: 2^32-1 extents", at, 0xffffffff)
	m.u16("header: records of 8 bytes", at+4, advise&^6|2)
	m.u16("header: records of 32 bytes", at+4, advise|6)
	m.u16("header: fragment", at+4, advise^0x20)
}

// record damages one record of 16 bytes, of a file of some size.
func (m *maker) record(i, at, size int64) {
	what := func(s string) string { return fmt.Sprintf("record %d: %s", i, s) }
	plen, pa, la := m.im.u32(at), m.im.u32(at+4), m.im.u32(at+12)
	m.u32(what("hole"), at, plen&^0x1fffff)
	m.u32(what("pcluster of 2 MiB"), at, plen|0x1fffff)
	m.u32(what("pcluster a byte shorter"), at, plen-1)
	m.u32(what("partial"), at, plen^1<<27)
	m.u32(what("plain"), at, plen&0x0fffffff)
	m.u32(what("algorithm DEFLATE"), at, plen&0x0fffffff|3<<28)
	m.u32(what("algorithm 8"), at, plen&0x0fffffff|9<<28)
	m.u32(what("address beyond the image"), at+4, 0xfffff000)
	m.u32(what("address beyond 2^48"), at+8, 0xffffffff)
	m.u32(what("address of the next block"), at+4, pa+uint32(m.im.blk))
	m.u32(what("starts a byte later"), at+12, la+1)
	m.u32(what("starts beyond the file"), at+12, uint32(size)+5)
	if i > 0 {
		m.u32(what("starts a byte earlier"), at+12, la-1)
		m.u32(what("starts with the file"), at+12, 0)
	}
}

// chunks damages the indexes, or the block map, of a file in chunks.
func chunks(m *maker) {
	m.group = "chunk indexes"
	n := m.node("text")
	format := m.im.u16(n.at + 16)
	unit, addr := int64(4), int64(0)
	if format&0x20 != 0 {
		unit, addr = 8, 4
	} else {
		m.group = "block map"
	}
	at := (n.body+unit-1)/unit*unit + unit // of the second chunk
	m.u16("unknown format", n.at+16, format|0x80)
	m.u16("the other kind of entries", n.at+16, format^0x20)
	m.u16("chunks of twice the size", n.at+16, format+1)
	m.u16("chunks of 2^43 bytes", n.at+16, format|0x1f)
	m.u32("size of more chunks than there are", n.at+8, 1<<31)
	m.u32("block beyond the image", at+addr, far)
	m.u32("block 2^32-2", at+addr, 0xfffffffe)
	m.u32("hole", at+addr, 0xffffffff)
	m.u32("another block", at+addr, m.im.u32(at+addr)^1)
	if unit == 8 {
		m.u16("device 5", at+2, 5)
		m.u16("48 bits, block beyond 2^32", at, 7)
		m.put("format of 48 bits", n.at+16, byte(format)|0x40)
	}
}
