package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Files that v1 and v2 have in common, under names of their own. The large one is above
// the 256 KiB from which the node keeps plain copies, the small one below.
const (
	largeSize = 8 << 20
	smallSize = 200 << 10
)

// shared are their names in the images.
var shared = map[string][2]string{
	"v1": {"lib/large.bin", "lib/small.bin"},
	"v2": {"opt/renamed.bin", "opt/deep/er/small.bin"},
}

// makeTree fills a directory for a version of the image. Equal parts depend on the run
// alone, so that each run has content that no node has seen.
func (r *run) makeTree(dir, version string) error {
	files := map[string][]byte{
		shared[version][0]:         random(r.id+"large", largeSize),
		shared[version][1]:         random(r.id+"small", smallSize),
		"version":                  []byte(version + "\n"),
		"etc/only-" + version:      random(r.id+version, 1<<20),
		"etc/empty":                nil,
		"etc/name with spaces, é!": []byte("spaces\n"),
		"etc/one":                  []byte("1"),
		"etc/page":                 random(r.id+"page", 4096),
		"etc/page and one":         random(r.id+"page+1", 4097),
		"sub/dir/inner":            []byte("inner of " + version + "\n"),
	}
	for i := range 300 {
		files[fmt.Sprintf("many/%02d/f%d", i%20, i)] = random(fmt.Sprint(r.id, i), 100+i*37)
	}
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
	}
	program, err := os.ReadFile(r.tool)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/tool"), program, 0o755); err != nil {
		return err
	}
	for _, err := range []error{
		os.Symlink("../version", filepath.Join(dir, "etc/link")),
		os.Symlink("nowhere", filepath.Join(dir, "etc/dangling")),
		os.Link(filepath.Join(dir, "etc/one"), filepath.Join(dir, "etc/hardlink")),
		os.Chmod(filepath.Join(dir, "etc/page"), 0o640),
		os.Chmod(filepath.Join(dir, "sub"), 0o775),
	} {
		if err != nil {
			return err
		}
	}
	when := time.Unix(1700000000, 0)
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type() == fs.ModeSymlink {
			return err
		}
		return os.Chtimes(path, when, when)
	})
}

// random are bytes that depend on a seed.
func random(seed string, n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(seed))).Read(data) // never fails
	return data
}

// wantTree compares a directory in a pod with one here, as the pod's programs see it:
// names, types, modes, owners, times, links and the SHA-256 of all files.
func (r *run) wantTree(t *testing.T, pod, mounted, dir string) {
	t.Helper()
	const script = `cd "$1" && find . -exec stat -c '%f %u %g %n' {} + && find . ! -type l -exec stat -c 'mtime %Y %n' {} + &&
find . -type f -exec stat -c 'file %s %h %n' {} + && find . -type l -exec sh -c 'for n; do echo "link $(readlink "$n") $n"; done' sh {} + &&
find . -type f -exec sha256sum {} +`
	got := strings.Split(strings.TrimSuffix(r.inPod(t, pod, "sh", "-c", script, "sh", mounted), "\n"), "\n")
	want := describe(t, dir)
	slices.Sort(got)
	slices.Sort(want)
	if slices.Equal(got, want) {
		return
	}
	diff := 0
	for _, line := range got {
		if _, ok := slices.BinarySearch(want, line); !ok && diff < 20 {
			diff++
			t.Errorf("in the pod only: %s", line)
		}
	}
	for _, line := range want {
		if _, ok := slices.BinarySearch(got, line); !ok && diff < 40 {
			diff++
			t.Errorf("not in the pod: %s", line)
		}
	}
	t.Fatalf("%s has %d lines, want %d", mounted, len(got), len(want))
}

// describe says of a directory here what wantTree's script says of one in a pod.
func describe(t *testing.T, dir string) (lines []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := "." + strings.TrimPrefix(path, dir)
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return err
		}
		lines = append(lines, fmt.Sprintf("%x %d %d %s", st.Mode, st.Uid, st.Gid, name))
		if st.Mode&syscall.S_IFMT == syscall.S_IFLNK {
			target, err := os.Readlink(path)
			lines = append(lines, fmt.Sprintf("link %s %s", target, name))
			return err
		}
		lines = append(lines, fmt.Sprintf("mtime %d %s", st.Mtim.Sec, name))
		if st.Mode&syscall.S_IFMT == syscall.S_IFREG {
			data, err := os.ReadFile(path)
			sum := sha256.Sum256(data)
			lines = append(lines, fmt.Sprintf("file %d %d %s", st.Size, st.Nlink, name), hex.EncodeToString(sum[:])+"  "+name)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// topNames are the names in a directory here, sorted.
func topNames(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	for _, e := range entries {
		names[e.Name()] = true
	}
	return slices.Sorted(maps.Keys(names))
}
