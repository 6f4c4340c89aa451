package main

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/test/images"
)

// erofs.Verify finds whatever fsck.erofs finds.
func TestDamage(t *testing.T) {
	mkfs := images.NewestMkfs(t)
	if !mkfs.AtLeast(1, 9) {
		return // it does not make most of the images
	}
	images.Need(t, "fsck.erofs and dump.erofs beside mkfs.erofs", mkfs.Tool("fsck.erofs") != "" && mkfs.Tool("dump.erofs") != "")
	all, err := compare(t.Context(), tools(filepath.Dir(mkfs.Path)), "")
	images.Need(t, "a temporary directory with extended attributes", !errors.Is(err, unix.ENOTSUP))
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, o := range all {
		if o.fsck != "" {
			found++
		}
		if o.missed() {
			t.Errorf("%s: fsck.erofs: %s%s; visible: %q", o.name(), o.crash, o.fsck, o.visible)
		}
	}
	t.Logf("fsck.erofs finds something in %d of %d images", found, len(all))
	if len(all) < 500 || found < 300 {
		t.Error("the damages do not reach what they are meant for")
	}
}

func TestTable(t *testing.T) {
	list := []outcome{
		{damage: damage{group: "a"}, fsck: "x", verify: "x"},
		{damage: damage{group: "b"}, fsck: "x", visible: "."},
		{damage: damage{group: "a"}, verify: "x", visible: "."},
		{damage: damage{group: "a"}, visible: "."},
		{damage: damage{group: "a"}},
		{damage: damage{group: "b"}, crash: "x", verify: "x"},
	}
	got := table(list)
	for _, want := range []string{
		"| structure | images | both find | only fsck.erofs |",
		"| a | 4 | 1 | | 1 | 1 | 1 | |\n| b | 2 | | 1 | | | | 1 |\n| **all** | 6 | 1 | 1 | 1 | 1 | 1 | 1 |\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the table lacks %q:\n%s", want, got)
		}
	}
	for i, want := range []bool{false, true, false, false, false, false} {
		if got := list[i].missed(); got != want {
			t.Errorf("outcome %d: missed %t, want %t", i, got, want)
		}
	}
}
