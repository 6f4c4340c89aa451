package nodecache

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// stuckProxy lets the first n bytes of a blob through and holds the rest until the
// request ends.
func stuckProxy(t *testing.T, content []byte, n int) *proxy {
	p := newProxy(t, openRegistry(t))
	p.set(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, digest.FromBytes(content).String()) {
			return false
		}
		lo, _ := rangeOf(r)
		if lo == 0 { // of others nothing comes
			w.Header().Set("Content-Length", strconv.Itoa(len(content)))
			_, _ = w.Write(content[:n])
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done()
		return true
	})
	return p
}

// TestProgress: while a pull or a conversion runs it is told how far it is.
func TestProgress(t *testing.T) {
	image := pushImage(t, 1, 5<<20)
	layer := tarLayer(t, file{"f", string(randomBytes(2, 5<<20))})
	container := anonymous(t).container("layers", compressedLayer{"application/vnd.oci.image.layer.v1.tar", layer, layer})
	for name, c := range map[string]struct {
		pushed
		content []byte
		want    string
	}{
		"pull":       {image, image.content, "2 of 5 MiB are pulled"},
		"conversion": {container, layer, "2 of 6 MiB of its layers are pulled and converted"},
	} {
		t.Run(name, func(t *testing.T) {
			p := stuckProxy(t, c.content, 2<<20)
			s := openStore(t, Config{PlainHTTP: func(string) bool { return true }})
			ctx, cancel := context.WithCancel(t.Context())
			var progress Progress
			if text := progress.String(); !strings.Contains(text, "not been asked") {
				t.Errorf("before: %q", text)
			}
			ended := make(chan error)
			go func() {
				_, err := s.Acquire(ctx, p.host+strings.TrimPrefix(c.ref, openRegistry(t)), AcquireOptions{Progress: &progress})
				ended <- err
			}()
			for deadline := time.Now().Add(20 * time.Second); progress.String() != c.want; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Errorf("%q, want %q", &progress, c.want)
					break
				}
			}
			cancel()
			if err := <-ended; err == nil {
				t.Error("the pull ended well")
			}
		})
	}
}
