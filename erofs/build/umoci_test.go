package build_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-csi/erofs-csi/erofs/build"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// layoutLayers are the files of the layers of an image in an OCI layout.
func layoutLayers(t *testing.T, layout, tag string) (files []string) {
	t.Helper()
	read := func(path string, v any) {
		t.Helper()
		text, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(text, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	blob := func(d digest.Digest) string { return filepath.Join(layout, "blobs", "sha256", d.Encoded()) }
	var index ocispec.Index
	read(filepath.Join(layout, "index.json"), &index)
	for _, d := range index.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] != tag {
			continue
		}
		var m ocispec.Manifest
		read(blob(d.Digest), &m)
		for _, l := range m.Layers {
			files = append(files, blob(l.Digest))
		}
	}
	return files
}

// TestUmoci merges the layers that umoci makes of random changes, and compares with
// what it unpacks of them.
func TestUmoci(t *testing.T) {
	needRoot(t)
	_, err := exec.LookPath("umoci")
	images.Need(t, "umoci", err == nil)
	dir := t.TempDir()
	layout, bundle := filepath.Join(dir, "image"), filepath.Join(dir, "bundle")
	image := layout + ":v"
	images.Run(t, "umoci", "init", "--layout", layout)
	images.Run(t, "umoci", "new", "--image", image)
	rnd := rand.New(rand.NewPCG(7, 7))
	for range 4 {
		images.Run(t, "umoci", "unpack", "--image", image, bundle)
		mutate(t, rnd, filepath.Join(bundle, "rootfs"), 120)
		images.Run(t, "umoci", "repack", "--image", image, bundle)
		if err := os.RemoveAll(bundle); err != nil {
			t.Fatal(err)
		}
	}
	images.Run(t, "umoci", "unpack", "--image", image, bundle)
	layers := layoutLayers(t, layout, "v")
	if len(layers) != 4 {
		t.Fatalf("%d layers", len(layers))
	}
	built, stats := create(t, build.Options{}, func(b *build.Builder) error {
		for i, name := range layers {
			b.Layer(fmt.Sprint(i))
			if err := addLayer(b, name); err != nil {
				return err
			}
		}
		return nil
	})
	if stats.Dropped == 0 {
		t.Error("no layer deleted anything")
	}
	images.CompareTrees(t, filepath.Join(bundle, "rootfs"), images.KernelMount(t, built), images.CompareOptions{
		SkipDirSize: true, OnlyMtime: true,
		SkipXattr: func(_, name string) bool { return strings.HasPrefix(name, "user.rootlesscontainers") },
	})
}

func addLayer(b *build.Builder, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	plain, err := build.Decompress(f)
	if err != nil {
		return err
	}
	defer func() { _ = plain.Close() }()
	ahead := build.Ahead(plain)
	defer func() { _ = ahead.Close() }()
	return b.AddTar(ahead, build.TarOptions{Whiteouts: true})
}
