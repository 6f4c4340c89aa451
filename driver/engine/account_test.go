package engine

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/erofs-csi/erofs-csi/test/images"
)

// accountTrees makes two versions of a tree with all that sharing can be: in both, in
// both with other metadata, copies within one, hard links, and files that are in the
// store of files if there is one.
func accountTrees(t *testing.T) (a, b string) {
	t.Helper()
	a, b = t.TempDir(), t.TempDir()
	put := func(path string, seed byte, size int, mode os.FileMode) {
		t.Helper()
		data := bytes.Repeat([]byte{seed, 1, seed, 2, 3}, size/5)
		if err := os.WriteFile(path, data, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Unix(1000, 0), time.Unix(1000, 0)); err != nil {
			t.Fatal(err)
		}
	}
	put(a+"/both", 1, 50_000, 0o644)
	put(b+"/both", 1, 50_000, 0o644)
	put(a+"/mode", 2, 70_000, 0o644)
	put(b+"/mode", 2, 70_000, 0o600)
	put(a+"/copy", 3, 30_000, 0o644)
	put(a+"/copy 2", 3, 30_000, 0o644)
	put(a+"/linked", 4, 40_000, 0o644)
	put(b+"/linked", 4, 40_000, 0o644)
	put(a+"/alone", 5, 5, 0o644)
	put(b+"/alone", 6, 90_000, 0o644)
	put(a+"/large", 7, 2*minStored, 0o644)
	put(b+"/large", 7, 2*minStored, 0o600)
	put(b+"/large too", 8, minStored+10, 0o600)
	put(a+"/unread", 9, 60_000, 0o644)
	put(a+"/empty", 0, 0, 0o644)
	for _, link := range []string{"/link", "/link 2"} {
		if err := os.Link(a+"/linked", a+link); err != nil {
			t.Fatal(err)
		}
	}
	return a, b
}

// imageUse is what a status says of an image, or what the physical pages of its files
// say.
type imageUse struct{ files, resident, alone int64 }

type domainUse struct {
	resident, saved int64
	images          []imageUse
}

// usedFrames counts the pages of all files of fronts by their physical pages.
func usedFrames(t *testing.T, shown []childFront) (u domainUse) {
	t.Helper()
	imageFrames := make([]map[uint64]bool, len(shown))
	all := make(map[uint64]int) // images that have it
	unshared := int64(0)
	for i, f := range shown {
		frames := make(map[uint64]bool)
		seen := make(map[uint64]bool)
		files := int64(0)
		err := filepath.WalkDir(f.Path, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			info, err := d.Info()
			if err != nil || info.Size() == 0 {
				return err
			}
			if ino := info.Sys().(*syscall.Stat_t).Ino; info.Sys().(*syscall.Stat_t).Nlink > 1 {
				if seen[ino] {
					return nil // a hard link
				}
				seen[ino] = true
			}
			files++
			for _, frame := range images.ResidentFrames(t, path) {
				frames[frame] = true
				unshared++
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for frame := range frames {
			all[frame]++
		}
		imageFrames[i] = frames
		u.images = append(u.images, imageUse{files: files, resident: int64(len(frames)) * 4096})
	}
	for i, frames := range imageFrames {
		for frame := range frames {
			if all[frame] == 1 {
				u.images[i].alone += 4096
			}
		}
	}
	u.resident = int64(len(all)) * 4096
	u.saved = unshared*4096 - u.resident
	return u
}

// A status says of domain and images what the physical pages say.
func TestStatusAgreesWithPhysicalPages(t *testing.T) {
	a, b := accountTrees(t)
	mkfs := images.NewestMkfs(t)
	one, two := images.Build(t, mkfs, nil, a), images.Build(t, mkfs, []string{"-zlz4"}, b)
	for _, front := range fronts(t) {
		for _, store := range []int64{0, 64 << 20} {
			for _, domain := range []string{"x", ""} {
				if store > 0 && (front == FrontTree || domain == "") {
					continue // has none
				}
				t.Run(fmt.Sprintf("%s-%d%s", front, store>>20, domain), func(t *testing.T) {
					state := stateDir(t)
					ch := startChild(t, childConfig{StateDir: state, Front: front, Store: store, Mounts: []childMount{
						{Domain: domain, Volume: "v", Image: one}, {Domain: domain, Volume: "w", Image: two},
					}})
					shown := ch.Fronts
					if domain == "" {
						shown = shown[:1] // each volume is a domain of its own
					}
					// An idle kernel takes pages away at any time.
					var got, want domainUse
					for range 20 {
						for i := range shown {
							readSome(t, ch.mustFront(t, i, front))
						}
						want = usedFrames(t, shown)
						got = statusUse(t, state, one)
						if again := usedFrames(t, shown); fmt.Sprint(again) == fmt.Sprint(want) && fmt.Sprint(got) == fmt.Sprint(want) {
							break
						}
					}
					if fmt.Sprint(got) != fmt.Sprint(want) {
						t.Errorf("the status says  %+v\nphysical pages are %+v", got, want)
					}
					if want.resident == 0 || domain != "" && (want.saved == 0 || want.images[0].alone == want.images[0].resident) {
						t.Errorf("nothing is shared, or nothing in memory: %+v", want)
					}
				})
			}
		}
	}
}

// statusUse is the status of the domain that has an image.
func statusUse(t *testing.T, state, image string) (u domainUse) {
	t.Helper()
	list, err := ReadStatus(t.Context(), state)
	if err != nil || len(list) != 1 {
		t.Fatalf("status %+v, %v", list, err)
	}
	for _, d := range list[0].Domains {
		if d.Images[0].Image != image && d.Images[len(d.Images)-1].Image != image {
			continue
		}
		u = domainUse{resident: d.BytesResident, saved: d.BytesSaved, images: make([]imageUse, len(d.Images))}
		for i, im := range d.Images {
			at := i
			if len(d.Images) == 2 {
				at = 1
				if im.Image == image {
					at = 0
				}
			}
			u.images[at] = imageUse{int64(im.Files), im.BytesResident, im.BytesAlone}
		}
		if d.Sampled {
			t.Error("a few files were sampled")
		}
	}
	return u
}

// readSome reads the files below dir but one, of a large one only the middle.
func readSome(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch e.Name() {
		case "unread":
		case "large too":
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.ReadAt(make([]byte, 10), minStored/2); err != nil {
				t.Fatal(err)
			}
			_ = f.Close()
		default:
			if _, err := os.ReadFile(path); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// What is sampled is an estimate of the whole, and a sample of few is all of them.
func TestSample(t *testing.T) {
	each := func(n int) func(func(uint64, int64) bool) {
		return func(f func(uint64, int64) bool) {
			for i := range n {
				size := int64(4096 * (1 + i%7))
				if i%1000 == 0 {
					size = 64 << 20
				}
				if !f(uint64(i), size) {
					return
				}
			}
		}
	}
	size := func(id uint64) (size int64) {
		each(int(id) + 1)(func(_ uint64, s int64) bool { size = s; return true })
		return size
	}
	list, all := sample(100, each(100))
	if !all || len(list) != 100 {
		t.Errorf("%d of 100 picked, all %v", len(list), all)
	}
	for i, p := range list {
		if p.weight != 1 {
			t.Errorf("pick %d has weight %v", i, p.weight)
		}
	}
	const n = 20_000
	var total int64
	each(n)(func(_ uint64, s int64) bool { total += s; return true })
	for range 20 {
		list, all = sample(1000, each(n))
		estimate, large := 0.0, 0
		for _, p := range list {
			s := size(p.id)
			estimate += p.weight * float64(s)
			if s == 64<<20 {
				large++
			}
		}
		if all || len(list) < 300 || len(list) > 1100 {
			t.Fatalf("%d picked, all %v", len(list), all)
		}
		if large != n/1000 {
			t.Errorf("%d of the %d large files are looked at", large, n/1000)
		}
		if off := estimate/float64(total) - 1; off < -1e-6 || off > 1e-6 {
			t.Errorf("the estimate is off by %v", off)
		}
	}
	if list, all := sample(10, each(0)); len(list) != 0 || !all {
		t.Errorf("%d picked of none", len(list))
	}
}
