package nodecache

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// refFile is the name below the store of a reference's record.
func refFile(t testing.TB, ref string) string {
	t.Helper()
	r, err := parseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	return "refs/" + filepath.Base(newLayout("/").ref(r))
}

// filesOf lists what a pulled image leaves in a store.
func filesOf(t testing.TB, p pushed) []string {
	t.Helper()
	name, _, _ := strings.Cut(p.ref, ":v")
	files := []string{"blobs/sha256/" + p.blob.Encoded(), refFile(t, p.ref), refFile(t, name+"@"+p.manifest.String())}
	if p.converted {
		files = append(files, "refs/"+filepath.Base(newLayout("").conversion(p.manifest)))
	}
	return files
}

func TestPull(t *testing.T) {
	for _, size := range []int{1, 4096, 3<<20 + 17, 40 << 20} {
		p := pushImage(t, uint64(size), size)
		dir := t.TempDir()
		s := openStore(t, Config{Dir: dir})
		img := acquire(t, s, "oci://"+p.ref, AcquireOptions{})
		wantContent(t, img.Blob(), p.content)
		if want := "sha256-" + p.blob.Encoded(); img.ID() != want {
			t.Errorf("ID %q, want %q", img.ID(), want)
		}
		if img.Digest() != p.blob.String() || img.Reference() != p.ref+"@"+p.manifest.String() || len(img.Devices()) != 0 {
			t.Errorf("digest %q, reference %q, %d devices", img.Digest(), img.Reference(), len(img.Devices()))
		}
		if want := filepath.Join(dir, "blobs/sha256", p.blob.Encoded()); img.Blob().Path() != want {
			t.Errorf("path %q, want %q", img.Blob().Path(), want)
		}
		if n := cachedPages(t, img.Blob().Path()); n != 0 {
			t.Errorf("%d pages of the blob are in the page cache", n)
		}
		wantFiles(t, dir, filesOf(t, p)...)
		for _, name := range append(filesBelow(t, dir), "lock", "blobs", "blobs/sha256", "refs", "tmp", "paths") {
			st, err := os.Lstat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if want := map[bool]os.FileMode{true: 0o700, false: 0o600}[st.IsDir()]; st.Mode().Perm() != want {
				t.Errorf("%s has mode %v, want %v", name, st.Mode().Perm(), want)
			}
		}
	}
}

// TestPullByTagAndDigest: what was pulled by tag is known by digest and after a
// restart, with a registry that is gone.
func TestPullByTagAndDigest(t *testing.T) {
	host := startRegistry(t, t.TempDir(), "")
	proxy := newProxy(t, host)
	p := newPusher(t, host, "a/b", auth.EmptyCredential).image("v1", erofsLayer, randomBytes(1, 100_000))
	tag := proxy.host + "/a/b:v1"
	byDigest := proxy.host + "/a/b@" + p.manifest.String()
	dir := t.TempDir()
	s := openStore(t, Config{Dir: dir})
	_, err := s.Acquire(t.Context(), tag, AcquireOptions{Policy: Never})
	wantError(t, err, ErrNotFound, tag, "Never", "IfNotPresent")
	if n := proxy.count(); n != 0 {
		t.Errorf("policy Never made %d requests", n)
	}
	acquire(t, s, tag, AcquireOptions{})
	for _, policy := range []PullPolicy{"", IfNotPresent, Never} {
		before := proxy.count()
		wantContent(t, acquire(t, s, tag, AcquireOptions{Policy: policy}).Blob(), p.content)
		wantContent(t, acquire(t, s, byDigest, AcquireOptions{Policy: policy}).Blob(), p.content)
		if n := proxy.count() - before; n != 0 {
			t.Errorf("policy %q made %d requests for what is here", policy, n)
		}
	}
	before := proxy.count()
	acquire(t, s, byDigest, AcquireOptions{Policy: Always}) // a digest means the same bytes for ever
	if n := proxy.count() - before; n != 0 {
		t.Errorf("policy Always made %d requests for a digest that is here", n)
	}
	acquire(t, s, tag, AcquireOptions{Policy: Always})
	if n := proxy.count() - before; n != 1 {
		t.Errorf("policy Always made %d requests for a tag that did not move, want 1", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	proxy.close()
	s = openStore(t, Config{Dir: dir})
	wantContent(t, acquire(t, s, tag, AcquireOptions{}).Blob(), p.content)
	wantContent(t, acquire(t, s, byDigest, AcquireOptions{Policy: Always}).Blob(), p.content)
	_, err = s.Acquire(t.Context(), tag, AcquireOptions{Policy: Always})
	wantError(t, err, ErrUnavailable, proxy.host)
	_, err = s.Acquire(t.Context(), proxy.host+"/a/b:v2", AcquireOptions{})
	wantError(t, err, ErrUnavailable, proxy.host)
}

func TestTagMoves(t *testing.T) {
	first := pushImage(t, 1, 10_000)
	s := openStore(t, Config{})
	old := acquire(t, s, first.ref, AcquireOptions{})
	second := pushImage(t, 2, 20_000)
	wantContent(t, acquire(t, s, first.ref, AcquireOptions{}).Blob(), first.content)
	now := acquire(t, s, first.ref, AcquireOptions{Policy: Always})
	wantContent(t, now.Blob(), second.content)
	wantContent(t, old.Blob(), first.content)
	wantContent(t, acquire(t, s, first.ref, AcquireOptions{Policy: Never}).Blob(), second.content)
	// The same content under another manifest is not downloaded again.
	third := newPusher(t, openRegistry(t), repositoryName(t), auth.EmptyCredential)
	layer := third.blob(erofsLayer, first.content)
	third.manifest("v1", layer, third.blob("application/json", []byte("[]")))
	before, err := os.Stat(old.Blob().Path())
	if err != nil {
		t.Fatal(err)
	}
	again := acquire(t, s, first.ref, AcquireOptions{Policy: Always})
	after, err := os.Stat(again.Blob().Path())
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the blob was replaced: %v", err)
	}
}

func TestPullKinds(t *testing.T) {
	p := newPusher(t, openRegistry(t), repositoryName(t), auth.EmptyCredential)
	content := randomBytes(1, 5000)
	copy(content[1024:], "\xe2\xe1\xf5\xe0") // what is called tar has to look like an image
	s := openStore(t, Config{})
	for i, mediaType := range []string{erofsLayer, ocispec.MediaTypeImageLayer, "application/octet-stream"} {
		pushed := p.image(fmt.Sprintf("v%d", i), mediaType, content)
		wantContent(t, acquire(t, s, pushed.ref, AcquireOptions{}).Blob(), content)
	}
	base := p.repo.Reference.Registry + "/" + p.repo.Reference.Repository
	tar := p.blob(ocispec.MediaTypeImageLayerGzip, randomBytes(2, 1000))
	index := func(tag string, all ...ocispec.Descriptor) ocispec.Descriptor {
		return p.document(ocispec.MediaTypeImageIndex, tag, ocispec.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: all,
		})
	}
	mine := p.manifest("m1", p.blob(erofsLayer, content))
	other := p.manifest("m2", p.blob(erofsLayer, randomBytes(3, 100)))
	mine.Platform = &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	other.Platform = &ocispec.Platform{OS: "linux", Architecture: "none64"}
	top := index("index", other, mine)
	img := acquire(t, s, base+":index", AcquireOptions{})
	wantContent(t, img.Blob(), content)
	if want := base + ":index@" + top.Digest.String(); img.Reference() != want {
		t.Errorf("reference %q, want %q", img.Reference(), want)
	}
	for _, d := range []digest.Digest{top.Digest, mine.Digest} {
		wantContent(t, acquire(t, s, base+"@"+d.String(), AcquireOptions{Policy: Never}).Blob(), content)
	}
	p.manifest("gzip", tar)
	p.manifest("several", tar, tar)
	index("elsewhere", other)
	for tag, words := range map[string][]string{
		"gzip":      {"layer " + tar.Digest.String(), "not a tar archive"},
		"several":   {"layer " + tar.Digest.String(), "not a tar archive"},
		"elsewhere": {"linux/none64", "linux/" + runtime.GOARCH},
	} {
		_, err := s.Acquire(t.Context(), base+":"+tag, AcquireOptions{})
		wantError(t, err, ErrUnsupportedImage, append(words, base+":"+tag)...)
	}
	_, err := s.Acquire(t.Context(), base+":missing", AcquireOptions{})
	wantError(t, err, ErrNotFound, base+":missing", "404", "MANIFEST_UNKNOWN")
	_, err = s.Acquire(t.Context(), base+"@"+someDigest, AcquireOptions{})
	wantError(t, err, ErrNotFound, someDigest)
	if err := s.Authorize(t.Context(), base+":missing", Credentials{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("authorize: %v", err)
	}
	if err := s.Authorize(t.Context(), base+":index", Credentials{}); err != nil {
		t.Errorf("authorize: %v", err)
	}
}

func TestBadArguments(t *testing.T) {
	s := openStore(t, Config{})
	if _, err := s.Acquire(t.Context(), "example.com/a", AcquireOptions{Policy: "Sometimes"}); err == nil || !strings.Contains(err.Error(), "Sometimes") {
		t.Errorf("policy: %v", err)
	}
	_, err := s.Acquire(t.Context(), "image.erofs", AcquireOptions{})
	wantError(t, err, ErrInvalidReference)
	wantError(t, s.Authorize(t.Context(), "image.erofs", Credentials{}), ErrInvalidReference)
	_, err = s.Acquire(t.Context(), "127.0.0.1:1/a", AcquireOptions{DockerConfig: []byte("x")})
	wantError(t, err, ErrInvalidCredentials)
	wantError(t, s.Authorize(t.Context(), "127.0.0.1:1/a", Credentials{DockerConfig: []byte("x")}), ErrInvalidCredentials)
}
