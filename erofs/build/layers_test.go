package build_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs/build"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// overlay is a stack of layers as the kernel makes it: each is the upper directory
// of an overlayfs over those before.
type overlay struct {
	t      *testing.T
	base   string // a directory of a file system with trusted.* attributes
	uppers []string
}

// mount mounts the stack; with an upper directory if write is set.
func (o *overlay) mount(write bool) string {
	o.t.Helper()
	merged := filepath.Join(o.base, fmt.Sprintf("merged-%d-%t", len(o.uppers), write))
	var lower []string
	for i := len(o.uppers) - 1; i >= 0; i-- {
		lower = append(lower, o.uppers[i])
	}
	options := "lowerdir=" + strings.Join(lower, ":")
	flags := uintptr(unix.MS_RDONLY)
	if write {
		work, upper := merged+"-work", filepath.Join(o.base, fmt.Sprintf("upper-%d", len(o.uppers)))
		for _, d := range []string{work, upper} {
			o.must(os.Mkdir(d, 0o755))
		}
		options += ",upperdir=" + upper + ",workdir=" + work + ",redirect_dir=off,metacopy=off,index=off"
		flags = 0
		o.uppers = append(o.uppers, upper)
	} else {
		lower = append(lower, filepath.Join(o.base, "none"))
		o.must(os.MkdirAll(lower[len(lower)-1], 0o755))
		options = "lowerdir=" + strings.Join(lower, ":")
	}
	o.must(os.Mkdir(merged, 0o755))
	o.must(unix.Mount("overlay", merged, "overlay", flags, options))
	o.t.Cleanup(func() {
		if err := unix.Unmount(merged, unix.MNT_DETACH); err != nil {
			o.t.Errorf("unmount %s: %v", merged, err)
		}
	})
	return merged
}

func (o *overlay) must(err error) {
	o.t.Helper()
	if err != nil {
		o.t.Fatal(err)
	}
}

// newOverlay has one layer, a copy of what fill makes.
func newOverlay(t *testing.T, fill func(dir string)) *overlay {
	t.Helper()
	needRoot(t)
	o := &overlay{t: t, base: t.TempDir()}
	upper := filepath.Join(o.base, "upper-0")
	o.must(os.Mkdir(upper, 0o755))
	fill(upper)
	o.uppers = []string{upper}
	return o
}

// change makes a layer of what fn does to the tree.
func (o *overlay) change(fn func(dir string)) {
	o.t.Helper()
	merged := o.mount(true)
	fn(merged)
	o.must(unix.Unmount(merged, 0))
	o.must(unix.Mount("none", merged, "tmpfs", 0, "size=4k")) // for the cleanup
}

// layerTar is the tar layer of an upper directory, as container tools make it: with
// whiteouts, each directory before what is in it.
func layerTar(t *testing.T, upper string, whiteoutsLast bool) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	seen := map[uint64]string{}
	var later []tar.Header
	whiteout := func(name string) {
		h := tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600}
		if whiteoutsLast {
			later = append(later, h)
		} else if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	err := filepath.WalkDir(upper, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(upper, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
			whiteout(filepath.Join(filepath.Dir(name), ".wh."+filepath.Base(name)))
			return nil
		}
		if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
			return nil // tar has none
		}
		target, _ := os.Readlink(path)
		h, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		h.Name, h.Format = name, tar.FormatPAX
		h.Uname, h.Gname = "", ""
		h.AccessTime, h.ChangeTime = h.ModTime, h.ModTime
		h.PAXRecords = map[string]string{}
		for attr, value := range xattrs(t, path) {
			if attr == "trusted.overlay.opaque" {
				defer whiteout(filepath.Join(name, ".wh..wh..opq")) // behind the directory's header
			}
			if !strings.HasPrefix(attr, "trusted.overlay.") {
				h.PAXRecords["SCHILY.xattr."+attr] = value
			}
		}
		if first, ok := seen[st.Ino]; ok && !d.IsDir() {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		}
		seen[st.Ino] = name
		if err := w.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
			return err
		}
		content, err := os.ReadFile(path)
		if err == nil {
			_, err = w.Write(content)
		}
		return err
	})
	for i := range later {
		err = errors.Join(err, w.WriteHeader(&later[i]))
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func xattrs(t *testing.T, path string) map[string]string {
	t.Helper()
	list, value := make([]byte, 64<<10), make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for name := range strings.SplitSeq(strings.Trim(string(list[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = string(value[:n])
	}
	return all
}

// wantOverlay builds the image of the stack from tar layers and from EROFS layers of
// mkfs.erofs, and compares it with overlayfs.
func wantOverlay(t *testing.T, o *overlay) {
	t.Helper()
	merged := o.mount(false)
	ways := []string{"tar", "tar, whiteouts last"}
	if images.NewestMkfs(t).AtLeast(1, 8) { // older ones lose names of 255 bytes
		ways = append(ways, "erofs")
	}
	for _, how := range ways {
		t.Run(how, func(t *testing.T) {
			image, _ := create(t, build.Options{}, func(b *build.Builder) error {
				for i, upper := range o.uppers {
					b.Layer(fmt.Sprint(i))
					if err := addUpper(t, b, upper, how); err != nil {
						return err
					}
				}
				return nil
			})
			images.CompareTrees(t, merged, images.KernelMount(t, image), images.CompareOptions{
				SkipDirSize: true, SkipDirNlink: true, OnlyMtime: true,
				SkipPath: func(path string) bool { return path == "special/socket" },
			})
		})
	}
}

func addUpper(t *testing.T, b *build.Builder, upper, how string) error {
	t.Helper()
	if how != "erofs" {
		return b.AddTar(bytes.NewReader(layerTar(t, upper, how != "tar")), build.TarOptions{Whiteouts: true})
	}
	f, err := os.Open(images.Build(t, images.NewestMkfs(t), []string{"-Eforce-inode-extended"}, upper))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	return b.AddImage(f, st.Size())
}

// TestLayers merges layers with all that overlayfs knows.
func TestLayers(t *testing.T) {
	o := newOverlay(t, func(dir string) {
		images.Run(t, "cp", "-a", images.SmallTree(t)+"/.", dir)
		for _, d := range []string{"a/b/c", "gone/deep/er", "opaque/lower", "both/x", "kind/dir"} {
			if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, f := range []string{"a/one", "a/b/two", "gone/three", "gone/deep/four", "opaque/five", "opaque/lower/six", "both/seven", "kind/file", "kind/dir/in", "linked"} {
			if err := os.WriteFile(filepath.Join(dir, f), bytes.Repeat([]byte(f), 3000), 0o640); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Link(filepath.Join(dir, "linked"), filepath.Join(dir, "linked too")); err != nil {
			t.Fatal(err)
		}
	})
	must := o.must
	o.change(func(dir string) {
		at := func(name string) string { return filepath.Join(dir, name) }
		must(os.RemoveAll(at("gone")))
		must(os.RemoveAll(at("opaque")))
		must(os.Mkdir(at("opaque"), 0o700)) // over a deleted one: opaque
		must(os.WriteFile(at("opaque/new"), []byte("new"), 0o600))
		must(os.Remove(at("a/one")))
		must(os.Chmod(at("a/b/two"), 0o600)) // copied up
		must(os.Remove(at("kind/file")))
		must(os.Mkdir(at("kind/file"), 0o711))
		must(os.RemoveAll(at("kind/dir")))
		must(os.Symlink("file", at("kind/dir")))
		must(unix.Lsetxattr(at("both"), "user.note", []byte("second"), 0))
		must(os.Link(at("both/seven"), at("both/eight")))
	})
	o.change(func(dir string) {
		at := func(name string) string { return filepath.Join(dir, name) }
		must(os.Mkdir(at("gone"), 0o755)) // again, empty
		must(os.WriteFile(at("a/one"), []byte("back"), 0o644))
		must(os.Remove(at("opaque/new")))
		must(os.RemoveAll(at("sizes")))
		must(os.WriteFile(at("both/x/y"), bytes.Repeat([]byte("linked"), 3000), 0o644)) // the content of another
	})
	wantOverlay(t, o)
}

// TestRandomLayers does at random what can be done to a tree.
func TestRandomLayers(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			o := newOverlay(t, func(dir string) { mutate(t, rnd, dir, 150) })
			for range 4 {
				o.change(func(dir string) { mutate(t, rnd, dir, 60) })
			}
			wantOverlay(t, o)
		})
	}
}

// mutate does n things in dir. What the tree has no place for is passed over.
func mutate(t *testing.T, rnd *rand.Rand, dir string, n int) {
	t.Helper()
	name := func() string {
		parts := []string{dir}
		for range 1 + rnd.IntN(4) {
			parts = append(parts, string(rune('a'+rnd.IntN(5))))
		}
		return filepath.Join(parts...)
	}
	for range n {
		path := name()
		switch rnd.IntN(10) {
		case 0, 1, 2:
			_ = os.MkdirAll(path, 0o755)
		case 3, 4:
			_ = os.WriteFile(path, bytes.Repeat([]byte{byte(rnd.IntN(4))}, rnd.IntN(3)*3000), 0o644)
		case 5:
			_ = os.Remove(path)
		case 6:
			_ = os.RemoveAll(path)
			if rnd.IntN(2) == 0 {
				_ = os.Mkdir(path, 0o750)
			}
		case 7:
			_ = os.Symlink(fmt.Sprint("to-", rnd.IntN(9)), path)
		case 8:
			_ = os.Chmod(path, fs.FileMode(0o400+rnd.IntN(0o377))) // follows links to nowhere: fails
		case 9:
			_ = os.Link(path, name())
		}
	}
}
