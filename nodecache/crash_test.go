package nodecache

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// scenario opens a store, pulls ref and writes a sidecar twice.
func scenario(dir, ref string, d disk) error {
	s, err := open(Config{Dir: dir, ReserveBytes: -1}, d)
	if err != nil {
		return err
	}
	s.retry = quick
	img, err := s.Acquire(context.Background(), ref, AcquireOptions{})
	if err == nil {
		for _, text := range []string{"old", "new"} {
			err = errors.Join(err, img.WriteSidecar("index", func(f *os.File) error {
				_, err := f.WriteString(text)
				return err
			}))
		}
		img.Release()
	}
	return errors.Join(err, s.Close())
}

// wantWhole opens the store as it was left and requires that what it serves is
// complete, that nothing half done is left, and that pulling then succeeds.
// complete says that the pull had returned before.
func wantWhole(t *testing.T, dir string, p pushed, complete bool) {
	t.Helper()
	s, err := Open(Config{Dir: dir, ReserveBytes: -1})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	s.retry = quick
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	part := "partial/" + p.blob.Encoded()
	allowed := append(filesOf(t, p), "blobs/sha256/"+p.blob.Encoded()+".index", part, part+stateSuffix)
	for _, name := range filesBelow(t, dir) {
		if !slices.Contains(allowed, name) {
			t.Errorf("%s was left behind", name)
		}
	}
	check := func(policy PullPolicy) (err error) {
		img, err := s.Acquire(t.Context(), p.ref, AcquireOptions{Policy: policy})
		if err != nil {
			return err
		}
		defer img.Release()
		wantContent(t, img.Blob(), p.content)
		text, err := os.ReadFile(img.SidecarPath("index"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) || err == nil && !slices.Contains([]string{"old", "new"}, string(text)) {
			t.Errorf("sidecar %q, %v", text, err)
		}
		if complete && string(text) != "new" {
			t.Errorf("the sidecar is %q", text)
		}
		return nil
	}
	if err := check(Never); err != nil {
		wantError(t, err, ErrNotFound)
		if complete {
			t.Errorf("what was pulled is lost: %v", err)
		}
	}
	if err := check(IfNotPresent); err != nil {
		t.Errorf("pull afterwards: %v", err)
	}
	if left := filesBelow(t, filepath.Join(dir, "partial")); len(left) != 0 {
		t.Errorf("%q were left behind by the pull", left)
	}
}

// TestOrder states the order of steps on which all else stands.
func TestOrder(t *testing.T) {
	p := pushImage(t, 1, 1<<20+5)
	dir := t.TempDir()
	var c steps
	if err := scenario(dir, p.ref, c.disk(dir)); err != nil {
		t.Fatal(err)
	}
	blob, part := "blobs/sha256/"+p.blob.Encoded(), "partial/"+p.blob.Encoded()
	state := part + stateSuffix
	refs := filesOf(t, p)[1:]
	want := []string{
		"syncdir blobs", "syncdir .", "syncdir ..",
		"create tmp/1", "allocate tmp/1", "create " + state, "write " + state, "rename " + part,
	}
	for range chunksOf(1<<20 + 5) {
		want = append(want, "write "+part, "write "+state)
	}
	want = append(want,
		"sync "+part, "rename "+blob, "syncdir blobs/sha256", "remove "+state,
		"create tmp/2", "write tmp/2", "sync tmp/2", "rename "+refs[1], "syncdir refs",
		"create tmp/3", "write tmp/3", "sync tmp/3", "rename "+refs[0], "syncdir refs",
		"create tmp/4", "sync tmp/4", "rename "+blob+".index", "syncdir blobs/sha256",
		"create tmp/5", "sync tmp/5", "rename "+blob+".index", "syncdir blobs/sha256",
	)
	if !slices.Equal(c.log, want) {
		t.Errorf("steps:\n got %q\nwant %q", c.log, want)
	}
}

// pullCrash is the scenario for the three tests below.
func pullCrash(t *testing.T) crashTest {
	p := pushImage(t, 1, 1<<20+5)
	return crashTest{
		name: "pull", arg: p.ref, steps: 20,
		check: func(t *testing.T, dir string, done bool) { t.Helper(); wantWhole(t, dir, p, done) },
	}
}

func TestKilled(t *testing.T)   { pullCrash(t).killed(t) }
func TestPowerCut(t *testing.T) { pullCrash(t).powerCut(t) }

// TestStepFails has each step fail once. The store goes on afterwards.
func TestStepFails(t *testing.T) {
	pullCrash(t).stepFails(t, func(step string) bool { return step == "syncdir .." || strings.HasPrefix(step, "remove partial/") })
}
