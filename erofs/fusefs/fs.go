// Package fusefs serves a sharing domain through FUSE: one superblock that holds
// the domain's shared inodes (the content mount) and, for fronts of kind "tree",
// whole image trees whose files are those inodes.
//
// # Layout of the superblock
//
//	/ab/cdef…-1f4     shared content, by SHA-256 and size (share.ContentPath)
//	/private/…-2a     a file that shares with no other    (share.PrivatePath)
//	/tree/7/…         the tree of an image; a front is a bind mount of /tree/7
//	/node/4000…2a     any node by its node id, for accounting (see FS.ReadNodes)
//
// The directories above the trees cannot be listed: what is in them is found by
// name alone.
//
// # What it does not do
//
// It never writes, keeps no file handles (OPEN, OPENDIR and FLUSH answer ENOSYS,
// so that the kernel stops asking), never calls back into the kernel from a
// request, and never touches a path of its own mounts: a thread that waits for its
// own server could not be killed.
package fusefs

import (
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/erofs-csi/erofs-csi/erofs/share"
)

// forever is how long the kernel may believe names and attributes: nothing here
// ever changes. The kernel cuts it to what it can count.
const forever = 10 * 365 * 24 * time.Hour

// FS is a fuse.RawFileSystem. Requests run concurrently, each in a goroutine of
// go-fuse's.
type FS struct {
	fuse.RawFileSystem

	// NoResend has requests under way kept by Keep as on kernels that can't send them
	// again, for tests. It must be set before Keep or Recall, and for good.
	NoResend bool

	domain *share.Domain
	server atomic.Pointer[fuse.Server]

	trees  trees
	merged mergedNodes
	cap    cacheCap

	keeping *requestKeeping // of Keep and Recall
	loaded  chan struct{}   // of Recall: closed by Load
}

// New makes the file system of a domain.
func New(d *share.Domain) *FS {
	f := &FS{RawFileSystem: fuse.NewDefaultRawFileSystem(), domain: d}
	f.trees.init()
	f.merged.init(d)
	f.cap.over = make(chan struct{}, 1)
	return f
}

// Domain returns the domain served.
func (f *FS) Domain() *share.Domain { return f.domain }

// String names the file system in go-fuse's messages.
func (f *FS) String() string { return "erofs-csi" }

// Init keeps the server, which notifications go through.
func (f *FS) Init(s *fuse.Server) { f.server.Store(s) }

// Access is never asked with default_permissions; ENOSYS ends the question.
func (f *FS) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }

// Open answers ENOSYS: the kernel opens files alone from then on, and keeps their
// pages from one open to the next.
func (f *FS) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

// OpenDir answers ENOSYS: no request for an opendir, and listings may be cached.
func (f *FS) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

// Flush answers ENOSYS, else every close(2) would wait for us.
func (f *FS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// Lookup finds a name in a directory.
func (f *FS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	id := nodeID(h.NodeId)
	if id.kind() == kindTree {
		return f.trees.lookup(id, name, out, f.child(h.Unique))
	}
	child, attr := f.lookupInternal(id, name, h.Unique)
	if child == 0 {
		return fuse.ENOENT // not to be remembered: the next image may bring it
	}
	entry(out, child, attr)
	return fuse.OK
}

// entry fills in the answer for a child that is there.
func entry(out *fuse.EntryOut, id nodeID, attr fuse.Attr) {
	*out = fuse.EntryOut{NodeId: uint64(id), Attr: attr}
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
}

// Forget takes back the kernel's references to nodes that are counted.
func (f *FS) Forget(node, nlookup uint64) {
	switch id := nodeID(node); id.kind() {
	case kindContent:
		f.forgetContent(id.index(), nlookup)
	case kindMerged:
		if n := f.merged.forget(id, nlookup); n != nil {
			f.cap.gone(&n.use)
			f.forgetContent(n.inode.Index(), 1)
		}
	case kindTree, kindInternal: // not counted
	}
}

// forgetContent takes back references to a shared inode.
func (f *FS) forgetContent(index, n uint64) {
	if in, ok := f.domain.Forget(index, n); ok {
		f.cap.gone(in.Use())
	}
}

// GetAttr answers for every kind of node.
func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	attr, errno := f.attr(nodeID(in.NodeId))
	if errno != 0 {
		return fuse.Status(errno)
	}
	out.Attr = attr
	out.SetTimeout(forever)
	return fuse.OK
}

func (f *FS) attr(id nodeID) (fuse.Attr, syscall.Errno) {
	switch id.kind() {
	case kindContent:
		if in, ok := f.domain.Inode(id.index()); ok {
			return contentAttr(in), 0
		}
	case kindMerged:
		if n := f.merged.get(id); n != nil {
			return n.attr(), 0
		}
	case kindTree:
		return f.trees.attr(id)
	case kindInternal:
		if id.isInternalDir() {
			return dirAttr(id), 0
		}
	}
	return fuse.Attr{}, syscall.ESTALE
}

// Read answers a page-cache miss.
func (f *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (r fuse.ReadResult, st fuse.Status) {
	place := reads.begin(f, nodeID(in.NodeId))
	defer func() { reads.end(place, r, st) }() // a panic is a failure, which panicked answers
	return f.read(in, buf)
}

func (f *FS) read(in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	var shared share.Inode
	var use *share.Use // nil: there is no such inode
	switch id := nodeID(in.NodeId); id.kind() {
	case kindContent:
		if in, ok := f.domain.Inode(id.index()); ok {
			shared, use = in, in.Use()
		}
	case kindMerged:
		if n := f.merged.get(id); n != nil {
			shared, use = n.inode, &n.use
		}
	case kindTree:
		n, err := f.treeRead(id, buf, in.Offset)
		if errno := errnoOf(err); errno != 0 {
			f.noteFailure(in, err)
			return nil, fuse.Status(errno)
		}
		return fuse.ReadResultData(buf[:n]), fuse.OK
	case kindInternal:
		return nil, fuse.Status(syscall.EISDIR)
	}
	if use == nil {
		return nil, fuse.Status(syscall.ESTALE)
	}
	if in.Offset >= uint64(shared.Size()) {
		return fuse.ReadResultData(nil), fuse.OK
	}
	r, err := sequential.read(shared, buf, int64(in.Offset))
	if err != nil {
		f.noteFailure(in, err)
	} else {
		f.served(use, r.Size(), shared.Size())
	}
	return r, fuse.Status(errnoOf(err))
}

// StatFs is needed by overlayfs, which refuses a layer without it.
func (f *FS) StatFs(_ <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.Frsize, out.NameLen = blockSize, blockSize, nameMax
	if id := nodeID(h.NodeId); id.kind() == kindTree {
		return f.trees.statFs(id, out)
	}
	return fuse.OK
}
