package share_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs/share"
)

const resent = 1 << 63 // of a request that the kernel sends again

// TestKeep goes on with a domain where another process ended: the kernel's inodes keep
// their indexes, references and contents, whoever supplies these now.
func TestKeep(t *testing.T) {
	a := newImage(t, map[string]string{"both": "in both images", "a": "in a alone", "forgotten": "not known any more"})
	b := newImage(t, map[string]string{"same": "in both images", "b": "in b alone"}, "-zlz4")
	file, err := os.OpenFile(filepath.Join(t.TempDir(), "f"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	d := share.NewDomain("d")
	if err := d.Keep(file); err != nil {
		t.Fatal(err)
	}
	a.join(d, "a")
	b.join(d, "b")
	c := newImage(t, map[string]string{"c": "private"})
	private := share.PrivatePath(join(d, c, "c", nil).Tag(), c.nids["c"])
	look := func(d *share.Domain, path string, unique uint64) share.Inode {
		t.Helper()
		in, ok := d.Find(path, unique)
		if !ok {
			t.Fatalf("%s is not found", path)
		}
		return in
	}
	index := make(map[string]uint64)
	for i, text := range []string{"not known any more", "in both images", "in a alone", "in b alone"} {
		index[text] = look(d, content(text), uint64(2*i+2)).Index()
	}
	look(d, content("in both images"), 100)
	index["private"] = look(d, private, 0).Index()
	if _, gone := d.Forget(index["not known any more"], 1); !gone {
		t.Fatal("not forgotten")
	}

	// The process is killed. Images a and c do not come back at first.
	d = share.NewDomain("d")
	if err := d.Recall(file); err != nil {
		t.Fatal(err)
	}
	b.join(d, "b")
	known, orphans, err := d.Load()
	if known != 4 || orphans != 2 || err != nil {
		t.Errorf("%d known, %d orphans, %v; want 4, 2", known, orphans, err)
	}
	for _, text := range []string{"in both images", "in b alone"} {
		in, ok := d.Inode(index[text])
		if !ok || in.Path() != content(text) || in.Use().Held() == 0 {
			t.Fatalf("inode %d is not %q any more", index[text], text)
		}
		mustRead(t, in, text)
	}
	for _, name := range []string{"in a alone", "private"} {
		if in, ok := d.Inode(index[name]); !ok || !in.Orphan() {
			t.Errorf("inode %d is not an orphan", index[name])
		}
	}
	if _, ok := d.Inode(index["not known any more"]); ok {
		t.Error("a forgotten inode is there again")
	}
	// What comes later supplies the orphans.
	a.join(d, "a")
	join(d, c, "c", nil)
	for _, text := range []string{"in a alone", "private"} {
		in, _ := d.Inode(index[text])
		mustRead(t, in, text)
	}
	// No index is used twice, and a request that is sent again is counted once.
	if in := look(d, content("not known any more"), 8|resent); in.Index() <= index["private"] {
		t.Errorf("index %d again", in.Index())
	}
	both := look(d, content("in both images"), 100|resent)
	if both.Index() != index["in both images"] {
		t.Errorf("inode %d, want %d", both.Index(), index["in both images"])
	}
	if _, gone := d.Forget(both.Index(), 1); gone {
		t.Error("forgotten with a reference left")
	}
	if _, gone := d.Forget(both.Index(), 1); !gone {
		t.Error("a reference was counted twice")
	}
	if err := d.KeepError(); err != nil {
		t.Error(err)
	}
}

// TestVerify takes out what the kernel has forgotten behind the back of the process that
// was killed, and nothing that it asked for since.
func TestVerify(t *testing.T) {
	a := newImage(t, map[string]string{"1": "content 1", "2": "content 2", "3": "content 3", "4": "content 4", "5": "content 5"})
	file, err := os.OpenFile(filepath.Join(t.TempDir(), "f"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	d := share.NewDomain("d")
	if err := d.Keep(file); err != nil {
		t.Fatal(err)
	}
	a.join(d, "a")
	var index []uint64
	for _, text := range []string{"content 1", "content 2", "content 3", "content 4", "content 5"} {
		index = append(index, find(t, d, content(text)).Index())
	}
	find(t, d, content("content 5"))

	d = share.NewDomain("d")
	if err := d.Recall(file); err != nil {
		t.Fatal(err)
	}
	a.join(d, "a")
	if known, _, err := d.Load(); known != 5 || err != nil {
		t.Fatal(known, err)
	}
	no, yes := func() bool { return false }, func() bool { return true }
	find(t, d, content("content 2")) // before it is asked
	for i, c := range []struct {
		own   uint32
		known func() bool
		gone  bool
	}{
		{0, yes, false},
		{0, no, false},
		{0, no, true},
		{0, func() bool { find(t, d, content("content 4")); return false }, false}, // while it is
		{1, no, false},
	} {
		_, gone := d.Verify(index[i], c.own, c.known)
		if _, there := d.Inode(index[i]); gone != c.gone || there == c.gone {
			t.Errorf("inode %d: gone %v, there %v; want gone %v", i, gone, there, c.gone)
		}
	}
	if _, gone := d.Forget(index[4], 1); !gone {
		t.Error("more references are left than are known not to be the kernel's")
	}
}
