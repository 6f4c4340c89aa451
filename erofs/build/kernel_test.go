package build_test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/build"
	"github.com/erofs-csi/erofs-csi/erofs/fingerprint"
	"github.com/erofs-csi/erofs-csi/test/images"
)

func needRoot(t testing.TB) {
	t.Helper()
	images.Need(t, "root", os.Geteuid() == 0)
}

// tarOf makes an archive of a tree by another program.
func tarOf(t testing.TB, tree string, command ...string) []byte {
	t.Helper()
	_, err := exec.LookPath(command[0])
	images.Need(t, command[0], err == nil)
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir = tree
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := cmd.Run(); err != nil {
		t.Fatalf("%q: %v\n%s", command, err, log.Bytes())
	}
	return out.Bytes()
}

var gnuTar = []string{"tar", "--format=pax", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-c", "."}

// create builds an image by what fill adds and has fsck.erofs check it.
func create(t testing.TB, opts build.Options, fill func(b *build.Builder) error) (string, build.Stats) {
	t.Helper()
	dir := t.TempDir()
	image := filepath.Join(dir, "image.erofs")
	out, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	scratch, err := os.Create(filepath.Join(dir, "scratch"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = scratch.Close() }()
	b := build.New(t.Context(), out, scratch, opts)
	if err := fill(b); err != nil {
		t.Fatal(err)
	}
	stats, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if st, err := out.Stat(); err != nil || st.Size() != stats.Size {
		t.Fatalf("%d bytes (%v), Stats says %d", st.Size(), err, stats.Size)
	}
	fsck := images.NewestMkfs(t).Tool("fsck.erofs")
	images.Need(t, "fsck.erofs", fsck != "")
	if images.NewestMkfs(t).AtLeast(1, 8) { // older ones don't know long prefixes
		images.Run(t, fsck, image)
	}
	wantSound(t, image)
	return image, stats
}

func open(t testing.TB, image string) *erofs.Image {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	im, err := erofs.Open(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// wantSound reads all of an image by our own reader, with the fingerprints that it
// carries.
func wantSound(t testing.TB, image string) {
	t.Helper()
	im := open(t, image)
	files, err := fingerprint.Files(im)
	if err != nil {
		t.Fatal(err)
	}
	_, r, err := fingerprint.Build(t.Context(), im, files, im.Size())
	if err != nil || r.Unreadable > 0 || r.Forged > 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, f := range files {
		in, err := im.Inode(f.NID)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok, err := in.ImageFingerprint(); f.Size > 0 && (!ok || err != nil) {
			t.Fatalf("nid %d has no fingerprint (%v)", f.NID, err)
		}
	}
}

// TestTree builds images of the trees that the readers are tested with, from GNU
// tar's archives of them, and has the kernel compare.
func TestTree(t *testing.T) {
	needRoot(t)
	for _, c := range []struct{ name, tree string }{
		{"small", images.SmallTree(t)},
		{"real", filepath.Join(images.RealTree(t), "cmd")},
	} {
		t.Run(c.name, func(t *testing.T) {
			archive := tarOf(t, c.tree, gnuTar...)
			image, stats := create(t, build.Options{}, func(b *build.Builder) error {
				return b.AddTar(bytes.NewReader(archive), build.TarOptions{})
			})
			if stats.Dropped != 0 {
				t.Errorf("%d bytes were dropped", stats.Dropped)
			}
			images.CompareTrees(t, c.tree, images.KernelMount(t, image), images.CompareOptions{
				SkipDirSize: true, OnlyMtime: true,
				SkipPath: func(path string) bool { return path == "special/socket" }, // tar has no sockets
			})
		})
	}
}

// TestDeterministic builds an image twice.
func TestDeterministic(t *testing.T) {
	archive := tarOf(t, images.SmallTree(t), gnuTar...)
	var all [][]byte
	for range 2 {
		image, _ := create(t, build.Options{}, func(b *build.Builder) error {
			b.Layer("1")
			return b.AddTar(oddPieces{bytes.NewReader(archive)}, build.TarOptions{})
		})
		content, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, content)
	}
	if !bytes.Equal(all[0], all[1]) {
		t.Error("two images of one archive differ")
	}
}

// oddPieces gives out pieces of an odd size.
type oddPieces struct{ r io.Reader }

func (o oddPieces) Read(p []byte) (int, error) {
	return o.r.Read(p[:min(len(p), 4093)])
}
