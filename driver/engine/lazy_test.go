package engine

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/test/images"
	"github.com/erofs-csi/erofs-csi/test/registry"
)

// manyFiles makes a tree of files of 1 MiB that compress to nothing less.
func manyFiles(t *testing.T, n int) string {
	t.Helper()
	dir := t.TempDir()
	for i := range n {
		var data []byte
		for sum := sha256.Sum256(fmt.Append(nil, i)); len(data) < 1<<20; sum = sha256.Sum256(sum[:]) {
			data = append(data, sum[:]...)
		}
		path := filepath.Join(dir, fmt.Sprintf("file%02d", i))
		if err := errors.Join(os.WriteFile(path, data, 0o644), os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0))); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func wantSameFile(t *testing.T, tree, front, name string) {
	t.Helper()
	want, err := os.ReadFile(filepath.Join(tree, name))
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(front, name))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s: %d bytes, which differ: %v", name, len(got), err)
	}
}

// TestLazyImage reads an image that is not complete, from which nothing may be shared,
// and again when it is.
func TestLazyImage(t *testing.T) {
	tree := manyFiles(t, 24)
	mkfs := images.NewestMkfs(t)
	image := images.Build(t, mkfs, nil, tree)
	other := images.Build(t, mkfs, []string{"-zlz4"}, tree)
	truth := images.KernelMount(t, image)
	eachFront(t, func(t *testing.T, front string) {
		reg := registry.New(t, image)
		state := stateDir(t)
		ch := startChild(t, childConfig{StateDir: state, Front: front, Mounts: []childMount{
			{Domain: "x", Volume: "lazy", Image: reg.Ref, Incomplete: true},
			{Domain: "x", Image: other},
		}})
		lazy, whole := ch.mustFront(t, 0, front), ch.mustFront(t, 1, front)
		if !strings.Contains(ch.Fronts[0].Reason, "lazy ") || !strings.Contains(ch.Fronts[0].Reason, " %") {
			t.Errorf("reason %q", ch.Fronts[0].Reason)
		}
		for _, name := range []string{"file01", "file02", "file20"} {
			wantSameFile(t, tree, lazy, name)
		}
		wantSameFile(t, tree, whole, "file01")
		if images.SamePages(t, lazy+"/file01", whole+"/file01") {
			t.Error("unverified bytes are in a shared inode")
		}
		s, err := ReadStatus(t.Context(), state)
		if err != nil {
			t.Fatal(err)
		}
		for _, im := range s[0].Domains[0].Images {
			if lazy := im.Image == s[0].Domains[0].Fronts[0].Image && strings.HasPrefix(im.Image, "127."); lazy &&
				(im.PulledBytes <= 0 || im.PulledBytes >= im.ImageBytes || im.ImageBytes != int64(len(reg.Blob)) || im.BytesResident < 3<<20) {
				t.Errorf("status %+v", im)
			}
		}
		held, err := os.Open(lazy + "/file20")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = held.Close() }()

		reg.GoOn()
		f := ch.waitFront(t, 0, "complete and hashed", func(f childFront) bool {
			return !strings.Contains(f.Reason, "lazy ") && !strings.Contains(f.Reason, "hashed")
		})
		if front == FrontOverlay && !strings.Contains(f.Reason, "1 files were opened before") {
			t.Errorf("reason %q", f.Reason)
		}
		if n := reg.Sent.Load(); n > int64(len(reg.Blob))*21/20+4<<20 {
			t.Errorf("%d bytes were sent of %d", n, len(reg.Blob))
		}
		for _, c := range []struct {
			name string
			want bool
			why  string
		}{
			{"file05", true, "nobody had opened it before"},
			{"file01", false, "both images had opened it before"},
			// Its kernel inode is the shared one now, where content has inodes of its own.
			{"file02", front != FrontTree, "the lazy image alone had opened it"},
			{"file20", front != FrontTree, "it is still open"},
		} {
			wantSameFile(t, tree, whole, c.name)
			wantSameFile(t, tree, lazy, c.name)
			if got := images.SamePages(t, lazy+"/"+c.name, whole+"/"+c.name); got != c.want {
				t.Errorf("%s: same pages: %v, want %v: %s", c.name, got, c.want, c.why)
			}
		}
		images.CompareTrees(t, truth, lazy, compareOptions(front))
		p := make([]byte, 100)
		if _, err := held.ReadAt(p, 1000); err != nil {
			t.Error(err)
		}
		// Mounted again it is like any other.
		ch.toggle(t, 0)
		_ = held.Close()
		ch.toggle(t, 0)
		lazy = ch.mustFront(t, 0, front)
		wantSameFile(t, tree, lazy, "file01")
		if !images.SamePages(t, lazy+"/file01", whole+"/file01") {
			t.Error("mounted again, it does not share")
		}
	})
}

// TestLazySpoiledImage: what was read turns out to be of another image.
func TestLazySpoiledImage(t *testing.T) {
	tree := manyFiles(t, 24)
	image := images.Build(t, images.NewestMkfs(t), nil, tree)
	eachFront(t, func(t *testing.T, front string) {
		reg := registry.New(t, image)
		reg.Wrong.Store(int64(len(reg.Blob)) / 2)
		ch := startChild(t, childConfig{Front: front, Mounts: []childMount{
			{Domain: "x", Volume: "v", Image: reg.Ref, Incomplete: true},
			{Domain: "x", Volume: "w", Image: reg.Ref, Incomplete: true},
		}})
		dir := ch.mustFront(t, 0, front)
		wantSameFile(t, tree, dir, "file01")
		mapped, err := os.Open(dir + "/file01")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = mapped.Close() }()
		reg.GoOn()
		f := ch.waitFront(t, 0, "taken out", func(f childFront) bool { return f.Err != "" })
		if !strings.Contains(f.Err, "digest mismatch") || strings.Count(f.Err, "sha256:") != 2 {
			t.Errorf("health: %s", f.Err)
		}
		var n int
		for start := time.Now(); time.Since(start) < 10*time.Second; time.Sleep(20 * time.Millisecond) {
			if n, err = mapped.ReadAt(make([]byte, 100), 500_000); err != nil {
				break
			}
		}
		if !errors.Is(err, unix.EIO) {
			t.Errorf("read %d bytes of a file that was read before: %v, want EIO", n, err)
		}
		if _, err := os.ReadFile(dir + "/file03"); !errors.Is(err, unix.EIO) {
			t.Errorf("read a file that was not read before: %v, want EIO", err)
		}
		// Another volume gets the image anew, while this one still has the front.
		reg.Wrong.Store(-1)
		ch.toggle(t, 1)
		ch.toggle(t, 1)
		again := ch.mustFront(t, 1, front)
		for _, name := range []string{"file01", "file03", "file12"} {
			wantSameFile(t, tree, again, name)
		}
		if _, err := os.ReadFile(dir + "/file03"); !errors.Is(err, unix.EIO) {
			t.Errorf("the front of the spoiled image reads %v, want EIO", err)
		}
		_ = mapped.Close()
		ch.toggle(t, 0)
		ch.toggle(t, 0)
		images.CompareTrees(t, images.KernelMount(t, image), ch.mustFront(t, 0, front), compareOptions(front))
	})
}

// TestLazyImageComesBack kills the process with the registry down, and starts another.
func TestLazyImageComesBack(t *testing.T) {
	tree := manyFiles(t, 24)
	image := images.Build(t, images.NewestMkfs(t), nil, tree)
	reg := registry.New(t, image)
	state, cache := stateDir(t), t.TempDir()
	mount := childMount{Domain: "x", Volume: "v", Image: reg.Ref, Incomplete: true}
	ch := startChild(t, childConfig{StateDir: state, CacheDir: cache, Mounts: []childMount{mount}})
	wantSameFile(t, tree, ch.Fronts[0].Path, "file15")
	ch.kill(t)
	reg.Down.Store(true)
	before := reg.Sent.Load()
	for last := int64(-1); before != last; before = reg.Sent.Load() { // answers under way
		last = before
		time.Sleep(200 * time.Millisecond)
	}
	mount.Never = true
	ch = startChild(t, childConfig{StateDir: state, CacheDir: cache, Mounts: []childMount{mount}})
	if err := ch.Fronts[0].Err; err != "" {
		t.Fatal(err)
	}
	wantSameFile(t, tree, ch.Fronts[0].Path, "file15")
	if n := reg.Sent.Load(); n != before {
		t.Errorf("%d bytes were sent for what was there", n-before)
	}
	ch.waitFront(t, 0, "in trouble", func(f childFront) bool { return strings.Contains(f.Trouble, "502") })
	if said := troubleInStatus(t, state); !strings.Contains(said, "502") {
		t.Errorf("the status says %q, want that the registry answers 502", said)
	}
	done := make(chan struct{})
	go func() { // it waits for the registry
		defer close(done)
		wantSameFile(t, tree, ch.Fronts[0].Path, "file09")
	}()
	time.Sleep(300 * time.Millisecond)
	reg.Down.Store(false)
	reg.GoOn()
	<-done
	f := ch.waitFront(t, 0, "complete", func(f childFront) bool { return !strings.Contains(f.Reason, "lazy ") })
	if f.Err != "" || f.Trouble != "" {
		t.Errorf("health: %+v", f)
	}
	if said := troubleInStatus(t, state); said != "" {
		t.Errorf("the status of what is well says %q", said)
	}
	images.CompareTrees(t, images.KernelMount(t, image), ch.Fronts[0].Path, images.CompareOptions{})
	if n, all := reg.Sent.Load(), int64(len(reg.Blob)); n > all*21/20+2<<20 {
		t.Errorf("%d bytes were sent of %d", n, all)
	}
}

// troubleInStatus is what the status says of the one front that there is.
func troubleInStatus(t *testing.T, state string) string {
	t.Helper()
	list, err := ReadStatus(t.Context(), state)
	if err != nil || len(list) != 1 || len(list[0].Domains) != 1 || len(list[0].Domains[0].Fronts) != 1 {
		t.Fatalf("status: %+v, %v", list, err)
	}
	return list[0].Domains[0].Fronts[0].Trouble
}

// TestLazyTrusted: with an image's own fingerprints its files share at once.
func TestLazyTrusted(t *testing.T) {
	mkfs := images.NewestMkfs(t)
	if !mkfs.AtLeast(1, 9) {
		return // it can't make fingerprints
	}
	tree := manyFiles(t, 24)
	opts := []string{"--xattr-inode-digest=trusted.erofs.fingerprint"}
	image := images.Build(t, mkfs, opts, tree)
	other := images.Build(t, mkfs, append(opts, "-zlz4"), tree)
	reg := registry.New(t, image)
	ch := startChild(t, childConfig{Mounts: []childMount{
		{Domain: "x", Image: reg.Ref, Incomplete: true, Trusted: true},
		{Domain: "x", Image: other, Trusted: true},
	}})
	for _, f := range ch.Fronts {
		wantSameFile(t, tree, f.Path, "file07")
	}
	if !images.SamePages(t, ch.Fronts[0].Path+"/file07", ch.Fronts[1].Path+"/file07") {
		t.Error("they do not share")
	}
	if r := ch.look(t, 0).Reason; !strings.Contains(r, "lazy ") {
		t.Errorf("reason %q", r)
	}
}

// TestLazyAfterShared: an image that was pulled lazily, shared, and left while its domain
// goes on, is lost by the node, and comes back as a lazy one: what the kernel remembers of
// its files is not what they were.
func TestLazyAfterShared(t *testing.T) {
	tree := manyFiles(t, 24)
	image := images.Build(t, images.NewestMkfs(t), nil, tree)
	small := images.Build(t, images.NewestMkfs(t), nil, images.TinyTree(t))
	eachFront(t, func(t *testing.T, front string) {
		reg := registry.New(t, image)
		cache := t.TempDir()
		ch := startChild(t, childConfig{StateDir: stateDir(t), CacheDir: cache, Front: front, Mounts: []childMount{
			{Domain: "x", Volume: "lazy", Image: reg.Ref, Incomplete: true},
			{Domain: "x", Image: small},
		}})
		for _, name := range []string{"file01", "file02"} {
			wantSameFile(t, tree, ch.mustFront(t, 0, front), name)
		}
		reg.GoOn()
		ch.waitFront(t, 0, "complete and hashed", func(f childFront) bool {
			return !strings.Contains(f.Reason, "lazy ") && !strings.Contains(f.Reason, "hashed")
		})
		wantSameFile(t, tree, ch.mustFront(t, 0, front), "file03")
		held, err := os.Open(filepath.Join(ch.mustFront(t, 0, front), "file02")) // keeps its name in the kernel
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = held.Close() }()
		ch.toggle(t, 0)
		for _, dir := range []string{"blobs", "refs"} {
			if err := os.RemoveAll(filepath.Join(cache, dir, "sha256")); err != nil {
				t.Fatal(err)
			}
		}
		ch.toggle(t, 0)
		for _, name := range []string{"file01", "file02", "file03", "file04"} {
			wantSameFile(t, tree, ch.mustFront(t, 0, front), name)
		}
	})
}

// TestResumeWhatIsLazyAgain: a front was mounted from an image that was complete, and whose
// files it names by what they share; the next engine has the image as a lazy one, which
// does not know that. It is mounted anew.
func TestResumeWhatIsLazyAgain(t *testing.T) {
	tree := manyFiles(t, 24)
	image := images.Build(t, images.NewestMkfs(t), nil, tree)
	small := images.Build(t, images.NewestMkfs(t), nil, images.TinyTree(t))
	eachFront(t, func(t *testing.T, front string) {
		reg := registry.New(t, image)
		cache := t.TempDir()
		c := childConfig{StateDir: stateDir(t), CacheDir: cache, Front: front, Holder: startHolder(t), Mounts: []childMount{
			{Domain: "x", Image: small},
			{Domain: "x", Volume: "lazy", Image: reg.Ref, Incomplete: true},
		}}
		ch := startChild(t, c)
		wantSameFile(t, tree, ch.mustFront(t, 1, front), "file01")
		reg.GoOn()
		ch.waitFront(t, 1, "complete and hashed", func(f childFront) bool {
			return !strings.Contains(f.Reason, "lazy ") && !strings.Contains(f.Reason, "hashed")
		})
		ch.toggle(t, 1)
		ch.toggle(t, 1) // as a complete image
		wantSameFile(t, tree, ch.mustFront(t, 1, front), "file02")
		ch.kill(t)
		for _, dir := range []string{"blobs", "refs"} {
			if err := os.RemoveAll(filepath.Join(cache, dir, "sha256")); err != nil {
				t.Fatal(err)
			}
		}
		ch = startChild(t, c)
		for _, name := range []string{"file01", "file02", "file03", "file04"} {
			wantSameFile(t, tree, ch.mustFront(t, 1, front), name)
		}
	})
}
