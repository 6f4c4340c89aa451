package engine

import (
	"bytes"
	"crypto/sha256"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/fingerprint"
	"github.com/erofs-csi/erofs-csi/erofs/share"
	"github.com/erofs-csi/erofs-csi/nodecache/filestore"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// inodesOf lists the files in the store of files below a cache directory.
func inodesOf(t *testing.T, cacheDir string) map[string]uint64 {
	t.Helper()
	inodes := make(map[string]uint64)
	matches, err := filepath.Glob(filepath.Join(cacheDir, "files", "*", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range matches {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		inodes[path] = st.Ino
	}
	return inodes
}

// Large files of a domain come from plain files, are one in memory whatever the
// image, and can be read when nothing serves them any more; small ones come from the
// content mount.
func TestStoredFiles(t *testing.T) {
	a, b := twoVersions(t)
	for _, dir := range []string{a, b} {
		if err := os.WriteFile(dir+"/small", bytes.Repeat([]byte("small "), 1000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mkfs := images.NewestMkfs(t)
	plain, lz4 := images.Build(t, mkfs, nil, a), images.Build(t, mkfs, []string{"-zlz4hc"}, b)
	want := []string{images.KernelMount(t, plain), images.KernelMount(t, lz4)}
	eachFront(t, func(t *testing.T, front string) {
		if front == FrontTree {
			return // has no layers
		}
		config := childConfig{
			StateDir: stateDir(t), Front: front, CacheDir: t.TempDir(), Store: 1 << 30,
			Mounts: []childMount{
				{Domain: "x", Volume: "v", Image: plain},
				{Domain: "x", Volume: "w", Image: lz4},
				{Domain: "y", Image: plain},
				{Volume: "alone", Image: plain},
				{Domain: "limited", Image: plain, Limit: MinCacheLimit},
			},
		}
		ch := startChild(t, config)
		var dir []string
		for i := range ch.Fronts {
			dir = append(dir, ch.mustFront(t, i, front))
			images.CompareTrees(t, want[i%2*(1-i/2)], dir[i], compareOptions(front))
		}
		// Five contents of x, four of y: copies are one.
		if n := len(inodesOf(t, config.CacheDir)); n != 9 {
			t.Errorf("%d files are stored, want 9: %v", n, inodesOf(t, config.CacheDir))
		}
		for _, c := range []struct {
			what, one, two string
			want           bool
		}{
			{"another image and compression", dir[0] + "/same", dir[1] + "/same", true},
			{"another name, mode and time", dir[0] + "/moved", dir[1] + "/removed", true},
			{"other content", dir[0] + "/other", dir[1] + "/other", false},
			{"another domain", dir[0] + "/same", dir[2] + "/same", false},
			{"no domain", dir[0] + "/same", dir[3] + "/same", false},
			{"a domain with a limit", dir[0] + "/same", dir[4] + "/same", false},
			{"a small file", dir[0] + "/small", dir[1] + "/small", true},
		} {
			if got := images.SamePages(t, c.one, c.two); got != c.want {
				t.Errorf("%s: same physical pages %v, want %v", c.what, got, c.want)
			}
		}
		d := xStatus(t, config.StateDir)
		const file = (3<<20 + 123 + 31) / 32 * 32
		if d.StoredFiles != 5 || d.StoredBytes != 5*file || d.BytesResident < file || d.BytesSaved < file {
			t.Errorf("status %+v: want 5 stored files", d)
		}
		if dropped, err := DropCaches(t.Context(), config.StateDir, DropFilter{Domain: "x"}); err != nil || dropped.Before == 0 || dropped.After != 0 {
			t.Errorf("dropped %+v, %v", dropped, err)
		}
		if d := xStatus(t, config.StateDir); d.BytesResident != 0 {
			t.Errorf("%d bytes are left in the page cache after the drop", d.BytesResident)
		}

		// Without a server, what is stored can still be read, also what nobody has read.
		ch.kill(t)
		for _, name := range []string{"/same", "/moved"} {
			if front != FrontOverlay {
				break // opens are ours to answer
			}
			data, err := os.ReadFile(dir[0] + name)
			good, _ := os.ReadFile(a + name)
			if err != nil || !bytes.Equal(data, good) {
				t.Errorf("%s without a server: %d bytes, %v", name, len(data), err)
			}
		}

		// The next engine takes the files that have reached the disk, and makes the rest.
		ch = startChild(t, config)
		images.CompareTrees(t, want[0], ch.mustFront(t, 0, front), compareOptions(front))
		ch.stop(t)
		before := inodesOf(t, config.CacheDir)
		if len(before) != 9 {
			t.Errorf("%d files are stored, want 9", len(before))
		}
		ch = startChild(t, config)
		images.CompareTrees(t, want[1], ch.mustFront(t, 1, front), compareOptions(front))
		ch.stop(t)
		if after := inodesOf(t, config.CacheDir); !maps.Equal(before, after) {
			t.Errorf("files were made again: %v, %v", before, after)
		}
	})
}

// xStatus is the status of the domain "x" of the one engine.
func xStatus(t *testing.T, state string) DomainStatus {
	t.Helper()
	list, err := ReadStatus(t.Context(), state)
	if err != nil || len(list) != 1 {
		t.Fatalf("status %+v, %v", list, err)
	}
	for _, d := range list[0].Domains {
		if d.Name == "x" {
			return d
		}
	}
	t.Fatalf("no domain x: %+v", list)
	return DomainStatus{}
}

// A store without room leaves files to the content mount.
func TestStoreIsFull(t *testing.T) {
	a, _ := twoVersions(t)
	image := images.Build(t, images.NewestMkfs(t), nil, a)
	config := childConfig{StateDir: t.TempDir(), CacheDir: t.TempDir(), Store: 7 << 20, Mounts: []childMount{{Domain: "x", Image: image}}}
	ch := startChild(t, config)
	images.CompareTrees(t, images.KernelMount(t, image), ch.mustFront(t, 0, FrontOverlay), compareOptions(FrontOverlay))
	if d := xStatus(t, config.StateDir); d.StoredFiles != 2 || d.BytesResident < 4*3<<20 {
		t.Errorf("status %+v: want two of four contents to be stored, and all to be counted", d)
	}
}

// What the kernel knows from the content mount is not stored, nor what is not the
// content that it should be; what is stored already is used.
func TestStoreFiles(t *testing.T) {
	tree := t.TempDir()
	texts := map[string][]byte{}
	for _, name := range []string{"known", "new", "there", "bad"} {
		texts[name] = bytes.Repeat([]byte(name+" "), minStored/2)
		if err := os.WriteFile(filepath.Join(tree, name), texts[name], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(images.Build(t, images.NewestMkfs(t), nil, tree))
	if err != nil {
		t.Fatal(err)
	}
	im, err := erofs.Open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	list, err := fingerprint.Files(im)
	if err != nil {
		t.Fatal(err)
	}
	fp, _, err := fingerprint.Build(t.Context(), im, list, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	store, err := filestore.Open(filestore.Config{Dir: t.TempDir(), Limit: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	layer, err := store.Layer("x")
	if err != nil {
		t.Fatal(err)
	}
	d := &domain{share: share.NewDomain("x"), layer: layer}
	member, err := d.share.Join(im, share.NewTag("a"), fp)
	if err != nil {
		t.Fatal(err)
	}
	j := &joined{domain: d, member: member}
	path := func(name string) string {
		return share.ContentPath(share.Key{Sum: sha256.Sum256(texts[name]), Size: int64(len(texts[name]))})
	}
	d.share.Find(path("known"), 0)
	if err := layer.Put(t.Context(), path("there"), bytes.NewReader(texts["there"])); err != nil {
		t.Fatal(err)
	}
	i := bytes.Index(data, texts["bad"][:100])
	data[i] ^= 1 // since it was hashed
	var candidates []share.Key
	for _, text := range texts {
		candidates = append(candidates, share.Key{Sum: sha256.Sum256(text), Size: int64(len(text))})
	}
	storeFiles(t.Context(), layer, j, candidates)
	got := j.storedNames()
	slices.Sort(got)
	want := []string{path("new"), path("there")}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("stored %v, want %v", got, want)
	}
	for _, name := range []string{"known", "bad"} {
		if layer.Hold(path(name)) {
			t.Errorf("%s is stored", name)
		}
	}
	j.unstore()
	if len(j.storedNames()) != 0 || strings.Contains(strings.Join(got, " "), "private") {
		t.Errorf("%v are held", j.storedNames())
	}
}
