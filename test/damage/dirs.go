package main

import "slices"

// directories damages entries of a directory of several blocks, and of one that
// is a tail.
func directories(m *maker) {
	m.group = "directory"
	m.entries("block 0", m.im.entries(m.node("many"), 0))
	tail := m.im.entries(m.node("dir"), 0)
	m.u16("tail: names start at 13", tail[0].at+8, 13)
	m.u16("tail: name offset beyond the block", tail[5].at+8, 0xfff0)
	m.u16("tail: last name beyond the end", tail[len(tail)-1].at+8, 0xfff0)
	m.u64("tail: nid beyond the image", tail[5].at, far)
	m.put("tail: NUL in a name", tail[5].name+1, 0)
	m.put("tail: last name is empty", tail[len(tail)-1].name, 0)
	second := m.im.entries(m.node("many"), 1)
	first := m.im.entries(m.node("many"), 0)
	if len(second) == 0 || len(first) == 0 {
		m.fail("no second block")
		return
	}
	// The first name of a block before the last of the one before.
	m.put("block 1: names before those of block 0", second[0].name, '!')
	m.xor("block 1: the last name", second[len(second)-1].name, 0x80)
	// Two entries of one length.
	a, b := first[20], first[21]
	if len(a.text) != len(b.text) || b.name != a.name+int64(len(a.text)) {
		m.fail("names of different lengths: %q and %q", a.text, b.text)
	}
	m.put("block 0: names in wrong order", a.name, []byte(b.text+a.text)...)
	m.put("block 0: the same name twice", a.name, []byte(b.text)...)
}

func (m *maker) entries(where string, list []entry) {
	names := make([]string, 0, len(list))
	for _, e := range list {
		names = append(names, e.text)
	}
	dot, dotdot := slices.Index(names, "."), slices.Index(names, "..")
	if len(list) < 10 || dot < 0 || dotdot < 0 {
		m.fail("%s has not all entries: %q", where, names)
		return
	}
	what := func(s string) string { return where + ": " + s }
	text := m.node("text").NID
	mid, last, head := list[len(list)/2], list[len(list)-1], list[0]

	m.u16(what("no entries"), head.at+8, 0)
	m.u16(what("names start at 7"), head.at+8, 7)
	m.u16(what("names start at 13"), head.at+8, 13)
	m.u16(what("an entry less"), head.at+8, m.im.u16(head.at+8)-12)
	m.u16(what("an entry more"), head.at+8, m.im.u16(head.at+8)+12)
	m.u16(what("names start at 65535"), head.at+8, 65535)
	m.u16(what("name offset 0"), mid.at+8, 0)
	m.u16(what("name offset less by one"), mid.at+8, m.im.u16(mid.at+8)-1)
	m.u16(what("name offset more by one"), mid.at+8, m.im.u16(mid.at+8)+1)
	m.u16(what("name offset of the one before"), mid.at+8, m.im.u16(list[len(list)/2-1].at+8))
	m.u16(what("name offset beyond the block"), mid.at+8, 0xfff0)
	m.u16(what("last name beyond the block"), last.at+8, 0xfff0)
	m.u64(what("nid beyond the image"), mid.at, far)
	m.u64(what("nid of 2^62"), mid.at, 1<<62)
	m.u64(what("nid of another file"), mid.at, text)
	m.u64(what("nid of the root"), mid.at, m.node(".").NID)
	m.u64(what("nid of its directory"), mid.at, m.im.u64(list[dot].at))
	m.u64(what("nid of no inode"), mid.at, m.im.u64(mid.at)+1)
	m.xor(what("nid in the other place"), mid.at+7, 0x80)
	m.put(what("type 0"), mid.at+10, 0)
	m.put(what("type of a directory"), mid.at+10, 2)
	m.put(what("type of a socket"), mid.at+10, 6)
	m.put(what("type 8"), mid.at+10, 8)
	m.put(what("type 255"), mid.at+10, 255)
	m.put(what("slash in a name"), mid.name+1, '/')
	m.put(what("NUL in a name"), mid.name+1, 0)
	m.put(what("name starts with NUL"), mid.name, 0)
	m.put(what("last name is empty"), last.name, 0)
	m.put(what("NUL in the last name"), last.name+int64(len(last.text))-1, 0)
	m.u64(what(`"." is another directory`), list[dot].at, m.node("dir/below").NID)
	m.u64(what(`".." is another directory`), list[dotdot].at, m.node("dir/below").NID)
	m.u64(what(`".." is a file`), list[dotdot].at, text)
	m.put(what(`"." of type file`), list[dot].at+10, 1)
	m.put(what(`"." is missing`), list[dot].name, '-')
	m.put(what(`".." is missing`), list[dotdot].name+1, '/'+1+0x30)
	m.put(what(`two of ".."`), mid.name, '.', '.')
}

// packedDirectories damages directories that are compressed in the packed inode.
func packedDirectories(m *maker) {
	m.group = "compressed directory"
	at := m.node("many").header()
	m.u32("beyond the end of the packed inode", at, 0x7fffffff)
	m.u32("elsewhere in the packed inode", at, m.im.u32(at)+1)
	m.put("of no algorithm", at+7, 0)
	m.cluster("packed inode", m.node("(packed)"))
}
