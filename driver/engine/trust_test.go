package engine

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/test/images"
)

// noise is so many bytes that depend on the seed alone.
func noise(seed string, n int) []byte {
	data := make([]byte, 0, n+sha256.Size)
	for i := uint64(0); len(data) < n; i++ {
		sum := sha256.Sum256(binary.LittleEndian.AppendUint64([]byte(seed), i))
		data = append(data, sum[:]...)
	}
	return data[:n]
}

// tree makes a directory with files.
func tree(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// forgery is an image with a good file, and one that claims of its evil file of the
// same size that it were the good one. Both have an honest file that is the same.
type forgery struct {
	how              string
	honest, forged   string // images
	good, evil, same []byte // what is in them
}

// forgeries makes one by each way to forge. There is none without a mkfs.erofs that
// writes fingerprints (1.9).
func forgeries(t *testing.T) []forgery {
	t.Helper()
	mkfs := images.NewestMkfs(t)
	if !mkfs.AtLeast(1, 9) {
		return nil
	}
	const size = 1<<20 + 77
	f := forgery{good: noise("good", size), evil: noise("evil", size), same: noise("same", size)}
	evil := tree(t, map[string][]byte{"file": f.evil, "same": f.same})
	f.honest = images.Build(t, mkfs, []string{"--xattr-inode-digest"}, tree(t, map[string][]byte{"file": f.good, "same": f.same}))
	byPatch, byTree := f, f

	byPatch.how = "patch"
	byPatch.forged = images.Build(t, mkfs, []string{"--xattr-inode-digest"}, evil)
	images.Forge(t, byPatch.forged, f.evil, f.good)

	// No byte of the image is touched: mkfs.erofs takes an attribute along that has the
	// name of the fingerprints. Which of the two is found first depends on both; the
	// forger changes a byte somewhere until it is theirs.
	byTree.how = "tree"
	sum := sha256.Sum256(f.good)
	forged := "sha256:" + string(sum[:])
	for i := range 64 {
		byTree.evil = noise(fmt.Sprint("evil", i), size)
		file := filepath.Join(tree(t, map[string][]byte{"file": byTree.evil, "same": f.same}), "file")
		if err := unix.Setxattr(file, "user.fp", []byte(forged), 0); err != nil {
			t.Fatal(err)
		}
		byTree.forged = images.Build(t, mkfs, []string{"--xattr-inode-digest=user.fp"}, filepath.Dir(file))
		value := make([]byte, 100)
		n, err := unix.Getxattr(filepath.Join(images.KernelMount(t, byTree.forged), "file"), "user.fp", value)
		if err != nil {
			t.Fatal(err)
		}
		if string(value[:n]) == forged {
			return []forgery{byPatch, byTree}
		}
	}
	t.Fatal("mkfs.erofs does not let a tree forge fingerprints: this test proves nothing")
	return nil
}

// eachForgery runs a test for each way to forge.
func eachForgery(t *testing.T, test func(t *testing.T, f forgery)) {
	t.Helper()
	for _, f := range forgeries(t) {
		t.Run(f.how, func(t *testing.T) { test(t, f) })
	}
}

// content fails the test when a file is not what is wanted, however it is read.
func content(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, other than the %d that are wanted: %v", path, len(got), len(want), err)
	}
	if got := images.ReadByMmap(t, path); !bytes.Equal(got, want) {
		t.Errorf("%s by mmap: %d bytes, other than the %d that are wanted", path, len(got), len(want))
	}
}

// An image that claims another's content for its own reads as what it is, shares that
// file with none, and is told of.
func TestForgeryIsHarmless(t *testing.T) {
	eachForgery(t, func(t *testing.T, f forgery) {
		eachFront(t, func(t *testing.T, front string) {
			for _, first := range []string{f.forged, f.honest} { // whoever joins first
				ch := startChild(t, childConfig{Front: front, Mounts: []childMount{
					{Domain: "x", Volume: "1", Image: first}, {Domain: "x", Volume: "f", Image: f.forged}, {Domain: "x", Volume: "h", Image: f.honest},
				}})
				forged, honest := ch.mustFront(t, 1, front), ch.mustFront(t, 2, front)
				content(t, forged+"/file", f.evil)
				content(t, honest+"/file", f.good)
				content(t, forged+"/same", f.same)
				if images.SamePages(t, forged+"/file", honest+"/file") {
					t.Error("the forged file has pages of the good one")
				}
				if front != FrontTree && !images.SamePages(t, forged+"/same", honest+"/same") {
					t.Error("the honest file of the forged image is not shared")
				}
				if r := ch.Fronts[1].Reason; !strings.Contains(r, "1 of 2 files") || !strings.Contains(r, "not what the image says") {
					t.Errorf("reason %q does not tell of the forged file", r)
				}
				if r := ch.Fronts[2].Reason; strings.Contains(r, "files") {
					t.Errorf("reason %q of the honest image", r)
				}
				ch.stop(t)
				if log := ch.stderr.String(); !strings.Contains(log, `forged=1`) || !strings.Contains(log, f.forged) {
					t.Errorf("the log does not tell of the forged file: %s", log)
				}
			}
		})
	})
}

// With trusted fingerprints the same forgery has its way, with those that trust, and
// with nobody else: not in the same domain by name, whichever comes first, and not
// after the volumes were mounted again.
func TestTrustIsContained(t *testing.T) {
	eachForgery(t, func(t *testing.T, f forgery) {
		eachFront(t, func(t *testing.T, front string) {
			cache, state := stateDir(t), stateDir(t)
			trusted := []childMount{
				{Domain: "x", Volume: "tf", Image: f.forged, Trusted: true, Keep: true}, {Domain: "x", Volume: "th", Image: f.honest, Trusted: true, Keep: true},
			}
			verified := []childMount{
				{Domain: "x", Volume: "vf", Image: f.forged, Keep: true},
				{Domain: "x", Volume: "vh", Image: f.honest, Keep: true},
				{Domain: "trusted:x", Volume: "n", Image: f.honest},
			}
			for _, c := range []childConfig{
				{Mounts: append(slices.Clone(trusted), verified...)},
				{Mounts: append(slices.Clone(verified), trusted...)},
				{Mounts: append(slices.Clone(trusted), verified...)},
			} {
				c.StateDir, c.CacheDir, c.Front, c.Store = state, cache, front, 1<<30
				ch := startChild(t, c)
				at := make(map[string]string)
				for i, m := range c.Mounts {
					at[m.Volume] = ch.mustFront(t, i, front)
				}
				// In one front of two that trust, the forged file is the good one or the good
				// one is the forged: it is which joined first that counts.
				if front != FrontTree {
					content(t, at["tf"]+"/file", f.evil)
					content(t, at["th"]+"/file", f.evil)
				}
				for range 2 {
					content(t, at["vf"]+"/file", f.evil)
					content(t, at["vh"]+"/file", f.good)
					content(t, at["n"]+"/file", f.good)
					for _, m := range c.Mounts {
						content(t, at[m.Volume]+"/same", f.same)
					}
					for _, name := range []string{"/file", "/same"} {
						if images.SamePages(t, at["th"]+name, at["vh"]+name) || images.SamePages(t, at["th"]+name, at["n"]+name) {
							t.Errorf("%s: a volume that trusts shares pages with one that does not", name)
						}
					}
					for i, m := range c.Mounts {
						ch.toggle(t, i)
						ch.toggle(t, i)
						at[m.Volume] = ch.mustFront(t, i, front)
					}
				}
				domains := make(map[string]bool)
				list, err := ReadStatus(t.Context(), state)
				if err != nil || len(list) != 1 {
					t.Fatalf("status %+v, %v", list, err)
				}
				for _, d := range list[0].Domains {
					domains[fmt.Sprintf("%s %t %s %d", d.Name, d.Trusted, d.Engine, len(d.Fronts))] = true
					if d.Trusted && d.StoredFiles != 0 {
						t.Errorf("domain %+v: nothing that was not hashed may be kept as a plain file", d)
					}
				}
				if !domains["x true fuse 2"] || !domains["x false fuse 2"] || !domains["trusted:x false fuse 1"] || len(domains) != 3 {
					t.Errorf("domains %v", domains)
				}
				ch.stop(t)
			}
		})
	})
}

// bytesRead is what a process has read from storage so far, or cached.
func bytesRead(t *testing.T, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if number, ok := strings.CutPrefix(line, "rchar: "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no rchar in %q", text)
	return 0
}

// sidecarsOf lists the indexes kept in a cache directory, by their paths.
func sidecarsOf(t *testing.T, cache string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(cache, func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, "."+indexSidecar) {
			list = append(list, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// Trusted fingerprints are not computed and leave no index that could be taken for
// one that was; files that have none share with no other.
func TestTrustComputesNothing(t *testing.T) {
	mkfs := images.NewestMkfs(t)
	if !mkfs.AtLeast(1, 9) {
		return
	}
	data := noise("data", 24<<20)
	files := tree(t, map[string][]byte{"a": data, "b": noise("b", 5000), "empty": nil})
	with, without := images.Build(t, mkfs, []string{"--xattr-inode-digest=user.fp"}, files), images.Build(t, mkfs, nil, files)
	eachFront(t, func(t *testing.T, front string) {
		cache := t.TempDir()
		mounts := []childMount{{Domain: "x", Volume: "1", Image: with, Trusted: true}, {Domain: "x", Volume: "2", Image: without, Trusted: true}}
		ch := startChild(t, childConfig{CacheDir: cache, Front: front, Mounts: mounts})
		if n := bytesRead(t, ch.cmd.Process.Pid); n > 8<<20 {
			t.Errorf("%d bytes were read to mount two images of 24 MiB each", n)
		}
		if list := sidecarsOf(t, cache); len(list) != 0 {
			t.Errorf("indexes %v were kept of what nobody computed", list)
		}
		dirs := []string{ch.mustFront(t, 0, front), ch.mustFront(t, 1, front)}
		for _, dir := range dirs {
			content(t, dir+"/a", data)
		}
		if images.SamePages(t, dirs[0]+"/a", dirs[1]+"/a") {
			t.Error("a file without a fingerprint shares")
		}
		if r := ch.Fronts[1].Reason; !strings.Contains(r, "2 of 2 files have no fingerprint") {
			t.Errorf("reason %q", r)
		}
		ch.stop(t)
		verified := startChild(t, childConfig{CacheDir: cache, Front: front, Mounts: []childMount{{Domain: "x", Image: with}}})
		if n := bytesRead(t, verified.cmd.Process.Pid); n < 24<<20 {
			t.Errorf("%d bytes were read to verify an image of 24 MiB: this test proves nothing", n)
		}
		if list := sidecarsOf(t, cache); len(list) != 1 {
			t.Errorf("indexes %v after the image was verified", list)
		}
	})
}

// The index is computed once for an image and node, and again when it is damaged.
func TestIndexIsReusedAndRebuilt(t *testing.T) {
	mkfs := images.NewestMkfs(t)
	const size = 16 << 20
	files := map[string][]byte{"a": noise("a", size), "b": noise("b", 3000), "copy": noise("b", 3000)}
	image := images.Build(t, mkfs, nil, tree(t, files))
	other := images.Build(t, mkfs, nil, tree(t, map[string][]byte{"z": noise("z", 3000)}))
	cache, state := stateDir(t), stateDir(t)
	start := func(image string) (read int64) {
		t.Helper()
		ch := startChild(t, childConfig{StateDir: state, CacheDir: cache, Front: FrontOverlay, Mounts: []childMount{{Domain: "x", Image: image}}})
		read = bytesRead(t, ch.cmd.Process.Pid)
		if image != other {
			dir := ch.mustFront(t, 0, FrontOverlay)
			for name, data := range files {
				content(t, filepath.Join(dir, name), data)
			}
			if !images.SamePages(t, dir+"/b", dir+"/copy") {
				t.Error("equal files do not share")
			}
		}
		ch.stop(t)
		return read
	}
	start(other)
	list := sidecarsOf(t, cache)
	if len(list) != 1 {
		t.Fatalf("indexes %v", list)
	}
	otherIndex, err := os.ReadFile(list[0])
	if err != nil {
		t.Fatal(err)
	}
	if n := start(image); n < size {
		t.Fatalf("%d bytes were read to hash %d: this test proves nothing", n, size)
	}
	list = slices.DeleteFunc(sidecarsOf(t, cache), func(p string) bool { return p == list[0] })
	if len(list) != 1 {
		t.Fatalf("indexes %v", list)
	}
	good, err := os.ReadFile(list[0])
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(list[0])
	if err != nil {
		t.Fatal(err)
	}
	if n := start(image); n > size/2 {
		t.Errorf("%d bytes were read though there was an index", n)
	}
	// Its mtime is when it was last used.
	if after, err := os.Stat(list[0]); err != nil || !os.SameFile(before, after) {
		t.Errorf("the index was written again: %v", err)
	}
	flipped := slices.Clone(good)
	flipped[len(good)/2] ^= 4
	for what, damaged := range map[string][]byte{
		"empty": {}, "cut": good[:len(good)-1], "half": good[:len(good)/2], "longer": append(slices.Clone(good), 0),
		"bit flip": flipped, "of another image": otherIndex, "zeros": make([]byte, len(good)),
	} {
		if err := os.WriteFile(list[0], damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if n := start(image); n < size {
			t.Errorf("%s: only %d bytes were read to hash the image again", what, n)
		}
		if got, err := os.ReadFile(list[0]); err != nil || !bytes.Equal(got, good) {
			t.Errorf("%s: the index was not mended: %v", what, err)
		}
	}
}
