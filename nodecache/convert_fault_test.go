package nodecache

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestConvertFaults converts an image from a registry that misbehaves while it sends
// a layer. After each failure nothing is left in the store, and no goroutine and no
// descriptor.
func TestConvertFaults(t *testing.T) {
	files := []file{{"dir/", ""}}
	for i := range 40 {
		files = append(files, file{"dir/" + strconv.Itoa(i), string(randomBytes(uint64(i), 50_000))})
	}
	archive := tarLayer(t, files...)
	sent := gzipped(t, archive)
	p := anonymous(t).container("v1", compressedLayer{ocispec.MediaTypeImageLayerGzip, archive, sent})
	want := digest.FromBytes(sent)
	_, path, _ := strings.Cut(p.ref, "/")
	part := func(w http.ResponseWriter, from, to int) {
		_, _ = w.Write(sent[from:to])
		w.(http.Flusher).Flush()
	}
	cut := func(w http.ResponseWriter, r *http.Request) { // sends 300 kB of what is asked for
		from := 0
		if span, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
			from, _ = strconv.Atoi(strings.TrimSuffix(span, "-"))
			w.Header().Set("Content-Range", "bytes "+strconv.Itoa(from)+"-"+strconv.Itoa(len(sent)-1)+"/"+strconv.Itoa(len(sent)))
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(sent)-from))
		if from > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		part(w, from, min(from+300_000, len(sent)))
		if from+300_000 < len(sent) {
			panic(http.ErrAbortHandler)
		}
	}
	requests := 0
	for _, c := range []struct {
		name  string
		fault http.HandlerFunc
		want  error // nil: it succeeds
		words []string
	}{
		{"401", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }, ErrUnauthorized, []string{"401"}},
		{"404", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, ErrNotFound, []string{"push the image again"}},
		{"503", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, ErrUnavailable, []string{"503"}},
		{"cut at once", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(sent)))
			part(w, 0, 1000)
			panic(http.ErrAbortHandler)
		}, ErrUnavailable, []string{"broke off"}},
		{"stalls", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(sent)))
			part(w, 0, 1000)
			<-r.Context().Done()
		}, ErrUnavailable, []string{"nothing was sent"}},
		{"other bytes", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(randomBytes(99, len(sent)))
		}, ErrDigestMismatch, []string{want.String()}},
		{"an archive of other bytes", func(w http.ResponseWriter, _ *http.Request) {
			bad := append([]byte(nil), sent...)
			bad[4] ^= 1 // the time in gzip's header, which nothing checks but the digest
			_, _ = w.Write(bad)
		}, ErrDigestMismatch, []string{want.String()}},
		{"said to be longer", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(sent)+1))
			_, _ = w.Write(append(append([]byte(nil), sent...), 0))
		}, ErrDigestMismatch, []string{strconv.Itoa(len(sent) + 1)}},
		{"cut now and then", cut, nil, nil},
		{"resumed from the start", func(w http.ResponseWriter, r *http.Request) {
			if requests++; requests == 1 {
				cut(w, r)
			}
			_, _ = w.Write(sent)
		}, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			noLeaks(t, func(t *testing.T) {
				front := newProxy(t, openRegistry(t))
				t.Cleanup(front.close)
				front.set(onPath("/blobs/"+want.String(), c.fault))
				dir := t.TempDir()
				s := openStore(t, Config{Dir: dir})
				s.retry.progress = 100_000
				if c.name == "stalls" {
					s.retry.attempts = 2
					s.retry.stall = 200 * time.Millisecond
				}
				img, err := s.Acquire(t.Context(), front.host+"/"+path, AcquireOptions{})
				wantEmptyTmp(t, s)
				if c.want == nil {
					if err != nil {
						t.Fatal(err)
					}
					img.Release()
					return
				}
				wantError(t, err, c.want, append(c.words, front.host)...)
				wantFiles(t, dir)
			})
		})
	}
}

// TestConvertCancelled: a conversion that nobody waits for ends and leaves nothing.
func TestConvertCancelled(t *testing.T) {
	archive := tarLayer(t, file{"a", string(randomBytes(1, 1<<20))})
	p := anonymous(t).container("v1", compressedLayer{ocispec.MediaTypeImageLayer, archive, archive})
	_, path, _ := strings.Cut(p.ref, "/")
	noLeaks(t, func(t *testing.T) {
		front := newProxy(t, openRegistry(t))
		t.Cleanup(front.close)
		ctx, cancel := context.WithCancel(t.Context())
		requests := 0
		front.set(onPath("/blobs/"+digest.FromBytes(archive).String(), func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(archive)))
			_, _ = w.Write(archive[:len(archive)/2])
			w.(http.Flusher).Flush()
			if requests++; requests > 1 { // the first is for what the layer begins with
				cancel()
			}
			<-r.Context().Done()
		}))
		dir := t.TempDir()
		s := openStore(t, Config{Dir: dir})
		_, err := s.Acquire(ctx, front.host+"/"+path, AcquireOptions{})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("error %v", err)
		}
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			s.mu.Lock()
			n := len(s.conversions)
			s.mu.Unlock()
			if n == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the conversion goes on")
			}
		}
		wantEmptyTmp(t, s)
		wantFiles(t, dir)
	})
}

// TestConvertNoSpace: what does not fit within the limit of the store is refused as
// it grows.
func TestConvertNoSpace(t *testing.T) {
	archive := tarLayer(t, file{"a", string(randomBytes(1, 3<<20))})
	p := anonymous(t).container("v1", compressedLayer{ocispec.MediaTypeImageLayer, archive, archive})
	s := openStore(t, Config{LimitBytes: 2 << 20})
	_, err := s.Acquire(t.Context(), p.ref, AcquireOptions{})
	wantError(t, err, ErrNoSpace, "conversion of "+p.ref)
	wantFiles(t, s.Dir())
	wantEmptyTmp(t, s)
}
