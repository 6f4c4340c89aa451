package nodecache

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestFaults pulls through a proxy that misbehaves. After each failure nothing
// is left in the store, and no goroutine and no descriptor.
func TestFaults(t *testing.T) {
	const size = 3 << 20
	p := pushImage(t, 1, size)
	_, path, _ := strings.Cut(p.ref, "/")
	status := func(code int, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i+1 < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
		}
	}
	sendThenCut := func(n int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(size))
			_, _ = w.Write(p.content[:n])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
	}
	for _, c := range []struct {
		name     string
		fault    func(http.ResponseWriter, *http.Request) bool
		want     error
		words    []string
		requests int // for what the fault is about; 0: any
	}{
		{"manifest 401", onManifests(status(401)), ErrUnauthorized, []string{"401", "no credentials"}, 1},
		{"manifest 403", onManifests(status(403)), ErrUnauthorized, []string{"403"}, 1},
		{"manifest 404", onManifests(status(404)), ErrNotFound, []string{"404"}, 1},
		{"manifest 400", onManifests(status(400)), ErrUnavailable, []string{"400"}, 1},
		{"manifest 500", onManifests(status(500)), ErrUnavailable, []string{"500"}, quick.attempts},
		{"manifest 429", onManifests(status(429)), ErrUnavailable, []string{"429"}, quick.attempts},
		{"manifest 429, later", onManifests(status(429, "Retry-After", "3600")), ErrUnavailable, []string{"429"}, 1},
		{"manifest 429, never", onManifests(status(429, "Retry-After", "99999999999999999999999")), ErrUnavailable, []string{"429"}, 1},
		{"manifest cut", onManifests(sendThenCut(10)), ErrUnavailable, []string{"broke off"}, quick.attempts},
		{"manifest is HTML", onManifests(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprint(w, "<html>log in</html>")
		}), ErrUnsupportedImage, []string{"not valid JSON"}, 1},
		{"manifest without end", onManifests(func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(p.content); err != nil {
					return
				}
			}
		}), ErrUnsupportedImage, []string{"longer than"}, 1},
		{"manifest said to be long", onManifests(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "999999999")
			_, _ = w.Write([]byte("{}"))
		}), ErrUnsupportedImage, []string{"longer than"}, 1},
		{"redirect loop", onManifests(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		}), ErrUnavailable, []string{"too many redirects"}, 0},
		{"blob 401", onBlobs(status(401)), ErrUnauthorized, []string{"401"}, 1},
		{"blob 404", onBlobs(status(404)), ErrNotFound, []string{"404", "push the image again"}, 1},
		{"blob 503", onBlobs(status(503)), ErrUnavailable, []string{"503"}, quick.attempts},
		{"blob cut", onBlobs(sendThenCut(1000)), ErrUnavailable, []string{"broke off"}, quick.attempts},
		{"blob cut, without length", onBlobs(func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			_, _ = w.Write(p.content[:1000])
		}), ErrUnavailable, []string{"broke off"}, quick.attempts},
		{"blob of other bytes", onBlobs(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(randomBytes(99, size))
		}), ErrDigestMismatch, []string{p.blob.String()}, 1},
		{"one bit of the blob flipped", onBlobs(func(w http.ResponseWriter, _ *http.Request) {
			bad := append([]byte(nil), p.content...)
			bad[size/2] ^= 1
			_, _ = w.Write(bad)
		}), ErrDigestMismatch, []string{p.blob.String()}, 1},
		{"blob too long", onBlobs(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(size+1))
			_, _ = w.Write(append(append([]byte(nil), p.content...), 0))
		}), ErrDigestMismatch, []string{strconv.Itoa(size), strconv.Itoa(size + 1)}, 1},
		{"blob too long, without length", onBlobs(func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			for {
				if _, err := w.Write(p.content); err != nil {
					return
				}
			}
		}), ErrDigestMismatch, []string{"more than the " + strconv.Itoa(size)}, 1},
		{"blob too short", onBlobs(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(size-1))
			_, _ = w.Write(p.content[:size-1])
		}), ErrDigestMismatch, []string{strconv.Itoa(size - 1)}, 1},
		{"blob stalls", onBlobs(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(size))
			_, _ = w.Write(p.content[:1000])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}), ErrUnavailable, []string{"nothing was sent"}, quick.attempts},
	} {
		t.Run(c.name, func(t *testing.T) {
			noLeaks(t, func(t *testing.T) {
				front := newProxy(t, openRegistry(t))
				front.set(c.fault)
				s := openStore(t, Config{})
				s.retry.stall = 100 * time.Millisecond
				ref := front.host + "/" + path
				_, err := s.Acquire(t.Context(), ref, AcquireOptions{})
				wantError(t, err, c.want, append(c.words, front.host)...)
				wantFiles(t, s.dir.root)
				kind := "/" + strings.Fields(c.name)[0] + "s/"
				if kind != "/manifests/" {
					kind = "/blobs/"
				}
				if n := len(front.seen(kind)); c.requests != 0 && n != c.requests {
					t.Errorf("%d requests for %s, want %d", n, kind, c.requests)
				}
				front.set(nil)
				wantContent(t, acquire(t, s, ref, AcquireOptions{}).Blob(), p.content)
			})
		})
	}
}

// TestResume cuts the blob several times, at a registry that keeps to what is asked of
// it and at some that do not, and counts what is sent.
func TestResume(t *testing.T) {
	const size = 3 << 20 // one request's
	p := pushImage(t, 1, size)
	front := newProxy(t, openRegistry(t))
	_, path, _ := strings.Cut(p.ref, "/")
	for name, ranged := range map[string]func(w http.ResponseWriter, lo, hi int){
		"by range": func(w http.ResponseWriter, lo, hi int) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", lo, hi-1, size))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(p.content[lo:min(hi, lo+1<<20)])
			if hi > lo+1<<20 {
				panic(http.ErrAbortHandler)
			}
		},
		"ignored": nil,
		"elsewhere": func(w http.ResponseWriter, lo, hi int) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", lo-1, hi-1, size))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(p.content[lo-1 : hi])
		},
		"of another size": func(w http.ResponseWriter, lo, hi int) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", lo, hi-1, size+1))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(p.content[lo:hi])
		},
		"refused": func(w http.ResponseWriter, _, _ int) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var asked []string
			front.set(onBlobs(func(w http.ResponseWriter, r *http.Request) {
				span := r.Header.Get("Range")
				asked = append(asked, span)
				var lo, hi int
				if _, err := fmt.Sscanf(span, "bytes=%d-%d", &lo, &hi); err == nil && ranged != nil {
					ranged(w, lo, hi+1)
					return
				}
				w.Header().Set("Content-Length", strconv.Itoa(size))
				if len(asked) == 1 {
					_, _ = w.Write(p.content[:1<<20+12345])
					panic(http.ErrAbortHandler)
				}
				_, _ = w.Write(p.content)
			}))
			s := openStore(t, Config{})
			wantContent(t, acquire(t, s, front.host+"/"+path, AcquireOptions{}).Blob(), p.content)
			want := []string{"", "bytes=1048576-3145727", ""}
			switch name {
			case "by range":
				want[2] = "bytes=2097152-3145727"
			case "ignored": // the answer to the second was all of it
				want = want[:2]
			}
			if !slices.Equal(asked, want) {
				t.Errorf("ranges asked for: %q, want %q", asked, want)
			}
		})
	}
}

// TestEndlessCuts: a registry that ignores ranges and always cuts after more
// than counts as progress is given up.
func TestEndlessCuts(t *testing.T) {
	const size = 4 << 20
	p := pushImage(t, 1, size)
	front := newProxy(t, openRegistry(t))
	_, path, _ := strings.Cut(p.ref, "/")
	front.set(onBlobs(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(size))
		_, _ = w.Write(p.content[:2<<20])
		panic(http.ErrAbortHandler)
	}))
	s := openStore(t, Config{})
	_, err := s.Acquire(t.Context(), front.host+"/"+path, AcquireOptions{})
	wantError(t, err, ErrUnavailable)
	if n := len(front.seen("/blobs/")); n > 2*quick.attempts {
		t.Errorf("%d requests", n)
	}
}

// TestPassingFaults: what passes is not seen by the caller.
func TestPassingFaults(t *testing.T) {
	p := pushImage(t, 1, 1<<20)
	front := newProxy(t, openRegistry(t))
	_, path, _ := strings.Cut(p.ref, "/")
	var manifests, blobs atomic.Int64
	front.set(func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case strings.Contains(r.URL.Path, "/manifests/") && manifests.Add(1) == 1:
			w.WriteHeader(http.StatusTooManyRequests)
		case strings.Contains(r.URL.Path, "/blobs/") && blobs.Add(1) == 1:
			w.WriteHeader(http.StatusBadGateway)
		default:
			return false
		}
		return true
	})
	s := openStore(t, Config{})
	wantContent(t, acquire(t, s, front.host+"/"+path, AcquireOptions{}).Blob(), p.content)
}

// TestRetryAfter: the registry says when to come back.
func TestRetryAfter(t *testing.T) {
	p := pushImage(t, 1, 1000)
	front := newProxy(t, openRegistry(t))
	_, path, _ := strings.Cut(p.ref, "/")
	for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
		for name, c := range map[string]struct {
			value func() string
			least time.Duration
		}{
			"seconds":  {func() string { return "1" }, time.Second},
			"a date":   {func() string { return time.Now().Add(2 * time.Second).UTC().Format(http.TimeFormat) }, time.Second / 2},
			"negative": {func() string { return "-1" }, 0},
			"a word":   {func() string { return "later" }, 0},
			"the past": {func() string { return time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat) }, 0},
		} {
			var told atomic.Bool
			front.set(func(w http.ResponseWriter, _ *http.Request) bool {
				if told.Swap(true) {
					return false
				}
				w.Header().Set("Retry-After", c.value())
				w.WriteHeader(status)
				return true
			})
			s := openStore(t, Config{})
			s.retry.patience = 5 * time.Second
			start := time.Now()
			acquire(t, s, front.host+"/"+path, AcquireOptions{})
			if d := time.Since(start); d < c.least || d > c.least+4*time.Second {
				t.Errorf("%d, Retry-After with %s: came back after %v", status, name, d)
			}
		}
	}
}

func TestManifestDigestMismatch(t *testing.T) {
	p := pushImage(t, 1, 1000)
	front := newProxy(t, openRegistry(t))
	_, path, _ := strings.Cut(p.ref, "/")
	name, _, _ := strings.Cut(path, ":")
	front.set(onManifests(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"layers":[]}`)) }))
	s := openStore(t, Config{})
	_, err := s.Acquire(t.Context(), front.host+"/"+name+":v1@"+p.manifest.String(), AcquireOptions{})
	wantError(t, err, ErrDigestMismatch, p.manifest.String())
}

func TestNoRegistry(t *testing.T) {
	noLeaks(t, func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		host := l.Addr().String()
		_ = l.Close()
		for _, plain := range []func(string) bool{nil, func(string) bool { return true }} {
			s := openStore(t, Config{PlainHTTP: plain})
			_, err = s.Acquire(t.Context(), host+"/a:v1", AcquireOptions{})
			wantError(t, err, ErrUnavailable, host, "refused")
			wantError(t, s.Authorize(t.Context(), host+"/a:v1", Credentials{}), ErrUnavailable, host)
		}
	})
}

func TestContextEnds(t *testing.T) {
	p := pushImage(t, 1, 1<<20)
	_, path, _ := strings.Cut(p.ref, "/")
	noLeaks(t, func(t *testing.T) {
		front := newProxy(t, openRegistry(t))
		s := openStore(t, Config{})
		for name, fault := range map[string]func(http.ResponseWriter, *http.Request) bool{
			"manifest": onManifests(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }),
			"blob": onBlobs(func(w http.ResponseWriter, r *http.Request) {
				for {
					if _, err := w.Write(p.content[:1]); err != nil {
						return
					}
					w.(http.Flusher).Flush()
					select {
					case <-r.Context().Done():
						return
					case <-time.After(5 * time.Millisecond):
					}
				}
			}),
			"backoff": onManifests(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", "5")
				w.WriteHeader(http.StatusTooManyRequests)
			}),
		} {
			front.set(fault)
			s.retry.patience = 10 * time.Second
			ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
			start := time.Now()
			_, err := s.Acquire(ctx, front.host+"/"+path, AcquireOptions{})
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v", name, err)
			}
			if d := time.Since(start); d > 2*time.Second {
				t.Errorf("%s: took %v", name, d)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		wantFiles(t, s.dir.root)
	})
}

// TestPlainHTTP: who may be spoken to without TLS.
func TestPlainHTTP(t *testing.T) {
	p := pushImage(t, 1, 1000)
	_, path, _ := strings.Cut(p.ref, "/")
	never := openStore(t, Config{PlainHTTP: func(string) bool { return false }})
	_, err := never.Acquire(t.Context(), p.ref, AcquireOptions{})
	wantError(t, err, ErrUnavailable, "plain HTTP")
	var askedFor string
	always := openStore(t, Config{PlainHTTP: func(host string) bool { askedFor = host; return true }})
	acquire(t, always, p.ref, AcquireOptions{})
	if want := openRegistry(t); askedFor != want {
		t.Errorf("asked for %q, want %q", askedFor, want)
	}
	_, port, _ := net.SplitHostPort(openRegistry(t))
	acquire(t, openStore(t, Config{}), "localhost:"+port+"/"+path, AcquireOptions{})
	for host, want := range map[string]bool{
		"localhost": true, "LOCALHOST:5000": true, "127.0.0.1": true, "127.9.9.9:5000": true, "[::1]:5000": true, "[::1]": true,
		"example.com": false, "localhost.example.com:5000": false, "10.0.0.1:5000": false, "128.0.0.1": false, "[::2]:5000": false,
	} {
		if isLoopback(host) != want {
			t.Errorf("isLoopback(%q) is not %v", host, want)
		}
	}
}

// TestTLS: a loopback registry that speaks TLS is spoken to by TLS, its
// certificate is checked, and a redirect to plain HTTP is not followed.
func TestTLS(t *testing.T) {
	p := pushImage(t, 1, 1000)
	_, path, _ := strings.Cut(p.ref, "/")
	plain := newProxy(t, openRegistry(t))
	front := newProxy(t, openRegistry(t))
	secure := httptest.NewUnstartedServer(front.server.Config.Handler)
	secure.Config.ErrorLog = nil
	secure.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	secure.StartTLS()
	defer secure.Close()
	roots := x509.NewCertPool()
	roots.AddCert(secure.Certificate())
	ref := secure.Listener.Addr().String() + "/" + path
	_, err := openStore(t, Config{}).Acquire(t.Context(), ref, AcquireOptions{})
	wantError(t, err, ErrUnavailable, "certificate")
	s := openStore(t, Config{RootCAs: roots})
	front.set(onBlobs(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+plain.host+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	_, err = s.Acquire(t.Context(), ref, AcquireOptions{})
	wantError(t, err, ErrUnavailable, "plain HTTP")
	if n := plain.count(); n != 0 {
		t.Errorf("%d requests in the clear", n)
	}
	front.set(nil)
	wantContent(t, acquire(t, s, ref, AcquireOptions{}).Blob(), p.content)
}
