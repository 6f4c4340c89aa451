package images

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// Mkfs is one installed mkfs.erofs.
type Mkfs struct {
	Path    string
	Version [3]int // of erofs-utils, such as 1.9.4
}

// String returns a name for subtests, such as "mkfs-1.9.4".
func (m Mkfs) String() string {
	return fmt.Sprintf("mkfs-%d.%d.%d", m.Version[0], m.Version[1], m.Version[2])
}

// AtLeast reports whether the version is major.minor or later.
func (m Mkfs) AtLeast(major, minor int) bool {
	return m.Version[0] > major || m.Version[0] == major && m.Version[1] >= minor
}

// Tool is the path of another program of the same installation, such as
// "fsck.erofs", or "" when it is not there.
func (m Mkfs) Tool(name string) string {
	path := filepath.Join(filepath.Dir(m.Path), name)
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// AllMkfs returns the mkfs.erofs of the system and the one in the directory
// that $EROFS_UTILS names, as far as they are there: at least one.
func AllMkfs(t testing.TB) []Mkfs {
	t.Helper()
	var all []Mkfs
	if path, err := exec.LookPath("mkfs.erofs"); err == nil {
		all = append(all, probe(t, path))
	}
	if dir := os.Getenv("EROFS_UTILS"); dir != "" {
		path := filepath.Join(dir, "mkfs.erofs")
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("EROFS_UTILS names a directory without mkfs.erofs: %v", err)
		}
		if m := probe(t, path); len(all) == 0 || m.Version != all[0].Version {
			all = append(all, m)
		}
	}
	Need(t, "mkfs.erofs (Debian package erofs-utils, or EROFS_UTILS)", len(all) > 0)
	return all
}

// NewestMkfs returns the mkfs.erofs of the highest version.
func NewestMkfs(t testing.TB) Mkfs {
	t.Helper()
	all := AllMkfs(t)
	best := all[0]
	for _, m := range all[1:] {
		if m.AtLeast(best.Version[0], best.Version[1]) {
			best = m
		}
	}
	return best
}

var versionPattern = regexp.MustCompile(`(\d+)\.(\d+)(?:\.(\d+))?`)

// probe asks a mkfs.erofs for its version. Before 1.7 there was no --version,
// but -V worked.
func probe(t testing.TB, path string) Mkfs {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), path, "-V").CombinedOutput()
	found := versionPattern.FindStringSubmatch(string(out))
	if found == nil {
		t.Fatalf("%s -V says no version: %v: %s", path, err, out)
	}
	m := Mkfs{Path: path}
	for i := range m.Version {
		m.Version[i], _ = strconv.Atoi(found[i+1]) // an absent patch level is 0
	}
	return m
}

// Build makes an image of the tree in a temporary directory of the test and
// returns its path. Before 1.6, mkfs.erofs cut names of 255 bytes short and
// then failed, so for it they are left out.
func Build(t testing.TB, mkfs Mkfs, opts []string, tree string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.erofs")
	args := []string{"--quiet", "-U", "c1b9d5a2-f162-11cf-9ece-0020afc76f16"}
	if !mkfs.AtLeast(1, 6) {
		args = append(args, "--exclude-regex=(^|/)[^/]{255}$")
	}
	args = append(args, opts...)
	Run(t, mkfs.Path, append(args, path, tree)...)
	return path
}

// Run runs a program and fails the test with its output when it fails.
func Run(t testing.TB, name string, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out[max(0, len(out)-4096):])
	}
}
