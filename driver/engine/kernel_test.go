package engine

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/test/images"
)

// mountsFiles tells whether this kernel mounts an EROFS image from its file, and
// sharesPages whether files of two such mounts share page cache, by mount(2) alone.
func mountsFiles(t *testing.T) bool {
	t.Helper()
	image := images.Build(t, images.NewestMkfs(t), nil, tree(t, nil))
	return probeMount(t, image, "directio")
}

func sharesPages(t *testing.T) bool {
	t.Helper()
	mkfs := images.NewestMkfs(t)
	if !mkfs.AtLeast(1, 9) {
		return false // nor could a test ask for it
	}
	image := images.Build(t, mkfs, []string{"--xattr-inode-digest"}, tree(t, map[string][]byte{"a": {1}}))
	_, major, minor := kernelRelease()
	return probeMount(t, image, "directio,inode_share,domain_id=probe") && (major > 7 || major == 7 && minor >= 3)
}

func probeMount(t *testing.T, image, options string) bool {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(image, dir, "erofs", unix.MS_RDONLY, options); err != nil {
		return false
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	return true
}

// wantNoSharing is what a kernel that can't share has to say to each front.
func wantNoSharing(t *testing.T, ch *child) {
	t.Helper()
	for i, f := range ch.Fronts {
		for _, word := range []string{"engine kernel", "Linux ", "Linux 7.3", "engine auto or fuse"} {
			if !strings.Contains(f.Err, word) {
				t.Errorf("mount %d: error %q does not say %q", i, f.Err, word)
			}
		}
	}
}

// Without a domain the kernel's mount is as any, on every kernel that mounts files.
func TestKernelEngineWithoutDomain(t *testing.T) {
	can := mountsFiles(t)
	mkfs := images.NewestMkfs(t)
	files := tree(t, map[string][]byte{"a": noise("a", 300_000), "copy": noise("a", 300_000)})
	image := images.Build(t, mkfs, nil, files)
	blob := filepath.Join(t.TempDir(), "blob")
	devices := images.Build(t, mkfs, []string{"--chunksize=4096", "--blobdev=" + blob}, images.SmallTree(t))
	state := stateDir(t)
	mounts := []childMount{
		{Volume: "v", Image: image, Kernel: true, Keep: true},
		{Volume: "w", Image: image, Kernel: true},
		{Volume: "v", Image: image, Kernel: true, Trusted: true},
		{Volume: "d", Image: devices + ",device=" + blob, Kernel: true},
	}
	ch := startChild(t, childConfig{StateDir: state, Mounts: mounts})
	if !can {
		for i, f := range ch.Fronts {
			if !strings.Contains(f.Err, "engine kernel") || !strings.Contains(f.Err, "6.12") {
				t.Errorf("mount %d: error %q", i, f.Err)
			}
		}
		if m := mountsBelow(t, state); len(m) != 1 {
			t.Errorf("mounts are left: %v", m)
		}
		return
	}
	for i := range mounts {
		if r := ch.Fronts[i].Reason; ch.mustFront(t, i, FrontKernel) == "" || strings.Contains(r, "file") && !strings.Contains(r, "6.15") {
			t.Errorf("mount %d: reason %q", i, r)
		}
	}
	if ch.Fronts[0].Path != ch.Fronts[2].Path || ch.Fronts[0].Path == ch.Fronts[1].Path {
		t.Errorf("fronts %+v: want one for each volume", ch.Fronts)
	}
	images.CompareTrees(t, images.KernelMount(t, image), ch.Fronts[0].Path, images.CompareOptions{})
	images.CompareTrees(t, images.KernelMount(t, devices, blob), ch.Fronts[3].Path, images.CompareOptions{})
	v, w := ch.Fronts[0].Path+"/a", ch.Fronts[1].Path+"/a"
	if images.SamePages(t, v, w) || images.SamePages(t, v, ch.Fronts[0].Path+"/copy") {
		t.Error("files share without a domain")
	}
	for _, m := range mountOptions(t, state) {
		if !strings.Contains(m, "ro,nodev") || strings.Contains(m, "inode_share") {
			t.Errorf("mounted with %s", m)
		}
	}
	list, err := ReadStatus(t.Context(), state)
	if err != nil || len(list) != 1 || len(list[0].Domains) != 3 {
		t.Fatalf("status %+v, %v: want three domains", list, err)
	}
	for _, d := range list[0].Domains {
		if d.Engine != EngineKernel || d.Name != "" || len(d.Fronts) != 1 || d.Fronts[0].Front != FrontKernel {
			t.Errorf("domain %+v", d)
		}
		if d.Fronts[0].Target == ch.Fronts[0].Path && (d.SharedInodes != 2 || d.BytesResident < 2*300_000/4096*4096 || d.BytesSaved != 0) {
			t.Errorf("domain %+v: want two files and their pages", d)
		}
	}

	// One volume goes, whatever Keep says; the other mount of it stays.
	ch.toggle(t, 0)
	content(t, ch.Fronts[2].Path+"/a", noise("a", 300_000))
	ch.toggle(t, 2)
	ch.toggle(t, 1)
	if m := mountsBelow(t, state); len(m) != 2 {
		t.Errorf("mounts %v: want the private directory and the one that is left", m)
	}
	if d := domainStatus(t, state); len(d.Idle) != 0 {
		t.Errorf("idle images %v: the kernel keeps none", d.Idle)
	}
	ch.stop(t)
	if m := mountsBelow(t, state); len(m) != 0 {
		t.Errorf("after an orderly end: %v", m)
	}

	// After a kill the mount lives, for it has no server; the next engine takes it away.
	ch = startChild(t, childConfig{StateDir: state, Mounts: mounts[:1]})
	dead := ch.mustFront(t, 0, FrontKernel)
	ch.kill(t)
	content(t, dead+"/a", noise("a", 300_000))
	ch = startChild(t, childConfig{StateDir: state, Mounts: mounts[:1]})
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the dead engine's mount: %v", err)
	}
	content(t, ch.mustFront(t, 0, FrontKernel)+"/a", noise("a", 300_000))
}

// mountOptions lists the options of the EROFS mounts below a directory.
func mountOptions(t *testing.T, dir string) (list []string) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if strings.HasPrefix(f[4], dir+"/") && strings.Contains(line, " - erofs ") {
			list = append(list, f[5]+" "+f[len(f)-1])
		}
	}
	if len(list) == 0 {
		t.Fatalf("no EROFS mounts below %s", dir)
	}
	return list
}

// In a domain the kernel shares, by fingerprints that were compared with the content;
// a kernel that can't, says so, and nothing takes its place.
func TestKernelEngineShares(t *testing.T) {
	mkfs := images.NewestMkfs(t)
	if !mkfs.AtLeast(1, 9) {
		ch := startChild(t, childConfig{Mounts: []childMount{{Domain: "x", Image: images.Build(t, mkfs, nil, tree(t, nil)), Kernel: true}}})
		if can := ch.Fronts[0].Err == ""; can && !strings.Contains(ch.Fronts[0].Reason, "fingerprints") {
			t.Errorf("front %+v: an image without fingerprints can share nothing", ch.Fronts[0])
		}
		return
	}
	a, b := twoVersions(t)
	const zipped = 64 * 4096
	for _, dir := range []string{a, b} { // what compresses, unlike the others
		if err := os.WriteFile(dir+"/zipped", bytes.Repeat([]byte("text"), zipped/4), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	opts := []string{"--xattr-inode-digest=user.fp"}
	one, two := images.Build(t, mkfs, opts, a), images.Build(t, mkfs, []string{"--xattr-inode-digest"}, b)
	packed := images.Build(t, mkfs, append(slices.Clone(opts), "-zlz4", "-C65536"), b)
	none := images.Build(t, mkfs, nil, b)
	blob := filepath.Join(t.TempDir(), "blob")
	device := images.Build(t, mkfs, append(slices.Clone(opts), "--chunksize=4096", "--blobdev="+blob), b) + ",device=" + blob
	state := stateDir(t)
	ch := startChild(t, childConfig{StateDir: state, Mounts: []childMount{
		{Domain: "x", Volume: "0", Image: one, Kernel: true},
		{Domain: "x", Volume: "1", Image: two, Kernel: true},
		{Domain: "y", Volume: "2", Image: two, Kernel: true},
		{Domain: "x", Volume: "3", Image: two, Kernel: true, Trusted: true},
		{Domain: "x", Volume: "4", Image: packed, Kernel: true},
		{Domain: "x", Volume: "5", Image: none, Kernel: true},
		{Domain: "x", Volume: "6", Image: device, Kernel: true},
	}})
	if !sharesPages(t) {
		wantNoSharing(t, ch)
		if m := mountsBelow(t, state); len(m) != 1 {
			t.Errorf("mounts are left: %v", m)
		}
		return
	}
	another := startChild(t, childConfig{StateDir: state, Mounts: []childMount{{Domain: "x", Volume: "7", Image: two, Kernel: true}}})
	var dir []string
	for i := range ch.Fronts {
		dir = append(dir, ch.mustFront(t, i, FrontKernel))
		images.CompareTrees(t, images.KernelMount(t, []string{one, two, two, two, packed, none, two}[i]), dir[i],
			images.CompareOptions{SkipXattr: func(_, name string) bool { return i == 6 && name == "user.fp" }})
	}
	dir = append(dir, another.mustFront(t, 0, FrontKernel))
	for _, c := range []struct {
		what, one, two string
		want           bool
	}{
		{"one content", dir[0] + "/same", dir[1] + "/same", true},
		{"other metadata", dir[0] + "/moved", dir[1] + "/removed", true},
		{"a copy in the image", dir[0] + "/same", dir[0] + "/copy", true},
		{"on an extra device", dir[0] + "/same", dir[6] + "/same", true},
		{"other content", dir[0] + "/other", dir[1] + "/other", false},
		{"another domain", dir[1] + "/same", dir[2] + "/same", false},
		{"trusted and not", dir[1] + "/same", dir[3] + "/same", false},
		{"compressed and not", dir[1] + "/zipped", dir[4] + "/zipped", false},
		{"not compressed in an image with compression", dir[1] + "/same", dir[4] + "/same", true},
		{"without a fingerprint", dir[1] + "/same", dir[5] + "/same", false},
		{"another engine", dir[1] + "/same", dir[7] + "/same", false},
	} {
		if got := images.SamePages(t, c.one, c.two); got != c.want {
			t.Errorf("%s: same physical pages %v, want %v", c.what, got, c.want)
		}
	}
	for i, f := range ch.Fronts {
		if want := i == 5; strings.Contains(f.Reason, "mkfs.erofs --xattr-inode-digest") != want || (f.Reason != "") != want {
			t.Errorf("mount %d: reason %q", i, f.Reason)
		}
	}
	options := mountOptions(t, filepath.Dir(dir[0]))
	shared := slices.DeleteFunc(slices.Clone(options), func(m string) bool { return !strings.Contains(m, "inode_share") })
	if len(options) != 7 || len(shared) != 6 || strings.Contains(strings.Join(options, " "), "domain_id") {
		t.Errorf("mounted with %q: want all but one to share, and no domain's name to be seen", options)
	}

	// What sendfile and splice read is shared as well, unlike before 7.3.
	for way, read := range map[string]func(*testing.T, string) []byte{"sendfile": images.ReadBySendfile, "splice": images.ReadBySplice} {
		name := dir[1] + "/same"
		dropFile(t, name)
		read(t, name)
		if n, all := images.ResidentPages(t, dir[0]+"/same"), (3<<20+123+4095)/4096; n != all {
			t.Errorf("%s: %d of %d pages are in memory for another image", way, n, all)
		}
	}

	// The status, and dropping caches.
	for _, d := range dir[:2] {
		readAll(t, d)
	}
	d := kernelStatus(t, state, "x", false)
	const file = (3<<20 + 123 + 4095) / 4096 * 4096
	if len(d.Fronts) != 5 || d.Engine != EngineKernel || d.BytesSaved < 4*file {
		t.Errorf("domain %+v: want five fronts, and %d bytes saved or more", d, 4*file)
	}
	dropped, err := DropCaches(t.Context(), state, DropFilter{Domain: "x", Volume: "0"})
	if err != nil || dropped.Files != 5 || dropped.Before != 4*file+zipped || dropped.After != 0 {
		t.Errorf("dropped %+v, %v: want the five contents of the volume's six files", dropped, err)
	}
	if n := images.ResidentPages(t, dir[1]+"/same"); n != 0 {
		t.Errorf("%d pages are left in memory", n)
	}
	for i := range ch.Fronts {
		ch.toggle(t, i)
	}
	if m := mountsBelow(t, filepath.Dir(dir[0])); len(m) != 1 {
		t.Errorf("mounts are left: %v", m)
	}
}

func dropFile(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	if n := images.ResidentPages(t, path); n != 0 {
		t.Fatalf("%s: %d pages are left in memory by fadvise", path, n)
	}
}

// kernelStatus is the status of the kernel engine's domain of a name with the most
// fronts.
func kernelStatus(t *testing.T, state, name string, trusted bool) (found DomainStatus) {
	t.Helper()
	list, err := ReadStatus(t.Context(), state)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		for _, d := range s.Domains {
			if d.Engine == EngineKernel && d.Name == name && d.Trusted == trusted && len(d.Fronts) > len(found.Fronts) {
				found = d
			}
		}
	}
	return found
}

// A forged image never gets to the kernel; trusted, it gets to those that trust.
func TestKernelRefusesForgery(t *testing.T) {
	eachForgery(t, testKernelRefuses)
}

func testKernelRefuses(t *testing.T, f forgery) {
	state := stateDir(t)
	ch := startChild(t, childConfig{StateDir: state, Mounts: []childMount{
		{Domain: "x", Volume: "0", Image: f.forged, Kernel: true},
		{Domain: "x", Volume: "1", Image: f.honest, Kernel: true},
		{Domain: "x", Volume: "2", Image: f.forged, Kernel: true, Trusted: true},
		{Domain: "x", Volume: "3", Image: f.honest, Kernel: true, Trusted: true},
	}})
	if !sharesPages(t) {
		wantNoSharing(t, ch)
		return
	}
	if !regexp.MustCompile(`"file" \(nid \d+\).*engine fuse`).MatchString(ch.Fronts[0].Err) || !strings.Contains(ch.Fronts[0].Err, f.forged) {
		t.Errorf("error %q does not name image, file and fix", ch.Fronts[0].Err)
	}
	content(t, ch.mustFront(t, 2, FrontKernel)+"/file", f.evil)
	content(t, ch.mustFront(t, 3, FrontKernel)+"/file", f.evil) // the kernel believes it
	content(t, ch.mustFront(t, 1, FrontKernel)+"/file", f.good)
	if m := mountOptions(t, state); len(m) != 3 {
		t.Errorf("mounts %q", m)
	}
}

func TestKernelEngineKeepsNoCacheLimit(t *testing.T) {
	image := images.Build(t, images.NewestMkfs(t), nil, tree(t, nil))
	ch := startChild(t, childConfig{Mounts: []childMount{{Volume: "v", Image: image, Kernel: true, Limit: 64 << 20}}})
	if f := ch.Fronts[0]; !strings.Contains(f.Err, "cache limit") {
		t.Errorf("front %+v", f)
	}
}

// The kernel's names of domains can't meet, and can't be guessed.
func TestKernelDomainIDs(t *testing.T) {
	a, b := newKernelDomains(), newKernelDomains()
	seen := make(map[string]string)
	for _, req := range []Request{
		{Domain: "x"},
		{Domain: "x", Trusted: true},
		{Domain: "trusted:x"},
		{Domain: "domain:x"},
		{Domain: "namespace/x"},
		{Domain: "domain/namespace/x"},
		{VolumeID: "x"},
		{VolumeID: "domain:x"},
		{Domain: "a,b"},
		{Domain: strings.Repeat("d", 200)},
		{},
	} {
		for _, d := range []kernelDomains{a, b} {
			id := d.id(domainKey(req))
			if !regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(id) {
				t.Errorf("%+v: id %q", req, id)
			}
			if id != d.id(domainKey(req)) {
				t.Errorf("%+v: another id the second time", req)
			}
			if other, ok := seen[id]; ok {
				t.Errorf("%+v has the id of %s", req, other)
			}
			seen[id] = domainKey(req)
		}
	}
}
