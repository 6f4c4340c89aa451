package metaimage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/metaimage"
	"github.com/erofs-csi/erofs-csi/test/images"
)

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
		{"all of them", func(dir string) error {
			images.OverlayMarks(t, dir)
			return nil
		}, "overlay"},
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
			_, err := metaimage.Write(t.Context(), &out, open(t, images.Build(t, images.NewestMkfs(t), nil, dir)), byNID)
			var tree *metaimage.NeedsTreeError
			if !errors.Is(err, metaimage.ErrNeedsTree) || !errors.As(err, &tree) {
				t.Fatalf("Write: %v, want ErrNeedsTree", err)
			}
			if !strings.HasPrefix(tree.Path, c.path) && (c.name != "whiteout" || tree.Path != "sub") {
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
	build := func(uuid string) string {
		return images.Build(t, images.NewestMkfs(t), []string{"-U", uuid}, dir)
	}
	image := build("11111111-2222-3333-4444-555555555555")
	var a, b, c sink
	for _, s := range []*sink{&a, &b} {
		if _, err := metaimage.Write(t.Context(), s, open(t, image), byNID); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.b, b.b) {
		t.Error("two METAs of one image differ")
	}
	other := build("11111111-2222-3333-4444-555555555556")
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
	image := images.Build(t, images.NewestMkfs(t), nil, dir)
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
