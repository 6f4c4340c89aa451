package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// entry is one of a layer: a directory if it ends with a slash, else a file, or with a
// target a symbolic link.
type entry struct{ name, data, target string }

// TestContainerImage: the layers of an ordinary container image are merged as container
// runtimes merge them, with whiteouts and opaque directories, and a layer compressed or not.
func TestContainerImage(t *testing.T) {
	r := suite
	ref := r.ref("container", "v1")
	r.pushContainer(t, ref, [][]entry{
		{
			{name: "etc/"},
			{name: "etc/base", data: "first"},
			{name: "etc/gone", data: "first"},
			{name: "opaque/"},
			{name: "opaque/hidden", data: "first"},
			{name: "usr/lib/"},
			{name: "usr/lib/big", data: string(random(r.id+"container", 1<<20))},
			{name: "lib", target: "usr/lib"},
		},
		{
			{name: "etc/base", data: "second"},
			{name: "etc/.wh.gone"},
			{name: "opaque/"},
			{name: "opaque/.wh..wh..opq"},
			{name: "opaque/seen", data: "second"},
		},
	})
	for name, source := range map[string]func(t *testing.T, name string) string{
		"inline": func(t *testing.T, name string) string {
			t.Helper()
			return r.running(t, r.newPod(name, inline(map[string]string{"image": ref, "domain_id": "any"}))).Name
		},
		"static": func(t *testing.T, name string) string {
			t.Helper()
			c := r.static(t, name, map[string]string{"image": ref, "domain_id": "e2e-" + r.id, "fingerprints": "trusted"}, nil)
			return r.running(t, r.newPod(name, claimed(c))).Name
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod := source(t, "container-"+name)
			got := strings.Fields(r.inPod(t, pod, "sh", "-c", "cd /v && find . | sort"))
			want := []string{".", "./etc", "./etc/base", "./lib", "./opaque", "./opaque/seen", "./usr", "./usr/lib", "./usr/lib/big"}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("the volume has %q, want %q", got, want)
			}
			for name, want := range map[string]string{
				"etc/base": "second", "opaque/seen": "second", "lib/big": string(random(r.id+"container", 1<<20)),
			} {
				if got := r.inPod(t, pod, "cat", "/v/"+name); got != want {
					t.Errorf("%s has %d bytes, want the %d that were put there", name, len(got), len(want))
				}
			}
			r.wantReadOnlyFile(t, pod, "/v/etc/base")
		})
	}
}

// wantReadOnlyFile tries to write to a file.
func (r *run) wantReadOnlyFile(t *testing.T, pod, path string) {
	t.Helper()
	_, err := r.exec(t.Context(), r.namespace, pod, nil, "sh", "-c", `echo x >>"$1"`, "sh", path)
	if err == nil || !strings.Contains(err.Error(), "Read-only file system") {
		t.Errorf("write to %s: %v, want Read-only file system", path, err)
	}
}

// pushContainer pushes a container image; every other layer is compressed.
func (r *run) pushContainer(t *testing.T, ref string, layers [][]entry) {
	t.Helper()
	repo, err := repository(ref)
	if err != nil {
		t.Fatal(err)
	}
	push := func(mediaType string, data []byte) ocispec.Descriptor {
		desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		if err := repo.Push(t.Context(), desc, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		return desc
	}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	config := ocispec.Image{Platform: ocispec.Platform{Architecture: r.arch, OS: "linux"}}
	config.RootFS.Type = "layers"
	for i, entries := range layers {
		layer := tarOf(t, entries)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(layer))
		mediaType := ocispec.MediaTypeImageLayer
		if i%2 == 0 {
			mediaType = ocispec.MediaTypeImageLayerGzip
			var b bytes.Buffer
			w := gzip.NewWriter(&b)
			_, err := w.Write(layer)
			if err := errors.Join(err, w.Close()); err != nil {
				t.Fatal(err)
			}
			layer = b.Bytes()
		}
		manifest.Layers = append(manifest.Layers, push(mediaType, layer))
	}
	manifest.Config = push(ocispec.MediaTypeImageConfig, asJSON(t, config))
	data := asJSON(t, manifest)
	desc := ocispec.Descriptor{MediaType: manifest.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := repo.PushReference(t.Context(), desc, bytes.NewReader(data), repo.Reference.Reference); err != nil {
		t.Fatal(err)
	}
	r.refs = append(r.refs, ref)
}

func asJSON(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func tarOf(t *testing.T, entries []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(e.data)), Linkname: e.target}
		switch {
		case strings.HasSuffix(e.name, "/"):
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		case e.target != "":
			h.Typeflag = tar.TypeSymlink
		}
		err := w.WriteHeader(h)
		if err == nil {
			_, err = io.WriteString(w, e.data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
