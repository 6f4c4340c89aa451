package fusefs

import (
	"strconv"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/erofs-csi/erofs-csi/erofs/share"
)

const (
	blockSize = 4096 // st_blksize, and the unit of statfs
	nameMax   = 255  // EROFS_NAME_LEN
	statUnit  = 512  // the unit of st_blocks
)

const hexDigits = "0123456789abcdef"

// lookupInternal finds a name in one of our own directories, or answers 0.
// A shared inode that it finds is counted as referenced by the request.
func (f *FS) lookupInternal(dir nodeID, name string, unique uint64) (nodeID, fuse.Attr) {
	switch {
	case dir == rootID:
		if id := topDir(name); id != 0 {
			return id, dirAttr(id)
		}
	case dir >= firstShardID && dir < privateID:
		n := byte(dir - firstShardID)
		return f.contentByPath("/"+string(hexDigits[n>>4])+string(hexDigits[n&15])+"/"+name, unique)
	case dir == privateID:
		return f.contentByPath("/"+privateDir+"/"+name, unique)
	case dir == treeID:
		return f.trees.byName(name)
	case dir == byNodeID:
		return f.nodeByNumber(name, unique)
	}
	return 0, fuse.Attr{}
}

// topDir finds a directory of the root.
func topDir(name string) nodeID {
	switch name {
	case privateDir:
		return privateID
	case "tree":
		return treeID
	case "node":
		return byNodeID
	}
	n, err := strconv.ParseUint(name, 16, 8)
	if err != nil || len(name) != 2 || name[0] != hexDigits[n>>4] || name[1] != hexDigits[n&15] {
		return 0
	}
	return firstShardID + nodeID(n)
}

func (f *FS) contentByPath(path string, unique uint64) (nodeID, fuse.Attr) {
	in, ok := f.domain.Find(path, unique)
	if !ok {
		return 0, fuse.Attr{}
	}
	return contentNode(in.Index()), contentAttr(in)
}

// nodeByNumber finds a live file under another name: its node id in hex. The
// kernel knows one inode a node id, so that the file's page cache can be looked
// at through it.
func (f *FS) nodeByNumber(name string, unique uint64) (nodeID, fuse.Attr) {
	n, err := strconv.ParseUint(name, 16, 64)
	id := nodeID(n)
	if err != nil || id.kind() == kindInternal {
		return 0, fuse.Attr{}
	}
	attr, errno := f.attr(id)
	if errno != 0 || attr.Mode&modeType != modeRegular {
		return 0, fuse.Attr{}
	}
	switch id.kind() {
	case kindContent:
		in, ok := f.domain.Inode(id.index())
		if !ok || !f.domain.Ref(in, unique) {
			return 0, fuse.Attr{}
		}
	case kindMerged:
		if !f.merged.ref(id, unique) {
			return 0, fuse.Attr{}
		}
	case kindTree, kindInternal:
	}
	return id, attr
}

// contentAttr is what a file of the content mount shows. Only overlayfs sees it,
// which takes size and blocks from it and all else from the front's metadata.
func contentAttr(in share.Inode) fuse.Attr {
	return fuse.Attr{
		Ino:     uint64(contentNode(in.Index())),
		Size:    uint64(in.Size()),
		Blocks:  blocks(in.Size()),
		Mode:    modeRegular | 0o444,
		Nlink:   1,
		Blksize: blockSize,
	}
}

func dirAttr(id nodeID) fuse.Attr {
	return fuse.Attr{Ino: uint64(id), Mode: modeDir | 0o555, Nlink: 2, Blksize: blockSize}
}

// blocks is st_blocks of a file without holes.
func blocks(size int64) uint64 { return (uint64(size) + statUnit - 1) / statUnit }
