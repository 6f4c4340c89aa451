package fusefs

import (
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/erofs-csi/erofs-csi/erofs/share"
)

// Two files with one content and different metadata are two nodes, which open as the
// same content.
func TestPassthroughTree(t *testing.T) {
	fs := New(share.NewDomain("d"))
	text := strings.Repeat("content ", 1000)
	m := join(t, fs, "a", true, map[string]file{
		"one": {text, 0o644, 1}, "two": {text, 0o600, 2}, "empty": {"", 0o600, 3},
	})
	p := NewPassthrough()
	var opened []nodeID
	p.backings.register = func(id nodeID) (int32, error) { opened = append(opened, id); return 7, nil }
	tree, err := p.AddTree(m, "/content")
	if err != nil || tree.PassthroughPath() != "/1" {
		t.Fatal(tree, err)
	}
	look := func(dir uint64, name string) (out fuse.EntryOut) {
		t.Helper()
		if st := p.Lookup(nil, &fuse.InHeader{NodeId: dir}, name, &out); st != fuse.OK {
			t.Fatalf("lookup of %s: %v", name, st)
		}
		return out
	}
	root := look(uint64(rootID), "1")
	one, two := look(root.NodeId, "one"), look(root.NodeId, "two")
	if one.NodeId == two.NodeId || one.Mode != modeRegular|0o644 || two.Mode != modeRegular|0o600 || two.Mtime != 2 || two.Size != uint64(len(text)) {
		t.Errorf("one %+v, two %+v", one, two)
	}
	if one.EntryValid != uint64(forever.Seconds()) || one.AttrValid != one.EntryValid {
		t.Errorf("valid for %d and %d seconds", one.EntryValid, one.AttrValid)
	}
	for range 2 {
		var out fuse.OpenOut
		st := p.Open(nil, &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: two.NodeId}}, &out)
		if st != fuse.OK || out.BackingID != 7 || out.OpenFlags != fuse.FOPEN_PASSTHROUGH|fuse.FOPEN_NOFLUSH {
			t.Errorf("open: %v, %+v", st, out)
		}
	}
	if len(opened) != 1 || opened[0] != nodeID(two.NodeId) || p.Opened() != 1 {
		t.Errorf("registered for %v, %d open", opened, p.Opened())
	}

	// Without a kernel: what is refused before it is asked.
	p.backings.init(p.register, p.unregister)
	var out fuse.OpenOut
	if st := p.Open(nil, &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: look(root.NodeId, "empty").NodeId}}, &out); st != fuse.OK || out.OpenFlags != fuse.FOPEN_NOFLUSH || p.Opened() != 0 {
		t.Errorf("open of the empty file: %v, %+v", st, out)
	}
	for node, want := range map[uint64]syscall.Errno{
		one.NodeId:                 syscall.EIO, // /content is not there
		uint64(rootID):             syscall.ESTALE,
		uint64(treeNode(5, 1)):     syscall.ESTALE,
		uint64(contentNode(0)):     syscall.ESTALE,
		uint64(treeNode(1, 1<<40)): syscall.EUCLEAN,
	} {
		if st := p.Open(nil, &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: node}}, &out); st != fuse.Status(want) {
			t.Errorf("open of node %x: %v, want %v", node, st, want)
		}
	}
	for _, name := range []string{"2", "", "content", "99999999999999999999", "-1"} {
		var e fuse.EntryOut
		if st := p.Lookup(nil, &fuse.InHeader{NodeId: uint64(rootID)}, name, &e); st != fuse.ENOENT {
			t.Errorf("lookup of %q in the root: %v", name, st)
		}
	}
	p.RemoveTree(m)
	var attr fuse.AttrOut
	if st := p.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: one.NodeId}}, &attr); st != fuse.Status(syscall.ESTALE) {
		t.Errorf("a tree that was taken away: %v", st)
	}
	if m.Leave(); p.Opened() != 0 {
		t.Errorf("%d files are open", p.Opened())
	}
}
