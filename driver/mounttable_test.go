package driver

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	mount "k8s.io/mount-utils"
)

func TestUnescapeOctal(t *testing.T) {
	for in, want := range map[string]string{
		"/a":              "/a",
		`/a\040b`:         "/a b",
		`/a\134040`:       `/a\040`,
		`/\011\012`:       "/\t\n",
		`/a\04`:           `/a\04`,
		`/a\`:             `/a\`,
		`/a\999`:          `/a\999`,
		`\303\244`:        "ä",
		`/a\040(deleted)`: "/a (deleted)",
	} {
		if got := unescapeOctal(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestIdentify(t *testing.T) {
	table := mountTable{
		{Major: 1, Root: "/", MountPoint: "/"},
		{Major: 2, Root: "/", MountPoint: "/run"},
		{Major: 3, Root: "/trees/7", MountPoint: "/run/front"},
		{Major: 4, Root: "/", MountPoint: "/run/front"}, // on top
	}
	tests := map[string]directory{
		"/":              {1, 0, "/"},
		"/etc":           {1, 0, "/etc"},
		"/runner":        {1, 0, "/runner"},
		"/run":           {2, 0, "/"},
		"/run/x/y":       {2, 0, "/x/y"},
		"/run/front":     {4, 0, "/"},
		"/run/front/sub": {4, 0, "/sub"},
	}
	for path, want := range tests {
		if got, ok := table.identify(path); !ok || got != want {
			t.Errorf("%s: %+v, %t; want %+v", path, got, ok, want)
		}
	}
	d := directory{3, 0, "/trees/7"}
	if !d.mountedBy(mount.MountInfo{Major: 3, Root: "/trees/7"}) || d.mountedBy(mount.MountInfo{Major: 3, Root: "/trees/8"}) {
		t.Error("mountedBy compares something else than device and root")
	}
	if m, ok := table.at("/run/front"); !ok || m.Major != 4 {
		t.Errorf("at: %+v, %t; want the topmost", m, ok)
	}
}

// TestBindOfASubdirectory: the real table recognises a bind mount of a
// directory inside of a mount, at a path with a blank.
func TestBindOfASubdirectory(t *testing.T) {
	needMounts(t)
	dir := t.TempDir()
	source, target := filepath.Join(dir, "src"), filepath.Join(dir, "a target")
	for _, d := range []string{source, target} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("x", source, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer unmountBelow(t, dir)
	for _, d := range []string{"sub", "sib"} {
		if err := os.Mkdir(filepath.Join(source, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := (sysMounter{}).Bind(filepath.Join(source, "sub"), target, defaultMountFlags); err != nil {
		t.Fatal(err)
	}
	table, err := readMountTable()
	if err != nil {
		t.Fatal(err)
	}
	m, ok := table.at(target)
	if !ok {
		t.Fatal("the mount is not in the table")
	}
	sub, _ := table.identify(filepath.Join(source, "sub"))
	sib, _ := table.identify(filepath.Join(source, "sib"))
	if !sub.mountedBy(m) || sib.mountedBy(m) {
		t.Errorf("mount %+v is of sub %t, of sib %t", m, sub.mountedBy(m), sib.mountedBy(m))
	}
}
