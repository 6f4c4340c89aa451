package build_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/erofs-csi/erofs-csi/erofs/build"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// archives are of one tree, by other programs: GNU tar 1.34, bsdtar 3.6.2 and
// Python's tarfile 3.11, in each of the formats that they write.
func archives(t testing.TB) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob("testdata/*.tar.gz")
	if err != nil || len(names) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	all := map[string][]byte{}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		all[strings.TrimSuffix(filepath.Base(name), ".tar.gz")] = content
	}
	return all
}

// TestFormats compares what the kernel shows of images of archives with what GNU tar
// unpacks, or bsdtar its own.
func TestFormats(t *testing.T) {
	needRoot(t)
	for name, archive := range archives(t) {
		t.Run(name, func(t *testing.T) {
			tree := t.TempDir()
			command := []string{"tar", "-C", tree, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", "-"}
			if strings.HasPrefix(name, "bsdtar") { // of whose order GNU tar makes wrong times
				command = []string{"bsdtar", "-C", tree, "--numeric-owner", "--xattrs", "-xpf", "-"}
			}
			_, err := exec.LookPath(command[0])
			images.Need(t, command[0], err == nil)
			cmd := exec.Command(command[0], command[1:]...)
			cmd.Stdin = bytes.NewReader(archive)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			// Not all set that of the directory that they unpack in.
			if root := rootTime(t, archive); os.Chtimes(tree, root, root) != nil {
				t.Fatal("chtimes")
			}
			image, _ := create(t, build.Options{}, func(b *build.Builder) error {
				return b.AddTar(bytes.NewReader(archive), build.TarOptions{})
			})
			images.CompareTrees(t, tree, images.KernelMount(t, image), images.CompareOptions{
				SkipDirSize: true, OnlyMtime: true,
			})
		})
	}
}

// rootTime is the time of an archive's entry of the root, or the epoch.
func rootTime(t *testing.T, archive []byte) time.Time {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		hdr, err := r.Next()
		if errors.Is(err, io.EOF) {
			return time.Unix(0, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Clean(hdr.Name) == "." {
			return hdr.ModTime
		}
	}
}
