package engine

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/test/images"
)

// needPassthrough ends a test on kernels that have none; there the fallback is tested.
func needPassthrough(t *testing.T) bool {
	t.Helper()
	if slices.Contains(fronts(t), FrontPassthrough) {
		return true
	}
	image := images.Build(t, images.NewestMkfs(t), nil, images.TinyTree(t))
	ch := startChild(t, childConfig{Front: FrontPassthrough, Mounts: []childMount{{Image: image}}})
	if got := ch.Fronts[0].Err; !strings.Contains(got, "6.9") {
		t.Errorf("error %q does not say which kernel it takes", got)
	}
	return false
}

// The fronts of a domain share pages whatever their kinds are, with each other and
// with a container's overlay on top.
func TestPassthroughSharesWithTheOverlay(t *testing.T) {
	if !needPassthrough(t) {
		return
	}
	a, b := twoVersions(t)
	mkfs := images.NewestMkfs(t)
	marked := t.TempDir()
	for _, name := range []string{"same", "moved"} {
		data, err := os.ReadFile(filepath.Join(a, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(marked, name), data, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	images.OverlayMarks(t, marked)
	state := stateDir(t)
	ch := startChild(t, childConfig{StateDir: state, Mounts: []childMount{
		{Domain: "x", Image: images.Build(t, mkfs, nil, a)},
		{Domain: "x", Image: images.Build(t, mkfs, []string{"-zlz4"}, b), IDMapped: true},
		{Domain: "x", Image: images.Build(t, mkfs, nil, marked)}, // not for overlayfs
	}})
	overlay, mapped, other := ch.mustFront(t, 0, FrontOverlay), ch.mustFront(t, 1, FrontPassthrough), ch.mustFront(t, 2, FrontPassthrough)
	if r := ch.Fronts[1].Reason; !strings.Contains(r, "id-mapped") {
		t.Errorf("reason %q does not say why it is no overlay", r)
	}
	top := overlayOn(t, mapped)
	for _, path := range []string{mapped + "/same", other + "/same", top + "/same"} {
		if !images.SamePages(t, path, overlay+"/same") {
			t.Errorf("%s has other pages than %s", path, overlay)
		}
	}
	if !images.SamePages(t, overlay+"/moved", mapped+"/removed") {
		t.Error("another name, mode and time: other pages")
	}
	if d := domainStatus(t, state); d.BytesResident != 2*(3<<20+4096) {
		t.Errorf("%d bytes are in the page cache, want two files", d.BytesResident)
	}
}

// overlayOn makes what a container runtime does: a writable overlay on a front.
func overlayOn(t *testing.T, lower string) string {
	t.Helper()
	base := stateDir(t)
	for _, dir := range []string{"upper", "work", "top"} {
		if err := os.Mkdir(filepath.Join(base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	top := filepath.Join(base, "top")
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, base, base)
	if err := unix.Mount("overlay", top, "overlay", 0, opts); err != nil {
		t.Fatalf("an overlay on the front: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(top, 0) })
	return top
}

// A runtime may id-map a clone of a front's mount, for a container in a user
// namespace: owners are shifted there, its root may do what root may, and the pages
// are those of everybody.
func TestIDMappedMounts(t *testing.T) {
	tree := t.TempDir()
	program, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	secret := bytes.Repeat([]byte("for root alone\n"), 1000)
	for name, f := range map[string]struct {
		data     []byte
		mode     os.FileMode
		uid, gid int
	}{
		"secret": {secret, 0o600, 0, 0},
		"true":   {program, 0o500, 0, 0},
		"user":   {[]byte("of a user\n"), 0o600, 1000, 100},
		"beyond": {[]byte("of nobody here\n"), 0o604, 70000, 70000},
	} {
		path := filepath.Join(tree, name)
		if err := errors.Join(os.WriteFile(path, f.data, 0o600), os.Chown(path, f.uid, f.gid), os.Chmod(path, f.mode)); err != nil {
			t.Fatal(err)
		}
	}
	image := images.Build(t, images.NewestMkfs(t), nil, tree)
	test := func(t *testing.T, front string) {
		t.Helper()
		config := childConfig{Front: front, Mounts: []childMount{{Domain: "x", Image: image, IDMapped: true}}}
		if front == FrontKernel {
			config = childConfig{Mounts: []childMount{{Image: image, IDMapped: true, Kernel: true}}}
		}
		ch := startChild(t, config)
		if got := ch.Fronts[0].Err; front == FrontOverlay || got != "" {
			if !strings.Contains(got, "id-mapped") || (front != FrontOverlay && !strings.Contains(got, "6.12")) {
				t.Errorf("error %q does not say what to do", got)
			}
			return
		}
		dir := ch.mustFront(t, 0, front)

		// A process in a user namespace, as a container's is.
		const base, ids = 100000, 65536
		script := exec.Command("/bin/sh", "-e", "-c", `
			read _
			cd /proc/self/fd/3
			test "$(stat -c %u:%g secret user beyond | tr '\n' ' ')" = "0:0 1000:100 65534:65534 "
			cat secret user beyond
			./true
			if (: > secret) 2>/dev/null; then exit 1; fi
			if test -w user; then exit 1; fi
		`)
		script.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: base, Size: ids}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: base, Size: ids}},
			Credential:  &syscall.Credential{NoSetGroups: true}, // root there
		}
		// Its mount is made before, with the namespace of another one.
		clone := idMappedClone(t, dir, script.SysProcAttr)
		script.ExtraFiles = []*os.File{clone}
		script.Stdin = strings.NewReader("go\n")
		var stderr strings.Builder
		script.Stderr = &stderr
		out, err := script.Output()
		if want := string(secret) + "of a user\nof nobody here\n"; err != nil || string(out) != want {
			t.Errorf("in a user namespace: %d bytes of %d, %v: %s", len(out), len(want), err, &stderr)
		}

		// Seen from the host.
		for name, want := range map[string][2]uint32{"secret": {base, base}, "user": {base + 1000, base + 100}} {
			var st, plain unix.Stat_t
			if err := errors.Join(unix.Fstatat(int(clone.Fd()), name, &st, 0), unix.Stat(dir+"/"+name, &plain)); err != nil {
				t.Fatal(err)
			}
			if st.Uid != want[0] || st.Gid != want[1] || plain.Uid != want[0]-base || plain.Gid != want[1]-base {
				t.Errorf("%s belongs to %d:%d, unmapped to %d:%d", name, st.Uid, st.Gid, plain.Uid, plain.Gid)
			}
		}
		through := fmt.Sprintf("/proc/self/fd/%d/secret", clone.Fd())
		if !images.SamePages(t, through, dir+"/secret") {
			t.Error("the mapped file has other pages")
		}
		_ = clone.Close()
	}
	eachFront(t, test)
	t.Run(FrontKernel, func(t *testing.T) { test(t, FrontKernel) })
}

// idMappedClone is a copy of a mount, mapped as a user namespace like attr's is, and
// attached nowhere.
func idMappedClone(t *testing.T, dir string, attr *syscall.SysProcAttr) *os.File {
	t.Helper()
	holder := exec.Command("/bin/cat")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: attr.UidMappings, GidMappings: attr.GidMappings}
	stdin, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stdin.Close(); _ = holder.Wait() }()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", holder.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	clone := os.NewFile(uintptr(fd), dir)
	t.Cleanup(func() { _ = clone.Close() })
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}); err != nil {
		t.Fatalf("id-map a clone of the front: %v", err)
	}
	return clone
}

// Whatever opens, maps and closes the same files at once, all get the right bytes, and
// when all is over nothing of it is left in the engine's process, or open in the
// kernel.
func TestManyOpensAtOnce(t *testing.T) {
	if !needPassthrough(t) {
		return
	}
	const files = 6
	tree := t.TempDir()
	var texts [files][]byte
	for i := range files {
		texts[i] = bytes.Repeat([]byte(fmt.Sprintf("file %d,", i)), 5000)
		if err := os.WriteFile(filepath.Join(tree, fmt.Sprint(i)), texts[i], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(tree, "empty"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	image := images.Build(t, images.NewestMkfs(t), nil, tree)
	state := stateDir(t)
	ch := startChild(t, childConfig{StateDir: state, Front: FrontPassthrough, Mounts: []childMount{{Domain: "x", Image: image}}})
	dir := ch.mustFront(t, 0, FrontPassthrough)
	read := func(i int) error {
		path := fmt.Sprintf("%s/%d", dir, i)
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		got := make([]byte, len(texts[i])+1)
		switch rand.IntN(3) {
		case 0:
			n, err := unix.Read(fd, got)
			_ = unix.Close(fd)
			if err != nil || !bytes.Equal(got[:n], texts[i]) {
				return fmt.Errorf("read: %d bytes, %v", n, err)
			}
		case 1: // a mapping outlives its descriptor
			data, err := unix.Mmap(fd, 0, len(texts[i]), unix.PROT_READ, unix.MAP_SHARED)
			_ = unix.Close(fd)
			if err != nil {
				return err
			}
			time.Sleep(time.Duration(rand.IntN(1000)) * time.Microsecond)
			equal := bytes.Equal(data, texts[i])
			if err := unix.Munmap(data); err != nil || !equal {
				return fmt.Errorf("mapped: equal %v, %v", equal, err)
			}
		default:
			_ = unix.Close(fd)
		}
		if fd, err := unix.Open(dir+"/empty", unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			n, err := unix.Read(fd, got)
			_ = unix.Close(fd)
			if n != 0 || err != nil {
				return fmt.Errorf("the empty file: %d bytes, %v", n, err)
			}
		}
		return err
	}
	before := openFiles(t, ch.cmd.Process.Pid)
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for range 500 {
				if err := read(rand.IntN(1 + worker%files)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 4 { // and of other processes
		wg.Go(func() {
			script := `for i in 1 2 3 4 5 6 7 8 9 10; do cat 0 1 2 3 4 5 empty & exec 4<0; cat 0 1 2 3 4 5; wait; cat <&4; done | sha256sum`
			cmd := exec.Command("/bin/sh", "-c", script)
			cmd.Dir = dir
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "  -") {
				t.Errorf("%s, %v", out, err)
			}
		})
	}
	wg.Wait()
	if after := openFiles(t, ch.cmd.Process.Pid); after > before {
		t.Errorf("%d descriptors are open in the engine's process, were %d", after, before)
	}
	ch.toggle(t, 0)
	if m := mountsBelow(t, state); len(m) != 1 {
		t.Errorf("mounts are left: %v", m)
	}
}

func openFiles(t *testing.T, pid int) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// While a file is open in one place or mapped, it can be opened in others, with its
// pages dropped in between; what O_DIRECT reads is not kept.
func TestPassthroughKeepsFilesOpen(t *testing.T) {
	if !needPassthrough(t) {
		return
	}
	a, _ := twoVersions(t)
	want, err := os.ReadFile(a + "/other")
	if err != nil {
		t.Fatal(err)
	}
	state := stateDir(t)
	ch := startChild(t, childConfig{StateDir: state, Front: FrontPassthrough, Mounts: []childMount{
		{Domain: "x", Volume: "v", Image: images.Build(t, images.NewestMkfs(t), nil, a)},
	}})
	path := ch.mustFront(t, 0, FrontPassthrough) + "/other"
	if got := images.ReadDirect(t, path); !bytes.Equal(got, want) {
		t.Errorf("O_DIRECT: %d other bytes", len(got))
	}
	if n := domainStatus(t, state).BytesResident; n != 0 {
		t.Errorf("%d bytes in the page cache after O_DIRECT", n)
	}
	first, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	data, err := unix.Mmap(int(first.Fd()), 0, len(want), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(want)
	for range 3 {
		second, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, len(want))
		if _, err := second.ReadAt(buf, 0); err != nil || sha256.Sum256(buf) != sum || sha256.Sum256(data) != sum {
			t.Errorf("other bytes, %v", err)
		}
		_ = first.Close() // the second is the last open one, or the mapping alone
		_ = second.Close()
		if _, err := DropCaches(t.Context(), state, DropFilter{}); err != nil {
			t.Fatal(err)
		}
		if sha256.Sum256(data) != sum {
			t.Error("other bytes through the mapping that is left")
		}
		if first, err = os.Open(path); err != nil {
			t.Fatal(err)
		}
	}
	_ = first.Close()
	if err := unix.Munmap(data); err != nil {
		t.Fatal(err)
	}
	if d, err := DropCaches(t.Context(), state, DropFilter{}); err != nil || d.After != 0 {
		t.Errorf("dropped %+v, %v", d, err)
	}
}
