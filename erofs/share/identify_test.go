package share_test

import (
	"errors"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs/share"
)

// TestIdentify gives fingerprints to an image that joined without, and some of whose
// files the kernel knows.
func TestIdentify(t *testing.T) {
	files := map[string]string{
		"unknown": "nobody asked for it", "known": "somebody did", "copy": "somebody did", "elsewhere": "the other image has it",
	}
	lazy := newImage(t, files)
	other := newImage(t, map[string]string{"it": files["elsewhere"]}, "-zlz4")
	d := share.NewDomain("d")
	mo := other.join(d, "other")
	m := join(d, lazy, "lazy", nil)
	private := func(name string) string { return share.PrivatePath(m.Tag(), lazy.nids[name]) }
	shared := find(t, d, content(files["elsewhere"]))
	known, elsewhere := find(t, d, private("known")), find(t, d, private("elsewhere"))
	if known.Shared() || elsewhere == shared {
		t.Fatal("files are shared before anybody knows what they are")
	}
	before := d.Account()

	m.Identify(lazy.fp)
	if in := find(t, d, private("unknown")); in != find(t, d, content(files["unknown"])) || !in.Shared() {
		t.Error("a file that was not known is not the shared inode of its content")
	}
	if in := find(t, d, content(files["known"])); in != known || in != find(t, d, private("known")) || in != find(t, d, private("copy")) || !in.Shared() || in.Backings() != 2 {
		t.Error("a file that was known has not become the shared inode of its content")
	}
	if known.Path() != content(files["known"]) {
		t.Errorf("its path is %s", known.Path())
	}
	if in := find(t, d, private("elsewhere")); in != shared || elsewhere == shared || elsewhere.Shared() {
		t.Error("a file that was known, of a content that is shared already, is not beside it")
	}
	if n := m.Private(); n != 1 {
		t.Errorf("%d files are private, want 1", n)
	}
	if shared.Backings() != 2 {
		t.Errorf("%d backings, want 2", shared.Backings())
	}
	if a := d.Account(); a == before || a.Contents != 3 || a.Images[m].SharedFiles != 1 {
		t.Errorf("account %+v", a)
	}
	for in, want := range map[share.Inode]string{known: files["known"], elsewhere: files["elsewhere"], shared: files["elsewhere"]} {
		mustRead(t, in, want)
	}
	// References were counted as the kernel takes them back.
	for in, n := range map[share.Inode]uint64{known: 4, elsewhere: 1} {
		if _, gone := d.Forget(in.Index(), n-1); gone && n > 1 {
			t.Errorf("%s is gone too early", in.Path())
		}
		if _, gone := d.Forget(in.Index(), 1); !gone {
			t.Errorf("%s is not gone", in.Path())
		}
	}
	if n := m.Private(); n != 0 {
		t.Errorf("%d files are private, want 0", n)
	}
	if in := find(t, d, private("known")); in == known {
		t.Error("a forgotten inode is found")
	}

	// One that failed is passed over where another has the content.
	wrong := errors.New("wrong digest")
	m.Fail(wrong)
	mustRead(t, shared, files["elsewhere"])
	if _, err := find(t, d, content(files["unknown"])).ReadAt(make([]byte, 1), 0); !errors.Is(err, wrong) {
		t.Errorf("read of an image that failed: %v", err)
	}
	if _, err := m.ReadAt(lazy.nids["unknown"], make([]byte, 1), 0); !errors.Is(err, wrong) {
		t.Errorf("read of an image that failed: %v", err)
	}
	m.Leave()
	m.Identify(lazy.fp) // too late: nothing
	mustRead(t, shared, files["elsewhere"])
	mo.Leave()
}
