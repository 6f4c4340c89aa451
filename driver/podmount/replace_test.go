package podmount

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/test/pod"
)

// said is what a command prints, without space around it.
func said(t *testing.T, p *pod.Pod, command string, args ...any) string {
	t.Helper()
	return strings.TrimSpace(p.Run(t, command, args...))
}

// optionsOf are those of a mount as a pod sees it, without what is not its own.
func optionsOf(t *testing.T, p *pod.Pod, point string) string {
	t.Helper()
	return said(t, p, `awk -v p=%s '$5 == p { o = $6 } END { print o }' /proc/self/mountinfo`, point)
}

func mountsAt(t *testing.T, p *pod.Pod, point string) string {
	t.Helper()
	return said(t, p, `awk -v p=%s '$5 == p' /proc/self/mountinfo | wc -l`, point)
}

// TestReplace: in namespaces of all kinds the new mount is where the dead one was, once,
// with its flags; what is open stays what it was.
func TestReplace(t *testing.T) {
	for _, kind := range []struct {
		name  string
		flags []string
		enter string // how the shell makes the namespace a pod's
	}{
		{name: "private", flags: []string{"-m", "--propagation", "private"}},
		{name: "slave", flags: []string{"-m", "--propagation", "slave"}},
		{name: "shared", flags: []string{"-m", "--propagation", "shared"}},
		{name: "own root", flags: []string{"-m", "--propagation", "private"}, enter: `d=$(mktemp -d) && mount --rbind / "$d" && cd "$d" && mkdir old && pivot_root . old && cd / && umount -l old && rmdir old "$d"`},
		{name: "without proc", flags: []string{"-m", "--propagation", "private"}, enter: `cp /proc/self/mountinfo /dev/null`},
	} {
		t.Run(kind.name, func(t *testing.T) {
			base := newBase(t)
			dead, front, at := mountTree(t, base, "old"), mountTree(t, base, "new"), filepath.Join(base, "pod")
			must(t, os.Mkdir(at, 0o755))
			must(t, os.Mkdir(filepath.Join(at, "whole"), 0o755))
			must(t, os.Mkdir(filepath.Join(at, "below"), 0o755))
			must(t, os.Mkdir(filepath.Join(at, "with space\n"), 0o755))
			must(t, os.WriteFile(filepath.Join(at, "file"), nil, 0o644))
			p := pod.Start(t, kind.flags...)
			if kind.enter != "" {
				p.Run(t, "%s", kind.enter)
			}
			p.Run(t, "cd %s", at)
			p.Run(t, "mount --bind %s whole && mount -o remount,bind,ro,nosuid,noexec,noatime whole", dead)
			p.Run(t, "mount --bind %s/sub below && mount -o remount,bind,ro,nodev,nodiratime below", dead)
			p.Run(t, "mount --bind %s/sub/deep/which file", dead)
			p.Run(t, "mount --bind %s \"with space\n\"", dead)
			p.Run(t, "exec 3<whole/which")
			if kind.name == "without proc" {
				p.Run(t, "umount -l /proc")
			}
			d := deadAt(t, dead)
			rep := replaceAll(t, d, front)
			want := []string{dead, filepath.Join(at, "whole"), filepath.Join(at, "below"), filepath.Join(at, "file"), filepath.Join(at, "with space\n")}
			slices.Sort(want)
			slices.Sort(rep.Replaced)
			if got := slices.Compact(rep.Replaced); len(rep.Left) > 0 || !slices.Equal(got, want) {
				t.Fatalf("replaced %q, want %q; left %q", got, want, rep.Left)
			}
			for file, want := range map[string]string{
				"whole/which": "new .", "whole/sub/which": "new sub", "below/which": "new sub", "below/deep/which": "new sub/deep",
				"file": "new sub/deep", "'with space\n/which'": "new .",
			} {
				if got := said(t, p, "cat %s", file); got != want {
					t.Errorf("%s: %q, want %q", file, got, want)
				}
			}
			if got := said(t, p, "cat <&3"); got != "old ." {
				t.Errorf("what was open: %q", got)
			}
			if got, ok := p.Try(t, "touch whole/x"); ok {
				t.Errorf("the new mount can be written to: %s", got)
			}
			if kind.name == "without proc" {
				p.Run(t, "mount -t proc proc /proc")
			}
			for point, want := range map[string]string{
				"whole": "ro,nosuid,nodev,noexec,noatime", "below": "ro,nodev,nodiratime,relatime", "file": "ro,nodev,relatime",
			} {
				point = filepath.Join(at, point)
				// Where mounts are shared with this namespace, that is where they were replaced.
				if got := sortedOptions(optionsOf(t, p, point)); got != sortedOptions(want) && kind.name != "shared" {
					t.Errorf("%s: options %s, want %s", point, got, want)
				}
				if n := mountsAt(t, p, point); n != "1" && kernelAtLeast(t, 6, 5) {
					t.Errorf("%s mounts at %s", n, point)
				}
			}
			// Nothing is left to do.
			if rep := replaceAll(t, d, front); len(rep.Left)+len(rep.Replaced) > 0 {
				t.Errorf("again: %+v", rep)
			}
			p.Run(t, "cd / && exec 3<&- && umount %s/whole %s/below %s/file", at, at, at)
		})
	}
}

func sortedOptions(o string) string {
	list := strings.Split(o, ",")
	slices.Sort(list)
	return strings.Join(list, ",")
}

// TestLeftAlone: what is not the dead mount, is hidden, or belongs to others is as it was.
func TestLeftAlone(t *testing.T) {
	base := newBase(t)
	dead, front, at := mountTree(t, base, "old"), mountTree(t, base, "new"), filepath.Join(base, "pod")
	for _, name := range []string{"covered", "hidden/below", "fake", "other", "plain"} {
		must(t, os.MkdirAll(filepath.Join(at, name), 0o755))
	}
	other := mountTree(t, base, "other")
	p := pod.Start(t, "-m", "--propagation", "private")
	p.Run(t, "cd %s", at)
	for _, point := range []string{"plain", "covered", "hidden/below"} {
		p.Run(t, "mount --bind %s %s", dead, point)
	}
	p.Run(t, "mount -t tmpfs mine covered && echo mine >covered/which")
	p.Run(t, "mount -t tmpfs mine hidden && mkdir hidden/below && echo mine >hidden/below/which")
	p.Run(t, "mount -t tmpfs %s fake && echo mine >fake/which", source)
	p.Run(t, "mount --bind %s other", other)
	p.Run(t, "ln -s %s link", dead)
	before := p.Run(t, "grep -e %s/ /proc/self/mountinfo", at)
	rep := replaceAll(t, deadAt(t, dead), front)
	for _, point := range rep.Replaced {
		if point != dead && point != filepath.Join(at, "plain") {
			t.Errorf("replaced %s", point)
		}
	}
	if len(rep.Left) != 1 || rep.Left[0].Mountpoint != filepath.Join(at, "hidden/below") || !strings.Contains(rep.Left[0].Why, "something else") {
		t.Errorf("left %q, want what is hidden", rep.Left)
	}
	if after := p.Run(t, "grep -e %s/ /proc/self/mountinfo", at); !sameButPlain(before, after) {
		t.Errorf("mounts:\n%s\nwere:\n%s", after, before)
	}
	for _, file := range []string{"covered/which", "hidden/below/which", "fake/which"} {
		if got := said(t, p, "cat %s", file); got != "mine" {
			t.Errorf("%s: %q", file, got)
		}
	}
	if got := said(t, p, "cat other/which"); got != "other ." {
		t.Errorf("another mount of the same kind: %q", got)
	}
	p.Run(t, "umount covered hidden && cat covered/which") // it is what it was
}

// sameButPlain compares mounts, without the one that is to be replaced.
func sameButPlain(a, b string) bool {
	without := func(s string) []string {
		return slices.DeleteFunc(strings.Split(s, "\n"), func(l string) bool { return strings.Contains(l, "/plain ") })
	}
	return slices.Equal(without(a), without(b))
}

// TestOtherUsers: what is id-mapped, or of another user namespace, is told of and left.
func TestOtherUsers(t *testing.T) {
	base := newBase(t)
	dead, front, at := mountTree(t, base, "old"), mountTree(t, base, "new"), filepath.Join(base, "pod")
	must(t, os.MkdirAll(filepath.Join(at, "mapped"), 0o755))
	users := pod.Start(t, "-U", "-r", "-m", "--propagation", "private")
	users.Run(t, "cat %s/which", dead)
	mapped := mountIDMapped(t, dead, filepath.Join(at, "mapped"), users.PID())
	p := pod.Start(t, "-m", "--propagation", "private")
	p.Run(t, "cd %s", at)
	rep := replaceAll(t, deadAt(t, dead), front)
	why := make(map[string]int)
	for _, l := range rep.Left {
		why[l.Why]++
	}
	if why[errUserNamespace.Error()] != 1 || mapped && why[errIDMapped.Error()] != 1 {
		t.Errorf("left %+v", rep.Left)
	}
	if got := said(t, users, "cat %s/which", dead); got != "old ." {
		t.Errorf("in a user namespace: %q", got)
	}
	if got := said(t, p, "cat %s/which", dead); got != "new ." {
		t.Errorf("the mount that is not id-mapped: %q", got)
	}
}

// mountIDMapped mounts dir once more, with the ids of a process' user namespace. It tells
// whether the kernel can do that for a tmpfs.
func mountIDMapped(t *testing.T, dir, target string, pid int) bool {
	t.Helper()
	users, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
	must(t, err)
	defer users.Close()
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	must(t, err)
	defer unix.Close(fd)
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users.Fd())})
	if err != nil && !kernelAtLeast(t, 6, 3) {
		return false
	}
	must(t, err)
	must(t, unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH))
	return true
}

// TestGone: a namespace that is another one by now is not entered.
func TestGone(t *testing.T) {
	base := newBase(t)
	dead, front := mountTree(t, base, "old"), mountTree(t, base, "new")
	p := pod.Start(t, "-m", "--propagation", "private")
	p.Run(t, "true")
	_, err := replace(Request{PID: p.PID(), Namespace: 1, Dead: deadAt(t, dead), Front: front})
	if err == nil || !strings.Contains(err.Error(), "want 1") {
		t.Errorf("another namespace: %v", err)
	}
	if _, err := replace(Request{PID: 1 << 30, Namespace: 1, Dead: deadAt(t, dead), Front: front}); err == nil {
		t.Error("a process that is not there")
	}
	if got := said(t, p, "cat %s/which", dead); got != "old ." {
		t.Errorf("%q", got)
	}
}

// TestReplaceOnTop: a kernel that can't put mounts beneath others gets them on top, and
// what is covered then is dead no more.
func TestReplaceOnTop(t *testing.T) {
	base := newBase(t)
	dead, front := mountTree(t, base, "old"), mountTree(t, base, "new")
	p := pod.Start(t, "-m", "--propagation", "private")
	p.Run(t, "cat %s/which", dead)
	rep := replaceBy(t, "old", deadAt(t, dead), front)
	if !slices.Equal(rep.Replaced, []string{dead}) || len(rep.Left) > 0 {
		t.Fatalf("report %+v", rep)
	}
	if got := said(t, p, "cat %s/which", dead); got != "new ." {
		t.Errorf("%q", got)
	}
	if n := mountsAt(t, p, dead); n != "2" {
		t.Errorf("%s mounts, want the new one on the dead one", n)
	}
	if rep := replaceBy(t, "old", deadAt(t, dead), front); len(rep.Left)+len(rep.Replaced) > 0 {
		t.Errorf("again: %+v", rep)
	}
}
