package engine

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/test/images"
)

// fronts are those that the kernel has. The kernels without a passthrough are known by
// their version here, because the engine looks at what the kernel says.
func fronts(t *testing.T) []string {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	since := func(a, b int) bool { return major > a || major == a && minor >= b }
	list := []string{FrontTree}
	if since(6, 9) {
		list = append(list, FrontPassthrough)
	}
	if since(6, 5) {
		list = append(list, FrontOverlay)
	}
	return list
}

// eachFront runs a test for each front that the kernel has.
func eachFront(t *testing.T, f func(t *testing.T, front string)) {
	for _, front := range fronts(t) {
		t.Run(front, func(t *testing.T) { f(t, front) })
	}
}

// compareOptions is what each front may show differently from kernel EROFS.
func compareOptions(string) images.CompareOptions { return images.CompareOptions{} }

func TestFrontShowsWhatTheKernelShows(t *testing.T) {
	mkfs := images.NewestMkfs(t)
	small, real := images.SmallTree(t), images.RealTree(t)
	type variant struct {
		name  string
		tree  string
		opts  []string
		blob  bool
		since int // minor version of erofs-utils
	}
	for _, v := range []variant{
		{name: "plain", tree: small, opts: []string{"-Enoinline_data"}},
		{name: "inline", tree: small},
		{name: "chunked", tree: small, opts: []string{"--chunksize=8192"}},
		{name: "devices", tree: small, opts: []string{"--chunksize=4096"}, blob: true},
		{name: "lz4", tree: small, opts: []string{"-zlz4hc", "-C65536"}},
		{name: "lzma", tree: small, opts: []string{"-zlzma", "-C65536", "-Eztailpacking"}, since: 8},
		{name: "metabox", tree: small, opts: []string{"-zlz4:zstd", "-C65536", "-m4096", "-E48bit"}, since: 9},
		{name: "real-lz4", tree: real, opts: []string{"-zlz4"}},
		{name: "real-zstd", tree: real, opts: []string{"-zzstd", "-C65536", "-Eall-fragments,dedupe"}, since: 8},
		{name: "real-plain", tree: real},
	} {
		if !mkfs.AtLeast(1, v.since) {
			continue // an option that this one does not have
		}
		t.Run(v.name, func(t *testing.T) {
			var devices []string
			if v.blob {
				devices = []string{filepath.Join(t.TempDir(), "blob")}
				v.opts = append(v.opts, "--blobdev="+devices[0])
			}
			image := images.Build(t, mkfs, v.opts, v.tree)
			want := images.KernelMount(t, image, devices...)
			ref := image
			for _, d := range devices {
				ref += ",device=" + d
			}
			eachFront(t, func(t *testing.T, front string) {
				// With a domain the overlay has content by fingerprint, without by nid.
				domains := []string{"d", ""}
				if v.tree == real {
					domains = domains[:1]
				}
				for _, domain := range domains {
					ch := startChild(t, childConfig{Front: front, Mounts: []childMount{{Domain: domain, Image: ref}}})
					images.CompareTrees(t, want, ch.mustFront(t, 0, front), compareOptions(front))
					ch.stop(t)
				}
			})
		})
	}
}

// twoVersions makes two trees with equal content: in "same" all metadata agree, in
// "dated" the time differs, in "moved" name and mode too.
func twoVersions(t *testing.T) (a, b string) {
	t.Helper()
	a, b = t.TempDir(), t.TempDir()
	put := func(path, seed string, mode os.FileMode, mtime int64) {
		t.Helper()
		var data []byte
		for sum := sha256.Sum256([]byte(seed)); len(data) < 3<<20+123; sum = sha256.Sum256(sum[:]) {
			data = append(data, sum[:]...)
		}
		if err := os.WriteFile(path, data, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Unix(mtime, 0), time.Unix(mtime, 0)); err != nil {
			t.Fatal(err)
		}
	}
	put(a+"/same", "1", 0o644, 1000)
	put(b+"/same", "1", 0o644, 1000)
	put(a+"/dated", "2", 0o644, 1000)
	put(b+"/dated", "2", 0o644, 2000)
	put(a+"/moved", "3", 0o644, 1000)
	put(b+"/removed", "3", 0o600, 3000)
	put(a+"/copy", "1", 0o600, 4000)
	put(a+"/other", "4", 0o644, 1000)
	put(b+"/other", "5", 0o644, 1000)
	return a, b
}

func TestEqualFilesOfADomainAreTheSamePages(t *testing.T) {
	a, b := twoVersions(t)
	mkfs := images.NewestMkfs(t)
	plain, lz4 := images.Build(t, mkfs, nil, a), images.Build(t, mkfs, []string{"-zlz4hc"}, b)
	options := []string{"-zlzma", "-C65536", "-Eall-fragments"}
	if !mkfs.AtLeast(1, 8) {
		options = []string{"-zlz4", "-C65536", "-Efragments"}
	}
	packed := images.Build(t, mkfs, options, b)
	eachFront(t, func(t *testing.T, front string) {
		ch := startChild(t, childConfig{Front: front, Mounts: []childMount{
			{Domain: "x", Image: plain},
			{Domain: "x", Image: lz4},
			{Domain: "y", Image: lz4},
			{Volume: "v", Image: plain},
			{Volume: "w", Image: plain},
			{Volume: "v", Image: plain},
			{Domain: "x", Image: packed},
		}})
		var dir []string
		for i := range ch.Fronts {
			dir = append(dir, ch.mustFront(t, i, front))
		}
		if dir[3] == dir[4] || dir[3] != dir[5] {
			t.Errorf("fronts without a domain: %v; want one for each volume", dir[3:6])
		}
		always := front != FrontTree // whatever the metadata
		for _, c := range []struct {
			what, one, two string
			want           bool
		}{
			{"one file, whatever the compression", dir[0] + "/same", dir[1] + "/same", true},
			{"one file, in fragments too", dir[0] + "/same", dir[6] + "/same", true},
			{"another time", dir[0] + "/dated", dir[1] + "/dated", always},
			{"another name, mode and time", dir[0] + "/moved", dir[1] + "/removed", always},
			{"a copy in the image", dir[0] + "/same", dir[0] + "/copy", always},
			{"other content", dir[0] + "/other", dir[1] + "/other", false},
			{"another domain", dir[1] + "/same", dir[2] + "/same", false},
			{"no domain, two volumes", dir[3] + "/same", dir[4] + "/same", false},
			{"no domain, a copy in the image", dir[3] + "/same", dir[3] + "/copy", false},
		} {
			if got := images.SamePages(t, c.one, c.two); got != c.want {
				t.Errorf("%s: same physical pages %v, want %v", c.what, got, c.want)
			}
		}
	})
}

// TestWaysToRead reads a file by each way there is but read(2), and runs a program.
func TestWaysToRead(t *testing.T) {
	tree := t.TempDir()
	program, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	shell, err := os.ReadFile("/bin/echo")
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"true": program, "echo": shell} {
		if err := os.WriteFile(filepath.Join(tree, name), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mkfs := images.NewestMkfs(t)
	plain, lz4 := images.Build(t, mkfs, nil, tree), images.Build(t, mkfs, []string{"-zlz4"}, tree)
	eachFront(t, func(t *testing.T, front string) {
		ch := startChild(t, childConfig{Front: front, Mounts: []childMount{{Domain: "x", Image: plain}, {Domain: "x", Image: lz4}}})
		for i := range 2 {
			dir := ch.mustFront(t, i, front)
			if out, err := exec.Command(dir+"/echo", "hello").Output(); err != nil || string(out) != "hello\n" {
				t.Errorf("execve: %q, %v", out, err)
			}
			if err := exec.Command(dir + "/true").Run(); err != nil {
				t.Errorf("execve: %v", err)
			}
			for way, read := range map[string]func(*testing.T, string) []byte{
				"mmap": images.ReadByMmap, "sendfile": images.ReadBySendfile, "O_DIRECT": images.ReadDirect, "splice": images.ReadBySplice,
			} {
				if got := read(t, dir+"/echo"); !slices.Equal(got, shell) {
					t.Errorf("%s: %d bytes differ from the %d of the file", way, len(got), len(shell))
				}
			}
			for _, write := range []int{unix.O_WRONLY, unix.O_RDWR, unix.O_WRONLY | unix.O_TRUNC, unix.O_CREAT | unix.O_WRONLY} {
				fd, err := unix.Open(dir+"/true", write, 0o600)
				if err != unix.EROFS {
					t.Errorf("open for writing (%#x): %v, want EROFS", write, err)
					_ = unix.Close(fd)
				}
			}
			if err := unix.Mkdir(dir+"/new", 0o700); err != unix.EROFS {
				t.Errorf("mkdir: %v, want EROFS", err)
			}
			if _, err := os.Stat(dir + "/nothing"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a missing name: %v", err)
			}
		}
	})
}

// The image's own file must not be in the page cache beside what it holds.
func TestImageFileIsNotCached(t *testing.T) {
	a, _ := twoVersions(t)
	image := images.Build(t, images.NewestMkfs(t), nil, a)
	eachFront(t, func(t *testing.T, front string) {
		images.DropFile(t, image)
		ch := startChild(t, childConfig{Front: front, Mounts: []childMount{{Domain: "x", Image: image}}})
		readAll(t, ch.mustFront(t, 0, front))
		if n := images.ResidentPages(t, image); n != 0 {
			t.Errorf("%d pages of the image file are in the page cache", n)
		}
	})
}

// readAll reads every regular file below dir and returns the number of bytes.
func readAll(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		m, err := io.Copy(io.Discard, f)
		n += m
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// filesBelow lists the regular files below directories that hold data.
func filesBelow(t *testing.T, dirs ...string) (paths []string) {
	t.Helper()
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			st, err := d.Info()
			if err == nil && st.Size() > 0 {
				paths = append(paths, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return paths
}

// best is the front that takes over where the overlay can't be had.
func best(t *testing.T) string {
	t.Helper()
	if slices.Contains(fronts(t), FrontPassthrough) {
		return FrontPassthrough
	}
	return FrontTree
}

func TestTreeTakesOverFromTheOverlay(t *testing.T) {
	tree := images.TinyTree(t)
	images.OverlayMarks(t, tree)
	image := images.Build(t, images.NewestMkfs(t), nil, tree)
	ch := startChild(t, childConfig{Mounts: []childMount{{Domain: "x", Image: image}}})
	dir := ch.mustFront(t, 0, best(t))
	if r := ch.Fronts[0].Reason; !strings.Contains(r, "overlay") {
		t.Errorf("reason %q does not say why", r)
	}
	images.CompareTrees(t, images.KernelMount(t, image), dir, compareOptions(best(t)))

	forced := startChild(t, childConfig{Front: FrontOverlay, Mounts: []childMount{{Domain: "x", Image: image}}})
	if forced.Fronts[0].Err == "" {
		t.Error("the overlay was asked for, can't be had, and no error says so")
	}
}

func TestImagesThatCannotBeMounted(t *testing.T) {
	good, err := os.ReadFile(images.Build(t, images.NewestMkfs(t), nil, images.TinyTree(t)))
	if err != nil {
		t.Fatal(err)
	}
	bad := func(name string, data []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	blob := filepath.Join(t.TempDir(), "blob")
	lacking := images.Build(t, images.NewestMkfs(t), []string{"--chunksize=4096", "--blobdev=" + blob}, images.TinyTree(t))
	flipped := slices.Clone(good)
	flipped[1024+16] ^= 1
	mounts := []childMount{
		{Domain: "x", Image: bad("zeros", make([]byte, 8192))},
		{Domain: "x", Image: bad("flipped", flipped)},
		{Domain: "x", Image: bad("short", good[:4096])},
		{Domain: "x", Image: bad("empty", nil)},
		{Domain: "x", Image: lacking},
	}
	eachFront(t, func(t *testing.T, front string) {
		state := stateDir(t)
		ch := startChild(t, childConfig{StateDir: state, Front: front, Mounts: mounts})
		for i, want := range []string{"not an EROFS image", "checksum", "corrupt", "not an EROFS image", "device"} {
			if got := ch.Fronts[i].Err; !strings.Contains(got, want) || !strings.Contains(got, mounts[i].Image) {
				t.Errorf("error %q: want it to say %q and to name the image", got, want)
			}
		}
		if m := mountsBelow(t, state); len(m) != 1 { // the private directory itself
			t.Errorf("mounts are left of images that can't be mounted: %v", m)
		}
	})
}

func mountsBelow(t *testing.T, dir string) (list []string) {
	t.Helper()
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range infos {
		list = append(list, i.FSType+" "+i.Mountpoint)
	}
	return list
}

func TestNothingIsLeft(t *testing.T) {
	a, b := twoVersions(t)
	mkfs := images.NewestMkfs(t)
	mounts := []childMount{
		{Domain: "x", Image: images.Build(t, mkfs, nil, a)}, {Domain: "x", Image: images.Build(t, mkfs, nil, b)},
	}
	eachFront(t, func(t *testing.T, front string) {
		state := stateDir(t)
		ch := startChild(t, childConfig{StateDir: state, Front: front, Mounts: mounts})
		readAll(t, ch.mustFront(t, 0, front))
		ch.stop(t)
		if m := mountsBelow(t, state); len(m) != 0 {
			t.Errorf("after an orderly end: %v", m)
		}
		if left, _ := os.ReadDir(filepath.Join(state, instancesDir)); len(left) != 1 || left[0].Name() != startLock {
			t.Errorf("after an orderly end: %v", left)
		}

		// Killed, with a reader in the middle of a file.
		ch = startChild(t, childConfig{StateDir: state, Front: front, Mounts: mounts})
		f, err := os.Open(ch.mustFront(t, 0, front) + "/other")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		ch.kill(t)
		if len(mountsBelow(t, state)) == 0 {
			t.Fatal("a killed engine leaves no mounts: this test proves nothing")
		}
		if _, err := f.ReadAt(make([]byte, 4096), 2<<20); err == nil {
			t.Error("a read without an engine succeeded")
		}
		next := startChild(t, childConfig{StateDir: state, Front: front, Mounts: mounts[1:]})
		readAll(t, next.mustFront(t, 0, front))
		for _, m := range mountsBelow(t, state) {
			if !strings.Contains(m, filepath.Dir(filepath.Dir(next.Fronts[0].Path))) {
				t.Errorf("the next engine left %s of the dead one", m)
			}
		}
		next.stop(t)
		if m := mountsBelow(t, state); len(m) != 0 {
			t.Errorf("in the end: %v", m)
		}
	})
}

func TestStatusCountsPages(t *testing.T) {
	a, b := twoVersions(t)
	mkfs := images.NewestMkfs(t)
	eachFront(t, func(t *testing.T, front string) {
		state := stateDir(t)
		ch := startChild(t, childConfig{StateDir: state, Front: front, Mounts: []childMount{
			{Domain: "x", Image: images.Build(t, mkfs, nil, a)}, {Domain: "x", Image: images.Build(t, mkfs, nil, b)},
		}})
		dirs := []string{ch.mustFront(t, 0, front), ch.mustFront(t, 1, front)}
		bytes := readAll(t, dirs[0]) + readAll(t, dirs[1])
		unlock := images.LockPages(t, filesBelow(t, dirs...)...)
		d := domainStatus(t, state)
		unlock()
		if len(d.Fronts) != 2 {
			t.Fatalf("domain %+v: want two fronts", d)
		}
		for _, f := range d.Fronts {
			if f.Front != front || (f.Reason != "") != (front != FrontOverlay) || len(f.Volumes) != 1 {
				t.Errorf("front %+v", f)
			}
		}
		const file = (3<<20 + 123 + 4095) / 4096 * 4096
		files := bytes / (3<<20 + 123) // 5 in a, 4 in b
		// Five distinct contents. Of a tree only "same" agrees in all metadata.
		resident := map[string]int64{FrontOverlay: 5, FrontPassthrough: 5, FrontTree: 8}[front]
		if d.Name != "x" || d.SharedInodes != 5 || d.BytesResident != resident*file || d.BytesSaved != (files-resident)*file {
			t.Errorf("domain %+v: want %d and %d bytes", d, resident*file, (files-resident)*file)
		}
	})
}

// When an image leaves a domain that lives on, the pages that only it had go, and
// those that another image has stay.
func TestImageThatLeavesTakesItsPages(t *testing.T) {
	a, b := twoVersions(t)
	mkfs := images.NewestMkfs(t)
	state := stateDir(t)
	ch := startChild(t, childConfig{StateDir: state, Front: FrontOverlay, Mounts: []childMount{
		{Domain: "x", Image: images.Build(t, mkfs, nil, a)}, {Domain: "x", Image: images.Build(t, mkfs, nil, b)},
	}})
	unlockStaying := images.LockPages(t, filesBelow(t, ch.mustFront(t, 1, FrontOverlay))...)
	unlock := images.LockPages(t, filesBelow(t, ch.mustFront(t, 0, FrontOverlay))...)
	before := domainStatus(t, state)
	unlock()
	if before.SharedInodes != 5 {
		t.Fatalf("%d shared inodes, want 5: %+v", before.SharedInodes, before)
	}
	ch.toggle(t, 0)
	var after DomainStatus
	for range 100 { // the kernel forgets in its own time
		if after = domainStatus(t, state); after.SharedInodes == 4 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	unlockStaying()
	const file = (3<<20 + 123 + 4095) / 4096 * 4096
	if after.SharedInodes != 4 || before.BytesResident-after.BytesResident != file || after.BytesSaved != 0 {
		t.Errorf("before %+v, after %+v: want one inode and its %d bytes less", before, after, file)
	}
	if got := mountsBelow(t, state); len(got) != 4 {
		t.Errorf("mounts: %v; want the private directory, content, metadata and front", got)
	}
	readAll(t, ch.Fronts[1].Path)
	ch.toggle(t, 1)
	if got := mountsBelow(t, state); len(got) != 1 {
		t.Errorf("mounts after the last image left: %v; want the private directory alone", got)
	}
}

func domainStatus(t *testing.T, state string) DomainStatus {
	t.Helper()
	list, err := ReadStatus(t.Context(), state)
	if err != nil || len(list) != 1 || len(list[0].Domains) != 1 {
		t.Fatalf("status %+v, %v", list, err)
	}
	return list[0].Domains[0]
}

func TestEnginesThatStartTogetherLeaveEachOtherAlone(t *testing.T) {
	image := images.Build(t, images.NewestMkfs(t), nil, images.TinyTree(t))
	state := stateDir(t)
	t.Run("all", func(t *testing.T) {
		for i := range 6 {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				ch := startChild(t, childConfig{StateDir: state, Mounts: []childMount{{Image: image}}})
				readAll(t, ch.mustFront(t, 0, FrontOverlay))
			})
		}
	})
	if m := mountsBelow(t, state); len(m) != 0 {
		t.Errorf("left over: %v", m)
	}
}
