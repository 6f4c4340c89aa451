package share

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"strings"
)

// Tag is unique to an image's bytes within a domain.
type Tag [16]byte

// NewTag derives a tag from an image's identity, for example its blob's digest.
func NewTag(imageID string) Tag {
	sum := sha256.Sum256([]byte(imageID))
	return Tag(sum[:16])
}

// String returns 32 hex digits.
func (t Tag) String() string { return hex.EncodeToString(t[:]) }

// identity is what makes two files one inode: content, or, of a file that is shared
// with no other, its image's tag and its nid.
type identity struct {
	private bool
	key     Key // of a private file: its tag and its nid in Sum, and no size
}

func privateIdentity(t Tag, nid uint64) (id identity) {
	id.private = true
	copy(id.key.Sum[:], t[:])
	binary.LittleEndian.PutUint64(id.key.Sum[len(t):], nid)
	return id
}

// file takes the identity of a private file apart.
func (id *identity) file() (Tag, uint64) {
	return Tag(id.key.Sum[:len(Tag{})]), binary.LittleEndian.Uint64(id.key.Sum[len(Tag{}):])
}

// path is the inverse of parsePath.
func (id *identity) path() string {
	if id.private {
		return PrivatePath(id.file())
	}
	return ContentPath(id.key)
}

// privateDir holds the files that share with no other.
const privateDir = "private"

// ContentPath is the name of content in a domain's content mount:
// /<2 hex digits>/<62 hex digits>-<size in hex>, the digits being the SHA-256.
// It depends on the content alone, so it may be written into a front's metadata.
func ContentPath(k Key) string {
	h := hex.EncodeToString(k.Sum[:])
	return "/" + h[:2] + "/" + h[2:] + "-" + strconv.FormatInt(k.Size, 16)
}

// PrivatePath is the name in the content mount of a file that shares with no
// other: /private/<tag>-<nid in hex>.
func PrivatePath(t Tag, nid uint64) string {
	return "/" + privateDir + "/" + t.String() + "-" + strconv.FormatUint(nid, 16)
}

// parsePath is the inverse of ContentPath and PrivatePath. It takes exactly what
// they return.
func parsePath(path string) (id identity, ok bool) {
	dir, name, found := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	head, tail, dash := strings.Cut(name, "-")
	if !found || !dash {
		return id, false
	}
	if dir == privateDir {
		b, err := hex.DecodeString(head)
		nid, err2 := strconv.ParseUint(tail, 16, 64)
		if err != nil || err2 != nil || len(b) != len(Tag{}) {
			return id, false
		}
		id = privateIdentity(Tag(b), nid)
		return id, id.path() == path
	}
	b, err := hex.DecodeString(dir + head)
	size, err2 := strconv.ParseInt(tail, 16, 64)
	if err != nil || err2 != nil || len(b) != sha256.Size {
		return id, false
	}
	id.key = Key{Sum: [32]byte(b), Size: size}
	return id, id.path() == path
}
