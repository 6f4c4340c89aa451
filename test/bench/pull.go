package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote"
)

// registry is Debian's docker-registry on loopback, with one image.
type registry struct {
	host string
	blob ocispec.Descriptor
	data string // the blob's file
	stop func() error
}

// measurePull pulls the image by `erofs-csi inspect` with an empty cache directory,
// and fetches the same blob by curl, with tee into a file and sha256sum at the same
// time; also with that file synced to the disk, as a pull's is. The registry's file
// is in the page cache each time.
func (b *bench) measurePull(ctx context.Context, t *table) (err error) {
	for _, program := range []string{"docker-registry", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.note("pull is left out: there is no %s.", program)
			return nil
		}
	}
	r, err := b.startRegistry(ctx, b.pulled)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	var took, used [3]sample
	side := func(i int, run func(dir string) (*exec.Cmd, func() error)) func() error {
		return func() error {
			dir := filepath.Join(b.work, "pull")
			if err := errors.Join(warm(r.data), os.Mkdir(dir, 0o700)); err != nil {
				return err
			}
			cmd, check := run(dir)
			start := time.Now()
			out, err := cmd.CombinedOutput()
			took[i].add(time.Since(start).Seconds())
			if err != nil {
				return fmt.Errorf("%s: %w: %s", cmd, err, out)
			}
			used[i].add((cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds())
			return errors.Join(check(), os.RemoveAll(dir))
		}
	}
	curl := func(after string) func(string) (*exec.Cmd, func() error) {
		return func(dir string) (*exec.Cmd, func() error) {
			script := fmt.Sprintf("cd %s && curl -sSf http://%s/v2/image/blobs/%s | tee blob | sha256sum >sum%s", dir, r.host, r.blob.Digest, after)
			return exec.CommandContext(ctx, "sh", "-c", script), func() error { return r.check(filepath.Join(dir, "sum")) }
		}
	}
	err = turns(ctx, b.rounds,
		side(0, func(dir string) (*exec.Cmd, func() error) {
			return exec.CommandContext(ctx, b.binary, "inspect", "--cache-dir", dir, "--plain-http", r.host, r.host+"/image:v1"), func() error {
				_, err := os.Stat(filepath.Join(dir, "blobs", "sha256", r.blob.Digest.Encoded()))
				return err
			}
		}),
		side(1, curl("")),
		side(2, curl(" && sync blob")),
	)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("pull of %.0f MB", mb(r.blob.Size))
	t.compare(name, "s", "curl, sha256sum", took[0], took[1], atMost(1.3))
	t.compare(name, "s", "the same, and sync", took[0], took[2], nil)
	t.compare(name+", CPU", "s", "curl, sha256sum", used[0], used[1], nil)
	return nil
}

// check compares what sha256sum wrote with the digest.
func (r *registry) check(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if got, _, _ := strings.Cut(string(text), " "); got != r.blob.Digest.Encoded() {
		return fmt.Errorf("sha256sum says %s, want %s", got, r.blob.Digest)
	}
	return nil
}

// startRegistry serves an image.
func (b *bench) startRegistry(ctx context.Context, im *image) (_ *registry, err error) {
	dir := filepath.Join(b.work, "registry")
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	host := l.Addr().String()
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n", dir, host)
	if err := errors.Join(l.Close(), os.WriteFile(dir+".yml", []byte(config), 0o600)); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "docker-registry", "serve", dir+".yml")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r := &registry{host: host, stop: func() error {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		return os.RemoveAll(dir)
	}}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.stop())
		}
	}()
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", host)
		if err == nil {
			_ = c.Close()
			break
		}
		if time.Since(start) > patience || ctx.Err() != nil {
			return nil, fmt.Errorf("docker-registry does not answer: %w", err)
		}
	}
	if err := r.push(ctx, im); err != nil {
		return nil, fmt.Errorf("push: %w", err)
	}
	name := r.blob.Digest.Encoded()
	r.data = filepath.Join(dir, "docker/registry/v2/blobs/sha256", name[:2], name, "data")
	return r, syncFile(r.data)
}

// push pushes an image file as an artifact of one layer.
func (r *registry) push(ctx context.Context, im *image) error {
	sum, err := hash(im.path)
	if err != nil {
		return err
	}
	repo, err := remote.NewRepository(r.host + "/image")
	if err != nil {
		return err
	}
	repo.PlainHTTP = true
	r.blob = ocispec.Descriptor{
		MediaType: "application/vnd.erofs.layer.v1", Size: im.size,
		Digest: digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(sum.sum[:])),
	}
	f, err := os.Open(im.path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // the client has closed it already
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/vnd.erofs",
		Config: ocispec.DescriptorEmptyJSON, Layers: []ocispec.Descriptor{r.blob},
	}
	text, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	return errors.Join(
		repo.Push(ctx, r.blob, f),
		repo.Push(ctx, ocispec.DescriptorEmptyJSON, strings.NewReader("{}")),
		repo.Manifests().PushReference(ctx, ocispec.Descriptor{MediaType: manifest.MediaType, Digest: digest.FromBytes(text), Size: int64(len(text))}, bytes.NewReader(text), "v1"),
	)
}

// makePulled makes an image to be pulled.
func (b *bench) makePulled(ctx context.Context, tree, name string, mib int) (*image, error) {
	dir := filepath.Join(b.work, "trees", "pulled")
	if err := writeBig(ctx, tree, dir, int64(mib)<<20); err != nil {
		return nil, err
	}
	im, err := b.makeImage(ctx, name, dir)
	return im, errors.Join(err, os.RemoveAll(dir))
}
