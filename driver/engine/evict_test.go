package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/erofs-csi/erofs-csi/nodecache"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// An image that no volume shows, but whose pages are kept, is evicted when the store
// wants it: its mounts and its file are gone when the store says so. One that a
// volume shows is not.
func TestIdleImagesAreEvicted(t *testing.T) {
	mkfs := images.NewestMkfs(t)
	one, two := images.Build(t, mkfs, nil, images.TinyTree(t)), images.Build(t, mkfs, []string{"-zlz4"}, images.TinyTree(t))
	want := images.KernelMount(t, two)
	eachFront(t, func(t *testing.T, front string) {
		cache, state := t.TempDir(), stateDir(t)
		refs := []string{"127.0.0.1:1/one:v1", "127.0.0.1:1/two:v1"}
		images.Store(t, cache, one, refs[0])
		images.Store(t, cache, two, refs[1])
		ch := startChild(t, childConfig{StateDir: state, CacheDir: cache, Front: front, Mounts: []childMount{
			{Domain: "x", Volume: "v", Image: refs[0], Keep: true},
			{Domain: "x", Volume: "w", Image: refs[1], Keep: true},
			{Volume: "alone", Image: refs[0], Keep: true},
		}})
		ask := func(q CacheQuery) CacheAnswer {
			t.Helper()
			a, err := AskCache(t.Context(), state, cache, q)
			if err != nil {
				t.Fatalf("%+v: %v", q, err)
			}
			return a
		}
		stored := func(ref string) *nodecache.StoredImage {
			t.Helper()
			for _, im := range ask(CacheQuery{Op: CacheList}).Contents.Images {
				if slices.Contains(im.References, ref) {
					return &im
				}
			}
			return nil
		}
		if im := stored(refs[0]); im == nil || !im.InUse || !slices.Equal(im.Volumes, []string{"alone", "v"}) {
			t.Errorf("%+v", im)
		}
		if e := ask(CacheQuery{Op: CacheEvict}).Evicted; e.Images != 0 {
			t.Errorf("evicted %+v of what volumes show", e)
		}
		ch.toggle(t, 0)
		if im := stored(refs[0]); im == nil || !im.InUse || im.Resting || !slices.Equal(im.Volumes, []string{"alone"}) {
			t.Errorf("with one volume left: %+v", im)
		}
		ch.toggle(t, 2)
		if im := stored(refs[0]); im == nil || im.InUse || !im.Resting || len(im.Volumes) != 0 {
			t.Errorf("without volumes: %+v", im)
		}
		ch.toggle(t, 0) // from its rest
		if im := stored(refs[0]); im == nil || !im.InUse {
			t.Errorf("mounted again: %+v", im)
		}
		if e := ask(CacheQuery{Op: CacheEvict}).Evicted; e.Images != 0 {
			t.Errorf("evicted %+v, which was mounted again", e)
		}
		ch.toggle(t, 0)
		if s, err := ReadStatus(t.Context(), state); err != nil || len(s) != 1 || s[0].Images == nil || s[0].Images.Blobs != 2 {
			t.Errorf("status %+v, %v", s, err)
		}
		if e := ask(CacheQuery{Op: CacheEvict}).Evicted; e.Images != 1 || e.Bytes == 0 {
			t.Errorf("evicted %+v, want the image that no volume shows", e)
		}
		for _, d := range descriptorsOf(t, ch.cmd.Process.Pid) {
			if strings.Contains(d, "(deleted)") && strings.Contains(d, cache) {
				t.Errorf("%s is still open", d)
			}
		}
		if im := stored(refs[0]); im != nil {
			t.Errorf("it is still there: %+v", im)
		}
		if d := xStatus(t, state); len(d.Idle) != 0 || len(d.Fronts) != 1 {
			t.Errorf("status %+v: want no idle images", d)
		}
		images.CompareTrees(t, want, ch.mustFront(t, 1, front), compareOptions(front))
		s, err := ReadStatus(t.Context(), state)
		if err != nil || s[0].Images.Evictions != 1 {
			t.Errorf("status %+v, %v; want one eviction", s, err)
		}
		if _, err := AskCache(t.Context(), state, t.TempDir(), CacheQuery{Op: CacheList}); !errors.Is(err, ErrNotMounted) {
			t.Errorf("another directory: %v", err)
		}
		if _, err := AskCache(t.Context(), state, cache, CacheQuery{Op: "melt"}); err == nil || !strings.Contains(err.Error(), "melt") {
			t.Errorf("another operation: %v", err)
		}
	})
}

// descriptorsOf lists what a process has open.
func descriptorsOf(t *testing.T, pid int) (list []string) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			list = append(list, to)
		}
	}
	return list
}
