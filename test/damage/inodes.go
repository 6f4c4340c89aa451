package main

// inodes damages extended inodes.
func inodes(m *maker) {
	m.group = "inode"
	file, dir, link := m.node("tail"), m.node("dir"), m.node("dir/long link")
	sizeOf := func(n *node, what string, size int64) { m.u32(what, n.at+8, uint32(size)) }
	m.u16("unknown format bit", file.at, m.im.u16(file.at)|0x20)
	m.xor("compact for extended, or extended for compact", file.at, 1)
	for layout, name := range []string{"flat", "compressed with full indexes", "", "compressed with compact indexes", "chunks", "5", "6", "7"} {
		if name != "" {
			m.put("layout "+name, file.at, m.im.b[file.at]&^0xe|byte(layout)<<1)
		}
	}
	m.u16("directory: layout compressed", dir.at, m.im.u16(dir.at)&^0xe|3<<1)
	m.u16("mode without a type", file.at+4, m.im.u16(file.at+4)&0o7777)
	m.u16("mode of type 15", file.at+4, m.im.u16(file.at+4)|0o170000)
	m.u16("file is a directory", file.at+4, 0o040755)
	m.u16("file is a symbolic link", file.at+4, 0o120777)
	m.u16("file is a socket", file.at+4, 0o140777)
	m.u16("directory is a file", dir.at+4, 0o100644)
	m.u16("symbolic link is a file", link.at+4, 0o100644)
	m.u16("FIFO is a directory", m.node("fifo").at+4, 0o040755)
	m.u16("permissions", file.at+4, 0o100777)
	sizeOf(file, "size beyond the image", 1<<31)
	sizeOf(file, "size a block more", file.Size+m.im.blk)
	sizeOf(file, "size a byte less", file.Size-1)
	sizeOf(file, "size 0", 0)
	sizeOf(m.node("empty"), "size of an empty file", 100)
	sizeOf(dir, "directory of 2 GiB", 1<<31)
	sizeOf(dir, "directory of 0", 0)
	sizeOf(dir, "directory of 5", 5)
	sizeOf(dir, "directory a byte less", dir.Size-1)
	sizeOf(dir, "directory a byte more", dir.Size+1)
	sizeOf(link, "symbolic link of 0", 0)
	sizeOf(link, "symbolic link of 4096", 4096)
	sizeOf(link, "symbolic link a byte longer", link.Size+1)
	m.u16("attributes that are not there", m.node("zeros").at+2, 20)
	m.u16("attributes of a header alone", m.node("zeros").at+2, 1)
	m.u16("no attributes", file.at+2, 0)
	m.u16("65535 words of attributes", file.at+2, 65535)
	m.u16("attributes a word more", file.at+2, m.im.u16(file.at+2)+1)
	m.u16("attributes a word less", file.at+2, m.im.u16(file.at+2)-1)
	m.u32("start block beyond the image", file.at+16, far)
	m.u32("start block another", file.at+16, m.im.u32(file.at+16)+1)
	m.u32("directory: start block beyond the image", m.node("many").at+16, far)
	m.u32("directory: start block another", m.node("many").at+16, m.im.u32(m.node("many").at+16)-1)
	m.u64("size 2^62", file.at+8, 1<<62)
	m.u64("directory of 2^62", dir.at+8, 1<<62)
	m.u64("symbolic link of 2^62", link.at+8, 1<<62)
	m.u16("start block beyond 2^32", file.at+6, 7)
	m.u32("a billion nanoseconds", file.at+0x28, 1_000_000_000)
	m.u32("links 0", m.node("small").at+0x2c, 0)
	m.u32("links 7", m.node("small").at+0x2c, 7)
	m.u32("directory of one link", dir.at+0x2c, 1)
}

// compactInodes damages what is otherwise in compact inodes.
func compactInodes(m *maker) {
	m.group = "inode"
	file, hard := m.node("random"), m.node("small")
	m.xor("extended for compact", file.at, 1)
	m.u32("size beyond the image", file.at+8, 0xffffffff)
	m.u32("start block beyond the image", file.at+16, far)
	m.u32("hole instead of data", file.at+16, 0xffffffff)
	m.u16("start block beyond 2^32", file.at+6, 7)
	m.u16("links 0", hard.at+6, 0)
	m.xor("one link instead of two", hard.at, 0x10)
	m.xor("directory without an entry for itself", m.node("dir").at, 0x10)
}

// inlineTails damages what says where the tail of a file is.
func inlineTails(m *maker) {
	m.group = "inline tail"
	file, small := m.node("tail"), m.node("small")
	m.u32("as large as a block", small.at+8, uint32(m.im.blk-1))
	m.u32("larger by a block, a hole before it", small.at+8, uint32(small.Size+m.im.blk))
	m.u32("larger up to the block's end and beyond", file.at+8, uint32(2*m.im.blk-1))
	m.u16("behind attributes that reach into the next block", small.at+2, 1000)
	m.xor("a byte of data", small.body+5, 0xff)
	m.xor("a byte of a symbolic link", m.node("dir/long link").body+5, 1)
	m.put("a NUL in a symbolic link", m.node("dir/long link").body+5, 0)
}

// plainData damages data that are not compressed, but have a digest.
func plainData(m *maker) {
	m.group = "plain data with a digest"
	for _, path := range []string{"random", "text"} {
		e := m.extents(m.node(path))[0]
		m.xor(path+": first byte", e.pa, 1)
		m.xor(path+": a byte in the middle", e.pa+e.plen/2, 0x80)
	}
	m.xor("a byte of a tail", m.node("small").body, 1)
	m.u32("start block another", m.node("random").at+16, m.im.u32(m.node("random").at+16)+1)
	m.u32("hole instead of data", m.node("zeros").at+16, m.im.u32(m.node("random").at+16))
	m.u32("size a byte less", m.node("random").at+8, uint32(m.node("random").Size-1))
}
