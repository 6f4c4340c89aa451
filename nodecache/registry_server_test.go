package nodecache

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/erofs-csi/erofs-csi/test/images"
)

// startRegistry runs Debian's docker-registry on a free port with its data in
// dir, until the end of the test. authentication is the auth section of its
// configuration, or "".
func startRegistry(t testing.TB, dir, authentication string) (host string) {
	t.Helper()
	binary, err := exec.LookPath("docker-registry")
	images.Need(t, "docker-registry", err == nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host = l.Addr().String()
	_ = l.Close()
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n%s", dir+"/data", host, authentication)
	cmd := exec.Command(binary, "serve", writeFile(t, dir+"/config.yml", []byte(config)))
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = log.Close()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", host)
		if err == nil {
			_ = c.Close()
			return host
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("docker-registry does not answer: %v\n%s", err, text)
		}
	}
}

var shared struct {
	once sync.Once
	host string
	stop []func()
}

// sharedT makes a cleanup last as long as the test binary.
type sharedT struct{ testing.TB }

func (sharedT) Cleanup(f func()) { shared.stop = append(shared.stop, f) }

// openRegistry is one registry without authentication for all tests.
func openRegistry(t testing.TB) string {
	t.Helper()
	_, err := exec.LookPath("docker-registry")
	images.Need(t, "docker-registry", err == nil)
	shared.once.Do(func() {
		dir, err := os.MkdirTemp("", "nodecache-registry") //nolint:usetesting // it outlives the test
		if err != nil {
			t.Fatal(err)
		}
		shared.stop = append(shared.stop, func() { _ = os.RemoveAll(dir) })
		shared.host = startRegistry(sharedT{t}, dir, "")
	})
	return shared.host
}

func TestMain(m *testing.M) {
	if os.Getenv(crashEnv) != "" {
		crashChild()
	}
	if os.Getenv(lazyEnv) != "" {
		lazyChild()
	}
	code := m.Run()
	for i := len(shared.stop) - 1; i >= 0; i-- {
		shared.stop[i]()
	}
	os.Exit(code)
}

// pushed is what was pushed under a tag.
type pushed struct {
	ref       string // host/name:tag
	manifest  digest.Digest
	blob      digest.Digest
	content   []byte
	converted bool // of layers: blob and content are what they make
}

// pusher pushes to one repository.
type pusher struct {
	t    testing.TB
	repo *remote.Repository
}

func newPusher(t testing.TB, host, name string, cred auth.Credential) pusher {
	t.Helper()
	repo, err := remote.NewRepository(host + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	repo.PlainHTTP = true
	transport := &http.Transport{DisableKeepAlives: true}
	repo.Client = &auth.Client{
		Client:     &http.Client{Transport: transport},
		Cache:      auth.NewCache(),
		Credential: auth.StaticCredential(host, cred),
	}
	return pusher{t, repo}
}

func (p pusher) blob(mediaType string, content []byte) ocispec.Descriptor {
	p.t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
	if err := p.repo.Blobs().Push(context.Background(), d, bytes.NewReader(content)); err != nil {
		p.t.Fatal(err)
	}
	return d
}

func (p pusher) document(mediaType, tag string, doc any) ocispec.Descriptor {
	p.t.Helper()
	text, err := json.Marshal(doc)
	if err != nil {
		p.t.Fatal(err)
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(text), Size: int64(len(text))}
	if tag == "" {
		tag = d.Digest.String()
	}
	if err := p.repo.Manifests().PushReference(context.Background(), d, bytes.NewReader(text), tag); err != nil {
		p.t.Fatal(err)
	}
	return d
}

// manifest is what "oras push" makes: an empty config and the layers.
func (p pusher) manifest(tag string, layers ...ocispec.Descriptor) ocispec.Descriptor {
	p.t.Helper()
	return p.document(ocispec.MediaTypeImageManifest, tag, ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: "application/vnd.unknown.artifact.v1",
		Config:       p.blob(ocispec.MediaTypeEmptyJSON, []byte("{}")),
		Layers:       layers,
	})
}

// image pushes content as the only layer.
func (p pusher) image(tag, mediaType string, content []byte) pushed {
	p.t.Helper()
	layer := p.blob(mediaType, content)
	m := p.manifest(tag, layer)
	return pushed{
		ref:      p.repo.Reference.Registry + "/" + p.repo.Reference.Repository + ":" + tag,
		manifest: m.Digest, blob: layer.Digest, content: content,
	}
}

const erofsLayer = "application/vnd.erofs.layer.v1"

// repositoryName makes each test's repository its own.
func repositoryName(t testing.TB) string {
	t.Helper()
	return "test/" + strings.Trim(strings.ToLower(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return 'x'
	}, t.Name())), "/")
}

// pushImage pushes n random bytes to the registry without authentication.
func pushImage(t testing.TB, seed uint64, n int) pushed {
	t.Helper()
	return newPusher(t, openRegistry(t), repositoryName(t), auth.EmptyCredential).image("v1", erofsLayer, randomBytes(seed, n))
}
