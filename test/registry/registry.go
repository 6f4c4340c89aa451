// Package registry is a registry for tests, which serves one image and does to its blob
// what a test wants.
package registry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry serves one image. A part of its blob, after three eighths of it, is sent only
// after GoOn.
type Registry struct {
	Ref  string // of the image
	Blob []byte
	Sent atomic.Int64 // bytes of the blob
	Down atomic.Bool  // every request is refused
	// Secret, if set, is the password of "user", without which nothing is given.
	Secret atomic.Pointer[string]
	// Wrong is the offset of a byte that is sent wrong, below 0: none.
	Wrong atomic.Int64

	pass chan struct{} // closed: all is sent
	once sync.Once
}

// held is how many bytes are sent only after GoOn.
const held = 1 << 20

// New serves the image of a file until the end of the test.
func New(t testing.TB, image string) *Registry {
	t.Helper()
	blob, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	r := &Registry{Blob: blob, pass: make(chan struct{})}
	r.Wrong.Store(-1)
	d := digest.FromBytes(blob)
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.DescriptorEmptyJSON,
		Layers: []ocispec.Descriptor{{MediaType: "application/vnd.erofs.layer.v1", Digest: d, Size: int64(len(blob))}},
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case r.Down.Load():
			w.WriteHeader(http.StatusBadGateway)
		case !r.allows(req):
			w.Header().Set("WWW-Authenticate", "Basic realm=test")
			w.WriteHeader(http.StatusUnauthorized)
		case strings.Contains(req.URL.Path, "/manifests/"):
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			w.Header().Set("Docker-Content-Digest", digest.FromBytes(manifest).String())
			_, _ = w.Write(manifest)
		case strings.HasSuffix(req.URL.Path, d.String()):
			r.serve(w, req)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(func() {
		r.GoOn()
		server.CloseClientConnections()
		server.Close()
	})
	r.Ref = server.Listener.Addr().String() + "/image:v1"
	return r
}

func (r *Registry) allows(req *http.Request) bool {
	secret := r.Secret.Load()
	_, password, _ := req.BasicAuth()
	return secret == nil || password == *secret
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	lo, hi := 0, len(r.Blob)
	if _, err := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-%d", &lo, &hi); err == nil {
		hi++
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", lo, hi-1, len(r.Blob)))
		w.WriteHeader(http.StatusPartialContent)
	}
	part := r.Blob[lo:hi]
	if wrong := int(r.Wrong.Load()); lo <= wrong && wrong < hi {
		part = bytes.Clone(part)
		part[wrong-lo] ^= 1
	}
	free := len(part)
	if from := len(r.Blob) / 8 * 3; lo < from+held && from < hi {
		free = max(from-lo, 0)
	}
	n, _ := w.Write(part[:free])
	r.Sent.Add(int64(n))
	if free == len(part) {
		return
	}
	w.(http.Flusher).Flush()
	select {
	case <-r.pass:
	case <-req.Context().Done():
		return
	}
	n, _ = w.Write(part[free:])
	r.Sent.Add(int64(n))
}

// GoOn lets the blob be completed.
func (r *Registry) GoOn() { r.once.Do(func() { close(r.pass) }) }
