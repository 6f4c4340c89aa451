package images

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// debianPackages are those of which DebianTree has the files, as far as they are
// installed: programs, some setuid, configuration, time zones (many links).
var debianPackages = []string{"base-files", "bash", "passwd", "login", "tzdata", "debianutils"}

// DebianTree makes a tree with the files of some Debian packages, as they are on
// this machine, and all that is odd in SmallTree with smaller files; a few
// thousand files, about 12 MB. It needs what SmallTree needs, and dpkg.
func DebianTree(t testing.TB) string {
	t.Helper()
	_, err := exec.LookPath("dpkg-query")
	Need(t, "a Debian system", err == nil)
	Need(t, "root", os.Getuid() == 0)
	b := &builder{t: t, root: t.TempDir(), rng: rand.New(rand.NewPCG(1993, 8))}
	b.odd(1 << 20)
	b.times()
	root := b.root
	files := 0
	for _, name := range debianPackages {
		out, err := exec.CommandContext(t.Context(), "dpkg-query", "--listfiles", name).Output()
		if err != nil {
			continue
		}
		for path := range strings.Lines(string(out)) {
			path = strings.TrimSuffix(path, "\n")
			dir, err := filepath.EvalSymlinks(filepath.Dir(path)) // /bin is a link
			if err != nil {
				continue
			}
			path = filepath.Join(dir, filepath.Base(path))
			copied, err := copyAs(path, filepath.Join(root, "debian", path))
			if err != nil {
				t.Fatalf("copy %s of package %s: %v", path, name, err)
			}
			if copied {
				files++
			}
		}
	}
	if files < 500 {
		t.Fatalf("only %d files of the packages %v are there", files, debianPackages)
	}
	return root
}

// copyAs copies a regular file or a symbolic link with owner, mode and time; of
// anything else it makes nothing and reports false.
func copyAs(from, to string) (bool, error) {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return false, nil //nolint:nilerr // a package's documentation may be left out
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFREG && kind != unix.S_IFLNK {
		return false, nil
	}
	if _, err := os.Lstat(to); err == nil {
		return false, nil // of another package, too
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return false, err
	}
	if kind == unix.S_IFLNK {
		target, err := os.Readlink(from)
		if err == nil {
			err = os.Symlink(target, to)
		}
		if err != nil {
			return false, err
		}
	} else if err := copyFile(from, to); err != nil {
		return false, err
	}
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return false, err
	}
	if kind == unix.S_IFREG {
		if err := unix.Chmod(to, st.Mode&^unix.S_IFMT); err != nil {
			return false, err
		}
	}
	return true, unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		_ = out.Close()
		return err
	}
	return out.Close()
}

// ModuleTree returns the directory of a Go module that this one depends on: about
// 500 files, mostly text, 5 MB. Nobody may change it.
func ModuleTree(t testing.TB) string {
	t.Helper()
	dir, err := moduleTree()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

const moduleName = "github.com/onsi/ginkgo/v2"

var moduleTree = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", moduleName).Output()
	dir := strings.TrimSpace(string(out))
	if err == nil && dir == "" {
		err = fmt.Errorf("%s is not downloaded: run 'go mod download'", moduleName)
	}
	return dir, err
})

// BinaryTree makes a tree of two programs of the Go installation, and of one of
// them a version that has most of its bytes, about 12 MB.
func BinaryTree(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	goroot, _ := goTree()
	tools := filepath.Join(filepath.Dir(goroot), "pkg", "tool")
	n := 0
	err := filepath.WalkDir(tools, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if info, err := d.Info(); err != nil || info.Size() > 6<<20 || n == 2 {
			return err
		}
		n++
		return copyFile(path, filepath.Join(root, d.Name()))
	})
	Need(t, "the tools of a Go installation", err == nil && n == 2)
	// The same program with something put in and something left out.
	var first string
	entries, err := os.ReadDir(root)
	if err == nil {
		first = filepath.Join(root, entries[0].Name())
	}
	b, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	at := len(b) / 3
	changed := append(append(append([]byte{}, b[:at]...), "put in"...), b[at:2*at]...)
	changed = append(changed, b[2*at+12_345:]...)
	if err := os.WriteFile(first+"-changed", changed, 0o755); err != nil {
		t.Fatal(err)
	}
	return root
}

// HugeTree makes a tree with a directory of 100,000 entries, of which one in ten
// is a file of some bytes, and a sparse file of more than 4 GiB.
func HugeTree(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	b := &builder{t: t, root: root}
	dir := b.path("many")
	b.check(os.Mkdir(dir, 0o755))
	for i := range 100_000 {
		name := filepath.Join(dir, fmt.Sprintf("entry-%x", uint32(i)*2654435761)) // in no order
		var data []byte
		if i%10 == 0 {
			data = []byte(name)
		}
		b.check(os.WriteFile(name, data, 0o644))
	}
	f, err := os.Create(b.path("sparse"))
	b.check(err)
	const size = 4<<30 + 123_457
	b.check(f.Truncate(size))
	for _, off := range []int64{0, 1 << 20, 1<<32 - 2000, 1<<32 + 70_000, size - 5000} {
		_, err := f.WriteAt([]byte(strings.Repeat(fmt.Sprintf("data at %d\n", off), 200)), off)
		b.check(err)
	}
	b.check(f.Close())
	return root
}
