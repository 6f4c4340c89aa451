package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/nodecache"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// A check that does not end is told of, and the next one is made.
func TestCheckHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wake := make(chan struct{})
		f := bounded(t.Context(), func(context.Context) Finding {
			<-wake // whatever its context says
			return ok("late")
		})
		if f.Result != Fail || !strings.Contains(f.Found, "no answer") {
			t.Errorf("a check that hangs: %+v", f)
		}
		close(wake)
	})
}

// mountBy is what a check of fronts says when the mount command is a script.
func mountBy(t *testing.T, script string) (*node, Finding) {
	t.Helper()
	images.Need(t, "root", os.Geteuid() == 0)
	dir := t.TempDir()
	n := &node{Config: Config{Scratch: dir, Image: dir + "/image", Name: "file", Content: "content", Program: "/bin/sh", Mount: []string{"sh", "-c", script, "mount"}}}
	return n, n.front(t.Context(), fronts[0])
}

// What the mount command says is what is found, without the name of the image.
func TestFrontRefused(t *testing.T) {
	n, f := mountBy(t, `echo "I0101 a line of the log" >&2; echo "erofs-csi: $3: mount $3: overlay: no such device" >&2; exit 1`)
	if f.Result != Warn || f.Found != "overlay: no such device" || f.Fix == "" || n.overlay.Load() {
		t.Errorf("%+v", f)
	}
	_, f = mountBy(t, `exit 3`)
	if f.Result != Warn || f.Found != "exit status 3" {
		t.Errorf("%+v", f)
	}
}

// A mount that shows something else, or does not end, is worse than none.
func TestFrontWrong(t *testing.T) {
	for script, want := range map[string]string{
		`echo ready; sleep 100`:                        "no such file",
		`echo other >"$4/file"; echo ready; sleep 100`: "not those of the image",
		`printf content >"$4/file"; trap 'echo "erofs-csi: busy" >&2; exit 1' TERM; echo ready; while :; do sleep 0.1; done`: "its end: busy",
	} {
		if n, f := mountBy(t, script); f.Result != Fail || !strings.Contains(f.Found, want) || n.overlay.Load() {
			t.Errorf("%s: %+v, want %q", script, f, want)
		}
	}
	n, f := mountBy(t, `printf content >"$4/file"; trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done`)
	if f.Result != OK || !n.overlay.Load() {
		t.Errorf("a mount that works: %+v", f)
	}
}

// What is mounted apart is nowhere else, and the thread's namespace goes with it.
func TestApart(t *testing.T) {
	images.Need(t, "root", os.Geteuid() == 0)
	dir := t.TempDir()
	err := apart(func() error {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "inside"), nil, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "inside")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a mount of another namespace is seen: %v", err)
	}
}

// The propagation of mount(2)'s own making, and of a directory that is not there.
func TestPropagation(t *testing.T) {
	images.Need(t, "root", os.Geteuid() == 0)
	dir := t.TempDir()
	found := make(map[string]Finding)
	err := apart(func() error {
		look := func(as string) { found[as] = (&node{Config: Config{KubeletDir: dir}}).propagation(t.Context()) }
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return err
		}
		look("private")
		if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
			return err
		}
		look("shared")
		// As in a pod with HostToContainer: a mount that follows a shared one.
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if err := unix.Mount("", dir, "", unix.MS_SLAVE, ""); err != nil {
			return err
		}
		look("follows")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for as, want := range map[string]Result{"private": Fail, "shared": OK, "follows": Fail} {
		if found[as].Result != want {
			t.Errorf("%s: %+v, want %s", as, found[as], want)
		}
	}
	if !strings.Contains(found["follows"].Fix, "Bidirectional") || !strings.Contains(found["private"].Fix, "make-rshared") {
		t.Errorf("fixes: %q, %q", found["follows"].Fix, found["private"].Fix)
	}
	if f := (&node{Config: Config{KubeletDir: dir + "/missing"}}).propagation(t.Context()); f.Result != Warn {
		t.Errorf("without kubelet: %+v", f)
	}
}

func TestMemoryLimit(t *testing.T) {
	root := t.TempDir()
	for path, max := range map[string]string{"": "", "a": "300000000\n", "a/b": "max\n", "a/b/c": "500000000\n"} {
		if err := os.MkdirAll(filepath.Join(root, path), 0o700); err != nil {
			t.Fatal(err)
		}
		if max != "" {
			if err := os.WriteFile(filepath.Join(root, path, "memory.max"), []byte(max), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for path, want := range map[string]uint64{"/": 0, "/a": 300000000, "/a/b/c": 300000000, "/../..": 0, "a/x/y": 300000000} {
		if got, found := memoryLimit(root, path); got != want || found != (want > 0) {
			t.Errorf("%s: %d, %t; want %d", path, got, found, want)
		}
	}
	if f := judgeMemory(64 << 20); f.Result != Warn || f.Found != "64.0 MiB" {
		t.Errorf("%+v", f)
	}
	if f := judgeMemory(2 << 30); f.Result != OK || f.Found != "2.0 GiB" {
		t.Errorf("%+v", f)
	}
}

// File systems that are no place for images, or for records of mounts.
func TestDirectories(t *testing.T) {
	images.Need(t, "root", os.Geteuid() == 0)
	dir := t.TempDir()
	onDisk := (&node{Config: Config{CacheDir: dir, Scratch: dir, StateDir: dir + "/not/yet/there"}})
	if f := onDisk.stateDir(t.Context()); f.Result != Warn {
		t.Errorf("a state directory that outlives a reboot: %+v", f)
	}
	if err := writePast(dir); err != nil {
		t.Errorf("O_DIRECT: %v (is TMPDIR on a disk?)", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	var cache, state Finding
	err := apart(func() error {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return err
		}
		cache, state = onDisk.cacheDir(t.Context()), onDisk.stateDir(t.Context())
		return nil
	})
	if err != nil || cache.Result != Warn || state.Result != OK {
		t.Errorf("on a tmpfs: %+v, %+v, %v", cache, state, err)
	}
	if f := (&node{Config: Config{CacheDir: "/proc/x"}}).cacheDir(t.Context()); f.Result != Fail {
		t.Errorf("a cache directory that can't be made: %+v", f)
	}
}

func TestPlugin(t *testing.T) {
	n := &node{Config: Config{StateDir: "/run/x"}}
	list, err := []engine.Status(nil), error(nil)
	n.ReadStatus = func(context.Context) ([]engine.Status, error) { return list, err }
	if f := n.plugin(t.Context()); f.Result != Warn {
		t.Errorf("none: %+v", f)
	}
	list = []engine.Status{{PID: 1, Domains: []engine.DomainStatus{{Fronts: []engine.FrontStatus{{Volumes: []string{"a", "b"}}}}, {}}}}
	if f := n.plugin(t.Context()); f.Result != OK || f.Found != "1 process, 2 volumes in 2 domains" {
		t.Errorf("one: %+v", f)
	}
	err = errors.New("it does not answer")
	if f := n.plugin(t.Context()); f.Result != Fail {
		t.Errorf("one that hangs: %+v", f)
	}
}

// Each way in which a registry can fail has its own fix.
func TestRegistry(t *testing.T) {
	fixes := make(map[string]error)
	for _, err := range []error{nodecache.ErrUnauthorized, nodecache.ErrNotFound, nodecache.ErrUnavailable, nodecache.ErrConfiguration, nodecache.ErrInvalidReference} {
		n := &node{Config: Config{Registry: "r.example/a:v1", Resolve: func(context.Context) (string, error) { return "", fmt.Errorf("r.example/a:v1: %w", err) }}}
		f := n.registry(t.Context())
		if f.Result != Fail || f.Found != err.Error() || fixes[f.Fix] != nil {
			t.Errorf("%v: %+v (the fix of %v)", err, f, fixes[f.Fix])
		}
		fixes[f.Fix] = err
	}
	n := &node{Config: Config{Resolve: func(context.Context) (string, error) { return "r.example/a@sha256:x", nil }}}
	if f := n.registry(t.Context()); f.Result != OK || !strings.Contains(f.Found, "sha256") {
		t.Errorf("%+v", f)
	}
}

func TestClock(t *testing.T) {
	n := &node{Config: Config{Built: time.Now().Add(time.Hour)}}
	if f := n.clock(t.Context()); f.Result != Fail {
		t.Errorf("before the program was built: %+v", f)
	}
	if f := (&node{}).clock(t.Context()); f.Result == Fail {
		t.Errorf("the clock of this machine: %+v", f)
	}
}
