package main

// superblocks damages the superblock.
func superblocks(m *maker) {
	m.group = "superblock"
	m.xor("magic", sbAt, 1)
	m.put("block size 2^8", sbBlkBits, 8)
	m.put("block size 2^11", sbBlkBits, 11)
	m.put("block size 2^13", sbBlkBits, 13)
	m.put("block size 2^40", sbBlkBits, 40)
	m.put("too many extension slots", sbExtSlots, 255)
	m.u16("root beyond the image", sbRoot, 0xffff)
	m.u16("root is a file", sbRoot, uint16(m.node("text").NID))
	m.u16("root is no inode", sbRoot, 0)
	m.u32("fewer blocks than there are", sbBlocks, 1)
	m.u32("more blocks than there are", sbBlocks, 0xffffffff)
	m.u32("metadata beyond the image", sbMeta, far)
	m.u32("metadata a block later", sbMeta, m.im.u32(sbMeta)+1)
	m.u32("shared attributes beyond the image", sbXattr, far)
	m.u32("shared attributes a block later", sbXattr, m.im.u32(sbXattr)+1)
	m.u32("unknown incompatible feature", sbIncompat, m.im.u32(sbIncompat)|0x200)
	m.u32("all incompatible features", sbIncompat, 0xffffffff)
	m.u32("metabox feature without metabox", sbIncompat, m.im.u32(sbIncompat)|0x100)
	m.u32("compression feature without records", sbIncompat, m.im.u32(sbIncompat)|0x2)
	m.u32("shared attributes in a metabox that is not there", sbCompat, m.im.u32(sbCompat)|0x8)
	m.u32("digests without a prefix for them", sbCompat, m.im.u32(sbCompat)|0x20)
	m.put("directory blocks of another size", sbDirBlkBits, 1)
}

// checksums damages what the superblock's checksum covers.
func checksums(m *maker) {
	m.group = "superblock, with its checksum"
	m.xor("checksum", sbChecksum, 1)
	m.xor("UUID", sbUUID, 0xff)
	m.put("inode count", sbAt+0x10, 7)
	m.put("end of its block", m.im.blk-1, m.im.b[m.im.blk-1]^0xff)
	m.u32("block size", sbBlkBits, 10)
}

// prefixes damages the table of long attribute name prefixes.
func prefixes(m *maker) {
	m.group = "long attribute prefixes"
	at := int64(m.im.u32(sbPrefixStart)) * 4
	m.u32("table beyond the image", sbPrefixStart, far)
	m.u32("table elsewhere", sbPrefixStart, m.im.u32(sbPrefixStart)+1)
	m.put("255 of them", sbPrefixes, 255)
	m.put("none of them", sbPrefixes, 0)
	m.u16("empty record", at, 0)
	m.u16("record of 257 bytes", at, 257)
	m.u16("record of 65535 bytes", at, 65535)
	m.u16("record one byte short", at, m.im.u16(at)-1)
	m.put("base prefix 0", at+2, 0)
	m.put("base prefix 9", at+2, 9)
	m.put("NUL in a prefix", at+5, 0)
}

// configs damages the records of compression algorithms.
func configs(m *maker) {
	m.group = "compression configuration"
	at := int64(sbAt + sbSize)
	m.u16("record of 2 bytes", at, 2)
	switch m.im.kind.name {
	case "lz4-big":
		m.u16("unknown algorithm", sbAlgorithms, m.im.u16(sbAlgorithms)|0x10)
		m.u16("algorithm not announced", sbAlgorithms, 0)
		m.u16("one more algorithm", sbAlgorithms, 3)
		m.u16("empty record", at, 0)
		m.u16("record of 65535 bytes", at, 65535)
		m.u16("distance 0", at+2, 0)
		m.u16("pclusters of 65535 blocks", at+4, 65535)
		m.u16("pclusters of 1 block", at+4, 1)
	case "lzma":
		m.u32("dictionary of 4 GiB", at+2, 0xffffffff)
		m.u32("dictionary of 0", at+2, 0)
		m.u16("format 1", at+6, 1)
	case "deflate":
		m.put("window of 2^200", at+2, 200)
	case "zstd":
		m.put("format 1", at+2, 1)
		m.put("window of 2^200", at+3, 190)
	}
}

// devices damages the device table, and a chunk index that names a device.
func devices(m *maker) {
	m.group = "device table"
	slot := int64(m.im.u16(sbDeviceSlot)) * 128
	m.u16("table beyond the image", sbDeviceSlot, 0xffff)
	m.u16("table elsewhere", sbDeviceSlot, 1)
	m.u16("no devices", sbDevices, 0)
	m.u16("2 devices", sbDevices, 2)
	m.u16("65535 devices", sbDevices, 65535)
	m.u32("device of more blocks than it has", slot+0x40, far)
	m.u32("device of no blocks", slot+0x40, 0)
	m.u32("device over the image's blocks", slot+0x44, 1)
	index := (m.node("text").body + 7) &^ 7
	m.u16("chunk on device 0", index+2, 0)
	m.u16("chunk on device 2", index+2, 2)
	m.u16("chunk on device 65535", index+2, 65535)
	m.u32("chunk beyond the device", index+4, uint32(m.im.open.Superblock().ExtraDevices[0].Blocks))
}

// digests damages the image's own digests, and what says where they are.
func digests(m *maker) {
	m.group = "digests"
	m.put("prefix 7", sbDigest, 7)
	m.put("prefix 127", sbDigest, 127)
	m.put("prefix 255", sbDigest, 255)
	m.u32("prefix table beyond the image", sbPrefixStart, far)
	prefix := int64(m.im.u32(sbPrefixStart)) * 4
	m.put("base prefix 9", prefix+2, 9)
	for _, path := range []string{"text", "one"} {
		at := m.digest(m.node(path))
		m.put(path+": index of another prefix", at+1, 0x81)
		m.put(path+": another algorithm", at+4, 's', 'h', 'a', '5')
		m.xor(path+": first byte", at+4+7, 1)
		m.xor(path+": last byte", at+4+7+31, 0x80)
		m.u16(path+": short", at+2, 38)
		m.u16(path+": long", at+2, 400)
	}
}

// digest finds the entry of an inode's digest among its inline attributes.
func (m *maker) digest(n *node) int64 {
	for _, e := range m.im.inlineXattrs(n) {
		if m.im.b[e+1] == 0x80 && m.im.b[e] == 0 {
			return e
		}
	}
	m.fail("an inode without a digest")
	return 0
}

// truncations cuts the image off.
func truncations(m *maker) {
	m.group = "truncation"
	size := int64(len(m.im.b))
	m.cut("to nothing but a superblock", sbAt+sbSize)
	m.cut("within the superblock", sbAt+64)
	m.cut("to one byte", 1)
	m.cut("to one block", m.im.blk)
	m.cut("to a quarter", size/4)
	m.cut("to a half", size/2)
	m.cut("by two blocks", size-2*m.im.blk)
	m.cut("by a block", size-m.im.blk)
	m.cut("by a byte", size-1)
}
