package metaimage_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/metaimage"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// tool finds a program of erofs-utils: in EROFS_UTILS if that is set, else the
// system's.
func tool(tb testing.TB, name string) string {
	tb.Helper()
	if dir := os.Getenv("EROFS_UTILS"); dir != "" {
		return filepath.Join(dir, name)
	}
	path, err := exec.LookPath(name)
	images.Need(tb, name, err == nil)
	return path
}

func run(tb testing.TB, name string, args ...string) {
	tb.Helper()
	out, err := exec.CommandContext(tb.Context(), name, args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// mkfs builds an image of dir.
func mkfs(tb testing.TB, dir string, args ...string) string {
	tb.Helper()
	image := filepath.Join(tb.TempDir(), "image.erofs")
	run(tb, tool(tb, "mkfs.erofs"), append(args, "--quiet", image, dir)...)
	return image
}

func open(tb testing.TB, path string) *erofs.Image {
	tb.Helper()
	f, err := os.Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = f.Close() })
	st, err := f.Stat()
	if err != nil {
		tb.Fatal(err)
	}
	im, err := erofs.Open(f, st.Size())
	if err != nil {
		tb.Fatal(err)
	}
	return im
}

// byNID is a content path that is unlike for every inode.
func byNID(in *erofs.Inode) string { return fmt.Sprintf("/%02x/%x-%x", in.NID&0xff, in.NID, in.Size) }

// writeMeta writes the META of the image and lets fsck.erofs check it.
func writeMeta(t *testing.T, im *erofs.Image, content metaimage.ContentPath) (string, metaimage.Stats) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "meta.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	stats, err := metaimage.Write(t.Context(), f, im, content)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := f.Stat(); err != nil || st.Size() != stats.Size {
		t.Fatalf("META has %d bytes (%v), Stats says %d", st.Size(), err, stats.Size)
	}
	return f.Name(), stats
}

// mountImage mounts an EROFS image with the kernel's driver, from the file or,
// where that can't be, by a loop device.
func mountImage(t *testing.T, image string) string {
	t.Helper()
	images.Need(t, "root", os.Geteuid() == 0)
	dir := t.TempDir()
	err := unix.Mount(image, dir, "erofs", unix.MS_RDONLY, "directio")
	if errors.Is(err, unix.ENOTBLK) || errors.Is(err, unix.EINVAL) {
		out, lerr := exec.CommandContext(t.Context(), "mount", "-t", "erofs", "-o", "ro,loop", image, dir).CombinedOutput()
		if err = lerr; err != nil {
			t.Logf("%s", out)
		}
	}
	images.Need(t, "the kernel's EROFS", !errors.Is(err, unix.ENODEV))
	if err != nil {
		t.Fatalf("mount %s: %v", image, err)
	}
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

func mountOverlay(t *testing.T, meta, data string) string {
	t.Helper()
	dir := t.TempDir()
	err := unix.Mount("overlay", dir, "overlay", unix.MS_RDONLY,
		"lowerdir="+meta+"::"+data+",metacopy=on,redirect_dir=follow")
	images.Need(t, "overlayfs with data-only layers (Linux 6.5)", err == nil)
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

func unmount(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Unmount(dir, 0); err != nil {
		t.Errorf("unmount %s: %v", dir, err)
	}
}

// what is compared of an inode.
type facts struct {
	Mode, UID, GID uint32
	Size           int64
	Mtime          unix.Timespec
	Nlink          uint64
	Rdev           uint64
	Target         string
	Xattrs         string
	Content        string // SHA-256
	First          string // the first of the paths of one inode: hard links
}

// tree reads all facts below root; the content only if asked to.
func tree(t *testing.T, root string, content bool) map[string]facts {
	t.Helper()
	all := map[string]facts{}
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		f := facts{
			Mode: st.Mode, UID: st.Uid, GID: st.Gid, Size: st.Size, Mtime: st.Mtim,
			Nlink: uint64(st.Nlink), //nolint:unconvert // 32 bits on some architectures
			Rdev:  st.Rdev, Xattrs: xattrs(t, path),
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			if f.Target, err = os.Readlink(path); err != nil {
				return err
			}
		case unix.S_IFREG:
			if content {
				f.Content = contentSum(t, path)
			}
		}
		if !d.IsDir() {
			if _, ok := first[st.Ino]; !ok {
				first[st.Ino] = rel
			}
			f.First = first[st.Ino]
		}
		all[rel] = f
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func contentSum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// xattrs returns the sorted attributes of path, without those by which overlayfs
// finds data.
func xattrs(t *testing.T, path string) string {
	t.Helper()
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	var all []string
	value := make([]byte, 64<<10)
	for name := range bytes.SplitSeq(list[:n], []byte{0}) {
		if len(name) == 0 || bytes.HasPrefix(name, []byte("trusted.overlay.")) {
			continue
		}
		m, err := unix.Lgetxattr(path, string(name), value)
		if err != nil {
			t.Fatalf("%s: %s: %v", path, name, err)
		}
		all = append(all, fmt.Sprintf("%s=%x", name, value[:m]))
	}
	sort.Strings(all)
	return strings.Join(all, "\n")
}

// same reports every difference of two trees.
func same(t *testing.T, want, got map[string]facts) {
	t.Helper()
	var names []string
	for name := range want {
		names = append(names, name)
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	bad := 0
	for _, name := range names {
		w, inWant := want[name]
		g, inGot := got[name]
		if !inWant || !inGot || w != g {
			if bad++; bad <= 10 {
				t.Errorf("%q:\n want (%v) %+v\n got  (%v) %+v", name, inWant, w, inGot, g)
			}
		}
	}
	if bad > 10 {
		t.Errorf("and %d others differ", bad-10)
	}
}
