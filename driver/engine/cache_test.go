package engine

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs/fusefs"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// What a volume had in memory is there for the next one, in the same pages, and
// another volume of the domain finds it as well.
func TestPagesOutliveTheirVolume(t *testing.T) {
	a, b := twoVersions(t)
	mkfs := images.NewestMkfs(t)
	one, two := images.Build(t, mkfs, nil, a), images.Build(t, mkfs, []string{"-zlz4"}, b)
	want := images.KernelMount(t, two)
	eachFront(t, func(t *testing.T, front string) {
		state := stateDir(t)
		ch := startChild(t, childConfig{StateDir: state, Front: front, Mounts: []childMount{
			{Domain: "x", Volume: "v", Image: one, Keep: true},
			{Domain: "x", Volume: "w", Image: two},
			{Volume: "alone", Image: one, Keep: true},
		}})
		ch.toggle(t, 1) // only its turn comes later
		for _, n := range []int{0, 2} {
			name := "/same"
			again := func() bool {
				before := images.PageFrames(t, ch.mustFront(t, n, front)+name)
				ch.toggle(t, n)
				ch.toggle(t, n)
				return slices.Equal(before, images.PageFrames(t, ch.mustFront(t, n, front)+name))
			}
			// An idle kernel may take pages away at any time.
			same := again()
			for range 3 {
				same = same || again()
			}
			if !same {
				t.Errorf("mount %d: the file is in other pages after it was mounted again", n)
			}
		}
		ch.toggle(t, 0)
		if d := xStatus(t, state); len(d.Fronts) != 0 || !slices.Equal(d.Idle, []string{one}) || d.BytesResident < 1<<20 { // of 3 MiB, for the same reason
			t.Errorf("status %+v: want %s to be idle, with its pages", d, one)
		}
		ch.toggle(t, 1)
		images.CompareTrees(t, want, ch.mustFront(t, 1, front), compareOptions(front))

		// An image whose file is removed is not held on to.
		if err := os.Rename(one, one+".kept"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Rename(one+".kept", one) })
		if d, err := DropCaches(t.Context(), state, DropFilter{Domain: "x"}); err != nil || d.Images != 1 || d.Domains != 1 {
			t.Fatalf("%+v, %v; want one idle image to be let go of", d, err)
		}
		if d := xStatus(t, state); len(d.Idle) != 0 || len(d.Fronts) != 1 {
			t.Errorf("status %+v: want no idle images", d)
		}
	})
}

// A domain that has idle images alone goes with them, which is no error.
func TestDropOfAnIdleDomain(t *testing.T) {
	image := images.Build(t, images.NewestMkfs(t), nil, images.TinyTree(t))
	state := stateDir(t)
	ch := startChild(t, childConfig{StateDir: state, Mounts: []childMount{{Domain: "x", Image: image, Keep: true}}})
	ch.toggle(t, 0)
	if d, err := DropCaches(t.Context(), state, DropFilter{Domain: "x"}); err != nil || d != (Dropped{Images: 1}) {
		t.Errorf("%+v, %v; want one image to be let go of", d, err)
	}
	if got := mountsBelow(t, state); len(got) != 1 {
		t.Errorf("mounts are left: %v", got)
	}
	if _, err := DropCaches(t.Context(), state, DropFilter{Domain: "x"}); !errors.Is(err, ErrNotMounted) {
		t.Errorf("the same again: %v, want %v", err, ErrNotMounted)
	}
}

func TestIdleImagesAreFew(t *testing.T) {
	var l idleImages
	for i := range 5 {
		l.images = append(l.images, &joined{key: frontKey{image: fmt.Sprint(i)}})
	}
	if j := l.take(frontKey{image: "3"}); j == nil || j.key.image != "3" || len(l.list()) != 4 {
		t.Errorf("took %+v of %v", j, l.list())
	}
	if j := l.take(frontKey{image: "3"}); j != nil {
		t.Errorf("took %+v twice", j)
	}

	image := images.Build(t, images.NewestMkfs(t), nil, images.TinyTree(t))
	state := stateDir(t)
	var mounts []childMount
	for i := range maxIdle + 3 {
		mounts = append(mounts, childMount{Volume: fmt.Sprint(i), Image: image, Keep: true})
	}
	ch := startChild(t, childConfig{StateDir: state, Mounts: mounts})
	for i := range mounts {
		ch.toggle(t, i)
	}
	s, err := ReadStatus(t.Context(), state)
	if err != nil || len(s) != 1 || len(s[0].Domains) != maxIdle {
		t.Errorf("%d idle images, %v; want %d", len(s[0].Domains), err, maxIdle)
	}
	if got := mountsBelow(t, state); len(got) != 1+maxIdle {
		t.Errorf("%d mounts: %v; want the private directory and the content of %d", len(got), got, maxIdle)
	}
}

func TestUnlinkedImagesAreLetGo(t *testing.T) {
	image := images.Build(t, images.NewestMkfs(t), nil, images.TinyTree(t))
	state := stateDir(t)
	ch := startChild(t, childConfig{StateDir: state, Mounts: []childMount{{Domain: "x", Image: image, Keep: true}}, IdleCheck: 10 * time.Millisecond})
	ch.toggle(t, 0)
	time.Sleep(100 * time.Millisecond)
	if got := mountsBelow(t, state); len(got) != 2 {
		t.Fatalf("mounts %v: want the idle image's content", got)
	}
	if err := os.Remove(image); err != nil {
		t.Fatal(err)
	}
	for range 500 {
		if len(mountsBelow(t, state)) == 1 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("an idle image whose file was removed is still held: %v", mountsBelow(t, state))
}

// A domain whose FUSE connection was ended by force is not used again.
func TestIdleImagesOfADeadSessionAreLetGo(t *testing.T) {
	image := images.Build(t, images.NewestMkfs(t), nil, images.TinyTree(t))
	want := images.KernelMount(t, image)
	eachFront(t, func(t *testing.T, front string) {
		for _, dead := range []string{"content-", "passthrough-"} {
			if dead == "passthrough-" && front != FrontPassthrough {
				continue
			}
			testDeadSession(t, front, dead, image, want)
		}
	})
}

func testDeadSession(t *testing.T, front, dead, image, want string) {
	t.Helper()
	state := stateDir(t)
	ch := startChild(t, childConfig{StateDir: state, Front: front, Mounts: []childMount{{Domain: "x", Image: image, Keep: true}}})
	ch.toggle(t, 0)
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(i.Mountpoint, state) || !strings.Contains(i.Mountpoint, dead) || i.FSType != fusefs.FSType, false
	})
	if err != nil || len(infos) != 1 {
		t.Fatalf("mounts of %s: %v, %v", dead, infos, err)
	}
	control := t.TempDir()
	if err := unix.Mount("fusectl", control, "fusectl", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(control, 0) })
	if err := os.WriteFile(fmt.Sprintf("%s/%d/abort", control, infos[0].Minor), []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	for range 100 { // the engine learns of it in its own time
		ch.toggle(t, 0)
		if ch.Fronts[0].Err == "" {
			if _, err := os.ReadFile(ch.Fronts[0].Path + "/words"); err == nil {
				break
			}
			ch.toggle(t, 0)
		}
		time.Sleep(10 * time.Millisecond)
	}
	ch.mustFront(t, 0, front)
	images.CompareTrees(t, want, ch.Fronts[0].Path, compareOptions(front))
	if got := len(mountsBelow(t, state)); got > 4 {
		t.Errorf("mounts are left of the dead session: %v", mountsBelow(t, state))
	}
}

func TestDropCaches(t *testing.T) {
	a, b := twoVersions(t)
	mkfs := images.NewestMkfs(t)
	const file = (3<<20 + 123 + 4095) / 4096 * 4096
	eachFront(t, func(t *testing.T, front string) {
		state := stateDir(t)
		ch := startChild(t, childConfig{StateDir: state, Front: front, Mounts: []childMount{
			{Domain: "x", Volume: "v", Image: images.Build(t, mkfs, nil, a)},
			{Domain: "x", Volume: "w", Image: images.Build(t, mkfs, nil, b)},
		}})
		read := func() int64 {
			t.Helper()
			defer images.LockPages(t, filesBelow(t, ch.mustFront(t, 0, front), ch.mustFront(t, 1, front))...)()
			return domainStatus(t, state).BytesResident
		}
		all := read()
		for _, c := range []struct {
			filter DropFilter
			left   map[string]int64 // by front
		}{
			{DropFilter{}, nil},
			{DropFilter{Domain: "x"}, nil},
			{DropFilter{Domain: "x", Volume: "v"}, map[string]int64{FrontOverlay: file, FrontPassthrough: file, FrontTree: 3 * file}}, // b alone has
			{DropFilter{Volume: "w"}, map[string]int64{FrontOverlay: file, FrontPassthrough: file, FrontTree: 4 * file}},              // a alone has
		} {
			d, err := DropCaches(t.Context(), state, c.filter)
			if left := c.left[front]; err != nil || d.Domains != 1 || d.After != 0 || d.Before != all-left {
				t.Errorf("%+v: dropped %+v, %v; want %d of %d", c.filter, d, err, all-left, all)
			}
			if left := domainStatus(t, state).BytesResident; left != c.left[front] {
				t.Errorf("%+v: %d bytes are left, want %d", c.filter, left, c.left[front])
			}
			if again := read(); again != all {
				t.Fatalf("read again: %d bytes, were %d", again, all)
			}
		}
		for _, filter := range []DropFilter{{Domain: "y"}, {Volume: "y"}, {Domain: "y", Volume: "v"}} {
			if _, err := DropCaches(t.Context(), state, filter); !errors.Is(err, ErrNotMounted) || !strings.Contains(err.Error(), `"y"`) {
				t.Errorf("%+v: %v, want that there is none", filter, err)
			}
		}
		if d, err := DropCaches(t.Context(), t.TempDir(), DropFilter{}); err != nil || d != (Dropped{}) {
			t.Errorf("nothing to drop: %+v, %v", d, err)
		}

		// What a process has mapped stays.
		f, err := os.Open(ch.Fronts[0].Path + "/other")
		if err != nil {
			t.Fatal(err)
		}
		data, err := unix.Mmap(int(f.Fd()), 0, file, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if d, err := DropCaches(t.Context(), state, DropFilter{}); err != nil || d.After != file {
			t.Errorf("with a mapped file: %+v, %v; want %d bytes to stay", d, err, file)
		}
		if err := unix.Munmap(data); err != nil {
			t.Fatal(err)
		}
	})
}

// posix_fadvise(POSIX_FADV_DONTNEED) on a file of an overlay front reaches the pages
// that all share.
func TestFadviseReachesTheSharedPages(t *testing.T) {
	a, b := twoVersions(t)
	mkfs := images.NewestMkfs(t)
	state := stateDir(t)
	ch := startChild(t, childConfig{StateDir: state, Front: FrontOverlay, Mounts: []childMount{
		{Domain: "x", Image: images.Build(t, mkfs, nil, a)}, {Domain: "x", Image: images.Build(t, mkfs, nil, b)},
	}})
	if _, err := os.ReadFile(ch.mustFront(t, 0, FrontOverlay) + "/moved"); err != nil {
		t.Fatal(err)
	}
	if d := domainStatus(t, state); d.BytesResident < 3<<20 {
		t.Fatalf("%d bytes resident after a file was read", d.BytesResident)
	}
	f, err := os.Open(ch.mustFront(t, 1, FrontOverlay) + "/removed")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	if d := domainStatus(t, state); d.BytesResident != 0 {
		t.Errorf("%d bytes are left", d.BytesResident)
	}
}

// The page cache of a domain stays below its limit, the files read last are those
// that stay, and what was dropped is read again as it was.
func TestCacheLimit(t *testing.T) {
	const files, size, limit = 16, 3 << 20, MinCacheLimit
	tree := t.TempDir()
	var sums [files][32]byte
	for i := range files {
		data := bytes.Repeat([]byte(fmt.Sprintf("file %04d of many\n", i)), size/18)
		sums[i] = sha256.Sum256(data)
		if err := os.WriteFile(filepath.Join(tree, fmt.Sprint(i)), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mkfs := images.NewestMkfs(t)
	plain, lz4 := images.Build(t, mkfs, nil, tree), images.Build(t, mkfs, []string{"-zlz4"}, tree)
	eachFront(t, func(t *testing.T, front string) {
		state := stateDir(t)
		ch := startChild(t, childConfig{StateDir: state, Front: front, Mounts: []childMount{
			{Domain: "x", Volume: "v", Image: plain, Limit: limit}, {Domain: "x", Volume: "w", Image: lz4, Limit: 2 * limit},
		}})
		resident := func(want int64) (bytes int64) {
			t.Helper()
			for range 200 { // it is dropped behind the reader
				d := domainStatus(t, state)
				if bytes = d.BytesResident; bytes <= want {
					return bytes
				}
				if d.CacheLimit != want {
					t.Fatalf("cache limit %d, want %d", d.CacheLimit, want)
				}
				time.Sleep(10 * time.Millisecond)
			}
			t.Errorf("%d bytes are in the page cache, the limit is %d", bytes, want)
			return bytes
		}
		for round := range 3 {
			for i := range files {
				for n := range 2 {
					if ch.Fronts[n].Path == "" {
						continue
					}
					data, err := os.ReadFile(ch.mustFront(t, n, front) + "/" + fmt.Sprint(i))
					if err != nil || sha256.Sum256(data) != sums[i] {
						t.Fatalf("round %d: file %d of mount %d: other bytes, %v", round, i, n, err)
					}
				}
			}
			want := int64(limit)
			if round == 2 {
				want = 2 * limit
			}
			got := resident(want)
			if got < want/2 {
				t.Errorf("round %d: only %d bytes are in the page cache, the limit is %d", round, got, want)
			}
			if round == 1 {
				last := ch.Fronts[1].Path + "/" + fmt.Sprint(files-1)
				if images.ResidentPages(t, last) != (size/18*18+4095)/4096 {
					t.Error("the file that was read last is not in the page cache")
				}
				ch.toggle(t, 0) // the smaller limit goes with its volume
			}
		}
	})
	for _, bad := range []int64{1, -1, limit - 1} {
		ch := startChild(t, childConfig{Mounts: []childMount{{Domain: "x", Image: plain, Limit: bad}}})
		if e := ch.Fronts[0].Err; !strings.Contains(e, "cache limit") {
			t.Errorf("limit %d: %q", bad, e)
		}
	}
}
