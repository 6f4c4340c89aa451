package nodecache

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// webServer serves one file by net/http's own file server, over TLS, unless fault
// answers.
type webServer struct {
	host    string
	roots   *x509.CertPool
	content []byte
	*proxyLog
}

func newWebServer(t testing.TB, content []byte) *webServer {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "dir", "a b.erofs"), content)
	files := http.FileServer(http.Dir(dir))
	w := &webServer{content: content, proxyLog: &proxyLog{}}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if !w.answer(rw, r) {
			files.ServeHTTP(rw, r)
		}
	}))
	server.Config.ErrorLog = quiet
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	server.StartTLS()
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	w.host = server.Listener.Addr().String()
	w.roots = x509.NewCertPool()
	w.roots.AddCert(server.Certificate())
	return w
}

// ref names the file.
func (w *webServer) ref() string {
	return "https://" + w.host + "/dir/a%20b.erofs#" + digest.FromBytes(w.content).String()
}

func (w *webServer) store(t testing.TB) *Store {
	t.Helper()
	return openStore(t, Config{RootCAs: w.roots})
}

func TestWeb(t *testing.T) {
	w := newWebServer(t, randomBytes(1, 3<<20))
	dir := t.TempDir()
	s := openStore(t, Config{Dir: dir, RootCAs: w.roots})
	_, err := s.Acquire(t.Context(), w.ref(), AcquireOptions{Policy: Never})
	wantError(t, err, ErrNotFound, w.ref(), "Never")
	signed := strings.Replace(w.ref(), "#", "?signature=hunter22#", 1)
	img := acquire(t, s, signed, AcquireOptions{})
	wantContent(t, img.Blob(), w.content)
	d := digest.FromBytes(w.content)
	if img.Digest() != d.String() || img.ID() != "sha256-"+d.Encoded() || img.Reference() != w.ref() {
		t.Errorf("digest %s, ID %s, reference %s", img.Digest(), img.ID(), img.Reference())
	}
	for _, r := range w.seen("") {
		if r.URL.RawQuery != "signature=hunter22" || r.URL.Path != "/dir/a b.erofs" {
			t.Errorf("asked for %s", r.URL)
		}
	}
	want := []string{"blobs/sha256/" + d.Encoded(), refFile(t, w.ref())}
	wantFiles(t, dir, want...)
	// What is there is asked for no more: the digest says all.
	w.set(nil)
	for _, policy := range []PullPolicy{IfNotPresent, Always, Never} {
		acquire(t, s, w.ref(), AcquireOptions{Policy: policy})
		acquire(t, s, signed, AcquireOptions{Policy: policy})
	}
	if n := w.count(); n != 0 {
		t.Errorf("%d requests for what is there", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, Config{Dir: dir, RootCAs: w.roots})
	acquire(t, s, w.ref(), AcquireOptions{Policy: Never})
	wantFiles(t, dir, want...)
	// A certificate of nobody knows whom.
	_, err = openStore(t, Config{}).Acquire(t.Context(), w.ref(), AcquireOptions{})
	wantError(t, err, ErrUnavailable, "certificate")
}

// TestWebLengths: however a server tells the length, or does not.
func TestWebLengths(t *testing.T) {
	const size = 2<<20 + 17
	w := newWebServer(t, randomBytes(1, size))
	for name, c := range map[string]struct {
		fault    http.HandlerFunc
		requests int
	}{
		"ranges": {nil, 2},
		"no ranges": {func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Length", strconv.Itoa(size))
			_, _ = rw.Write(w.content)
		}, 2},
		"no length": {func(rw http.ResponseWriter, _ *http.Request) {
			rw.(http.Flusher).Flush()
			_, _ = rw.Write(w.content)
		}, 2},
		"ranges of an unknown whole": {func(rw http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				rw.Header().Set("Content-Range", "bytes 0-0/*")
				rw.WriteHeader(http.StatusPartialContent)
				_, _ = rw.Write(w.content[:1])
				return
			}
			rw.(http.Flusher).Flush()
			_, _ = rw.Write(w.content)
		}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t, func(t *testing.T) {
				w := newWebServer(t, w.content)
				if c.fault != nil {
					w.set(onPath("/", c.fault))
				}
				wantContent(t, acquire(t, w.store(t), w.ref(), AcquireOptions{}).Blob(), w.content)
				if n := w.count(); n != c.requests {
					t.Errorf("%d requests, want %d", n, c.requests)
				}
			})
		})
	}
}

// TestWebFaults: each gives the right error and leaves nothing.
func TestWebFaults(t *testing.T) {
	const size = 2 << 20
	content := randomBytes(1, size)
	status := func(code int, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i+1 < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
		}
	}
	serve := func(p []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(p))
		}
	}
	flipped := append([]byte(nil), content...)
	flipped[size-1] ^= 1
	for _, c := range []struct {
		name  string
		fault http.HandlerFunc
		want  error
		words []string
	}{
		{"404", status(404), ErrNotFound, []string{"404", "check the address"}},
		{"410", status(410), ErrUnavailable, []string{"410"}},
		{"401", status(401), ErrUnauthorized, []string{"401", "no credentials were given"}},
		{"403", status(403), ErrUnauthorized, []string{"403"}},
		{"500", status(500), ErrUnavailable, []string{"500"}},
		{"429", status(429, "Retry-After", "1000000"), ErrUnavailable, []string{"429"}},
		{"empty", serve(nil), ErrUnsupportedImage, []string{"is empty"}},
		{"empty, without ranges", status(200, "Content-Length", "0"), ErrUnsupportedImage, []string{"is empty"}},
		{"one byte more", serve(append(append([]byte(nil), content...), 1)), ErrDigestMismatch, nil},
		{"one byte less", serve(content[:size-1]), ErrDigestMismatch, nil},
		{"one bit", serve(flipped), ErrDigestMismatch, nil},
		{"a page", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "<html>log in</html>") }, ErrDigestMismatch, nil},
		{"redirect loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }, ErrUnavailable, []string{"redirects"}},
		{"downgrade", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/x", http.StatusFound)
		}, ErrUnavailable, []string{"plain HTTP"}},
		{"cut", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(size))
			_, _ = w.Write(content[:1000])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, ErrUnavailable, []string{"broke off"}},
		{"cut, without length", func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			_, _ = w.Write(content[:1000])
			panic(http.ErrAbortHandler)
		}, ErrUnavailable, []string{"broke off"}},
		{"absurd length", status(206, "Content-Range", "bytes 0-0/9223372036854775806"), ErrNoSpace, nil},
		{"no length at all", status(206, "Content-Range", "bytes 0-0/-5"), ErrUnavailable, []string{"206"}},
		{"stalls", func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, ErrUnavailable, []string{"nothing was sent"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			noLeaks(t, func(t *testing.T) {
				w := newWebServer(t, content)
				w.set(onPath("/", c.fault))
				s := w.store(t)
				s.retry.stall = 100 * time.Millisecond
				_, err := s.Acquire(t.Context(), w.ref(), AcquireOptions{})
				wantError(t, err, c.want, append(c.words, w.host)...)
				wantFiles(t, s.dir.root)
				w.set(nil)
				wantContent(t, acquire(t, s, w.ref(), AcquireOptions{}).Blob(), content)
			})
		})
	}
}

// TestWebResumes: what breaks off goes on where it was.
func TestWebResumes(t *testing.T) {
	const size = 8 << 20
	w := newWebServer(t, randomBytes(1, size))
	var cuts atomic.Int64
	var mu sync.Mutex
	var ranges []string
	w.set(func(rw http.ResponseWriter, r *http.Request) bool {
		span := r.Header.Get("Range")
		if span == "bytes=0-0" {
			return false
		}
		mu.Lock()
		ranges = append(ranges, span)
		mu.Unlock()
		if cuts.Add(1) > 2 {
			return false
		}
		http.ServeContent(&cutter{ResponseWriter: rw, left: 2 << 20}, r, "", time.Time{}, bytes.NewReader(w.content))
		return true
	})
	wantContent(t, acquire(t, w.store(t), w.ref(), AcquireOptions{}).Blob(), w.content)
	slices.Sort(ranges) // two requests at a time, which are cut once each
	if len(slices.Compact(ranges)) < 3 || slices.Contains(ranges, "") {
		t.Errorf("ranges %q", ranges)
	}
}

// cutter breaks off after so many bytes.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	if len(p) > c.left {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

// TestWebCredentials: user and password of the host, which a redirect does not
// take along; and who may use what is on the node.
func TestWebCredentials(t *testing.T) {
	w := newWebServer(t, randomBytes(1, 100_000))
	elsewhere := newWebServer(t, w.content)
	w.roots.AddCert(certificateOf(t, elsewhere))
	var methods []string
	w.set(func(rw http.ResponseWriter, r *http.Request) bool {
		methods = append(methods, r.Method)
		if user, password, _ := r.BasicAuth(); user != "user" || password != "hunter22" {
			rw.Header().Set("WWW-Authenticate", `Basic realm="files"`)
			rw.WriteHeader(http.StatusUnauthorized)
			return true
		}
		if r.Method == http.MethodHead {
			rw.WriteHeader(http.StatusMethodNotAllowed)
			return true
		}
		http.Redirect(rw, r, "https://"+elsewhere.host+r.URL.EscapedPath()+"?signature=hunter22", http.StatusFound)
		return true
	})
	s := w.store(t)
	good, bad := dockerConfig(w.host, "user", "hunter22"), dockerConfig(w.host, "user", "wrong-pass")
	for _, secret := range [][]byte{nil, bad, dockerConfig("example.com", "user", "hunter22"), dockerConfig(w.host+"/other", "user", "hunter22")} {
		_, err := s.Acquire(t.Context(), w.ref(), AcquireOptions{DockerConfig: secret})
		wantError(t, err, ErrUnauthorized, w.host)
		noSecrets(t, err)
	}
	wantContent(t, acquire(t, s, w.ref(), AcquireOptions{DockerConfig: good}).Blob(), w.content)
	for _, r := range elsewhere.seen("") {
		if r.Header.Get("Authorization") != "" {
			t.Error("the other host was sent credentials")
		}
	}
	if elsewhere.count() == 0 {
		t.Error("the redirect was not followed")
	}
	methods = nil
	if err := s.Authorize(t.Context(), w.ref(), Credentials{DockerConfig: good}); err != nil {
		t.Errorf("authorize: %v", err)
	}
	if len(methods) == 0 || methods[0] != http.MethodHead {
		t.Errorf("methods %q", methods)
	}
	for _, secret := range [][]byte{nil, bad} {
		err := s.Authorize(t.Context(), w.ref(), Credentials{DockerConfig: secret})
		wantError(t, err, ErrUnauthorized)
		noSecrets(t, err)
	}
	w.set(onPath("/", func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(404) }))
	wantError(t, s.Authorize(t.Context(), w.ref(), Credentials{DockerConfig: good}), ErrNotFound, w.host)
	w.set(onPath("/", func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(503) }))
	wantError(t, s.Authorize(t.Context(), w.ref(), Credentials{DockerConfig: good}), ErrUnavailable, w.host)
	w.set(nil)
	if err := s.Authorize(t.Context(), w.ref(), Credentials{}); err != nil {
		t.Errorf("authorize: %v", err)
	}
}

func certificateOf(t testing.TB, w *webServer) *x509.Certificate {
	t.Helper()
	c, err := tls.Dial("tcp", w.host, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	return c.ConnectionState().PeerCertificates[0]
}

// TestWebPlain: without TLS only on this machine.
func TestWebPlain(t *testing.T) {
	content := randomBytes(1, 1000)
	dir := t.TempDir()
	writeFile(t, dir+"/x", content)
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer server.Close()
	ref := "https://" + server.Listener.Addr().String() + "/x#" + digest.FromBytes(content).String()
	wantContent(t, acquire(t, openStore(t, Config{}), ref, AcquireOptions{}).Blob(), content)
	_, err := openStore(t, Config{PlainHTTP: func(string) bool { return false }}).Acquire(t.Context(), ref, AcquireOptions{})
	wantError(t, err, ErrUnavailable, "plain HTTP")
}

// TestWebAndRegistry: the same bytes from a registry and a web server are one blob.
func TestWebAndRegistry(t *testing.T) {
	p := pushImage(t, 1, 50_000)
	w := newWebServer(t, p.content)
	dir := t.TempDir()
	s := openStore(t, Config{Dir: dir, RootCAs: w.roots})
	one := acquire(t, s, p.ref, AcquireOptions{})
	two := acquire(t, s, w.ref(), AcquireOptions{})
	if one.ID() != two.ID() {
		t.Errorf("%s and %s", one.ID(), two.ID())
	}
	names, err := os.ReadDir(filepath.Join(dir, "blobs/sha256"))
	if err != nil || len(names) != 1 {
		t.Errorf("%d blobs, %v", len(names), err)
	}
	if n := len(w.seen("")); n > 1 {
		t.Errorf("%d requests for what is there", n)
	}
	if err := s.Authorize(t.Context(), strings.Replace(w.ref(), "/dir/", "/other/", 1), Credentials{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("another address: %v", err)
	}
}
