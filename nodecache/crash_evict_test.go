package nodecache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// evictScenario opens a store and pulls the image of arg, for which another must go.
func evictScenario(dir, arg string, d disk) error {
	s, err := open(Config{Dir: dir, ReserveBytes: -1, LimitBytes: 1<<20 + 500_000}, d)
	if err != nil {
		return err
	}
	s.retry = quick
	img, err := s.Acquire(context.Background(), arg, AcquireOptions{})
	if err == nil {
		img.Release()
	}
	return errors.Join(err, s.Close())
}

// TestEvictionCutOff: whatever of an eviction, and of the pull for which it is,
// reaches the disk, the store is whole, and what is not to go is there.
func TestEvictionCutOff(t *testing.T) {
	images := pushImages(t, 3, 600_000)
	old, pinned, wanted := images[0], images[1], images[2]
	sidecar := func(p pushed) string { return "blobs/sha256/" + p.blob.Encoded() + ".index" }
	c := crashTest{
		name: "evict", arg: wanted.ref, steps: 20,
		prepare: func(t *testing.T, dir string) {
			t.Helper()
			s := openStore(t, Config{Dir: dir})
			for _, p := range []pushed{old, pinned} {
				img := acquire(t, s, p.ref, AcquireOptions{})
				if err := img.WriteSidecar("index", func(f *os.File) error { _, err := f.WriteString("x"); return err }); err != nil {
					t.Fatal(err)
				}
				img.Release()
			}
			if err := s.Pin(t.Context(), pinned.ref); err != nil {
				t.Fatal(err)
			}
			unusedSince(t, s, old, time.Hour)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		},
		check: func(t *testing.T, dir string, done bool) {
			t.Helper()
			s := openStore(t, Config{Dir: dir})
			allowed := slices.Concat(filesOf(t, old), filesOf(t, pinned), filesOf(t, wanted),
				[]string{"partial/" + wanted.blob.Encoded(), "partial/" + wanted.blob.Encoded() + stateSuffix},
				[]string{sidecar(old), sidecar(pinned), filepath.Join("pins", filepath.Base(refFile(t, pinned.ref)))})
			for _, name := range filesBelow(t, dir) {
				if !slices.Contains(allowed, name) {
					t.Errorf("%s was left behind", name)
				}
			}
			for _, p := range images {
				img, err := s.Acquire(t.Context(), p.ref, AcquireOptions{Policy: Never})
				if err == nil {
					wantContent(t, img.Blob(), p.content)
					img.Release()
				} else if wantError(t, err, ErrNotFound); p.ref == pinned.ref || p.ref == wanted.ref && done {
					t.Errorf("lost: %v", err)
				}
			}
			if l := list(t, s); !slices.Equal(l.Pins, []string{pinned.ref}) || len(l.Unknown) != 0 {
				t.Errorf("pins %q, unknown files %q", l.Pins, l.Unknown)
			}
			if text, err := os.ReadFile(filepath.Join(dir, sidecar(pinned))); err != nil || string(text) != "x" {
				t.Errorf("sidecar %q, %v", text, err)
			}
			for _, p := range images {
				pullOnly(t, s, p)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		},
	}
	t.Run("killed", c.killed)
	t.Run("power cut", c.powerCut)
	t.Run("step fails", func(t *testing.T) {
		c.stepFails(t, func(step string) bool { return step == "syncdir .." || strings.HasPrefix(step, "remove partial/") })
	})
}

// pinScenario pins, removes and unpins one each of the references in arg.
func pinScenario(dir, arg string, d disk) error {
	refs := strings.Split(arg, " ")
	s, err := open(Config{Dir: dir, ReserveBytes: -1}, d)
	if err != nil {
		return err
	}
	err = s.Pin(context.Background(), refs[1])
	if err == nil {
		_, err = s.Remove(refs[2])
	}
	if err == nil {
		err = s.Unpin(refs[0])
	}
	return errors.Join(err, s.Close())
}

// TestPinCutOff: pins are there or not, as before or as after, and a removed image
// is whole or gone; for good, once the call has returned.
func TestPinCutOff(t *testing.T) {
	images := pushImages(t, 3, 50_000)
	c := crashTest{
		name: "pin", arg: images[0].ref + " " + images[1].ref + " " + images[2].ref, steps: 13,
		prepare: func(t *testing.T, dir string) {
			t.Helper()
			s := openStore(t, Config{Dir: dir})
			for _, p := range images {
				pullOnly(t, s, p)
			}
			if err := errors.Join(s.Pin(t.Context(), images[0].ref), s.Close()); err != nil {
				t.Fatal(err)
			}
		},
		check: func(t *testing.T, dir string, done bool) {
			t.Helper()
			s := openStore(t, Config{Dir: dir})
			l := list(t, s)
			for _, pin := range l.Pins {
				if pin != images[0].ref && pin != images[1].ref || done && pin != images[1].ref {
					t.Errorf("%s is pinned", pin)
				}
			}
			if done && len(l.Pins) != 1 || len(l.Unknown) != 0 {
				t.Errorf("pins %q, unknown files %q", l.Pins, l.Unknown)
			}
			for i, p := range images {
				img, err := s.Acquire(t.Context(), p.ref, AcquireOptions{Policy: Never})
				switch {
				case err == nil && i == 2 && done:
					t.Error("what was removed is back")
				case err == nil:
					wantContent(t, img.Blob(), p.content)
				case i < 2:
					t.Errorf("lost: %v", err)
				default:
					wantError(t, err, ErrNotFound)
				}
				if err == nil {
					img.Release()
				}
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		},
	}
	t.Run("killed", c.killed)
	t.Run("power cut", c.powerCut)
	t.Run("step fails", func(t *testing.T) {
		c.stepFails(t, func(step string) bool { return step == "syncdir .." })
	})
}
