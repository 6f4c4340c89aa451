package nodecache

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// pushContainer pushes a container image and says what its conversion must be.
func pushContainer(t *testing.T) pushed {
	t.Helper()
	p := anonymous(t).container("v1", threeLayers(t)...)
	s := openStore(t, Config{})
	img := acquire(t, s, p.ref, AcquireOptions{})
	content, err := os.ReadFile(img.Blob().Path())
	if err != nil {
		t.Fatal(err)
	}
	rec, err := readRecord(s.dir.conversion(p.manifest))
	if err != nil {
		t.Fatal(err)
	}
	p.blob, p.content, p.converted = rec.Blob, content, true
	return p
}

// TestConvertKilled kills a process by SIGKILL before each step of a conversion.
func TestConvertKilled(t *testing.T) {
	p := pushContainer(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for at := 1; ; at++ {
		dir := filepath.Join(t.TempDir(), "store")
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s %s", crashEnv, at, dir, p.ref))
		out, err := cmd.CombinedOutput()
		if err == nil {
			if at < 25 {
				t.Fatalf("only %d steps", at-1)
			}
			wantWhole(t, dir, p, true)
			return
		}
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != -1 {
			t.Fatalf("step %d: %v\n%s", at, err, out)
		}
		wantWhole(t, dir, p, false)
		if t.Failed() {
			t.Fatalf("killed before step %d", at)
		}
	}
}

// TestConvertStepFails has each step of a conversion fail once.
func TestConvertStepFails(t *testing.T) {
	p := pushContainer(t)
	for _, errno := range []error{unix.EIO, unix.ENOSPC} {
		for at := 4; ; at++ { // the first three are the store's
			dir := t.TempDir()
			var failed string
			var c steps
			c.stop = func(n int) error {
				if n == at {
					failed = c.log[n-1]
					return errno
				}
				return nil
			}
			var err error
			noLeaks(t, func(*testing.T) { err = scenario(dir, p.ref, c.disk(dir)) })
			if failed == "" {
				if at < 25 || err != nil {
					t.Fatalf("only %d steps, %v", at-1, err)
				}
				break
			}
			switch removed := failed == "remove tmp/2"; {
			case removed: // of the scratch file, which is tried only
			case !errors.Is(err, errno):
				t.Errorf("%s: error %v, want %v", failed, err, errno)
			case errors.Is(err, ErrNoSpace) != errors.Is(errno, unix.ENOSPC):
				t.Errorf("%s: error %v", failed, err)
			}
			if names, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(names) != 0 && failed != "remove tmp/2" {
				t.Errorf("%s: %q was left behind", failed, names)
			}
			wantWhole(t, dir, p, false)
		}
	}
}

// TestConvertPowerCut takes the directory as a power cut at each step of a conversion
// would leave it.
func TestConvertPowerCut(t *testing.T) {
	p := pushContainer(t)
	dir := t.TempDir()
	model := newPowerModel(t, dir)
	if err := scenario(dir, p.ref, disk{before: model.before}); err != nil {
		t.Fatal(err)
	}
	model.snapshot("the end")
	for i, snap := range model.snapshots {
		for how, dir := range snap.dirs {
			t.Run(fmt.Sprintf("%d %s/%s", i, snap.step, how), func(t *testing.T) {
				wantWhole(t, dir, p, i == len(model.snapshots)-1)
			})
		}
	}
}
