package nodecache

import (
	"strings"
	"testing"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote/auth"
)

func newResolver(t testing.TB) *Resolver {
	t.Helper()
	r, err := NewResolver(Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.store.registries.transports.close)
	return r
}

// TestResolve: what a registry says a reference means, and that it goes on to mean that
// after the tag has moved.
func TestResolve(t *testing.T) {
	p := newPusher(t, openRegistry(t), repositoryName(t), auth.EmptyCredential)
	v1 := p.image("v1", erofsLayer, randomBytes(1, 100_000))
	name, _ := strings.CutSuffix(v1.ref, ":v1")
	resolver := newResolver(t)
	for ref, want := range map[string]Resolved{
		v1.ref:                                 {v1.ref + "@" + v1.manifest.String(), 100_000},
		"oci://" + v1.ref:                      {v1.ref + "@" + v1.manifest.String(), 100_000},
		name + "@" + v1.manifest.String():      {name + "@" + v1.manifest.String(), 100_000},
		"/dir/a.erofs":                         {"/dir/a.erofs", 0},
		"file:///dir/a.erofs,device=/dir/blob": {"/dir/a.erofs,device=/dir/blob", 0},
	} {
		if got, err := resolver.Resolve(t.Context(), ref, nil); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", ref, got, err, want)
		}
	}
	got, err := resolver.Resolve(t.Context(), v1.ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.image("v1", erofsLayer, randomBytes(2, 50_000))
	img := acquire(t, openStore(t, Config{}), got.Reference, AcquireOptions{})
	wantContent(t, img.Blob(), v1.content)
	img.Release()

	config := p.blob(ocispec.MediaTypeImageConfig, []byte("{}"))
	p.document(ocispec.MediaTypeImageManifest, "empty", ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{},
	})
	for ref, class := range map[string]error{
		name + ":nothing":     ErrNotFound,
		name + "x:v1":         ErrNotFound,
		name + ":empty":       ErrUnsupportedImage,
		"library/redis":       ErrInvalidReference,
		"localhost:1/a:1":     ErrUnavailable,
		"relative/path.erofs": ErrInvalidReference,
		name + "@sha256:" + strings.Repeat("0", 64): ErrNotFound,
	} {
		_, err := resolver.Resolve(t.Context(), ref, nil)
		wantError(t, err, class)
	}
}

// TestResolveOthers: a container image has the size of its layers, as they are sent, and
// a file of a web server its own.
func TestResolveOthers(t *testing.T) {
	layers := threeLayers(t)
	p := anonymous(t).container("v1", layers...)
	var sent int64
	for _, l := range layers {
		sent += int64(len(l.sent))
	}
	resolver := newResolver(t)
	want := Resolved{p.ref + "@" + p.manifest.String(), sent}
	if got, err := resolver.Resolve(t.Context(), p.ref, nil); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}

	w := newWebServer(t, randomBytes(1, 1234))
	resolver, err := NewResolver(Config{RootCAs: w.roots})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(resolver.store.registries.transports.close)
	signed := strings.Replace(w.ref(), "#", "?signature=x#", 1)
	if got, err := resolver.Resolve(t.Context(), signed, nil); err != nil || got != (Resolved{signed, 1234}) {
		t.Errorf("%+v, %v; want %s of 1234 bytes", got, err, signed)
	}
	if !Pinned(signed) {
		t.Error("an address with a digest is not pinned")
	}
	_, err = resolver.Resolve(t.Context(), strings.Replace(w.ref(), "b.erofs", "c.erofs", 1), nil)
	wantError(t, err, ErrNotFound)
}

// TestResolveIndex: an index is what is pinned, and one that has nothing for this kind
// of machine is for nodes of another.
func TestResolveIndex(t *testing.T) {
	p := newPusher(t, openRegistry(t), repositoryName(t), auth.EmptyCredential)
	manifest := func(seed uint64, size int, arch string) ocispec.Descriptor {
		d := p.manifest("", p.blob(erofsLayer, randomBytes(seed, size)))
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
		return d
	}
	index := func(tag string, manifests ...ocispec.Descriptor) ocispec.Descriptor {
		return p.document(ocispec.MediaTypeImageIndex, tag, ocispec.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests,
		})
	}
	windows := manifest(4, 400, "amd64")
	windows.Platform.OS = "windows"
	resolver := newResolver(t)
	ref := p.repo.Reference.Registry + "/" + p.repo.Reference.Repository
	for tag, manifests := range map[string][]ocispec.Descriptor{
		"mine":   {manifest(1, 100, "s390x"), manifest(2, 300, "amd64"), manifest(3, 300, "arm64")},
		"others": {windows, manifest(5, 300, "riscv64"), manifest(6, 100, "s390x")},
	} {
		d := index(tag, manifests...)
		want := Resolved{ref + ":" + tag + "@" + d.Digest.String(), 300}
		if got, err := resolver.Resolve(t.Context(), ref+":"+tag, nil); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", tag, got, err, want)
		}
	}
	index("none", windows)
	_, err := resolver.Resolve(t.Context(), ref+":none", nil)
	wantError(t, err, ErrUnsupportedImage, "windows/amd64")
}

func TestResolveSecret(t *testing.T) {
	host := htpasswdRegistry(t)
	p := newPusher(t, host, "a/b", auth.Credential{Username: "user", Password: "hunter22"}).image("v1", erofsLayer, randomBytes(1, 100))
	resolver := newResolver(t)
	if _, err := resolver.Resolve(t.Context(), p.ref, dockerConfig(host, "user", "hunter22")); err != nil {
		t.Error(err)
	}
	_, err := resolver.Resolve(t.Context(), p.ref, nil)
	wantError(t, err, ErrUnauthorized)
	_, err = resolver.Resolve(t.Context(), p.ref, dockerConfig(host, "user", "wrong-pass"))
	wantError(t, err, ErrUnauthorized)
	noSecrets(t, err)
}

func TestPinned(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0a", 32)
	for ref, want := range map[string]bool{
		"r.example/a@" + digest: true, "r.example/a:1@" + digest: true,
		"r.example/a:1": false, "r.example/a": false, "/a.erofs": false, "": false, "r.example/a@sha256:0": false,
	} {
		if got := Pinned(ref); got != want {
			t.Errorf("%q: %t, want %t", ref, got, want)
		}
	}
}
