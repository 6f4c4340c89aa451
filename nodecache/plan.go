package nodecache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-csi/erofs-csi/erofs/build"
)

// maxLayers of one image. Docker makes 127 at most.
const maxLayers = 512

// Names of the draft specification of EROFS layers
// (github.com/erofs/erofs-image-spec, spec.md, sections 2.2 to 2.4).
const (
	chunkIndexType     = "application/vnd.erofs.chunk-index.v1"
	roleAnnotation     = "org.erofs.role"
	roleLower          = "overlay-lower"
	uncompressedDigest = "org.erofs.uncompressed-digest"
)

// plan is how the image of a manifest comes about.
type plan struct {
	rec record // without blob and size if convert
	// convert makes one image of the layers, the lowest first; else the only one
	// of them is it.
	convert bool
	layers  []layer
}

// layer is a layer of a manifest.
type layer struct {
	desc ocispec.Descriptor
	// diffID is what the layer is uncompressed, "" if the image does not say.
	diffID digest.Digest
}

// planOf asks the registry, or the web server, what the reference means.
func (r *registryClient) planOf(ctx context.Context) (plan, error) {
	if r.ref.isWeb() {
		rec, err := r.measure(ctx)
		return plan{rec: rec}, err
	}
	return r.resolve(ctx)
}

// choosePlan decides by the media types.
func choosePlan(doc manifestDocument) (plan, error) {
	var erofs, tars, all []layer
	for _, d := range doc.Layers {
		if mediaTypeOf(d) == chunkIndexType {
			continue // helps lazy readers only
		}
		l := layer{desc: d}
		switch role := d.Annotations[roleAnnotation]; role {
		case "", roleLower:
		default:
			return plan{}, fmt.Errorf("a layer has the role %.40q", role)
		}
		all = append(all, l)
		switch {
		case isErofs(d.MediaType):
			erofs = append(erofs, l)
		case isTar(d.MediaType):
			tars = append(tars, l)
		}
	}
	p := plan{layers: all}
	switch {
	case len(all) == 0:
		return p, errors.New("it has no layers")
	case len(all) > maxLayers:
		return p, fmt.Errorf("it has %d layers, more than %d", len(all), maxLayers)
	case len(all) == 1:
		p.convert = compression(all[0].desc.MediaType) != "" || isTar(all[0].desc.MediaType)
	case len(erofs)+len(tars) == len(all):
		p.convert = true
	case len(erofs) == 1: // and something beside it
		p.layers = erofs
		p.convert = compression(erofs[0].desc.MediaType) != ""
	default:
		what := "an artifact"
		if isImageConfig(doc.Config.MediaType) {
			what = "a container image"
		}
		other := slices.IndexFunc(all, func(l layer) bool { return !isErofs(l.desc.MediaType) && !isTar(l.desc.MediaType) })
		return p, fmt.Errorf("it is %s of %d layers, one of media type %.100q", what, len(all), all[other].desc.MediaType)
	}
	for _, l := range p.layers {
		if err := checkLayer(l.desc); err != nil {
			return p, err
		}
	}
	return p, nil
}

func checkLayer(d ocispec.Descriptor) error {
	switch c := compression(d.MediaType); {
	case c != "" && c != "gzip" && c != "zstd":
		return fmt.Errorf("its layer of media type %.100q is compressed by %s", d.MediaType, c)
	case strings.Contains(d.MediaType, "+encrypted"):
		return fmt.Errorf("its layer of media type %.100q is encrypted", d.MediaType)
	case d.MediaType == ocispec.MediaTypeEmptyJSON:
		return errors.New("it has no content")
	case len(d.MediaType) > maxMediaType:
		return fmt.Errorf("its layer has a media type of %d bytes", len(d.MediaType))
	case d.Size <= 0:
		return fmt.Errorf("its layer has the size %d", d.Size)
	}
	return validDigest(d.Digest)
}

// refine asks the registry for what the manifest alone does not say.
func (r *registryClient) refine(ctx context.Context, p *plan, doc manifestDocument) error {
	if !p.convert {
		return nil
	}
	if len(p.layers) == 1 && compression(p.layers[0].desc.MediaType) == "" {
		// "oras push" calls any file an archive.
		image, err := r.isImage(ctx, p.layers[0].desc)
		if err != nil {
			return err
		}
		if image {
			p.convert = false
			return nil
		}
	}
	return r.diffIDs(ctx, p, doc)
}

// isImage tells by its first bytes whether a blob is an EROFS image.
func (r *registryClient) isImage(ctx context.Context, d ocispec.Descriptor) (bool, error) {
	l := r.openLayer(ctx, d)
	defer l.close()
	head := make([]byte, build.HeadSize)
	if _, err := io.ReadFull(l, head); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false, err
	}
	return build.IsImage(head), nil
}

// diffIDs finds out what the layers must be uncompressed.
func (r *registryClient) diffIDs(ctx context.Context, p *plan, doc manifestDocument) error {
	if isImageConfig(doc.Config.MediaType) {
		if err := r.configDiffIDs(ctx, p, doc); err != nil {
			return err
		}
	}
	for i, l := range p.layers {
		if text, ok := l.desc.Annotations[uncompressedDigest]; ok {
			p.layers[i].diffID = digest.Digest(text)
		}
		if id := p.layers[i].diffID; id != "" && validDigest(id) != nil {
			return fmt.Errorf("%w: %s: layer %s: the uncompressed digest %.100q is none of SHA-256", ErrUnsupportedImage, r.ref, l.desc.Digest, string(id))
		}
	}
	return nil
}

func (r *registryClient) configDiffIDs(ctx context.Context, p *plan, doc manifestDocument) error {
	d := doc.Config
	if d.Size <= 0 || d.Size > maxManifest || validDigest(d.Digest) != nil {
		return fmt.Errorf("%w: %s: a config of %d bytes with the digest %.100q", ErrUnsupportedImage, r.ref, d.Size, string(d.Digest))
	}
	var text []byte
	err := r.verified(d.Digest.String(), func() (err error) {
		l := r.openLayer(ctx, d)
		defer l.close()
		if text, err = io.ReadAll(l); err != nil {
			return err
		}
		return l.verify()
	})
	if err != nil {
		return err
	}
	var config struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if json.Unmarshal(text, &config) != nil {
		return fmt.Errorf("%w: %s: the config is not valid JSON", ErrUnsupportedImage, r.ref)
	}
	ids := config.RootFS.DiffIDs
	if len(ids) == 0 && !slices.ContainsFunc(p.layers, func(l layer) bool { return isTar(l.desc.MediaType) }) {
		return nil // optional with EROFS layers
	}
	if len(ids) != len(p.layers) || len(p.layers) != len(doc.Layers) {
		return fmt.Errorf("%w: %s: the config has %d diff_ids and the manifest %d layers", ErrUnsupportedImage, r.ref, len(ids), len(doc.Layers))
	}
	for i := range p.layers {
		p.layers[i].diffID = ids[i]
	}
	return nil
}

// mediaTypeOf is the media type without parameters.
func mediaTypeOf(d ocispec.Descriptor) string {
	name, _, _ := strings.Cut(d.MediaType, ";")
	return strings.TrimSpace(name)
}

func isImageConfig(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageConfig || strings.HasPrefix(mediaType, "application/vnd.docker.container.image.")
}

// isErofs knows application/vnd.erofs* and, as container runtimes name them,
// media types whose subtype ends in .erofs; compressed ones too.
func isErofs(mediaType string) bool {
	name, _, _ := strings.Cut(mediaType, "+")
	return strings.HasPrefix(mediaType, erofsType) && name != chunkIndexType || strings.HasSuffix(name, ".erofs")
}

// isTar knows the tar archives of OCI and Docker images, "foreign" ones as well,
// and of artifacts.
func isTar(mediaType string) bool {
	name, _, _ := strings.Cut(mediaType, "+")
	name = strings.TrimSuffix(strings.TrimSuffix(name, ".gzip"), ".zstd")
	return strings.HasSuffix(name, ".tar") || name == "application/x-tar" || name == "application/tar"
}

// compression names how a blob of this media type is compressed as a whole.
func compression(mediaType string) string {
	for _, c := range []string{"gzip", "zstd", "xz", "bzip2"} {
		if strings.HasSuffix(mediaType, "+"+c) || strings.HasSuffix(mediaType, "."+c) || mediaType == "application/"+c {
			return c
		}
	}
	return ""
}
