package metaimage_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/metaimage"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// oddTree makes a tree of everything that an inode can be.
func oddTree(t *testing.T) string {
	t.Helper()
	images.Need(t, "root", os.Geteuid() == 0)
	dir := filepath.Join(t.TempDir(), "tree")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
	file := func(name, data string, mode os.FileMode) {
		t.Helper()
		must(os.MkdirAll(filepath.Dir(at(name)), 0o755))
		must(os.WriteFile(at(name), []byte(data), 0o600))
		must(os.Chmod(at(name), mode))
	}
	file("empty", "", 0o644)
	file("one", "1", 0o600)
	file("setuid", strings.Repeat("x", 5000), 0o755|os.ModeSetuid|os.ModeSetgid)
	file("twin-a", strings.Repeat("twin", 3000), 0o444)
	file("twin-b", strings.Repeat("twin", 3000), 0o400)
	file("linked", "many names", 0o640)
	must(os.MkdirAll(at("deep/er/still"), 0o755))
	must(os.Link(at("linked"), at("deep/er/other name")))
	must(os.Link(at("linked"), at("a first name")))
	file("!before dot", "sorts before . and ..", 0o644)
	file("+", "so does this", 0o644)
	file("bytes-\xff\xfe\x01", "not UTF-8", 0o644)
	file(strings.Repeat("n", 254), "mkfs.erofs 1.5 fails at a name of 255 bytes", 0o644)
	must(os.Symlink("target", at("link")))
	must(os.Symlink(strings.Repeat("t/", 2000)+"end", at("long link")))
	// With its attribute this one fits into no block behind its inode.
	must(os.Symlink(strings.Repeat("u/", 2000)+"end", at("longest link")))
	must(unix.Lsetxattr(at("longest link"), "trusted.long", bytes.Repeat([]byte("v"), 200), 0))
	must(unix.Mknod(at("fifo"), unix.S_IFIFO|0o644, 0))
	must(unix.Mknod(at("socket"), unix.S_IFSOCK|0o755, 0))
	must(unix.Mknod(at("char"), unix.S_IFCHR|0o660, int(unix.Mkdev(259, 300000))))
	must(unix.Mknod(at("block"), unix.S_IFBLK|0o660, int(unix.Mkdev(4095, 7))))
	// Directories of many sizes: a full block exactly, one more, several.
	for _, n := range []int{0, 1, 30, 127, 128, 129, 1000, 2500} {
		d := fmt.Sprintf("dir-%d", n)
		must(os.MkdirAll(at(d), 0o755))
		for i := range n {
			must(os.WriteFile(at(d, fmt.Sprintf("f%019d", i)), nil, 0o644))
		}
	}
	must(unix.Setxattr(at("one"), "user.one", []byte("value"), 0))
	must(unix.Setxattr(at("one"), "user.empty", nil, 0))
	must(unix.Setxattr(at("one"), "trusted.secret", []byte("only root"), 0))
	must(unix.Setxattr(at("one"), "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	must(unix.Setxattr(at("setuid"), "user.large", bytes.Repeat([]byte("v"), 3000), 0))
	for i := range 20 {
		must(unix.Setxattr(at(fmt.Sprintf("dir-1000/f%019d", i)), "user.common", []byte("the same value in many inodes"), 0))
		must(unix.Setxattr(at(fmt.Sprintf("dir-1000/f%019d", i)), "user.own", fmt.Appendf(nil, "value %d", i), 0))
	}
	acl := posixACL(1234)
	must(unix.Setxattr(at("deep"), "system.posix_acl_default", acl, 0))
	must(unix.Setxattr(at("deep"), "system.posix_acl_access", acl, 0))
	must(unix.Setxattr(at("twin-a"), "system.posix_acl_access", acl, 0))
	must(os.Lchown(at("link"), 70000, 80000))
	must(os.Lchown(at("twin-b"), 4_000_000_000, 3_000_000_000))
	must(os.Lchown(at("dir-30"), 12, 34))
	for name, when := range map[string]time.Time{
		"one":     time.Unix(-1_000_000_000, 999_999_999),
		"twin-a":  time.Unix(0, 1),
		"dir-128": time.Unix(1<<33, 123_456_789),
	} {
		must(os.Chtimes(at(name), when, when))
	}
	return dir
}

// posixACL is an ACL with a named user (linux/posix_acl_xattr.h).
func posixACL(user uint32) []byte {
	le := binary.LittleEndian
	acl := le.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{0x01, 7, ^uint32(0)}, {0x02, 5, user}, {0x04, 5, ^uint32(0)}, {0x10, 5, ^uint32(0)}, {0x20, 0, ^uint32(0)}} {
		acl = le.AppendUint16(acl, e.tag)
		acl = le.AppendUint16(acl, e.perm)
		acl = le.AppendUint32(acl, e.id)
	}
	return acl
}

// TestMetadata compares META, mounted by the kernel, with the image, mounted by
// the kernel.
func TestMetadata(t *testing.T) {
	odd := oddTree(t)
	for _, c := range []struct {
		name string
		dir  string
		args []string
	}{
		{"odd", odd, nil},
		{"odd, inline xattrs only", odd, []string{"-x-1"}},
		{"odd, compact inodes", odd, []string{"-T1000000000"}},
		{"odd, chunks", odd, []string{"--chunksize=4096"}},
		{"odd, lz4", odd, []string{"-zlz4"}},
		{"Go", "/usr/local/go/src", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := os.Stat(c.dir)
			images.Need(t, c.dir, err == nil)
			image := mkfs(t, c.dir, c.args...)
			im := open(t, image)
			meta, stats := writeMeta(t, im, byNID)
			run(t, tool(t, "fsck.erofs"), meta)
			want := tree(t, mountImage(t, image), false)
			same(t, want, tree(t, mountImage(t, meta), false))
			if sb := im.Superblock(); sb.Inodes != stats.Inodes {
				t.Errorf("%d inodes, the image has %d", stats.Inodes, sb.Inodes)
			}
			// What META says can be decoded by our own reader as well.
			back := open(t, meta)
			n := 0
			if err := back.Walk(func(string, *erofs.Inode) error { n++; return nil }); err != nil {
				t.Error(err)
			}
			if n != len(want) {
				t.Errorf("package erofs sees %d names, the kernel %d", n, len(want))
			}
		})
	}
}

// TestOverlay mounts META over a directory of contents and compares all of it,
// contents too, with the image.
func TestOverlay(t *testing.T) {
	for _, c := range []struct{ name, dir string }{
		{"odd", oddTree(t)},
		{"Go", "/usr/local/go/src/cmd"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := os.Stat(c.dir)
			images.Need(t, c.dir, err == nil)
			image := mkfs(t, c.dir)
			im := open(t, image)
			plain := mountImage(t, image)
			want := tree(t, plain, true)

			// Equal contents have one file and so one redirect.
			data := t.TempDir()
			byContent := map[uint64]string{}
			err = im.Walk(func(path string, in *erofs.Inode) error {
				if !in.IsRegular() || in.Size == 0 || byContent[in.NID] != "" {
					return nil
				}
				sum := want[path].Content
				name := fmt.Sprintf("/%s/%s-%x", sum[:2], sum[2:], in.Size)
				byContent[in.NID] = name
				if err := os.MkdirAll(filepath.Dir(data+name), 0o755); err != nil {
					return err
				}
				b, err := os.ReadFile(filepath.Join(plain, path))
				if err != nil {
					return err
				}
				return os.WriteFile(data+name, b, 0o400)
			})
			if err != nil {
				t.Fatal(err)
			}
			meta, stats := writeMeta(t, im, func(in *erofs.Inode) string { return byContent[in.NID] })
			merged := mountOverlay(t, mountImage(t, meta), data)
			same(t, want, tree(t, merged, true))
			if int(stats.Files) != len(byContent) {
				t.Errorf("%d files, want %d", stats.Files, len(byContent))
			}
		})
	}
}

// TestNeedsTree gives what overlayfs would show differently.
func TestNeedsTree(t *testing.T) {
	images.Need(t, "root", os.Geteuid() == 0)
	for _, c := range []struct {
		name  string
		spoil func(dir string) error
		path  string // of the inode; or, since mkfs.erofs marks it, of its directory
	}{
		{"redirect", func(dir string) error {
			return unix.Setxattr(dir+"/sub/file", "trusted.overlay.redirect", []byte("/ab/cd"), 0)
		}, "sub/file"},
		{"metacopy of an empty file", func(dir string) error {
			return unix.Setxattr(dir+"/empty", "trusted.overlay.metacopy", nil, 0)
		}, "empty"},
		{"opaque directory", func(dir string) error {
			return unix.Setxattr(dir+"/sub", "trusted.overlay.opaque", []byte("y"), 0)
		}, "sub"},
		{"opaque root", func(dir string) error {
			return unix.Setxattr(dir, "trusted.overlay.opaque", []byte("x"), 0)
		}, "."},
		{"escaped xattr", func(dir string) error {
			return unix.Setxattr(dir+"/empty", "trusted.overlay.overlay.redirect", []byte("/x"), 0)
		}, "empty"},
		{"whiteout", func(dir string) error {
			return unix.Mknod(dir+"/sub/gone", unix.S_IFCHR, 0)
		}, "sub/gone"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := errors.Join(os.Mkdir(dir+"/sub", 0o755), os.WriteFile(dir+"/empty", nil, 0o644),
				os.WriteFile(dir+"/sub/file", []byte("data"), 0o644)); err != nil {
				t.Fatal(err)
			}
			if err := c.spoil(dir); err != nil {
				t.Fatal(err)
			}
			var out sink
			_, err := metaimage.Write(t.Context(), &out, open(t, mkfs(t, dir)), byNID)
			var tree *metaimage.NeedsTreeError
			if !errors.Is(err, metaimage.ErrNeedsTree) || !errors.As(err, &tree) {
				t.Fatalf("Write: %v, want ErrNeedsTree", err)
			}
			if tree.Path != c.path && (c.name != "whiteout" || tree.Path != "sub") {
				t.Errorf("path %q, want %q", tree.Path, c.path)
			}
			if out.Len() != 0 {
				t.Errorf("%d bytes written", out.Len())
			}
		})
	}
}

// sink is an io.WriterAt in memory.
type sink struct{ b []byte }

func (s *sink) Len() int { return len(s.b) }

func (s *sink) WriteAt(p []byte, off int64) (int, error) {
	if n := off + int64(len(p)); n > int64(len(s.b)) {
		s.b = append(s.b, make([]byte, n-int64(len(s.b)))...)
	}
	return copy(s.b[off:], p), nil
}

// TestSameBytes: equal input, equal META; another image, another UUID.
func TestSameBytes(t *testing.T) {
	dir := oddTree(t)
	image := mkfs(t, dir, "-U", "11111111-2222-3333-4444-555555555555")
	var a, b, c sink
	for _, s := range []*sink{&a, &b} {
		if _, err := metaimage.Write(t.Context(), s, open(t, image), byNID); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.b, b.b) {
		t.Error("two METAs of one image differ")
	}
	other := mkfs(t, dir, "-U", "11111111-2222-3333-4444-555555555556")
	if _, err := metaimage.Write(t.Context(), &c, open(t, other), byNID); err != nil {
		t.Fatal(err)
	}
	uuid := func(s *sink) []byte { return s.b[1024+48 : 1024+64] }
	if bytes.Equal(uuid(&a), uuid(&c)) {
		t.Error("two images have METAs of one UUID")
	}
	if bytes.Contains(a.b, []byte("\x11\x11\x11\x11\x22\x22\x33\x33")) {
		t.Error("META has the image's UUID")
	}
}

// TestWriteErrors: a bad content path, a failing writer and a context that ended.
func TestWriteErrors(t *testing.T) {
	dir := t.TempDir()
	for i := range 3000 {
		if err := os.WriteFile(fmt.Sprintf("%s/%d", dir, i), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	image := mkfs(t, dir)
	for _, path := range []string{"", "ab", "/", "/a//b", "/a/../b", "/a/.", "/a\x00", "/" + strings.Repeat("x", 256), strings.Repeat("/ab", 2000)} {
		_, err := metaimage.Write(t.Context(), &sink{}, open(t, image), func(*erofs.Inode) string { return path })
		if err == nil || errors.Is(err, metaimage.ErrNeedsTree) {
			t.Errorf("content path %.20q: %v", path, err)
		}
	}
	full := errors.New("disk full")
	if _, err := metaimage.Write(t.Context(), failing{full}, open(t, image), byNID); !errors.Is(err, full) {
		t.Errorf("Write to a full disk: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := metaimage.Write(ctx, &sink{}, open(t, image), byNID); !errors.Is(err, context.Canceled) {
		t.Errorf("Write after cancel: %v", err)
	}
	n := 0
	unsteady := func(in *erofs.Inode) string { n++; return "/" + strings.Repeat("x", 1+n/4000*100) }
	if _, err := metaimage.Write(t.Context(), &sink{}, open(t, image), unsteady); err == nil {
		t.Error("Write with content paths that change: no error")
	}
}

type failing struct{ err error }

func (f failing) WriteAt([]byte, int64) (int, error) { return 0, f.err }
