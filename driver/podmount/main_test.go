package podmount

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/test/images"
)

// helperEnv makes the test binary the process that replaces mounts.
const helperEnv = "EROFS_CSI_TEST_REPLACE"

func TestMain(m *testing.M) {
	if how := os.Getenv(helperEnv); how != "" {
		if how == "old" {
			moveMountBeneath = 1 << 30
		}
		if err := Main(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// source is the source of the mounts of these tests.
const source = "erofs-csi-test"

// newBase makes a directory whose mounts are seen by namespaces that are made later, as
// they want, and by no others.
func newBase(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	err = unix.Mount("base", dir, "tmpfs", 0, "size=8m,mode=755")
	images.Need(t, "CAP_SYS_ADMIN, to mount", err == nil)
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	must(t, unix.Mount("", dir, "", unix.MS_PRIVATE, ""))
	must(t, unix.Mount("", dir, "", unix.MS_SHARED, ""))
	return dir
}

// mountTree mounts a tmpfs with the files "which", "sub/which" and "sub/deep/which", which
// say which it is.
func mountTree(t *testing.T, base, which string) string {
	t.Helper()
	dir := filepath.Join(base, which)
	must(t, os.Mkdir(dir, 0o755))
	must(t, unix.Mount(source, dir, "tmpfs", 0, "size=1m,mode=755"))
	for _, name := range []string{".", "sub", "sub/deep"} {
		must(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, name, "which"), []byte(which+" "+name+"\n"), 0o644))
	}
	return dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func deadAt(t *testing.T, dir string) Dead {
	t.Helper()
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	must(t, err)
	if len(infos) != 1 {
		t.Fatalf("%d mounts at %s", len(infos), dir)
	}
	return Dead{Major: infos[0].Major, Minor: infos[0].Minor, Root: infos[0].Root}
}

// replaceAll does what the driver does: looks, and has a process replace what it found.
func replaceAll(t *testing.T, d Dead, front string) (all Report) {
	t.Helper()
	return replaceBy(t, "new", d, front)
}

// replaceBy has it done as by a "new" kernel, or an "old" one, before Linux 6.5.
func replaceBy(t *testing.T, kernel string, d Dead, front string) (all Report) {
	t.Helper()
	t.Setenv(helperEnv, kernel)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	run := func(ctx context.Context, task Task) (Answer, error) { return Run(ctx, task, "/proc/self/exe") }
	list, err := NewViewer(source, run).Look(ctx)
	must(t, err)
	for _, n := range list {
		if len(n.Dead(d)) == 0 {
			continue
		}
		answer, err := run(ctx, Task{Replace: &Request{PID: n.PID, Namespace: n.Inode, Dead: d, Front: front}})
		must(t, err)
		all.Replaced = append(all.Replaced, answer.Report.Replaced...)
		all.Left = append(all.Left, answer.Report.Left...)
	}
	return all
}

// kernelAtLeast compares with the release of the kernel that runs.
func kernelAtLeast(t *testing.T, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	must(t, unix.Uname(&u))
	var a, b int
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b)
	must(t, err)
	return a > major || a == major && b >= minor
}
