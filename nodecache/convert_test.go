package nodecache

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/erofs-csi/erofs-csi/test/images"
)

// file is an entry of a tar layer: a directory if its name ends in a slash.
type file struct{ name, content string }

// tarLayer makes an archive.
func tarLayer(t testing.TB, files ...file) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.content)), ModTime: time.Unix(1e9, 0), Typeflag: tar.TypeReg}
		if strings.HasSuffix(f.name, "/") {
			h.Mode, h.Typeflag = 0o755, tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func gzipped(t testing.TB, p []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstandard(t testing.TB, p []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	return w.EncodeAll(p, nil)
}

// compressedLayer is what a layer is in the registry.
type compressedLayer struct {
	mediaType   string
	plain, sent []byte
}

// container pushes a container image.
func (p pusher) container(tag string, layers ...compressedLayer) pushed {
	p.t.Helper()
	config := ocispec.Image{RootFS: ocispec.RootFS{Type: "layers"}}
	config.Architecture, config.OS = "amd64", "linux"
	var pushedLayers []ocispec.Descriptor
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l.plain))
		pushedLayers = append(pushedLayers, p.blob(l.mediaType, l.sent))
	}
	return p.containerOf(tag, config, pushedLayers...)
}

func (p pusher) containerOf(tag string, config ocispec.Image, layers ...ocispec.Descriptor) pushed {
	p.t.Helper()
	text := mustJSON(p.t, config)
	m := p.document(ocispec.MediaTypeImageManifest, tag, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    p.blob(ocispec.MediaTypeImageConfig, text),
		Layers:    layers,
	})
	return pushed{ref: p.repo.Reference.Registry + "/" + p.repo.Reference.Repository + ":" + tag, manifest: m.Digest}
}

func anonymous(t testing.TB) pusher {
	t.Helper()
	return newPusher(t, openRegistry(t), repositoryName(t), auth.EmptyCredential)
}

// threeLayers are an image of all that is compressed, with a deletion.
func threeLayers(t testing.TB) []compressedLayer {
	t.Helper()
	one := tarLayer(t, file{"dir/", ""}, file{"dir/kept", strings.Repeat("kept", 5000)}, file{"dir/gone", strings.Repeat("gone", 5000)})
	two := tarLayer(t, file{"dir/.wh.gone", ""}, file{"dir/new", "new"})
	three := tarLayer(t, file{"top", strings.Repeat("kept", 5000)})
	return []compressedLayer{
		{ocispec.MediaTypeImageLayerGzip, one, gzipped(t, one)},
		{"application/vnd.docker.image.rootfs.diff.tar", two, two},
		{ocispec.MediaTypeImageLayerZstd, three, zstandard(t, three)},
	}
}

// wantTree mounts an image by the kernel and compares its files.
func wantTree(t *testing.T, img *Image, want map[string]string) {
	t.Helper()
	needRoot(t)
	root := images.KernelMount(t, img.Blob().Path())
	got := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		rel, _ := filepath.Rel(root, path)
		got[rel] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range want {
		if got[name] != content {
			t.Errorf("%s has %d bytes, want %d", name, len(got[name]), len(content))
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d files, want %d", len(got), len(want))
	}
}

// TestConvert: a container image becomes one EROFS image, the same one each time, and
// once for all references to its manifest.
func TestConvert(t *testing.T) {
	p := anonymous(t).container("v1", threeLayers(t)...)
	var digests []string
	for range 2 {
		s := openStore(t, Config{})
		img := acquire(t, s, p.ref, AcquireOptions{})
		wantTree(t, img, map[string]string{"dir/kept": strings.Repeat("kept", 5000), "dir/new": "new", "top": strings.Repeat("kept", 5000)})
		digests = append(digests, img.Digest())
		if got := digestOf(t, img); got != img.Digest() {
			t.Errorf("the blob %s has the digest %s", img.Digest(), got)
		}
		again := acquire(t, s, strings.TrimSuffix(p.ref, ":v1")+"@"+p.manifest.String(), AcquireOptions{Policy: Never})
		if again.ID() != img.ID() {
			t.Errorf("another blob by digest")
		}
		wantEmptyTmp(t, s)
	}
	if digests[0] != digests[1] {
		t.Errorf("two conversions of one image: %q", digests)
	}
}

func digestOf(t *testing.T, img *Image) string {
	t.Helper()
	content, err := os.ReadFile(img.Blob().Path())
	if err != nil {
		t.Fatal(err)
	}
	return digest.FromBytes(content).String()
}

func wantEmptyTmp(t *testing.T, s *Store) {
	t.Helper()
	if names, err := os.ReadDir(s.dir.tmp); err != nil || len(names) > 0 {
		t.Errorf("left in tmp: %v, %v", names, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.claims) > 0 || len(s.conversions) > 0 {
		t.Errorf("claims %v, conversions %v", s.claims, s.conversions)
	}
}

// TestConvertByContent: what a layer is decides what becomes of it.
func TestConvertByContent(t *testing.T) {
	needRoot(t)
	tree := t.TempDir()
	writeFile(t, tree+"/file", []byte("content"))
	image, err := os.ReadFile(images.Build(t, images.NewestMkfs(t), nil, tree))
	if err != nil {
		t.Fatal(err)
	}
	upper := t.TempDir()
	writeFile(t, upper+"/upper", []byte("upper"))
	second, err := os.ReadFile(images.Build(t, images.NewestMkfs(t), nil, upper))
	if err != nil {
		t.Fatal(err)
	}
	archive := tarLayer(t, file{"file", "content"})
	one := map[string]string{"file": "content"}
	push := anonymous(t)
	for i, c := range []struct {
		name   string
		layers []compressedLayer
		want   map[string]string
		asIs   bool
	}{
		{"EROFS called tar", []compressedLayer{{ocispec.MediaTypeImageLayer, nil, image}}, one, true},
		{"EROFS called octets", []compressedLayer{{"application/octet-stream", nil, image}}, one, true},
		{"EROFS and zstd", []compressedLayer{{"application/vnd.erofs+zstd", nil, zstandard(t, image)}}, one, true},
		{"EROFS and gzip", []compressedLayer{{"application/vnd.oci.image.layer.v1.erofs+gzip", nil, gzipped(t, image)}}, one, true},
		{"tar", []compressedLayer{{ocispec.MediaTypeImageLayer, nil, archive}}, one, false},
		{"tar called gzip", []compressedLayer{{"application/gzip", nil, gzipped(t, archive)}}, one, false},
		{"gzip called zstd", []compressedLayer{{ocispec.MediaTypeImageLayerZstd, nil, gzipped(t, archive)}}, one, false},
		{"EROFS over EROFS", []compressedLayer{{"application/vnd.erofs", nil, image}, {"application/vnd.erofs+zstd", nil, zstandard(t, second)}}, map[string]string{"file": "content", "upper": "upper"}, false},
		{"EROFS over tar", []compressedLayer{{ocispec.MediaTypeImageLayer, nil, archive}, {"application/vnd.erofs", nil, second}}, map[string]string{"file": "content", "upper": "upper"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var layers []ocispec.Descriptor
			for _, l := range c.layers {
				layers = append(layers, push.blob(l.mediaType, l.sent))
			}
			tag := fmt.Sprint("v", i)
			push.manifest(tag, layers...)
			s := openStore(t, Config{})
			img := acquire(t, s, push.repo.Reference.Registry+"/"+push.repo.Reference.Repository+":"+tag, AcquireOptions{})
			if asIs := img.Digest() == digest.FromBytes(image).String(); asIs != c.asIs {
				t.Errorf("as it is: %v", asIs)
			}
			wantTree(t, img, c.want)
			wantEmptyTmp(t, s)
		})
	}
}

// TestConvertRefuses: each fault of an image is an error that names the layer, and
// leaves nothing.
func TestConvertRefuses(t *testing.T) {
	push := anonymous(t)
	good := tarLayer(t, file{"a", "a"})
	bad := tarLayer(t, file{"a", "a"}, file{"a/b", "b"})
	text := []byte(strings.Repeat("no archive, just text\n", 60))
	cut := tarLayer(t, file{"a", strings.Repeat("a", 2000)})[:1500]
	bomb := tarLayer(t, file{"zeros", string(make([]byte, 1<<20))})
	for i, c := range []struct {
		name  string
		image func(tag string) pushed
		want  error
		words []string
	}{
		{"no tar", func(tag string) pushed {
			return push.container(tag, compressedLayer{ocispec.MediaTypeImageLayer, text, text})
		}, ErrUnsupportedImage, []string{"layer sha256:", "not a tar archive"}},
		{"broken gzip", func(tag string) pushed {
			z := gzipped(t, good)
			z[len(z)-20] ^= 1
			return push.container(tag, compressedLayer{ocispec.MediaTypeImageLayerGzip, good, z})
		}, ErrUnsupportedImage, []string{"layer sha256:", "damaged compressed data"}},
		{"cut tar", func(tag string) pushed {
			return push.container(tag, compressedLayer{ocispec.MediaTypeImageLayer, cut, cut}, compressedLayer{ocispec.MediaTypeImageLayer, good, good})
		}, ErrUnsupportedImage, []string{"layer sha256:", "ends in the middle"}},
		{"below a file", func(tag string) pushed {
			return push.container(tag, compressedLayer{ocispec.MediaTypeImageLayer, bad, bad})
		}, ErrUnsupportedImage, []string{"layer sha256:", `entry "a/b"`, `"a", which it is below, is not a directory`}},
		{"wrong diff_id", func(tag string) pushed {
			return push.container(tag, compressedLayer{ocispec.MediaTypeImageLayerGzip, bad, gzipped(t, good)})
		}, ErrDigestMismatch, []string{"layer sha256:", digest.FromBytes(bad).String()}},
		{"diff_ids missing", func(tag string) pushed {
			return push.containerOf(tag, ocispec.Image{}, push.blob(ocispec.MediaTypeImageLayer, good))
		}, ErrUnsupportedImage, []string{"0 diff_ids and the manifest 1 layers"}},
		{"bomb", func(tag string) pushed {
			return push.container(tag, compressedLayer{ocispec.MediaTypeImageLayerGzip, bomb, gzipped(t, bomb)})
		}, ErrUnsupportedImage, []string{"layer sha256:", "65536 bytes"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := c.image(fmt.Sprint("v", i))
			s := openStore(t, Config{ConvertBytes: 64 << 10})
			_, err := s.Acquire(t.Context(), p.ref, AcquireOptions{})
			wantError(t, err, c.want, append(c.words, p.ref)...)
			wantFiles(t, s.Dir())
			wantEmptyTmp(t, s)
		})
	}
}

// TestConvertOnce: many who want one image wait for one conversion.
func TestConvertOnce(t *testing.T) {
	p := anonymous(t).container("v1", threeLayers(t)...)
	var c steps
	dir := t.TempDir()
	s := openStoreOn(t, Config{Dir: dir}, c.disk(dir))
	errs := make(chan error)
	for range 8 {
		go func() {
			img, err := s.Acquire(t.Context(), p.ref, AcquireOptions{})
			if err == nil {
				img.Release()
			}
			errs <- err
		}()
	}
	var err error
	for range 8 {
		err = errors.Join(err, <-errs)
	}
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, step := range c.log {
		if strings.HasPrefix(step, "rename blobs/") {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d conversions", n)
	}
	wantEmptyTmp(t, s)
}

// TestConvertAnew: what another version of the converter made does not count.
func TestConvertAnew(t *testing.T) {
	p := anonymous(t).container("v1", threeLayers(t)...)
	s := openStore(t, Config{})
	img := acquire(t, s, p.ref, AcquireOptions{})
	img.Release()
	for _, name := range filesBelow(t, s.dir.refs) {
		path := filepath.Join(s.dir.refs, name)
		rec, err := readRecord(path)
		if err != nil {
			t.Fatal(err)
		}
		rec.Converter = "0"
		if err := s.writeRecord(path, rec); err != nil {
			t.Fatal(err)
		}
	}
	_, err := s.Acquire(t.Context(), p.ref, AcquireOptions{Policy: Never})
	wantError(t, err, ErrNotFound)
	acquire(t, s, p.ref, AcquireOptions{})
	acquire(t, s, p.ref, AcquireOptions{Policy: Never})
}
