package metaimage_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/metaimage"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// TestMetadata compares META, mounted by the kernel, with the image, mounted by
// the kernel.
func TestMetadata(t *testing.T) {
	small := oddTree(t)
	for _, mkfs := range images.AllMkfs(t) {
		for _, c := range []struct {
			name  string
			tree  string
			since int // minor version of erofs-utils
			args  []string
			// Inodes of the format's own that the superblock counts: where fragments and
			// metadata are.
			hidden uint64
		}{
			{"plain", small, 0, nil, 0},
			{"inline xattrs", small, 0, []string{"-x-1"}, 0},
			{"compact inodes", small, 0, []string{"-T1000000000", "--all-root"}, 0},
			{"chunks", small, 0, []string{"--chunksize=4096"}, 0},
			{"lz4", small, 0, []string{"-zlz4"}, 0},
			{"long xattr prefixes", small, 7, []string{"--xattr-prefix=user.project", "--xattr-prefix=trusted.p"}, 0},
			{"fingerprints", small, 9, []string{"--xattr-inode-digest=user.fp"}, 0},
			{"fragments", small, 8, []string{"-zzstd", "-C65536", "-Eall-fragments,dedupe"}, 1},
			{"metabox", small, 9, []string{"-zlz4", "-m4096", "-E48bit"}, 1},
			{"real", images.RealTree(t), 0, nil, 0},
		} {
			if !mkfs.AtLeast(1, c.since) {
				continue // an option that this one does not have
			}
			t.Run(mkfs.String()+"/"+c.name, func(t *testing.T) {
				image := images.Build(t, mkfs, c.args, c.tree)
				im := open(t, image)
				meta, stats := writeMeta(t, im, byNID)
				images.CompareTrees(t, images.KernelMount(t, image), images.KernelMount(t, meta), images.CompareOptions{
					SkipContent: true,
					SkipXattr: func(_, name string) bool {
						// The fingerprint is data of the format, not of the file.
						return strings.HasPrefix(name, "trusted.overlay.") || name == "user.fp"
					},
				})
				sum, err := erofs.Summarize(t.Context(), im)
				if err != nil || sum.Inodes != stats.Inodes || sum.Inodes+c.hidden != im.Superblock().Inodes {
					t.Errorf("%d inodes, the image has %d of %d (%v)", stats.Inodes, sum.Inodes, im.Superblock().Inodes, err)
				}
				if sum.Types["directory"] != stats.Directories {
					t.Errorf("%d directories, the image has %v", stats.Directories, sum.Types)
				}
			})
		}
	}
}

// TestOverlay mounts META over a directory of contents and compares all of it,
// contents too, with the image.
func TestOverlay(t *testing.T) {
	for _, c := range []struct{ name, tree string }{
		{"odd", oddTree(t)},
		{"real", filepath.Join(images.RealTree(t), "cmd")},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := images.Build(t, images.NewestMkfs(t), nil, c.tree)
			im := open(t, image)
			content, data := contents(t, im)
			meta, stats := writeMeta(t, im, func(in *erofs.Inode) string { return content[in.NID] })
			merged := mountOverlay(t, images.KernelMount(t, meta), data)
			images.CompareTrees(t, images.KernelMount(t, image), merged, images.CompareOptions{})
			if int(stats.Files) != len(content) {
				t.Errorf("%d files, want %d", stats.Files, len(content))
			}
			hidden(t, im, merged)
		})
	}
}

// contents makes the data-only layer of an image: equal contents have one file
// and so one redirect. It returns the path for each nid and the directory.
func contents(t *testing.T, im *erofs.Image) (paths map[uint64]string, dir string) {
	t.Helper()
	paths, dir = map[uint64]string{}, t.TempDir()
	err := im.Walk(func(_ string, in *erofs.Inode) error {
		if !in.IsRegular() || in.Size == 0 || paths[in.NID] != "" {
			return nil
		}
		b := make([]byte, in.Size)
		if _, err := in.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		sum := sha256.Sum256(b)
		path := fmt.Sprintf("/%x/%x-%x", sum[:1], sum[1:], in.Size)
		paths[in.NID] = path
		if err := os.MkdirAll(filepath.Dir(dir+path), 0o755); err != nil {
			return err
		}
		return os.WriteFile(dir+path, b, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths, dir
}

// hidden checks that no file of the overlay gives away how it is made.
func hidden(t *testing.T, im *erofs.Image, merged string) {
	t.Helper()
	err := im.Walk(func(path string, in *erofs.Inode) error {
		if !in.IsRegular() {
			return nil
		}
		list := make([]byte, 64<<10)
		n, err := unix.Llistxattr(filepath.Join(merged, path), list)
		if err != nil {
			return err
		}
		if bytes.Contains(list[:n], []byte("trusted.overlay.")) {
			return fmt.Errorf("%s lists %q", path, list[:n])
		}
		if _, err := unix.Lgetxattr(filepath.Join(merged, path), "trusted.overlay.redirect", list); !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("%s: trusted.overlay.redirect: %w", path, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// oddTree adds to the tree of test/images what is odd for a writer.
func oddTree(t *testing.T) string {
	t.Helper()
	dir := images.SmallTree(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// Names of 20 bytes: with "." and ".." in between, directories around the
	// size of a block to the byte, and of several blocks.
	for _, n := range []int{1, 30, 126, 127, 128, 129, 255, 256, 1000} {
		sub := fmt.Sprintf("%s/dir-%d", dir, n)
		must(os.Mkdir(sub, 0o755))
		for i := range n {
			must(os.WriteFile(fmt.Sprintf("%s/f%019d", sub, i), nil, 0o644))
		}
	}
	must(os.WriteFile(dir+"/!", []byte("sorts before . and .."), 0o644))
	must(os.WriteFile(dir+"/+plus", []byte("so does this"), 0o644))
	must(os.WriteFile(dir+"/.-", []byte("and this is between them"), 0o644))
	// With its attribute this one does not fit into the block of its inode.
	must(os.Symlink(strings.Repeat("u/", 2000)+"end", dir+"/longest link"))
	must(unix.Lsetxattr(dir+"/longest link", "trusted.long", bytes.Repeat([]byte("v"), 200), 0))
	return dir
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

// writeMeta writes the META of the image and has fsck.erofs check it.
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
	fsck := images.NewestMkfs(t).Tool("fsck.erofs")
	images.Need(t, "fsck.erofs", fsck != "")
	images.Run(t, fsck, f.Name())
	return f.Name(), stats
}

func mountOverlay(t *testing.T, meta, data string) string {
	t.Helper()
	dir := t.TempDir()
	err := unix.Mount("overlay", dir, "overlay", unix.MS_RDONLY,
		"lowerdir="+meta+"::"+data+",metacopy=on,redirect_dir=follow")
	images.Need(t, "overlayfs with data-only layers (Linux 6.5)", err == nil)
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}
