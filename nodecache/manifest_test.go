package nodecache

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func layerOf(mediaType string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString(mediaType), Size: 10}
}

func TestChooseLayer(t *testing.T) {
	erofs, tar := layerOf("application/vnd.erofs.layer.v1"), layerOf(ocispec.MediaTypeImageLayer)
	for _, c := range []struct {
		name   string
		config string
		layers []ocispec.Descriptor
		want   string // media type
		fails  string
	}{
		{"erofs", "", []ocispec.Descriptor{erofs}, erofs.MediaType, ""},
		{"erofs with an index beside it", "", []ocispec.Descriptor{layerOf("application/json"), erofs}, erofs.MediaType, ""},
		{"runtime's name", "", []ocispec.Descriptor{layerOf("application/vnd.oci.image.layer.v1.erofs")}, "application/vnd.oci.image.layer.v1.erofs", ""},
		{"oras push", "", []ocispec.Descriptor{tar}, tar.MediaType, ""},
		{"octet-stream", "", []ocispec.Descriptor{layerOf("application/octet-stream")}, "application/octet-stream", ""},
		{"anything", "", []ocispec.Descriptor{layerOf("x/y")}, "x/y", ""},
		{"none", "", nil, "", "no layers"},
		{"two erofs", "", []ocispec.Descriptor{erofs, erofs}, "", "2 EROFS layers"},
		{"erofs and compressed erofs", "", []ocispec.Descriptor{erofs, layerOf("application/vnd.erofs.layer.v1+zstd")}, "", "2 EROFS layers"},
		{"compressed erofs", "", []ocispec.Descriptor{layerOf("application/vnd.erofs.layer.v1+zstd")}, "", `"application/vnd.erofs.layer.v1+zstd" is compressed`},
		{"compressed erofs, runtime's name", "", []ocispec.Descriptor{layerOf("application/vnd.oci.image.layer.v1.erofs+gzip")}, "", "compressed"},
		{"container image", ocispec.MediaTypeImageConfig, []ocispec.Descriptor{tar, tar, tar}, "", "container image of 3 layers"},
		{"docker image", "application/vnd.docker.container.image.v1+json", []ocispec.Descriptor{tar, tar}, "", "container image of 2 layers"},
		{"artifact", "", []ocispec.Descriptor{tar, tar}, "", "artifact of 2 layers"},
		{"gzip", "", []ocispec.Descriptor{layerOf(ocispec.MediaTypeImageLayerGzip)}, "", "gzip"},
		{"docker gzip", "", []ocispec.Descriptor{layerOf("application/vnd.docker.image.rootfs.diff.tar.gzip")}, "", "gzip"},
		{"zstd", "", []ocispec.Descriptor{layerOf(ocispec.MediaTypeImageLayerZstd)}, "", "zstd"},
		{"empty", "", []ocispec.Descriptor{layerOf(ocispec.MediaTypeEmptyJSON)}, "", "no content"},
		{"size 0", "", []ocispec.Descriptor{{MediaType: "x/y", Digest: erofs.Digest}}, "", "size 0"},
		{"size -1", "", []ocispec.Descriptor{{MediaType: "x/y", Digest: erofs.Digest, Size: -1}}, "", "size -1"},
		{"bad digest", "", []ocispec.Descriptor{{MediaType: "x/y", Digest: "sha256:../../../etc", Size: 1}}, "", "SHA-256"},
		{"sha512", "", []ocispec.Descriptor{{MediaType: "x/y", Digest: digest.SHA512.FromString(""), Size: 1}}, "", "SHA-256"},
		{"long media type", "", []ocispec.Descriptor{layerOf(strings.Repeat("x", 300))}, "", "300 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := chooseLayer(manifestDocument{Config: ocispec.Descriptor{MediaType: c.config}, Layers: c.layers})
			if c.fails == "" {
				if err != nil || got.MediaType != c.want {
					t.Fatalf("%q, %v", got.MediaType, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Fatalf("error %v, want one with %q", err, c.fails)
			}
		})
	}
}

func TestChooseManifest(t *testing.T) {
	entry := func(name, os, arch string, more ...string) ocispec.Descriptor {
		d := layerOf(name)
		d.Digest, d.MediaType = digest.FromString(name), ocispec.MediaTypeImageManifest
		if os != "" {
			d.Platform = &ocispec.Platform{OS: os, Architecture: arch, OSFeatures: more}
		}
		return d
	}
	attestation := entry("attestation", "unknown", "unknown")
	attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	nested := entry("nested", "linux", "amd64")
	nested.MediaType = ocispec.MediaTypeImageIndex
	artifact := entry("artifact", "linux", "amd64")
	artifact.ArtifactType = "application/vnd.erofs.image.v1"
	for _, c := range []struct {
		name  string
		all   []ocispec.Descriptor
		want  string
		fails string
	}{
		{"platform", []ocispec.Descriptor{entry("arm", "linux", "arm64"), entry("mine", "linux", "amd64"), entry("second", "linux", "amd64")}, "mine", ""},
		{"marked by feature", []ocispec.Descriptor{entry("tar", "linux", "amd64"), entry("erofs", "linux", "amd64", "erofs")}, "erofs", ""},
		{"marked by artifact type", []ocispec.Descriptor{entry("tar", "linux", "amd64"), artifact}, "artifact", ""},
		{"the only one", []ocispec.Descriptor{entry("only", "", "")}, "only", ""},
		{"the only one beside an attestation", []ocispec.Descriptor{attestation, entry("only", "unknown", "unknown")}, "only", ""},
		{"other platforms", []ocispec.Descriptor{entry("arm", "linux", "arm64"), entry("win", "windows", "amd64")}, "", `["linux/arm64" "windows/amd64"]`},
		{"two without platform", []ocispec.Descriptor{entry("a", "", ""), entry("b", "", "")}, "", "no manifest for linux/amd64"},
		{"empty", nil, "", "no manifest for linux/amd64"},
		{"nested index", []ocispec.Descriptor{nested}, "", "no manifest"},
		{"bad digest", []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageManifest, Digest: "sha256:x"}}, "", "SHA-256"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := chooseManifest(c.all, "amd64")
			if c.fails == "" {
				if err != nil || got != digest.FromString(c.want) {
					t.Fatalf("%s, %v", got, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Fatalf("error %v, want one with %q", err, c.fails)
			}
		})
	}
}

func TestParseManifest(t *testing.T) {
	for _, c := range []struct {
		name, text, contentType string
		index                   bool
		fails                   string
	}{
		{"manifest", `{"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[]}`, "", false, ""},
		{"the document's type counts", `{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`, ocispec.MediaTypeImageManifest, true, ""},
		{"by content type", `{"manifests":[]}`, ocispec.MediaTypeImageIndex, true, ""},
		{"by shape", `{"manifests":[]}`, "application/json", true, ""},
		{"not JSON", `<html>`, "text/html", false, "not valid JSON"},
		{"both", `{"layers":[],"manifests":[]}`, ocispec.MediaTypeImageIndex, false, "both"},
		{"index that has layers", `{"layers":[]}`, ocispec.MediaTypeImageIndex, false, "not what its media type"},
		{"manifest that has manifests", `{"manifests":[]}`, ocispec.MediaTypeImageManifest, false, "not what its media type"},
		{"schema 1", `{"schemaVersion":1,"fsLayers":[]}`, "application/vnd.docker.distribution.manifest.v1+prettyjws", false, "v1+prettyjws"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, index, err := parseManifest([]byte(c.text), c.contentType)
			if c.fails == "" {
				if err != nil || index != c.index {
					t.Fatalf("index %v, %v", index, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Fatalf("error %v, want one with %q", err, c.fails)
			}
		})
	}
}

func FuzzManifest(f *testing.F) {
	text, err := json.Marshal(manifestDocument{Layers: []ocispec.Descriptor{layerOf("application/vnd.erofs")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text, ocispec.MediaTypeImageManifest)
	f.Add(fmt.Appendf(nil, `{"manifests":[{"mediaType":%q,"digest":%q,"platform":{"os":"linux","architecture":"amd64"}}]}`, ocispec.MediaTypeImageManifest, someDigest), ocispec.MediaTypeImageIndex)
	f.Fuzz(func(t *testing.T, text []byte, contentType string) {
		doc, index, err := parseManifest(text, contentType)
		if err != nil {
			return
		}
		if index {
			if d, err := chooseManifest(doc.Manifests, "amd64"); err == nil && validDigest(d) != nil {
				t.Errorf("chose the digest %q", d)
			}
			return
		}
		if l, err := chooseLayer(doc); err == nil {
			rec := record{Resolved: someDigest, Manifest: someDigest, Blob: l.Digest, Size: l.Size}
			if err := rec.validate(); err != nil {
				t.Errorf("chose %+v: %v", l, err)
			}
		}
	})
}
