package images

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// recorder is a testing.TB that keeps the failures of a comparison.
type recorder struct {
	testing.TB
	failures []string
}

func (r *recorder) Helper() {}

func (r *recorder) Errorf(format string, args ...any) {
	r.failures = append(r.failures, strings.TrimSpace(strings.Join([]string{format}, " ")))
	for _, a := range args {
		if s, ok := a.(string); ok {
			r.failures = append(r.failures, s)
		}
	}
}

// A comparison must see every single change of one file.
func TestCompareSeesChanges(t *testing.T) {
	for name, change := range map[string]func(dir string) error{
		"content": func(dir string) error {
			f, err := os.OpenFile(filepath.Join(dir, "text"), os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }()
			_, err = f.WriteAt([]byte("!"), 77)
			return err
		},
		"mode":    func(dir string) error { return os.Chmod(filepath.Join(dir, "one"), 0o600) },
		"owner":   func(dir string) error { return os.Chown(filepath.Join(dir, "one"), 5, -1) },
		"size":    func(dir string) error { return os.Truncate(filepath.Join(dir, "one"), 2) },
		"missing": func(dir string) error { return os.Remove(filepath.Join(dir, "empty")) },
		"more":    func(dir string) error { return os.WriteFile(filepath.Join(dir, "dir/more"), nil, 0o644) },
		"target": func(dir string) error {
			_ = os.Remove(filepath.Join(dir, "link"))
			return os.Symlink("elsewhere", filepath.Join(dir, "link"))
		},
		"hard link": func(dir string) error {
			data, err := os.ReadFile(filepath.Join(dir, "hard"))
			if err != nil {
				return err
			}
			_ = os.Remove(filepath.Join(dir, "hard"))
			return os.WriteFile(filepath.Join(dir, "hard"), data, 0o644)
		},
	} {
		t.Run(name, func(t *testing.T) {
			want, got := TinyTree(t), TinyTree(t)
			loose := CompareOptions{OnlyMtime: true, SkipDirSize: true}
			CompareTrees(t, want, got, loose)
			if err := change(got); err != nil {
				t.Fatal(err)
			}
			r := &recorder{TB: t}
			CompareTrees(r, want, got, loose)
			if len(r.failures) == 0 {
				t.Error("the change was not seen")
			}
		})
	}
}

// What mkfs.erofs makes of the small tree has all of it, seen by the kernel.
func TestSmallTreeThroughKernel(t *testing.T) {
	tree := SmallTree(t)
	OverlayMarks(t, tree)
	for _, mkfs := range AllMkfs(t) {
		t.Run(mkfs.String(), func(t *testing.T) {
			image := Build(t, mkfs, nil, tree)
			CompareTrees(t, tree, KernelMount(t, image), CompareOptions{
				OnlyMtime: true, SkipDirSize: true,
				SkipPath: func(path string) bool { return !mkfs.AtLeast(1, 6) && len(filepath.Base(path)) == 255 },
				// mkfs.erofs adds it to directories with whiteouts.
				SkipXattr: func(_, name string) bool { return name == "trusted.overlay.origin" },
			})
		})
	}
}

// A loop device shows the file's bytes.
func TestLoop(t *testing.T) {
	data := strings.Repeat("0123456789abcdef", 512)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(Loop(t, file))
	if err != nil || string(got) != data {
		t.Errorf("read %d bytes, %v; want the file's %d", len(got), err, len(data))
	}
}
