package nodecache

import (
	"context"
	"fmt"
	"math"
	"runtime"

	"github.com/opencontainers/go-digest"
)

// Resolver asks registries what references mean. It stores nothing and has no
// directory. All methods may be called concurrently.
type Resolver struct {
	store *Store // of which only what reaches registries is there
}

// Resolved is what a reference means at present.
type Resolved struct {
	// Reference is the reference with the digest of its manifest or index, so that
	// it means the same from now on and on all nodes; that of a path or an https://
	// address is as it was.
	Reference string
	// Size of the image's layers in bytes, as the registry has them; 0: unknown.
	Size int64
}

// NewResolver returns a Resolver that reaches registries as a store with cfg does.
func NewResolver(cfg Config) (*Resolver, error) {
	shared, err := newRegistries(cfg)
	if err != nil {
		return nil, err
	}
	return &Resolver{&Store{registries: shared, retry: defaultRetry}}, nil
}

// Problems is what is wrong with the configuration of registries and does not keep
// the rest from working.
func (r *Resolver) Problems() []error { return r.store.Problems() }

// Pinned tells whether a valid reference means the same bytes for ever: it has a
// digest. That of a path does not count as pinned.
func Pinned(ref string) bool {
	r, err := parseReference(ref)
	return err == nil && r.digest != ""
}

// Resolve asks the registry or web server what ref means, with a pull secret
// (dockerconfigjson, nil for none), and refuses what no node could mount. A path is
// taken as it is, since it is one of the nodes. The errors are those of [Store.Acquire].
//
// Of an index, the manifest for the kind of machine that this process runs on is
// looked at, or else the first for another: nodes may be of other kinds.
func (r *Resolver) Resolve(ctx context.Context, ref string, dockerConfig []byte) (Resolved, error) {
	parsed, err := parseReference(ref)
	if err != nil {
		return Resolved{}, err
	}
	if parsed.isPath() {
		return Resolved{Reference: parsed.String()}, nil
	}
	reg, err := r.store.newRegistry(parsed, Credentials{DockerConfig: dockerConfig})
	if err != nil {
		return Resolved{}, err
	}
	if parsed.isWeb() {
		rec, err := reg.measure(ctx)
		// As it was written: what is behind the ? may be what gives access.
		return Resolved{Reference: ref, Size: rec.Size}, err
	}
	text, contentType, err := reg.fetchManifest(ctx, parsed.target())
	if err != nil {
		return Resolved{}, err
	}
	full := parsed
	full.digest = digest.FromBytes(text)
	doc, isIndex, err := parseManifest(text, contentType)
	if err == nil && isIndex {
		var chosen digest.Digest
		if chosen, err = chooseForAny(doc); err != nil {
			return Resolved{}, fmt.Errorf("%w: %s: %w", ErrUnsupportedImage, parsed, err)
		}
		if text, contentType, err = reg.fetchManifest(ctx, chosen.String()); err != nil {
			return Resolved{}, err
		}
		doc, isIndex, err = parseManifest(text, contentType)
		if err == nil && isIndex {
			err = fmt.Errorf("an index within an index")
		}
	}
	if err != nil {
		return Resolved{}, fmt.Errorf("%w: %s: %w", ErrUnsupportedImage, parsed, err)
	}
	p, err := choosePlan(doc)
	if err != nil {
		return Resolved{}, fmt.Errorf("%w: %s: %w; %s", ErrUnsupportedImage, parsed, err, supported)
	}
	var size int64
	for _, l := range p.layers {
		size += min(l.desc.Size, math.MaxInt64-size)
	}
	return Resolved{Reference: full.String(), Size: size}, nil
}

// chooseForAny is chooseManifest for this machine's architecture or else for the first
// that there is a manifest for.
func chooseForAny(index manifestDocument) (digest.Digest, error) {
	chosen, err := chooseManifest(index.Manifests, runtime.GOARCH)
	for _, m := range index.Manifests {
		if err == nil {
			break
		}
		if m.Platform != nil {
			if other, otherErr := chooseManifest(index.Manifests, m.Platform.Architecture); otherErr == nil {
				chosen, err = other, nil
			}
		}
	}
	return chosen, err
}
