package build

import (
	"io"
	"path"
	"strings"
	"time"

	"github.com/erofs-csi/erofs-csi/erofs/internal/encode"
)

// Entry is a file for the image.
type Entry struct {
	// Path is relative to the root, cleaned as if the root were all there is:
	// leading slashes and ".." that would lead out of it mean the root.
	Path string
	// Mode has the type and permission bits of st_mode.
	Mode     uint32
	UID, GID uint32
	Mtime    time.Time
	// Major and Minor are those of a device.
	Major, Minor uint32
	// Target is of a symbolic link.
	Target string
	// Xattrs by their full names. Those in namespaces that EROFS has not, and those
	// of overlayfs itself (trusted.overlay.*), are left out.
	Xattrs map[string]string
	// Size bytes of Content are the data of a regular file.
	Size    int64
	Content io.Reader
}

// Add adds an entry to the layer in hand. Directories that are missing on its way
// get mode 0755, owner 0:0 and the build time. What was at the path is replaced; a
// directory over a directory only gets the metadata.
func (b *Builder) Add(e *Entry) error {
	dir, name, err := b.parent(e.Path)
	if err == nil {
		err = b.add(dir, name, e)
	}
	if err != nil {
		return b.failed(e.Path, err)
	}
	return nil
}

// failed names the entry, but for errors that are not its own.
func (b *Builder) failed(entry string, err error) error {
	if b.ctx.Err() != nil {
		return b.ctx.Err()
	}
	return b.entryError(entry, err)
}

// Link adds another name for the file at target, which is not followed if it is a
// symbolic link.
func (b *Builder) Link(name, target string) error {
	in, err := b.linked(target)
	if err == nil {
		var dir *inode
		var base string
		dir, base, err = b.parent(name)
		if err == nil && base == "" {
			err = malformed("the root can't be a link")
		}
		if err == nil {
			if err = b.count(len(base)); err == nil {
				_, err = b.tree.put(dir, base, in)
			}
		}
	}
	if err != nil {
		return b.failed(name, err)
	}
	return nil
}

// linked finds what a hard link means.
func (b *Builder) linked(target string) (*inode, error) {
	clean := path.Clean("/" + target)
	dir, err := b.tree.resolve(path.Dir(clean), nil)
	if err != nil {
		return nil, err
	}
	if dir != nil {
		if e, ok := dir.dir.names[path.Base(clean)]; ok {
			if e.in.dir != nil {
				return nil, malformed("it is a hard link to the directory %s", shown(target))
			}
			return e.in, nil
		}
	}
	return nil, malformed("it is a hard link to %s, which is not there", shown(target))
}

// Whiteout deletes from the layers below what is at name. Nothing there is no error.
func (b *Builder) Whiteout(name string) error {
	clean := path.Clean("/" + name)
	dir, err := b.tree.resolve(path.Dir(clean), nil)
	if err == nil && dir != nil && clean != "/" {
		err = b.tree.whiteout(dir, path.Base(clean), b.impliedDir)
	}
	if err != nil {
		return b.failed(name, err)
	}
	return nil
}

// Opaque deletes from the layers below all that is in the directory name.
func (b *Builder) Opaque(name string) error {
	dir, err := b.tree.resolve(path.Clean("/"+name), nil)
	if err == nil && dir != nil {
		err = b.tree.opaque(dir, b.impliedDir)
	}
	if err != nil {
		return b.failed(name, err)
	}
	return nil
}

// parent finds the directory of an entry, making it if needed, and the entry's name
// in it, "" for the root.
func (b *Builder) parent(name string) (*inode, string, error) {
	if strings.Contains(name, "\x00") {
		return nil, "", malformed("its name has a zero byte")
	}
	clean := path.Clean("/" + name)
	if clean == "/" {
		return b.tree.root, "", nil
	}
	dir, err := b.tree.resolve(path.Dir(clean), b.makeImplied)
	return dir, path.Base(clean), err
}

func (b *Builder) makeImplied(parent *inode, name string) (*inode, error) {
	if err := b.count(len(name)); err != nil {
		return nil, err
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	return b.tree.put(parent, name, b.impliedDir())
}

func checkName(name string) error {
	if len(name) > encode.MaxName {
		return malformed("a name of %d bytes; at most %d are possible", len(name), encode.MaxName)
	}
	return nil
}

// count counts an entry with n bytes of name, target or attributes.
func (b *Builder) count(n int) error {
	if b.tree.added++; b.tree.added > int64(b.limit.Entries) {
		return beyond("more than %d entries", b.limit.Entries)
	}
	return b.countMetadata(n)
}

func (b *Builder) countMetadata(n int) error {
	if b.metadata += int64(n); b.metadata > b.limit.Metadata {
		return beyond("names, targets and attributes of more than %d bytes", b.limit.Metadata)
	}
	return nil
}

// add adds an entry as name in dir.
func (b *Builder) add(dir *inode, name string, e *Entry) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := b.count(len(name) + len(e.Target)); err != nil {
		return err
	}
	in, err := b.inode(e)
	if err != nil {
		return err
	}
	opaque := false
	if in.attrs, opaque, err = b.attributes(e.Xattrs); err != nil {
		return err
	}
	if name == "" {
		return b.setRoot(in, opaque)
	}
	if in, err = b.tree.put(dir, name, in); err != nil {
		return err
	}
	if opaque && in.dir != nil {
		return b.tree.opaque(in, b.impliedDir)
	}
	return nil
}

func (b *Builder) setRoot(in *inode, opaque bool) error {
	if in.dir == nil {
		return malformed("the root is not a directory")
	}
	root := b.tree.root
	in.dir = root.dir
	*root = *in
	if opaque {
		return b.tree.opaque(root, b.impliedDir)
	}
	return nil
}

// inode makes the inode of an entry, without attributes, and stores its data.
func (b *Builder) inode(e *Entry) (*inode, error) {
	in := &inode{mode: e.Mode, uid: e.UID, gid: e.GID}
	if e.Mode >= 1<<16 {
		return nil, malformed("mode %#o", e.Mode)
	}
	mtime := e.Mtime
	if b.opts.ClampMtime && mtime.After(b.opts.Time) {
		mtime = b.opts.Time
	}
	if mtime.IsZero() {
		mtime = time.Unix(0, 0)
	}
	in.mtimeSec, in.mtimeNsec = mtime.Unix(), uint32(mtime.Nanosecond())
	switch e.Mode & modeFmt {
	case modeRegular:
		if e.Size < 0 {
			return nil, malformed("a size of %d", e.Size)
		}
		var err error
		in.content, err = b.store(e.Content, e.Size)
		return in, err
	case modeDir:
		return newDir(in), nil
	case modeSymlink:
		if e.Target == "" || len(e.Target) > encode.MaxTarget || strings.Contains(e.Target, "\x00") {
			return nil, malformed("a symbolic link with a target of %d bytes", len(e.Target))
		}
		in.target = e.Target
	case modeChar, encode.ModeBlock:
		if e.Major >= 1<<12 || e.Minor >= 1<<20 {
			return nil, malformed("a device %d:%d, which Linux can't have", e.Major, e.Minor)
		}
		in.rdev = e.Minor&0xff | e.Major<<8 | e.Minor&^0xff<<12
	case encode.ModeFIFO, encode.ModeSocket:
	default:
		return nil, malformed("a file of no type (mode %#o)", e.Mode)
	}
	return in, nil
}
