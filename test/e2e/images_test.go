package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote"
)

// image is one in the registry, and the tree that it was made of.
type image struct {
	ref string
	dir string
}

// buildTool builds test/e2e/tool for the node.
func (r *run) buildTool(ctx context.Context) error {
	r.tool = filepath.Join(r.dir, "tool")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", r.tool, "./tool")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+r.arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build ./tool: %w: %s", err, out)
	}
	return nil
}

// makeImages builds the images that all tests use and pushes them by the command's own
// means.
func (r *run) makeImages(ctx context.Context) error {
	for version, im := range map[string]*image{"v1": &r.v1, "v2": &r.v2} {
		*im = image{ref: r.ref("app", version), dir: filepath.Join(r.dir, version)}
		if err := os.Mkdir(im.dir, 0o755); err != nil {
			return err
		}
		if err := r.makeTree(im.dir, version); err != nil {
			return err
		}
		if err := r.push(ctx, *im); err != nil {
			return err
		}
	}
	return nil
}

// push builds an image and pushes it.
func (r *run) push(ctx context.Context, im image) error {
	r.refs = append(r.refs, im.ref)
	cmd := exec.CommandContext(ctx, r.binary, "build", im.dir, im.dir+".erofs", "--push", im.ref, "--plain-http", r.registry)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("erofs-csi build --push %s: %w: %s", im.ref, err, out)
	}
	return nil
}

// ref is a reference in the run's part of the registry.
func (r *run) ref(name, tag string) string {
	return r.registry + "/erofs-csi-e2e/" + r.id + "/" + name + ":" + tag
}

// removeImages removes the run's images from the registry, where that allows it, and from
// the node.
func (r *run) removeImages(ctx context.Context) error {
	var errs []error
	for _, ref := range r.refs {
		if err := r.unpush(ctx, ref); err != nil && !errors.Is(err, errdef.ErrNotFound) && !errors.Is(err, errdef.ErrUnsupported) {
			errs = append(errs, err)
		}
	}
	if r.plugin == "" {
		return errors.Join(errs...)
	}
	out, err := r.exec(ctx, r.release, r.plugin, nil, "/erofs-csi", "cache", "ls", "--json")
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	digests, err := cached(out, r.id)
	errs = append(errs, err)
	for _, digest := range digests {
		_, err := r.exec(ctx, r.release, r.plugin, nil, "/erofs-csi", "cache", "rm", digest)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (r *run) unpush(ctx context.Context, ref string) error {
	repo, err := repository(ref)
	if err != nil {
		return err
	}
	_, tag, _ := strings.Cut(strings.TrimPrefix(ref, r.registry), ":")
	desc, err := repo.Resolve(ctx, tag)
	if err != nil {
		return err
	}
	err = repo.Delete(ctx, desc)
	if err != nil && strings.Contains(err.Error(), "405") {
		return fmt.Errorf("%w: %w", errdef.ErrUnsupported, err)
	}
	return err
}

// repository opens the repository of a reference, without TLS.
func repository(ref string) (*remote.Repository, error) {
	repo, err := remote.NewRepository(ref)
	if err == nil {
		repo.PlainHTTP = true
	}
	return repo, err
}

// cached are the digests of a run's images in what `erofs-csi cache ls --json` prints.
func cached(list, id string) (digests []string, err error) {
	var store struct {
		Images []struct {
			Digest     string
			References []string
		}
	}
	if err := json.Unmarshal([]byte(list), &store); err != nil {
		return nil, err
	}
	for _, im := range store.Images {
		if slices.ContainsFunc(im.References, func(ref string) bool { return strings.Contains(ref, "/erofs-csi-e2e/"+id+"/") }) {
			digests = append(digests, im.Digest)
		}
	}
	return digests, nil
}
