package driver

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestBindPropagatesFlags: another mount namespace, as kubelet's and with it that of pods,
// gets a volume with the options that it has.
func TestBindPropagatesFlags(t *testing.T) {
	needMounts(t)
	dir := t.TempDir()
	source, kubelet, seen := filepath.Join(dir, "source"), filepath.Join(dir, "kubelet"), filepath.Join(dir, "seen")
	for _, d := range []string{source, filepath.Join(kubelet, "target"), seen} {
		must(t, os.MkdirAll(d, 0o755))
	}
	t.Cleanup(func() { unmountBelow(t, dir) })
	must(t, unix.Mount("source", source, "tmpfs", 0, ""))
	must(t, unix.Mount("", source, "", unix.MS_PRIVATE, ""))
	// A shared directory, and a peer of it, as another namespace would have.
	must(t, unix.Mount(kubelet, kubelet, "", unix.MS_BIND, ""))
	must(t, unix.Mount("", kubelet, "", unix.MS_SHARED, ""))
	must(t, unix.Mount(kubelet, seen, "", unix.MS_BIND, ""))
	for _, names := range [][]string{nil, {"noexec", "nosuid", "noatime", "nodiratime"}, {"strictatime", "nosymfollow"}} {
		flags, err := parseMountFlags(names)
		must(t, err)
		target := filepath.Join(kubelet, "target")
		must(t, sysMounter{}.Bind(source, target, flags))
		table, err := readMountTable()
		must(t, err)
		for _, at := range []string{target, filepath.Join(seen, "target")} {
			m, ok := table.at(at)
			if !ok || !flags.in(m.MountOptions) {
				t.Errorf("%s is mounted %v with %q, want %s", at, ok, m.MountOptions, flags)
			}
		}
		if m, _ := table.at(source); slices.Contains(m.MountOptions, "ro") {
			t.Errorf("the source has %q", m.MountOptions)
		}
		must(t, sysMounter{}.Unmount(target, false))
	}
}
