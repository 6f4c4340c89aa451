package fusefs

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/internal/ledger"
	"github.com/erofs-csi/erofs-csi/erofs/share"
)

// ErrNoPassthrough says that the kernel has no FUSE passthrough (Linux 6.9, with
// CONFIG_FUSE_PASSTHROUGH), or does not let this process use it.
var ErrNoPassthrough = errors.New("no FUSE passthrough (Linux 6.9 or newer)")

// Passthrough is a fuse.RawFileSystem that shows trees of images, each with the
// image's own metadata, whose open files the kernel reads from other files of the
// same content: those of a content mount. So equal files have one page cache, whatever
// their metadata, and no read comes here.
//
//	/7/…    the tree of an image; a front is a bind mount of /7
//
// It is a superblock of its own, one for all images of a domain, because a file's
// backing must be on a superblock of a smaller stack depth, and the content mount's
// stays 0. Lookups there are answered by another server than this one, which waits for
// no mount: an OPEN, which waits for them, never waits for itself. See openers for what
// else that takes.
//
// OPEN and RELEASE are requests here, once for each open(2). Empty files have no
// backing; they are opened as any other FUSE file.
type Passthrough struct {
	fuse.RawFileSystem

	server   atomic.Pointer[fuse.Server]
	trees    trees
	backings backings
	openers  atomic.Pointer[openers] // set before a tree is shown

	loaded    chan struct{} // of Recall: closed by Load
	elsewhere Elsewhere     // nil: nowhere
	device    atomic.Int64  // the server's descriptor of /dev/fuse
}

// Elsewhere opens a file of the content mount, by its path there, in another process,
// with flags for open(2). ErrNotThere says that this cannot be done at the moment; other
// errors are bare errnos.
type Elsewhere func(path string, flags int) (fd int, err error)

// ErrNotThere says that there is no process to open files in.
var ErrNotThere = errors.New("no other process opens files")

// OpenElsewhere has files of the content mount opened by another process, which a mount
// that outlives this process needs: a thread of a killed process that waits for it would
// keep the process from ending, and whoever is to begin the next from seeing that it has.
// It must be called before p is served.
func (p *Passthrough) OpenElsewhere(open Elsewhere) { p.elsewhere = open }

// NewPassthrough makes a file system without trees.
func NewPassthrough() *Passthrough {
	p := &Passthrough{RawFileSystem: fuse.NewDefaultRawFileSystem()}
	p.trees.init()
	p.backings.init(p.register, p.unregister)
	return p
}

// Keep writes what the kernel knows of open files to a file from now on; see FS.Keep.
func (p *Passthrough) Keep(file *os.File) error {
	l, err := ledger.Create(file, backingsLedger, backingsVersion)
	if err != nil {
		return err
	}
	l.SetCounter(1)
	p.backings.kept, p.trees.kept = l, l
	return nil
}

// Recall takes over a file of Keep, of another process that is gone. It must be called
// before the session is resumed. Then restore the trees of images, and call Load, which
// requests wait for.
func (p *Passthrough) Recall(file *os.File) error {
	l, err := ledger.Open(file, backingsLedger, backingsVersion)
	if err != nil {
		return err
	}
	p.backings.kept = l
	p.loaded = make(chan struct{})
	return p.trees.recall(l)
}

// KeepError is why the file of Keep or Recall misses something.
func (p *Passthrough) KeepError() error { return p.backings.kept.Err() }

// Load makes the open files known, and returns how many there are. Requests are answered
// from now on, also after an error. It must be called once, after the session was resumed.
func (p *Passthrough) Load() (opened int, err error) {
	defer close(p.loaded)
	err = p.backings.load()
	p.backings.drop(func(id nodeID, _ *backingFile) bool { return p.trees.tree(id.slot()) == nil })
	return p.backings.opened(), err
}

// AddTree shows an image of the domain below the root, as the tree returned, which
// RemoveTree takes away.
//
// dirs are where the content of its files is, by share.ContentPath and
// share.PrivatePath. The first that has it when a file is opened supplies it; the last
// has all.
//
// It fails when the superblock has shown 2^18-1 trees.
func (p *Passthrough) AddTree(m *share.Member, dirs ...string) (Tree, error) {
	t, err := p.trees.add(m, dirs...)
	return Tree(t), err
}

// RestoreTree shows an image as a tree that was its own before the session was resumed.
func (p *Passthrough) RestoreTree(m *share.Member, t Tree, dirs ...string) error {
	return p.trees.restore(m, t, dirs...)
}

// RemoveTree takes an image's tree away. Its mounts must be gone; what is left of
// it in the kernel answers ESTALE. Files that are open stay so.
func (p *Passthrough) RemoveTree(m *share.Member) {
	for _, t := range p.trees.remove(m) {
		p.backings.drop(func(id nodeID, _ *backingFile) bool { return id.slot() == t.slot })
	}
}

// Opened is how many files are open, each counted once.
func (p *Passthrough) Opened() int { return p.backings.opened() }

// String names the file system in go-fuse's messages.
func (p *Passthrough) String() string { return "erofs-csi passthrough" }

// Init keeps the server, by which backing files are registered.
func (p *Passthrough) Init(s *fuse.Server) { p.server.Store(s) }

// OnUnmount ends what OPEN needs, after the last request.
func (p *Passthrough) OnUnmount() {
	if o := p.openers.Load(); o != nil {
		o.stop()
	}
}

// check tells whether the kernel passes reads through for us: it says so in INIT, and
// takes an ioctl that is for the administrator of the initial user namespace alone.
func (p *Passthrough) check() error {
	s := p.server.Load()
	if s.KernelSettings().Flags64()&fuse.CAP_PASSTHROUGH == 0 {
		return ErrNoPassthrough
	}
	if _, errno := s.RegisterBackingFd(&fuse.BackingMap{Fd: -1}); errno != syscall.EBADF {
		return fmt.Errorf("%w: register a backing file: %w", ErrNoPassthrough, errno)
	}
	return nil
}

// Open answers with the backing of the file.
func (p *Passthrough) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	id := nodeID(in.NodeId)
	backing, err := p.backings.open(id, in.Unique)
	if err == errEmpty { //nolint:errorlint // register returns it bare
		out.OpenFlags = fuse.FOPEN_NOFLUSH
		return fuse.OK
	}
	if err != nil {
		return fuse.Status(errnoOf(err))
	}
	out.Fh = uint64(backing)
	out.BackingID = backing
	out.OpenFlags = fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_NOFLUSH
	return fuse.OK
}

// Release takes back an open.
func (p *Passthrough) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	if in.Fh != 0 {
		p.backings.close(nodeID(in.NodeId), in.Unique)
	}
}

// errEmpty says that a file is empty and has no content to open.
var errEmpty = errors.New("empty file")

// register makes the kernel know the file that backs a node.
func (p *Passthrough) register(id nodeID) (int32, error) {
	if id.kind() != kindTree {
		return 0, syscall.ESTALE
	}
	var path string
	var dirs []string
	err := p.trees.inode(id, func(t *tree, _ *erofs.Image, in *erofs.Inode) error {
		if in.Size == 0 {
			return errEmpty
		}
		if k, ok := t.member.Key(in.NID, in.Size); ok {
			path = share.ContentPath(k)
		} else {
			path = share.PrivatePath(t.member.Tag(), in.NID)
		}
		dirs = t.dirs
		return nil
	})
	if err != nil {
		return 0, err
	}
	open := p.openers.Load()
	if open == nil {
		return 0, errors.New("not mounted")
	}
	for i, dir := range dirs {
		last := i == len(dirs)-1 // the content mount
		backing, err := int32(0), ErrNotThere
		if last && p.elsewhere != nil {
			backing, err = registerFile(int(p.device.Load()), func(flags int) (int, error) { return p.elsewhere(path, flags) })
		}
		if errors.Is(err, ErrNotThere) {
			backing, err = open.register(dir + path)
		}
		if errors.Is(err, unix.ENOENT) && !last {
			continue
		}
		if errors.Is(err, unix.ENOENT) { // not of the name that was opened
			return 0, fmt.Errorf("no content at %s", dir+path)
		}
		return backing, err
	}
	return 0, fmt.Errorf("no content for %s", path)
}

func (p *Passthrough) unregister(backing int32) {
	_ = p.server.Load().UnregisterBackingFd(backing) // it fails when the connection is gone, and the backing with it
}

// Lookup finds a name in a directory.
func (p *Passthrough) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	id := nodeID(h.NodeId)
	if id.kind() == kindTree {
		return p.trees.lookup(id, name, out, p.child)
	}
	if id == rootID {
		if child, attr := p.trees.byName(name); child != 0 {
			entry(out, child, attr)
			return fuse.OK
		}
	}
	return fuse.ENOENT // not to be remembered: it may come
}

// child is a childFunc: every file is its own.
func (p *Passthrough) child(t *tree, im *erofs.Image, nid uint64) (nodeID, fuse.Attr, error) {
	id, in, err := t.node(im, nid)
	if err != nil {
		return 0, fuse.Attr{}, err
	}
	return id, inodeAttr(id, in), nil
}

// GetAttr answers for the root and every node of a tree.
func (p *Passthrough) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	id := nodeID(in.NodeId)
	switch {
	case id == rootID:
		out.Attr = dirAttr(id)
	case id.kind() == kindTree:
		attr, errno := p.trees.attr(id)
		if errno != 0 {
			return fuse.Status(errno)
		}
		out.Attr = attr
	default:
		return fuse.Status(syscall.ESTALE)
	}
	out.SetTimeout(forever)
	return fuse.OK
}

// Access is never asked with default_permissions; ENOSYS ends the question.
func (p *Passthrough) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }

// OpenDir answers ENOSYS: no request for an opendir, and listings may be cached.
func (p *Passthrough) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

// Flush answers ENOSYS, else every close(2) would wait for us.
func (p *Passthrough) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// Read is asked of empty files alone.
func (p *Passthrough) Read(<-chan struct{}, *fuse.ReadIn, []byte) (fuse.ReadResult, fuse.Status) {
	return fuse.ReadResultData(nil), fuse.OK
}

// Readlink returns a symbolic link's target, which the kernel caches.
func (p *Passthrough) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	return p.trees.readlink(nodeID(h.NodeId))
}

// ReadDir lists a directory; the kernel's cookies are the image's own.
func (p *Passthrough) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return p.trees.readDir(in, out)
}

// ReadDirPlus lists a directory with what lookups would have answered.
func (p *Passthrough) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return p.trees.readDirPlus(in, out, p.child)
}

// GetXAttr reads one extended attribute.
func (p *Passthrough) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	list, err := p.xattrs(nodeID(h.NodeId))
	return getXattr(list, err, name, dest)
}

// ListXAttr lists the names, each ended by a NUL.
func (p *Passthrough) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	list, err := p.xattrs(nodeID(h.NodeId))
	return listXattrs(list, err, dest)
}

func (p *Passthrough) xattrs(id nodeID) ([]erofs.Xattr, error) {
	if id.kind() != kindTree {
		return nil, nil
	}
	return p.trees.xattrs(id)
}

// StatFs is the image's.
func (p *Passthrough) StatFs(_ <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.Frsize, out.NameLen = blockSize, blockSize, nameMax
	if id := nodeID(h.NodeId); id.kind() == kindTree {
		return p.trees.statFs(id, out)
	}
	return fuse.OK
}
