package build

import (
	"strings"

	"github.com/erofs-csi/erofs-csi/erofs/internal/encode"
)

const (
	modeFmt     = encode.ModeFmt
	modeDir     = encode.ModeDir
	modeRegular = encode.ModeRegular
	modeSymlink = encode.ModeSymlink
	modeChar    = encode.ModeChar

	maxPath  = 4095 // bytes of a path, as Linux takes it
	maxLinks = 40   // symbolic links on the way to an entry, as Linux follows
	// stepsPerEntry bounds the work on paths: a step is a component looked up or an
	// entry looked at for deletion. Ordinary images need a tenth of it.
	stepsPerEntry = 256
	freeSteps     = 16 << 20
)

// inode is a file of the tree. The names of a hard link have one.
type inode struct {
	mode      uint32
	uid, gid  uint32
	rdev      uint32
	mtimeSec  int64
	mtimeNsec uint32
	attrs     uint32   // a set of attributeSets
	content   *content // of a regular file that is not empty
	target    string   // of a symbolic link
	dir       *directory

	// Of Finish.
	nlink uint32
	index uint32 // 1 + place in the order of the image; 0: not met
}

// directory is what a directory has besides.
type directory struct {
	names  map[string]entry
	parent *inode // of the root, itself
	path   int    // length of its path in bytes
}

// entry is a name. layer is the last layer that had an entry for it.
type entry struct {
	in    *inode
	layer int32
}

func newDir(in *inode) *inode {
	in.dir = &directory{names: map[string]entry{}}
	return in
}

// tree is the file system as the layers so far make it.
type tree struct {
	root  *inode
	layer int32
	steps int64 // of looking up and deleting
	added int64 // entries
}

func (t *tree) init(root *inode) {
	t.root = root
	root.dir.parent = root
}

// step counts work. The error wraps ErrLimit.
func (t *tree) step(n int) error {
	t.steps += int64(n)
	if t.steps > freeSteps+t.added*stepsPerEntry {
		return beyond("its links and deletions take more work than an image of its size may")
	}
	return nil
}

// resolve finds the directory that path means, with symbolic links followed within
// the tree. missing makes a directory that is not there; if it is nil, or returns
// nil, resolve returns nil.
func (t *tree) resolve(path string, missing func(parent *inode, name string) (*inode, error)) (*inode, error) {
	links := 0
	return t.follow(t.root, path, &links, missing)
}

func (t *tree) follow(dir *inode, path string, links *int, missing func(*inode, string) (*inode, error)) (*inode, error) {
	for name := range strings.SplitSeq(path, "/") {
		if err := t.step(1); err != nil {
			return nil, err
		}
		switch name {
		case "", ".":
			continue
		case "..":
			dir = dir.dir.parent
			continue
		}
		e, ok := dir.dir.names[name]
		if !ok {
			if missing == nil {
				return nil, nil
			}
			made, err := missing(dir, name)
			if made == nil || err != nil {
				return nil, err
			}
			dir = made
			continue
		}
		switch in := e.in; {
		case in.dir != nil:
			dir = in
		case in.mode&modeFmt == modeSymlink:
			if *links++; *links > maxLinks {
				return nil, malformed("there are more than %d symbolic links on the way to it", maxLinks)
			}
			from := dir
			if strings.HasPrefix(in.target, "/") {
				from = t.root
			}
			next, err := t.follow(from, in.target, links, missing)
			if next == nil || err != nil {
				return nil, err
			}
			dir = next
		default:
			if missing == nil {
				return nil, nil
			}
			return nil, malformed("%s, which it is below, is not a directory", shown(name))
		}
	}
	return dir, nil
}

// put gives dir the entry name and returns its inode: in, or the directory that was
// there with the metadata of in.
func (t *tree) put(dir *inode, name string, in *inode) (*inode, error) {
	if in.dir != nil {
		if old, ok := dir.dir.names[name]; ok && old.in.dir != nil {
			in.dir = old.in.dir
			*old.in = *in
			in = old.in
		} else {
			in.dir.parent = dir
			in.dir.path = dir.dir.path + 1 + len(name)
			if in.dir.path > maxPath {
				return nil, beyond("its path is longer than %d bytes", maxPath)
			}
		}
	}
	dir.dir.names[name] = entry{in: in, layer: t.layer}
	return in, nil
}

// whiteout deletes what lower layers have as name in dir.
func (t *tree) whiteout(dir *inode, name string, implied func() *inode) error {
	e, ok := dir.dir.names[name]
	if !ok {
		return nil
	}
	if err := t.step(1); err != nil {
		return err
	}
	if e.in.dir != nil {
		if err := t.opaque(e.in, implied); err != nil {
			return err
		}
	}
	switch {
	case e.layer == t.layer:
	case e.in.dir != nil && len(e.in.dir.names) > 0:
		// This layer has entries below it, and none for it.
		fresh := implied()
		fresh.dir = nil
		e.in.mode, e.in.uid, e.in.gid, e.in.attrs = fresh.mode, fresh.uid, fresh.gid, 0
		e.in.mtimeSec, e.in.mtimeNsec = fresh.mtimeSec, fresh.mtimeNsec
	default:
		delete(dir.dir.names, name)
	}
	return nil
}

// opaque deletes all that lower layers have in dir.
func (t *tree) opaque(dir *inode, implied func() *inode) error {
	for name := range dir.dir.names {
		if err := t.whiteout(dir, name, implied); err != nil {
			return err
		}
	}
	return nil
}
