package fusefs

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/fingerprint"
	"github.com/erofs-csi/erofs-csi/erofs/share"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// file is what a test image holds.
type file struct {
	data  string
	mode  uint32
	mtime int64
}

// join builds an image of files and joins it to the domain of fs.
func join(t *testing.T, fs *FS, id string, shared bool, files map[string]file) *share.Member {
	t.Helper()
	dir := t.TempDir()
	for name, f := range files {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(f.data), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Chmod(path, f.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Unix(f.mtime, 5), time.Unix(f.mtime, 5)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("target", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	return joinTree(t, fs.Domain(), id, shared, dir)
}

// joinTree builds an image of a directory and joins it to a domain, with its files'
// fingerprints if it is to share.
func joinTree(t testing.TB, d *share.Domain, id string, shared bool, dir string) *share.Member {
	t.Helper()
	return joinImage(t, d, id, shared, images.Build(t, images.NewestMkfs(t), nil, dir))
}

// joinImage is joinTree for an image that is built.
func joinImage(t testing.TB, d *share.Domain, id string, shared bool, path string) *share.Member {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	im, err := erofs.Open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	var fp *fingerprint.Index
	if shared {
		list, err := fingerprint.Files(im)
		if err != nil {
			t.Fatal(err)
		}
		if fp, _, err = fingerprint.Build(t.Context(), im, list, int64(len(data))); err != nil {
			t.Fatal(err)
		}
	}
	m, err := d.Join(im, share.NewTag(id), fp)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// readNodes lists the files of which the kernel may have pages, as "path files".
func readNodes(t *testing.T, fs *FS) (list []string) {
	t.Helper()
	fs.InUse(nil, func(node uint64, held int64) bool {
		n, ok := fs.Node(node)
		if !ok || held < 1 || held > (n.Size+4095)/4096*4096 {
			t.Errorf("node %x: %+v, %d bytes held", node, n, held)
		}
		files := 0
		for _, f := range n.Files {
			files += f.Files
		}
		list = append(list, fmt.Sprintf("%s %d", n.Path, files))
		return true
	})
	return list
}

// walk looks a path up from the root and returns the last entry.
func walk(t *testing.T, fs *FS, path string) (out fuse.EntryOut, status fuse.Status) {
	t.Helper()
	out.NodeId = uint64(rootID)
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		h := &fuse.InHeader{NodeId: out.NodeId}
		if status = fs.Lookup(nil, h, name, &out); status != fuse.OK || out.NodeId == 0 {
			return out, status
		}
	}
	return out, status
}

func read(t *testing.T, fs *FS, node uint64, off uint64, n int) (string, fuse.Status) {
	t.Helper()
	r, status := fs.Read(nil, &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: node}, Offset: off}, make([]byte, n))
	if status != fuse.OK {
		return "", status
	}
	b, status := r.Bytes(make([]byte, n))
	return string(b), status
}

func TestContentIsFoundByItsSum(t *testing.T) {
	fs := New(share.NewDomain("d"))
	m := join(t, fs, "a", true, map[string]file{"f": {"hello", 0o640, 1}})
	path := share.ContentPath(share.Key{Sum: sha256.Sum256([]byte("hello")), Size: 5})

	out, status := walk(t, fs, path)
	node := contentNode(0)
	want := fuse.EntryOut{
		NodeId:     uint64(node),
		EntryValid: uint64(forever / time.Second),
		AttrValid:  uint64(forever / time.Second),
		Attr:       fuse.Attr{Ino: uint64(node), Size: 5, Blocks: 1, Mode: syscall.S_IFREG | 0o444, Nlink: 1, Blksize: 4096},
	}
	if status != fuse.OK || out != want {
		t.Fatalf("lookup: %v\n got %+v\nwant %+v", status, out, want)
	}
	for _, c := range []struct {
		off  uint64
		n    int
		want string
	}{{0, 4096, "hello"}, {1, 2, "el"}, {4, 10, "o"}, {5, 10, ""}, {1 << 62, 1, ""}, {1<<63 + 1, 1, ""}} {
		if got, status := read(t, fs, out.NodeId, c.off, c.n); got != c.want || status != fuse.OK {
			t.Errorf("read %d at %d: %q, %v; want %q", c.n, c.off, got, status, c.want)
		}
	}

	// The same node by its number, for accounting.
	uses := readNodes(t, fs)
	if len(uses) != 1 || uses[0] != path+" 1" {
		t.Errorf("read nodes: %+v", uses)
	}
	if out, status := walk(t, fs, node.path()); status != fuse.OK || out != want {
		t.Errorf("lookup by number: %v, %+v", status, out)
	}

	orphans := m.Leave()
	if len(orphans) != 1 || orphans[0].Path() != path {
		t.Fatalf("orphans: %v", orphans)
	}
	if _, status := read(t, fs, out.NodeId, 0, 1); status != fuse.EIO {
		t.Errorf("read without a backing: %v, want EIO", status)
	}
	fs.Forget(out.NodeId, 2)
	var attr fuse.AttrOut
	if status := fs.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: out.NodeId}}, &attr); status != fuse.Status(syscall.ESTALE) {
		t.Errorf("attributes of a forgotten node: %v, want ESTALE", status)
	}
}

func TestNamesThatAreNotThere(t *testing.T) {
	fs := New(share.NewDomain("d"))
	m := join(t, fs, "a", true, map[string]file{"f": {"hello", 0o640, 1}})
	tree, err := fs.AddTree(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/ABC", "/AB", "/1", "/ab/x", "/private/x", "/tree/0", "/tree/2", "/tree/x", "/node/x", "/node/1", "/node/ffffffffffffffff", "/node/4000000000000099"} {
		if out, status := walk(t, fs, path); status != fuse.ENOENT {
			t.Errorf("%s: %v, node %x; want ENOENT, which the kernel does not remember", path, status, out.NodeId)
		}
	}
	// In an image a missing name is missing for ever.
	out, status := walk(t, fs, tree.Path()+"/nothing")
	if status != fuse.OK || out.NodeId != 0 || out.EntryTimeout() != forever {
		t.Errorf("a missing name in a tree: %v, %+v; want a negative entry", status, out)
	}
	if _, status := walk(t, fs, tree.Path()+"/f/below-a-file"); status.Ok() {
		t.Error("a name below a file was found")
	}
}

func TestTreesMergeFilesThatAgreeInAll(t *testing.T) {
	fs := New(share.NewDomain("d"))
	same := file{"same", 0o644, 7}
	a := join(t, fs, "a", true, map[string]file{"same": same, "mode": {"same", 0o644, 7}, "time": {"same", 0o644, 7}, "empty": {"", 0o644, 7}})
	b := join(t, fs, "b", true, map[string]file{"renamed": same, "mode": {"same", 0o600, 7}, "time": {"same", 0o644, 8}, "empty": {"", 0o644, 7}})
	ta, err := fs.AddTree(a)
	if err != nil {
		t.Fatal(err)
	}
	tb, err := fs.AddTree(b)
	if err != nil {
		t.Fatal(err)
	}
	node := func(path string) uint64 {
		t.Helper()
		out, status := walk(t, fs, path)
		if status != fuse.OK || out.NodeId == 0 {
			t.Fatalf("%s: %v", path, status)
		}
		return out.NodeId
	}
	if node(ta.Path()+"/same") != node(tb.Path()+"/renamed") {
		t.Error("files alike in content and metadata are two nodes")
	}
	for _, name := range []string{"mode", "time", "empty"} {
		if node(ta.Path()+"/"+name) == node(tb.Path()+"/"+name) {
			t.Errorf("%s: different metadata, or no pages to share, but one node", name)
		}
	}
	id := node(ta.Path() + "/same")
	if s, status := read(t, fs, id, 0, 10); s != "same" || status != fuse.OK {
		t.Errorf("read %q, %v", s, status)
	}
	// The node outlives the image that was first to have it.
	fs.RemoveTree(a)
	a.Leave()
	if s, status := read(t, fs, id, 1, 2); s != "am" || status != fuse.OK {
		t.Errorf("read %q, %v after one image left", s, status)
	}
	if _, status := walk(t, fs, ta.Path()+"/same"); status != fuse.ENOENT {
		t.Errorf("a tree that is gone: %v, want ENOENT", status)
	}
	// a/same, a/mode, a/time are one node: found three times at first, then as b/renamed and by node().
	// Those of a, which has left, count no more.
	uses := readNodes(t, fs)
	if len(uses) != 1 || uses[0] != nodeID(id).path()+" 1" {
		t.Errorf("uses of merged nodes: %+v, want one node of one file", uses)
	}
	fs.Forget(id, 1000)
	if fs.merged.get(nodeID(id)) != nil {
		t.Error("a forgotten node is still there")
	}
}

func TestTreeShowsTheImage(t *testing.T) {
	fs := New(share.NewDomain(""))
	m := join(t, fs, "a", false, map[string]file{"f": {"data", 0o4751, 99}})
	root, err := fs.AddTree(m)
	if err != nil {
		t.Fatal(err)
	}
	f, _ := walk(t, fs, root.Path()+"/f")
	f.Ino = 0
	want := fuse.Attr{
		Size: 4, Blocks: 1, Mtime: 99, Ctime: 99, Atime: 99, Mtimensec: 5, Ctimensec: 5, Atimensec: 5,
		Mode: syscall.S_IFREG | 0o4751, Nlink: 1, Owner: fuse.Owner{Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())}, Blksize: 4096,
	}
	if f.Attr != want {
		t.Errorf("attributes\n got %+v\nwant %+v", f.Attr, want)
	}
	link, _ := walk(t, fs, root.Path()+"/link")
	if target, status := fs.Readlink(nil, &fuse.InHeader{NodeId: link.NodeId}); string(target) != "target" || status != fuse.OK {
		t.Errorf("readlink: %q, %v", target, status)
	}
	if _, status := fs.Readlink(nil, &fuse.InHeader{NodeId: f.NodeId}); status.Ok() {
		t.Error("readlink of a regular file succeeded")
	}
	dir, _ := walk(t, fs, root.Path())
	var st fuse.StatfsOut
	if status := fs.StatFs(nil, &fuse.InHeader{NodeId: dir.NodeId}, &st); status != fuse.OK || st.Blocks == 0 || st.Files != 3 {
		t.Errorf("statfs: %v, %+v; want the image's", status, st)
	}
	// Listing in steps of a buffer that holds one entry gives each once.
	var names []string
	var off uint64
	for range 20 {
		list := fuse.NewDirEntryList(make([]byte, 64), off)
		in := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: dir.NodeId}, Offset: off}
		if status := fs.ReadDir(nil, in, list); status != fuse.OK {
			t.Fatal(status)
		}
		b := list.Bytes()
		if len(b) == 0 {
			break
		}
		for len(b) > 0 {
			n := int(b[16]) | int(b[17])<<8
			names = append(names, string(b[24:24+n]))
			b = b[(24+n+7)&^7:]
		}
		off = list.Offset
	}
	if got := fmt.Sprint(names); got != "[. .. f link]" {
		t.Errorf("listed %s", got)
	}
}

func TestErrnoTable(t *testing.T) {
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{io.EOF, 0},
		{fmt.Errorf("x: %w", os.ErrNotExist), syscall.ENOENT},
		{fmt.Errorf("x: %w", erofs.ErrCorrupt), syscall.EUCLEAN},
		{fmt.Errorf("x: %w", erofs.ErrFormat), syscall.EUCLEAN},
		{fmt.Errorf("x: %w", erofs.ErrUnsupported), syscall.EOPNOTSUPP},
		{fmt.Errorf("x: %w", erofs.ErrNoXattr), syscall.ENODATA},
		{&os.PathError{Op: "read", Path: "x", Err: syscall.ESTALE}, syscall.ESTALE},
		{share.ErrNoBacking, syscall.EIO},
		{io.ErrUnexpectedEOF, syscall.EIO},
	} {
		if got := errnoOf(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}

func TestNodeIDsKeepTheirKinds(t *testing.T) {
	for _, c := range []struct {
		id   nodeID
		kind nodeKind
	}{
		{rootID, kindInternal},
		{byNodeID, kindInternal},
		{contentNode(0), kindContent},
		{contentNode(1<<44 - 1), kindContent},
		{treeNode(1, 0), kindTree},
		{treeNode(maxSlot, 1<<inoBits-1), kindTree},
		{mergedBit, kindMerged},
		{mergedBit | 1<<44, kindMerged},
	} {
		if c.id.kind() != c.kind {
			t.Errorf("%x: kind %d, want %d", c.id, c.id.kind(), c.kind)
		}
	}
	if id := treeNode(maxSlot, 12345); id.slot() != maxSlot || id.ino() != 12345 {
		t.Errorf("slot %d, ino %d", id.slot(), id.ino())
	}
}
