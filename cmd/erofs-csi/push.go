package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/erofs-csi/erofs-csi/nodecache"
)

// What an image is pushed as: containerd's media type of EROFS layers, and an
// artifact that says that it holds one.
const (
	pushedLayer    = "application/vnd.erofs.layer.v1"
	pushedArtifact = "application/vnd.erofs"
)

// pushTarget is where a built image goes.
type pushTarget struct {
	repo *remote.Repository
	name string
}

func newPushTarget(ref string, p *pull) (*pushTarget, error) {
	if err := nodecache.ValidateReference(ref); err != nil {
		return nil, usagef("build: --push: %v", err)
	}
	repo, err := remote.NewRepository(ref)
	if err != nil {
		return nil, usagef("build: --push: %v", err)
	}
	if repo.Reference.Reference == "" {
		repo.Reference.Reference = "latest"
	}
	if _, err := repo.Reference.Digest(); err == nil {
		return nil, usagef("build: --push %s: give a tag, not a digest", ref)
	}
	config, err := registryCredentials()
	if err != nil {
		return nil, err
	}
	client := &auth.Client{Cache: auth.NewCache()}
	if config != nil {
		store, err := credentials.NewMemoryStoreFromDockerConfig(config)
		if err != nil {
			return nil, fmt.Errorf("registry credentials: %w", err)
		}
		client.Credential = credentials.Credential(store)
	}
	repo.Client = client
	repo.PlainHTTP = p.usesPlainHTTP(repo.Reference.Registry)
	return &pushTarget{repo: repo, name: repo.Reference.Registry + "/" + repo.Reference.Repository}, nil
}

// push pushes the image in file, of the given digest and size, as an artifact with one
// layer. It returns the artifact's reference by digest, which is the same for the same
// image and time.
func (t *pushTarget) push(ctx context.Context, file string, d digest.Digest, size int64, created time.Time) (string, error) {
	layer := ocispec.Descriptor{MediaType: pushedLayer, Digest: d, Size: size}
	if err := t.blob(ctx, layer, file); err != nil {
		return "", t.failed(err)
	}
	if created.IsZero() {
		created = time.Unix(0, 0)
	}
	manifest, err := oras.PackManifest(ctx, t.repo, oras.PackManifestVersion1_1, pushedArtifact, oras.PackManifestOptions{
		Layers:              []ocispec.Descriptor{layer},
		ManifestAnnotations: map[string]string{ocispec.AnnotationCreated: created.UTC().Format(time.RFC3339)},
	})
	if err == nil {
		err = t.repo.Tag(ctx, manifest, t.repo.Reference.Reference)
	}
	if err != nil {
		return "", t.failed(err)
	}
	return t.name + "@" + manifest.Digest.String(), nil
}

// blob pushes the layer, unless the repository has it.
func (t *pushTarget) blob(ctx context.Context, layer ocispec.Descriptor, file string) error {
	if ok, err := t.repo.Blobs().Exists(ctx, layer); ok && err == nil {
		return nil
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return t.repo.Blobs().Push(ctx, layer, f)
}

func (t *pushTarget) failed(err error) error {
	return fmt.Errorf("push %s:%s: %w", t.name, t.repo.Reference.Reference, err)
}
