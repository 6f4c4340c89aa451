package fusefs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/erofs-csi/erofs-csi/erofs"
)

// xattrs lists a node's extended attributes.
func (f *FS) xattrs(id nodeID) ([]erofs.Xattr, error) {
	switch id.kind() {
	case kindTree:
		return f.trees.xattrs(id)
	case kindMerged:
		n := f.merged.get(id)
		if n == nil {
			return nil, syscall.ESTALE
		}
		return n.xattrs, nil
	case kindContent, kindInternal: // none: overlayfs takes them from the metadata layer
	}
	return nil, nil
}

func (ts *trees) xattrs(id nodeID) (list []erofs.Xattr, err error) {
	err = ts.inode(id, func(_ *tree, _ *erofs.Image, in *erofs.Inode) error {
		list, err = in.Xattrs()
		return err
	})
	return list, err
}

// GetXAttr reads one extended attribute.
func (f *FS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	list, err := f.xattrs(nodeID(h.NodeId))
	return getXattr(list, err, name, dest)
}

// ListXAttr lists the names, each ended by a NUL.
func (f *FS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	list, err := f.xattrs(nodeID(h.NodeId))
	return listXattrs(list, err, dest)
}

func getXattr(list []erofs.Xattr, err error, name string, dest []byte) (uint32, fuse.Status) {
	if err != nil {
		return 0, fuse.Status(errnoOf(err))
	}
	for _, x := range list {
		if x.Name != name {
			continue
		}
		if len(x.Value) > len(dest) {
			return uint32(len(x.Value)), fuse.ERANGE
		}
		return uint32(copy(dest, x.Value)), fuse.OK
	}
	return 0, fuse.ENOATTR
}

func listXattrs(list []erofs.Xattr, err error, dest []byte) (uint32, fuse.Status) {
	if err != nil {
		return 0, fuse.Status(errnoOf(err))
	}
	var names []byte
	for _, x := range list {
		names = append(append(names, x.Name...), 0)
	}
	if len(names) > len(dest) {
		return uint32(len(names)), fuse.ERANGE
	}
	return uint32(copy(dest, names)), fuse.OK
}
