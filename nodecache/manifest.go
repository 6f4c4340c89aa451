package nodecache

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxManifest bounds a manifest or index in bytes, as registries do.
const maxManifest = 4 << 20

// maxMediaType is the limit of RFC 6838, section 4.2, in bytes.
const maxMediaType = 255

const (
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	// erofsType begins the media types of EROFS blobs and artifacts.
	erofsType = "application/vnd.erofs"
	supported = "supported are images and artifacts whose layers are EROFS images or tar archives, plain or compressed by gzip or zstd, and artifacts of one layer that is an EROFS image"
)

func acceptManifests() http.Header {
	return http.Header{"Accept": {strings.Join([]string{
		ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, dockerManifest, dockerManifestList, "*/*;q=0.1",
	}, ", ")}}
}

// manifestDocument is what is used of a manifest or an index.
type manifestDocument struct {
	MediaType    string               `json:"mediaType"`
	ArtifactType string               `json:"artifactType"`
	Config       ocispec.Descriptor   `json:"config"`
	Manifests    []ocispec.Descriptor `json:"manifests"`
	Layers       []ocispec.Descriptor `json:"layers"`
}

// resolve asks the registry what the reference means.
func (r *registryClient) resolve(ctx context.Context) (plan, error) {
	text, contentType, err := r.fetchManifest(ctx, r.ref.target())
	if err != nil {
		return plan{}, err
	}
	rec := record{Reference: r.ref.canonical(), Resolved: digest.FromBytes(text)}
	rec.Manifest = rec.Resolved
	doc, isIndex, err := parseManifest(text, contentType)
	if err != nil {
		return plan{}, fmt.Errorf("%w: %s: %w", ErrUnsupportedImage, r.ref, err)
	}
	if isIndex {
		chosen, err := chooseManifest(doc.Manifests, runtime.GOARCH)
		if err != nil {
			return plan{}, fmt.Errorf("%w: %s: %w", ErrUnsupportedImage, r.ref, err)
		}
		rec.Manifest = chosen
		text, contentType, err = r.fetchManifest(ctx, chosen.String())
		if err != nil {
			return plan{}, err
		}
		doc, isIndex, err = parseManifest(text, contentType)
		if err == nil && isIndex {
			err = fmt.Errorf("an index within an index")
		}
		if err != nil {
			return plan{}, fmt.Errorf("%w: %s: manifest %s: %w", ErrUnsupportedImage, r.ref, chosen, err)
		}
	}
	p, err := choosePlan(doc)
	if err != nil {
		return plan{}, fmt.Errorf("%w: %s: %w; %s", ErrUnsupportedImage, r.ref, err, supported)
	}
	p.rec = rec
	if err := r.refine(ctx, &p, doc); err != nil {
		return plan{}, err
	}
	if !p.convert {
		layer := p.layers[0].desc
		p.rec.Blob, p.rec.Size, p.rec.MediaType = layer.Digest, layer.Size, layer.MediaType
	}
	return p, nil
}

// parseManifest decides by the media type what a document is, and refuses one
// that would be two things to two readers.
func parseManifest(text []byte, contentType string) (doc manifestDocument, isIndex bool, err error) {
	if json.Unmarshal(text, &doc) != nil {
		return doc, false, fmt.Errorf("the manifest is not valid JSON")
	}
	if doc.Manifests != nil && doc.Layers != nil {
		return doc, false, fmt.Errorf("the manifest has both manifests and layers")
	}
	kind := doc.MediaType
	if kind == "" {
		kind = contentType // optional in the document of OCI 1.0
	}
	switch kind {
	case ocispec.MediaTypeImageIndex, dockerManifestList:
		isIndex = true
	case ocispec.MediaTypeImageManifest, dockerManifest:
	case "", "application/json", "application/octet-stream":
		isIndex = doc.Manifests != nil
	default:
		return doc, false, fmt.Errorf("manifest of media type %.100q", kind)
	}
	if isIndex && doc.Layers != nil || !isIndex && doc.Manifests != nil {
		return doc, false, fmt.Errorf("the manifest is not what its media type %q says", kind)
	}
	return doc, isIndex, nil
}

// chooseManifest picks of an index the manifest for linux on arch, one that is
// marked as EROFS before one that is not, or the only one if it names no
// platform.
func chooseManifest(all []ocispec.Descriptor, arch string) (digest.Digest, error) {
	var fits, erofs, unnamed []ocispec.Descriptor
	var found []string
	for _, d := range all {
		if d.MediaType != ocispec.MediaTypeImageManifest && d.MediaType != dockerManifest ||
			d.Annotations["vnd.docker.reference.type"] == "attestation-manifest" {
			continue
		}
		p := d.Platform
		if p == nil || p.OS == "" && p.Architecture == "" || p.OS == "unknown" && p.Architecture == "unknown" {
			unnamed = append(unnamed, d)
			found = append(found, "none")
			continue
		}
		found = append(found, p.OS+"/"+p.Architecture)
		if p.OS != "linux" || p.Architecture != arch {
			continue
		}
		fits = append(fits, d)
		if slices.Contains(p.OSFeatures, "erofs") || strings.HasPrefix(d.ArtifactType, erofsType) {
			erofs = append(erofs, d)
		}
	}
	var chosen ocispec.Descriptor
	switch {
	case len(erofs) > 0:
		chosen = erofs[0]
	case len(fits) > 0:
		chosen = fits[0] // the first, image-spec 1.1 image-index.md
	case len(unnamed) == 1 && len(found) == 1:
		chosen = unnamed[0]
	default:
		const most = 8
		if len(found) > most {
			found = append(found[:most], "...")
		}
		return "", fmt.Errorf("the index has no manifest for linux/%s; platforms found: %.400q", arch, found)
	}
	if err := validDigest(chosen.Digest); err != nil {
		return "", err
	}
	return chosen.Digest, nil
}
