package fusefs

// nodeID is what the kernel calls an inode by. Its kind is in the upper bits:
//
//	1                       the root (FUSE_ROOT_ID)
//	2 … 2+255               the directories /00 … /ff of shared content
//	258, 259, 260           /private, /tree, /node
//	bit 63 clear, bit 62 clear, slot<<44 | ino, 1 <= slot < 2^18
//	                        a node of an image's tree, a function of its inode
//	                        number (erofs.Image.Ino), and so of its nid
//	bit 63 clear, bit 62 set  a shared inode of the domain, by its index
//	bit 63 set              a merged node of trees, by its number
//
// 0 < ino < 2^44, an image of up to 512 TiB of metadata, with a metabox 256 TiB;
// 0 <= index < 2^44.
type nodeID uint64

type nodeKind uint8

const (
	kindInternal nodeKind = iota // a directory of ours
	kindContent                  // a shared inode
	kindTree                     // a node of one image's tree
	kindMerged                   // a file of several trees, alike in all metadata
)

const (
	rootID       nodeID = 1
	firstShardID nodeID = 2
	privateID    nodeID = 258
	treeID       nodeID = 259
	byNodeID     nodeID = 260

	inoBits           = 44
	maxSlot           = 1<<18 - 1
	contentBit nodeID = 1 << 62
	mergedBit  nodeID = 1 << 63
)

// privateDir is the name of the directory privateID: see share.PrivatePath.
const privateDir = "private"

func (id nodeID) kind() nodeKind {
	switch {
	case id&mergedBit != 0:
		return kindMerged
	case id&contentBit != 0:
		return kindContent
	case id>>inoBits != 0:
		return kindTree
	}
	return kindInternal
}

func contentNode(index uint64) nodeID { return contentBit | nodeID(index) }

func treeNode(slot uint32, ino uint64) nodeID { return nodeID(slot)<<inoBits | nodeID(ino) }

// index is the number of a shared inode or of a merged node.
func (id nodeID) index() uint64 { return uint64(id &^ (contentBit | mergedBit)) }

// slot and ino take a tree's node apart.
func (id nodeID) slot() uint32 { return uint32(id >> inoBits) }
func (id nodeID) ino() uint64  { return uint64(id & (1<<inoBits - 1)) }

func (id nodeID) isInternalDir() bool { return id >= rootID && id <= byNodeID }
