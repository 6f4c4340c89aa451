package nodecache

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"
)

// mirrored is a registry, a mirror before it, and what was pushed.
type mirrored struct {
	pushed
	origin, mirror *proxy
	ref            string // by tag, at origin
	byDigest       string
	dir            string // registry hosts
}

func newMirrored(t testing.TB, size int) *mirrored {
	t.Helper()
	p := pushImage(t, uint64(size), size)
	_, path, _ := strings.Cut(p.ref, "/")
	m := &mirrored{pushed: p, origin: newProxy(t, openRegistry(t)), mirror: newProxy(t, openRegistry(t)), dir: t.TempDir()}
	m.ref = m.origin.host + "/" + path
	m.byDigest = strings.TrimSuffix(m.ref, ":v1") + "@" + p.manifest.String()
	m.hosts(t, fmt.Sprintf("[host.%q]\n", "http://"+m.mirror.host))
	return m
}

// hosts writes the hosts.toml of the origin.
func (m *mirrored) hosts(t testing.TB, text string) {
	t.Helper()
	writeFile(t, filepath.Join(m.dir, m.origin.host, "hosts.toml"), []byte(text))
}

func (m *mirrored) store(t testing.TB) *Store {
	t.Helper()
	return openStore(t, Config{Registries: RegistryConfig{HostsDir: m.dir}})
}

// TestMirror: everything comes from the mirror, which is told of whom.
func TestMirror(t *testing.T) {
	m := newMirrored(t, 100_000)
	for _, ref := range []string{m.ref, m.byDigest} {
		m.mirror.set(nil)
		wantContent(t, acquire(t, m.store(t), ref, AcquireOptions{}).Blob(), m.content)
		if n := m.origin.count(); n != 0 {
			t.Errorf("%s: %d requests to the origin", ref, n)
		}
		seen := m.mirror.seen("")
		if len(seen) < 2 {
			t.Errorf("%s: %d requests to the mirror", ref, len(seen))
		}
		for _, r := range seen {
			if got := r.URL.Query().Get("ns"); got != m.origin.host || len(r.URL.Query()) != 1 {
				t.Errorf("%s: query %q, want ns=%s", r.URL.Path, r.URL.RawQuery, m.origin.host)
			}
		}
	}
	// The server is not told.
	m.mirror.close()
	acquire(t, m.store(t), m.ref, AcquireOptions{})
	for _, r := range m.origin.seen("") {
		if r.URL.RawQuery != "" {
			t.Errorf("the origin is asked %s", r.URL)
		}
	}
	// Without a directory there are no mirrors.
	acquire(t, openStore(t, Config{}), m.ref, AcquireOptions{})
}

// TestMirrorFails: whatever the mirror does, the image comes from the origin,
// right and soon; and when the origin is gone too, the error tells of both.
func TestMirrorFails(t *testing.T) {
	const size = 3 << 20
	m := &mirrored{pushed: pushImage(t, 1, size), dir: t.TempDir()}
	_, path, _ := strings.Cut(m.pushed.ref, "/")
	path = strings.TrimSuffix(path, ":v1") + "@" + m.manifest.String()
	status := func(code int, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i+1 < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
		}
	}
	all := func(f http.HandlerFunc) func(http.ResponseWriter, *http.Request) bool { return onPath("/", f) }
	flipped := append([]byte(nil), m.content...)
	flipped[size/2] ^= 1
	for _, c := range []struct {
		name  string
		fault func(http.ResponseWriter, *http.Request) bool
		says  string // in the error when the origin is gone; "": it need not
	}{
		{"404", all(status(404)), "HTTP 404"},
		{"blob 404", onBlobs(status(404)), "HTTP 404"},
		{"401", all(status(401)), "HTTP 401"},
		{"403", all(status(403)), "HTTP 403"},
		{"401 with a challenge", all(status(401, "WWW-Authenticate", `Basic realm="x"`)), "unauthorized"},
		{"401 with a token server that is down", all(status(401, "WWW-Authenticate", `Bearer realm="http://127.0.0.1:1/token",service="x"`)), "refused"},
		{"500", all(status(500)), "HTTP 500"},
		{"blob 503", onBlobs(status(503)), "HTTP 503"},
		{"429", all(status(429, "Retry-After", "3600")), "HTTP 429"},
		{"400", all(status(400)), "HTTP 400"},
		{"manifest is HTML", onManifests(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "<html>log in</html>") }), "wrong bytes"},
		{"manifest without end", onManifests(func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(m.content); err != nil {
					return
				}
			}
		}), "wrong bytes"},
		{"manifest of another digest", onManifests(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, `{"layers":[]}`) }), "wrong bytes"},
		{"redirect loop", all(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }), "too many redirects"},
		{"wrong blob", onBlobs(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(flipped) }), "wrong bytes"},
		{"long blob", onBlobs(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(size+1))
			_, _ = w.Write(append(append([]byte(nil), m.content...), 0))
		}), "wrong bytes"},
		{"short blob", onBlobs(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(size-1))
			_, _ = w.Write(m.content[:size-1])
		}), "wrong bytes"},
		{"blob cut", onBlobs(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(size))
			_, _ = w.Write(m.content[:size/2])
			panic(http.ErrAbortHandler)
		}), ""},
		{"wrong blob, cut", onBlobs(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			w.Header().Set("Content-Length", strconv.Itoa(size))
			_, _ = w.Write(flipped[:size/2+10])
			panic(http.ErrAbortHandler)
		}), ""},
		{"blob resumed elsewhere", onBlobs(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") == "" {
				w.Header().Set("Content-Length", strconv.Itoa(size))
				_, _ = w.Write(m.content[:size/2])
				panic(http.ErrAbortHandler)
			}
			w.Header().Set("Content-Range", "bytes 0-10/"+strconv.Itoa(size))
			w.WriteHeader(http.StatusPartialContent)
		}), ""},
		{"blob stalls", onBlobs(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(size))
			_, _ = w.Write(m.content[:1000])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}), ""},
		{"closed", nil, "refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			noLeaks(t, func(t *testing.T) {
				m := &mirrored{pushed: m.pushed, dir: m.dir, origin: newProxy(t, openRegistry(t))}
				m.byDigest = m.origin.host + "/" + path
				mirror := newProxy(t, openRegistry(t))
				mirror.set(c.fault)
				if c.fault == nil {
					mirror.close()
				}
				m.hosts(t, fmt.Sprintf("[host.%q]\n", "http://"+mirror.host))
				s := m.store(t)
				s.retry.stall = 200 * time.Millisecond
				start := time.Now()
				wantContent(t, acquire(t, s, m.byDigest, AcquireOptions{}).Blob(), m.content)
				if d := time.Since(start); d > 5*time.Second {
					t.Errorf("it took %v", d)
				}
				if c.fault != nil && mirror.count() == 0 {
					t.Error("the mirror was not asked")
				}
				s = m.store(t)
				s.retry.stall = 200 * time.Millisecond
				m.origin.set(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true })
				defer m.origin.set(nil)
				_, err := s.Acquire(t.Context(), m.byDigest, AcquireOptions{})
				wantError(t, err, ErrUnavailable, m.origin.host)
				if c.says != "" {
					wantError(t, err, ErrUnavailable, "mirrors failed before", mirror.host+": ", c.says)
				}
				for _, name := range filesBelow(t, s.dir.root) {
					if !strings.HasPrefix(name, "partial/") { // for the next pull to go on with
						t.Errorf("%s was left behind", name)
					}
				}
			})
		})
	}
}

// TestMirrorBenched: a mirror that failed is asked last for a while, by all
// pulls of the node, and still asked when there is no other.
func TestMirrorBenched(t *testing.T) {
	m := newMirrored(t, 10_000)
	s := m.store(t)
	broken := func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(502); return true }
	m.mirror.set(broken)
	acquire(t, s, m.ref, AcquireOptions{})
	if n := m.mirror.count(); n != 1 {
		t.Errorf("the broken mirror was asked %d times, want 1", n)
	}
	m.mirror.set(nil)
	acquire(t, s, m.ref, AcquireOptions{Policy: Always})
	if n := m.mirror.count(); n != 0 {
		t.Errorf("the benched mirror was asked %d times", n)
	}
	m.origin.set(broken)
	acquire(t, s, m.ref, AcquireOptions{Policy: Always})
	if n := m.mirror.count(); n == 0 {
		t.Error("the benched mirror was not asked for want of others")
	}
	m.origin.set(nil)
	s.registries.health.until[m.mirror.host+"/v2"] = time.Now()
	m.origin.set(nil)
	acquire(t, s, m.ref, AcquireOptions{Policy: Always})
	if n := m.origin.count(); n != 0 {
		t.Errorf("the origin was asked %d times after the time was over", n)
	}
}

// TestMirrorRanges: a mirror that answers a range with another, or with none, is
// passed over.
func TestMirrorRanges(t *testing.T) {
	m := newMirrored(t, 10_000)
	ref, err := parseReference(m.byDigest)
	if err != nil {
		t.Fatal(err)
	}
	for name, answer := range map[string]http.HandlerFunc{
		"another": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-9999/10000")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(m.content)
		},
		"unsaid": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(m.content[5000:])
		},
		"none": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusRequestedRangeNotSatisfiable) },
	} {
		m.mirror.set(onBlobs(answer))
		reg, err := m.store(t).newRegistry(ref, Credentials{})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := reg.send(t.Context(), http.MethodGet, "blobs", m.blob.String(), http.Header{"Range": {"bytes=5000-"}})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || !bytes.Equal(got, m.content[5000:]) || m.mirror.count() != 1 {
			t.Errorf("%s: %d bytes, %v, after %d requests to the mirror", name, len(got), err, m.mirror.count())
		}
	}
}

// TestMirrorSlow: a trickle is no mirror while there is another host.
func TestMirrorSlow(t *testing.T) {
	m := newMirrored(t, 1000)
	mirror := &endpoint{host: m.mirror.host, health: newHealth()}
	trickle := &answerBody{ReadCloser: slowReader{}, release: func() {}, received: new(atomic.Int64), mirror: mirror, impatient: true, spent: slowTime - time.Millisecond}
	if _, err := trickle.Read(make([]byte, 100)); err == nil || !mirror.health.isBenched(mirror.key()) {
		t.Errorf("a slow mirror is read on: %v", err)
	}
	trickle = &answerBody{ReadCloser: slowReader{}, release: func() {}, received: new(atomic.Int64), mirror: mirror, spent: slowTime - time.Millisecond}
	if _, err := trickle.Read(make([]byte, 100)); err != nil {
		t.Errorf("the only host is not read on: %v", err)
	}
	fast := &answerBody{ReadCloser: slowReader{}, release: func() {}, received: new(atomic.Int64), mirror: mirror, impatient: true, spent: slowTime - time.Millisecond, brought: 2 * slowRate * int64(slowTime/time.Second)}
	if _, err := fast.Read(make([]byte, 100)); err != nil {
		t.Errorf("a fast mirror is not read on: %v", err)
	}
}

type slowReader struct{}

func (slowReader) Read(p []byte) (int, error) { time.Sleep(5 * time.Millisecond); return 1, nil }
func (slowReader) Close() error               { return nil }

// TestMirrorCapabilities: who may only pull is not asked what a tag means; nor
// is anybody else than whom the file names.
func TestMirrorCapabilities(t *testing.T) {
	m := newMirrored(t, 10_000)
	m.hosts(t, fmt.Sprintf("[host.%q]\ncapabilities = [\"pull\"]\n", "http://"+m.mirror.host))
	acquire(t, m.store(t), m.ref, AcquireOptions{})
	for _, r := range m.origin.seen("") {
		if !strings.HasSuffix(r.URL.Path, "/manifests/v1") {
			t.Errorf("the origin was asked %s", r.URL)
		}
	}
	if n := len(m.mirror.seen("/manifests/v1")); n != 0 || m.mirror.count() == 0 || m.origin.count() == 0 {
		t.Errorf("the mirror was asked for the tag %d times of %d; the origin %d", n, m.mirror.count(), m.origin.count())
	}
	// In the order of the file.
	second := newProxy(t, openRegistry(t))
	m.hosts(t, fmt.Sprintf("[host.%q]\n[host.%q]\n", "http://"+second.host, "http://"+m.mirror.host))
	m.mirror.set(nil)
	acquire(t, m.store(t), m.ref, AcquireOptions{})
	if m.mirror.count() != 0 || second.count() == 0 {
		t.Errorf("first %d, second %d requests", second.count(), m.mirror.count())
	}
	// The mirror in the registry's place.
	m.hosts(t, fmt.Sprintf("server = %q\n", "http://"+m.mirror.host))
	m.mirror.set(nil)
	m.origin.set(nil)
	acquire(t, m.store(t), m.ref, AcquireOptions{})
	if m.origin.count() != 0 || m.mirror.count() == 0 {
		t.Errorf("origin %d, server %d requests", m.origin.count(), m.mirror.count())
	}
	m.mirror.set(onManifests(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }))
	_, err := m.store(t).Acquire(t.Context(), m.ref, AcquireOptions{})
	wantError(t, err, ErrNotFound, m.mirror.host)
	// Nobody may resolve.
	m.hosts(t, "capabilities = [\"pull\"]\n")
	_, err = m.store(t).Acquire(t.Context(), m.ref, AcquireOptions{})
	wantError(t, err, ErrConfiguration, m.origin.host)
	// A file that can't be read.
	m.hosts(t, "server = [")
	for _, err := range []error{
		second2(m.store(t).Acquire(t.Context(), m.ref, AcquireOptions{})),
		m.store(t).Authorize(t.Context(), m.ref, Credentials{}),
	} {
		wantError(t, err, ErrConfiguration, "hosts.toml", "line 1")
	}
}

func second2(_ *Image, err error) error { return err }

// TestMirrorPaths: override_path and headers; the latter are not taken along to
// another host.
func TestMirrorPaths(t *testing.T) {
	m := newMirrored(t, 10_000)
	_, path, _ := strings.Cut(strings.TrimSuffix(m.ref, ":v1"), "/")
	elsewhere := newProxy(t, openRegistry(t))
	at := newProxy(t, openRegistry(t))
	at.set(func(w http.ResponseWriter, r *http.Request) bool {
		rest, ok := strings.CutPrefix(r.URL.Path, "/prefix/here/")
		if !ok || r.Header.Get("X-Secret") != "hunter22" || len(r.Header["X-Two"]) != 2 {
			w.WriteHeader(http.StatusTeapot)
			return true
		}
		if strings.Contains(rest, "/blobs/") {
			http.Redirect(w, r, "http://"+elsewhere.host+"/v2/"+rest, http.StatusTemporaryRedirect)
			return true
		}
		r.URL.Path = "/v2/" + rest
		return false
	})
	m.hosts(t, fmt.Sprintf("[host.%q]\noverride_path = true\n[host.%q.header]\nx-secret = \"hunter22\"\nx-two = [\"1\", \"2\"]\n", "http://"+at.host+"/prefix/here", "http://"+at.host+"/prefix/here"))
	wantContent(t, acquire(t, m.store(t), m.ref, AcquireOptions{}).Blob(), m.content)
	if m.origin.count() != 0 || elsewhere.count() == 0 {
		t.Errorf("origin %d, elsewhere %d requests", m.origin.count(), elsewhere.count())
	}
	for _, r := range elsewhere.seen("") {
		if r.Header.Get("X-Secret") != "" || r.Header.Get("X-Two") != "" || !strings.Contains(r.URL.Path, path) {
			t.Errorf("elsewhere was sent %v for %s", r.Header, r.URL)
		}
	}
	// Nor is it told in an error.
	m.origin.set(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true })
	at.set(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Location", "http://127.0.0.1:1/"+r.Header.Get("X-Secret"))
		w.WriteHeader(http.StatusFound)
		return true
	})
	_, err := m.store(t).Acquire(t.Context(), m.ref, AcquireOptions{})
	wantError(t, err, ErrUnavailable, at.host)
	noSecrets(t, err)
}

// TestMirrorTLS: certificates of both sides, and none that are checked.
func TestMirrorTLS(t *testing.T) {
	m := newMirrored(t, 10_000)
	back := newProxy(t, openRegistry(t))
	secure := httptest.NewUnstartedServer(back.server.Config.Handler)
	secure.Config.ErrorLog = quiet
	secure.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	secure.StartTLS()
	defer secure.Close()
	address := "https://" + secure.Listener.Addr().String()
	at := filepath.Join(m.dir, m.origin.host)
	writeFile(t, filepath.Join(at, "ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}))
	for name, c := range map[string]struct {
		text    string
		reached bool
	}{
		"unknown authority": {"", false},
		"ca":                {"ca = \"ca.pem\"\n", true},
		"skip_verify":       {"skip_verify = true\n", true},
		"verify":            {"skip_verify = false\n", false},
	} {
		back.set(nil)
		m.origin.set(nil)
		m.hosts(t, fmt.Sprintf("[host.%q]\n%s", address, c.text))
		acquire(t, m.store(t), m.ref, AcquireOptions{})
		if (back.count() != 0) != c.reached || (m.origin.count() == 0) != c.reached {
			t.Errorf("%s: mirror %d, origin %d requests", name, back.count(), m.origin.count())
		}
	}
	// http:// with a setting about TLS: HTTPS first, else plain.
	for _, host := range []string{secure.Listener.Addr().String(), m.mirror.host} {
		m.origin.set(nil)
		m.hosts(t, fmt.Sprintf("[host.%q]\nskip_verify = true\n", "http://"+host))
		acquire(t, m.store(t), m.ref, AcquireOptions{})
		if n := m.origin.count(); n != 0 {
			t.Errorf("%s: %d requests to the origin", host, n)
		}
	}
}

// TestMirrorProxy: a proxy of one mirror.
func TestMirrorProxy(t *testing.T) {
	m := newMirrored(t, 10_000)
	m.hosts(t, fmt.Sprintf("[host.\"http://mirror.invalid\"]\nproxy = %q\n", "http://"+m.mirror.host))
	acquire(t, m.store(t), m.ref, AcquireOptions{})
	if m.mirror.count() == 0 || m.origin.count() != 0 {
		t.Errorf("proxy %d, origin %d requests", m.mirror.count(), m.origin.count())
	}
}

// TestMirrorCredentials: under which names they are looked up, and what goes in
// the clear.
func TestMirrorCredentials(t *testing.T) {
	ref, err := parseReference("registry.example/team/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	g, err := newRegistries(Config{Registries: RegistryConfig{HostsDir: t.TempDir()}})
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, g.hostsDir+"/registry.example/hosts.toml", []byte(`
[host."https://mirror.example"]
[host."http://clear.example"]
[host."http://127.0.0.1:4001"]
[host."https://unverified.example"]
skip_verify = true
[host."http://fallback.example"]
skip_verify = false
[host."https://registry.example"]
`))
	list, err := g.endpoints(ref)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range list {
		s := e.host + ":"
		for _, p := range e.places(ref) {
			s += " " + p.registry
		}
		got = append(got, s)
	}
	want := "mirror.example: mirror.example registry.example, clear.example: clear.example, " +
		"127.0.0.1:4001: 127.0.0.1:4001 registry.example, unverified.example: unverified.example, fallback.example: fallback.example, registry.example: registry.example, registry.example: registry.example"
	if strings.Join(got, ", ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, ", "), want)
	}

	// A mirror that asks the registry in turn passes its question on.
	host := htpasswdRegistry(t)
	p := newPusher(t, host, "a/b", auth.Credential{Username: "user", Password: "hunter22"}).image("v1", erofsLayer, randomBytes(1, 10_000))
	mirror := newProxy(t, host)
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "registry.invalid", "hosts.toml"), fmt.Appendf(nil, "[host.%q]\n", "http://"+mirror.host))
	s := openStore(t, Config{Registries: RegistryConfig{HostsDir: dir}})
	for _, name := range []string{"registry.invalid", mirror.host} {
		acquire(t, s, "registry.invalid/a/b:v1", AcquireOptions{DockerConfig: dockerConfig(name, "user", "hunter22"), Policy: Always})
	}
	for _, r := range mirror.seen("") {
		if user, password, ok := r.BasicAuth(); ok && (user != "user" || password != "hunter22") {
			t.Errorf("the mirror was sent %s:%s", user, password)
		}
	}
	_, err = s.Acquire(t.Context(), "registry.invalid/a/b:v1", AcquireOptions{DockerConfig: dockerConfig("other.invalid", "user", "hunter22"), Policy: Always})
	wantError(t, err, ErrUnavailable, mirror.host+": unauthorized")
	_ = p
}

// TestAuthorizePastMirrors: a mirror's word counts only when the registry can't
// be asked.
func TestAuthorizePastMirrors(t *testing.T) {
	m := newMirrored(t, 10_000)
	s := m.store(t)
	if err := s.Authorize(t.Context(), m.ref, Credentials{}); err != nil || m.mirror.count() != 0 {
		t.Errorf("%v, after %d requests to the mirror", err, m.mirror.count())
	}
	for _, status := range []int{401, 403, 404} {
		m.origin.set(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(status); return true })
		if err := s.Authorize(t.Context(), m.ref, Credentials{}); err == nil || m.mirror.count() != 0 {
			t.Errorf("%d: %v, after %d requests to the mirror", status, err, m.mirror.count())
		}
	}
	m.origin.close()
	if err := s.Authorize(t.Context(), m.ref, Credentials{}); err != nil || m.mirror.count() == 0 {
		t.Errorf("registry gone: %v, after %d requests to the mirror", err, m.mirror.count())
	}
}

// TestPullThroughCache: docker-registry itself as the mirror of another.
func TestPullThroughCache(t *testing.T) {
	m := newMirrored(t, 5<<20)
	cache := startRegistry(t, t.TempDir(), fmt.Sprintf("proxy: {remoteurl: \"http://%s\"}\n", m.origin.host))
	m.hosts(t, fmt.Sprintf("[host.%q]\n", "http://"+cache))
	wantContent(t, acquire(t, m.store(t), m.ref, AcquireOptions{}).Blob(), m.content)
	for _, r := range m.origin.seen("") {
		if strings.Contains(r.UserAgent(), "erofs-csi") {
			t.Errorf("we asked the origin for %s", r.URL)
		}
	}
	if m.origin.count() == 0 {
		t.Error("the cache did not ask the origin")
	}
}

// TestDefaultMirror: _default serves registries that do not exist.
func TestDefaultMirror(t *testing.T) {
	m := newMirrored(t, 10_000)
	if err := os.RemoveAll(filepath.Join(m.dir, m.origin.host)); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(m.dir, "_default", "hosts.toml"), fmt.Appendf(nil, "[host.%q]\n", "http://"+m.mirror.host))
	_, path, _ := strings.Cut(m.ref, "/")
	wantContent(t, acquire(t, m.store(t), "registry.invalid/"+path, AcquireOptions{}).Blob(), m.content)
	for _, r := range m.mirror.seen("") {
		if got := r.URL.Query().Get("ns"); got != "registry.invalid" {
			t.Errorf("ns=%q", got)
		}
	}
	if _, _, err := net.SplitHostPort(m.mirror.host); err != nil {
		t.Fatal(err)
	}
}
