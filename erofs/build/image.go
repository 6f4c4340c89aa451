package build

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

const (
	overlayMetacopy  = "trusted.overlay.metacopy"
	overlayRedirect  = "trusted.overlay.redirect"
	overlayXwhiteout = "trusted.overlay.whiteout"
)

// AddImage adds the tree of an EROFS image of size bytes as the layer in hand, as
// overlayfs would lay it over those below: a character device 0:0 deletes, and so
// does an empty file with the attribute trusted.overlay.whiteout; a directory with
// trusted.overlay.opaque=y hides what is below it. All data are copied.
//
// Images whose files are elsewhere (extra devices, trusted.overlay.redirect) are
// refused. Errors of the image wrap those of package erofs.
func (b *Builder) AddImage(r io.ReaderAt, size int64) error {
	im, err := erofs.Open(r, size)
	if err != nil {
		return b.layerError(err)
	}
	l := imageLayer{Builder: b, links: map[uint64]*inode{}}
	if err := im.Walk(l.add); err != nil {
		var entry *EntryError
		if errors.As(err, &entry) || b.ctx.Err() != nil {
			return err
		}
		return b.layerError(err)
	}
	return nil
}

// imageLayer is one image on its way into the tree.
type imageLayer struct {
	*Builder
	links map[uint64]*inode // files with several names, by nid
}

func (l *imageLayer) add(path string, in *erofs.Inode) error {
	if err := l.ctx.Err(); err != nil {
		return err
	}
	if err := l.addInode(path, in); err != nil {
		return l.failed(path, err)
	}
	return nil
}

func (l *imageLayer) addInode(path string, in *erofs.Inode) error {
	dir, name, err := l.place(path)
	if err != nil {
		return err
	}
	if in.Mode&modeFmt == modeChar && in.Rdev == 0 {
		return l.tree.whiteout(dir, name, l.impliedDir)
	}
	if old := l.links[in.NID]; old != nil {
		if err := l.count(len(name)); err != nil {
			return err
		}
		_, err := l.tree.put(dir, name, old)
		return err
	}
	e := Entry{
		Path: path, Mode: in.Mode, UID: in.UID, GID: in.GID,
		Mtime: time.Unix(in.MtimeSec, int64(in.MtimeNsec)),
		Major: in.Rdev >> 8 & 0xfff, Minor: in.Rdev&0xff | in.Rdev>>12&^0xff,
	}
	if e.Xattrs, err = attributesOf(in); err != nil {
		return err
	}
	for _, name := range []string{overlayMetacopy, overlayRedirect} {
		if _, ok := e.Xattrs[name]; ok && in.IsRegular() {
			return fmt.Errorf("%w: its data are in another image (%s)", erofs.ErrUnsupported, name)
		}
	}
	switch {
	case in.IsRegular():
		if _, ok := e.Xattrs[overlayXwhiteout]; ok && in.Size == 0 {
			return l.tree.whiteout(dir, name, l.impliedDir)
		}
		e.Size, e.Content = in.Size, io.NewSectionReader(in, 0, in.Size)
	case in.IsSymlink():
		target, err := in.Readlink()
		if err != nil {
			return err
		}
		e.Target = target
	}
	if err := l.Builder.add(dir, name, &e); err != nil {
		return err
	}
	if in.Nlink > 1 && !in.IsDir() {
		l.links[in.NID] = dir.dir.names[name].in
	}
	return nil
}

// place finds the directory of a path. Walk comes to a directory before what is in
// it, so that no link can be on the way.
func (l *imageLayer) place(path string) (*inode, string, error) {
	if path == "." {
		return l.tree.root, "", nil
	}
	return l.parent(path)
}

func attributesOf(in *erofs.Inode) (map[string]string, error) {
	all, err := in.Xattrs()
	if err != nil || len(all) == 0 {
		return nil, err
	}
	m := make(map[string]string, len(all))
	for _, x := range all {
		if _, ok := m[x.Name]; !ok { // of two the kernel sees the first
			m[x.Name] = string(x.Value)
		}
	}
	return m, nil
}

// HeadSize is how many bytes IsImage looks at.
const HeadSize = disk.SuperBlockOffset + 4

// IsImage tells of the first HeadSize bytes of a file whether it is an EROFS image.
func IsImage(head []byte) bool {
	return len(head) >= HeadSize && binary.LittleEndian.Uint32(head[disk.SuperBlockOffset:]) == disk.Magic
}
