package nodecache

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func layerOf(mediaType string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString(mediaType), Size: 10}
}

func TestChoosePlan(t *testing.T) {
	erofs, tar := layerOf("application/vnd.erofs.layer.v1"), layerOf(ocispec.MediaTypeImageLayer)
	gz, zst := layerOf(ocispec.MediaTypeImageLayerGzip), layerOf("application/vnd.docker.image.rootfs.diff.tar.zstd")
	role := func(role string) ocispec.Descriptor {
		d := layerOf("application/vnd.erofs")
		d.Annotations = map[string]string{"org.erofs.role": role}
		return d
	}
	type layers = []ocispec.Descriptor
	for _, c := range []struct {
		name    string
		config  string
		layers  layers
		want    layers
		convert bool
		fails   string
	}{
		{"erofs", "", layers{erofs}, layers{erofs}, false, ""},
		{"erofs with an index beside it", "", layers{layerOf("application/json"), erofs}, layers{erofs}, false, ""},
		{"erofs with a chunk index", "", layers{erofs, layerOf("application/vnd.erofs.chunk-index.v1")}, layers{erofs}, false, ""},
		{"runtime's name", "", layers{layerOf("application/vnd.oci.image.layer.v1.erofs")}, layers{layerOf("application/vnd.oci.image.layer.v1.erofs")}, false, ""},
		{"octet-stream", "", layers{layerOf("application/octet-stream")}, layers{layerOf("application/octet-stream")}, false, ""},
		{"anything", "", layers{layerOf("x/y")}, layers{layerOf("x/y")}, false, ""},
		{"oras push", "", layers{tar}, layers{tar}, true, ""}, // unless its bytes are EROFS
		{"two erofs", "", layers{erofs, role("overlay-lower")}, layers{erofs, role("overlay-lower")}, true, ""},
		{"compressed erofs", "", layers{layerOf("application/vnd.erofs+zstd")}, layers{layerOf("application/vnd.erofs+zstd")}, true, ""},
		{"compressed erofs and something", "", layers{layerOf("application/vnd.erofs+zstd"), layerOf("x/y")}, layers{layerOf("application/vnd.erofs+zstd")}, true, ""},
		{"container image", ocispec.MediaTypeImageConfig, layers{tar, gz, zst}, layers{tar, gz, zst}, true, ""},
		{"docker image", "application/vnd.docker.container.image.v1+json", layers{layerOf("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"), tar}, layers{layerOf("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"), tar}, true, ""},
		{"tar and erofs", "", layers{tar, erofs}, layers{tar, erofs}, true, ""},
		{"gzip of something", "", layers{layerOf("application/gzip")}, layers{layerOf("application/gzip")}, true, ""},
		{"none", "", nil, nil, false, "no layers"},
		{"a device", "", layers{role("device"), erofs}, nil, false, `the role "device"`},
		{"data only", "", layers{role("overlay-data"), erofs}, nil, false, `the role "overlay-data"`},
		{"artifact", "", layers{tar, layerOf("x/y")}, nil, false, `artifact of 2 layers, one of media type "x/y"`},
		{"image", ocispec.MediaTypeImageConfig, layers{erofs, erofs, layerOf("x/y")}, nil, false, `container image of 3 layers, one of media type "x/y"`},
		{"xz", "", layers{layerOf("application/xz")}, nil, false, "compressed by xz"},
		{"encrypted", "", layers{tar, layerOf(ocispec.MediaTypeImageLayer + "+encrypted")}, nil, false, "encrypted"},
		{"many", "", make(layers, 513), nil, false, "513 layers"},
		{"empty", "", layers{layerOf(ocispec.MediaTypeEmptyJSON)}, nil, false, "no content"},
		{"size 0", "", layers{{MediaType: "x/y", Digest: erofs.Digest}}, nil, false, "size 0"},
		{"size -1", "", layers{{MediaType: "x/y", Digest: erofs.Digest, Size: -1}}, nil, false, "size -1"},
		{"bad digest", "", layers{{MediaType: "x/y", Digest: "sha256:../../../etc", Size: 1}}, nil, false, "SHA-256"},
		{"sha512", "", layers{{MediaType: "x/y", Digest: digest.SHA512.FromString(""), Size: 1}}, nil, false, "SHA-256"},
		{"one of two", "", layers{tar, {MediaType: tar.MediaType, Digest: tar.Digest}}, nil, false, "size 0"},
		{"long media type", "", layers{layerOf(strings.Repeat("x", 300))}, nil, false, "300 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := choosePlan(manifestDocument{Config: ocispec.Descriptor{MediaType: c.config}, Layers: c.layers})
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Fatalf("error %v, want one with %q", err, c.fails)
				}
				return
			}
			var got layers
			for _, l := range p.layers {
				got = append(got, l.desc)
			}
			if err != nil || p.convert != c.convert || !reflect.DeepEqual(got, c.want) {
				t.Fatalf("convert %v, %+v, %v", p.convert, got, err)
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
		p, err := choosePlan(doc)
		if err != nil {
			return
		}
		if len(p.layers) == 0 {
			t.Error("a plan without layers")
		}
		for _, l := range p.layers {
			rec := record{Resolved: someDigest, Manifest: someDigest, Blob: l.desc.Digest, Size: l.desc.Size}
			if err := rec.validate(); err != nil {
				t.Errorf("chose %+v: %v", l, err)
			}
		}
	})
}
