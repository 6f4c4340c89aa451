package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// registry serves images slowly, so that pulls are under way when something is killed.
type registry struct {
	host   string
	server *http.Server
	down   atomic.Bool  // every request is refused
	rate   atomic.Int64 // bytes of blobs a second and request; 0: as fast as can be

	mu        sync.Mutex
	blobs     map[digest.Digest][]byte // GUARDED_BY(mu)
	manifests map[string][]byte        // by tag and by digest; GUARDED_BY(mu)
}

func startRegistry() (*registry, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &registry{host: listener.Addr().String(), blobs: make(map[digest.Digest][]byte), manifests: make(map[string][]byte)}
	r.server = &http.Server{Handler: http.HandlerFunc(r.serve), ReadHeaderTimeout: time.Minute}
	go func() { _ = r.server.Serve(listener) }()
	return r, nil
}

func (r *registry) close() { _ = r.server.Close() }

// closeIdle closes connections without a request, which clients keep for half a minute.
func (r *registry) closeIdle() {
	r.server.SetKeepAlivesEnabled(false)
	r.server.SetKeepAlivesEnabled(true)
}

// add makes a file an image and returns its reference.
func (r *registry) add(tag, path string) (string, error) {
	blob, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	d := digest.FromBytes(blob)
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.DescriptorEmptyJSON,
		Layers: []ocispec.Descriptor{{MediaType: "application/vnd.erofs.layer.v1", Digest: d, Size: int64(len(blob))}},
	})
	if err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blobs[d] = blob
	r.manifests[tag], r.manifests[digest.FromBytes(manifest).String()] = manifest, manifest
	return r.host + "/image:" + tag, nil
}

func (r *registry) serve(w http.ResponseWriter, req *http.Request) {
	if r.down.Load() {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	last := req.URL.Path[strings.LastIndexByte(req.URL.Path, '/')+1:]
	r.mu.Lock()
	manifest, blob := r.manifests[last], r.blobs[digest.Digest(last)]
	r.mu.Unlock()
	switch {
	case strings.Contains(req.URL.Path, "/manifests/") && manifest != nil:
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(manifest).String())
		_, _ = w.Write(manifest)
	case blob != nil:
		r.sendBlob(w, req, blob)
	case strings.HasSuffix(req.URL.Path, "/v2/"):
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (r *registry) sendBlob(w http.ResponseWriter, req *http.Request, blob []byte) {
	lo, hi := 0, len(blob)-1
	if _, err := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-%d", &lo, &hi); err == nil {
		hi = min(hi, len(blob)-1)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", lo, hi, len(blob)))
		w.Header().Set("Content-Length", fmt.Sprint(hi-lo+1))
		w.WriteHeader(http.StatusPartialContent)
	}
	const part = 64 << 10
	for rest := blob[lo : hi+1]; len(rest) > 0; {
		n := min(len(rest), part)
		if _, err := w.Write(rest[:n]); err != nil {
			return
		}
		rest = rest[n:]
		if rate := r.rate.Load(); rate > 0 {
			select {
			case <-time.After(time.Duration(n) * time.Second / time.Duration(rate)):
			case <-req.Context().Done():
				return
			}
		}
		if r.down.Load() {
			panic(http.ErrAbortHandler) // the connection breaks
		}
	}
}
