package fusefs

import "github.com/hanwen/go-fuse/v2/fuse"

// gated is a file system that was begun by another process. Requests that need what
// that one knew wait until it is known here. The others are those by which new fronts
// are mounted: who restores the old ones may need to.
type gated struct {
	fuse.RawFileSystem

	loaded <-chan struct{} // closed when it is known
}

func (g *gated) wait() { <-g.loaded }

// Lookup waits, as all below.
func (g *gated) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	g.wait()
	return g.RawFileSystem.Lookup(cancel, h, name, out)
}

// Forget waits.
func (g *gated) Forget(node, nlookup uint64) {
	g.wait()
	g.RawFileSystem.Forget(node, nlookup)
}

// GetAttr waits.
func (g *gated) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if !nodeID(in.NodeId).isInternalDir() {
		g.wait()
	}
	return g.RawFileSystem.GetAttr(cancel, in, out)
}

// Open waits.
func (g *gated) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	g.wait()
	return g.RawFileSystem.Open(cancel, in, out)
}

// Release waits.
func (g *gated) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	g.wait()
	g.RawFileSystem.Release(cancel, in)
}

// Read waits.
func (g *gated) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	g.wait()
	return g.RawFileSystem.Read(cancel, in, buf)
}

// Readlink waits.
func (g *gated) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	g.wait()
	return g.RawFileSystem.Readlink(cancel, h)
}

// ReadDir waits.
func (g *gated) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	g.wait()
	return g.RawFileSystem.ReadDir(cancel, in, out)
}

// ReadDirPlus waits.
func (g *gated) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	g.wait()
	return g.RawFileSystem.ReadDirPlus(cancel, in, out)
}

// GetXAttr waits.
func (g *gated) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	g.wait()
	return g.RawFileSystem.GetXAttr(cancel, h, name, dest)
}

// ListXAttr waits.
func (g *gated) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	g.wait()
	return g.RawFileSystem.ListXAttr(cancel, h, dest)
}

// StatFs waits.
func (g *gated) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	if !nodeID(h.NodeId).isInternalDir() {
		g.wait()
	}
	return g.RawFileSystem.StatFs(cancel, h, out)
}
