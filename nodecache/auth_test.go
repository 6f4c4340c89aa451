package nodecache

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"testing"

	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/erofs-csi/erofs-csi/test/images"
)

// noSecrets fails if the error tells a password, a token or its base64.
func noSecrets(t testing.TB, err error) {
	t.Helper()
	for _, secret := range []string{"hunter22", basicAuth("user", "hunter22"), "wrong-pass", basicAuth("user", "wrong-pass")} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("the error tells a secret: %v", err)
		}
	}
}

// htpasswdRegistry knows user with password hunter22.
func htpasswdRegistry(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	_, err := exec.LookPath("htpasswd")
	images.Need(t, "htpasswd", err == nil)
	line, err := exec.Command("htpasswd", "-nbBC", "5", "user", "hunter22").Output()
	if err != nil {
		t.Fatal(err)
	}
	return startRegistry(t, dir, fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s}}\n", writeFile(t, dir+"/htpasswd", line)))
}

func TestBasicAuth(t *testing.T) {
	host := htpasswdRegistry(t)
	p := newPusher(t, host, "a/b", auth.Credential{Username: "user", Password: "hunter22"}).image("v1", erofsLayer, randomBytes(1, 100_000))
	s := openStore(t, Config{})
	good := dockerConfig(host, "user", "hunter22")
	for name, c := range map[string]struct {
		config []byte
		words  []string
	}{
		"none":           {nil, []string{"no credentials were given for " + host, "pull secret"}},
		"for another":    {dockerConfig("example.com", "user", "hunter22"), []string{"no credentials were given for " + host}},
		"wrong":          {dockerConfig(host, "user", "wrong-pass"), []string{"credentials given for " + host, "401"}},
		"token only":     {fmt.Appendf(nil, `{"auths":{%q:{"registrytoken":"hunter22"}}}`, host), []string{"credentials given for " + host}},
		"empty password": {dockerConfig(host, "user", ""), []string{"credentials given for " + host}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Acquire(t.Context(), p.ref, AcquireOptions{DockerConfig: c.config})
			wantError(t, err, ErrUnauthorized, append(c.words, p.ref)...)
			noSecrets(t, err)
			err = s.Authorize(t.Context(), p.ref, Credentials{DockerConfig: c.config})
			wantError(t, err, ErrUnauthorized, c.words...)
			noSecrets(t, err)
		})
	}
	wantFiles(t, s.dir.root)
	wantContent(t, acquire(t, s, p.ref, AcquireOptions{DockerConfig: good}).Blob(), p.content)
	if err := s.Authorize(t.Context(), p.ref, Credentials{DockerConfig: good}); err != nil {
		t.Errorf("authorize: %v", err)
	}
	// What is cached for one is found for all, and authorised for none but them.
	acquire(t, s, p.ref, AcquireOptions{})
	wantError(t, s.Authorize(t.Context(), p.ref, Credentials{}), ErrUnauthorized)
	_, err := s.Acquire(t.Context(), p.ref, AcquireOptions{Policy: Always})
	wantError(t, err, ErrUnauthorized)
}

func TestTokenAuth(t *testing.T) {
	tokens := newTokenServer(t)
	dir := t.TempDir()
	host := startRegistry(t, dir, tokens.config(t, dir))
	cred := auth.Credential{Username: "user", Password: "hunter22"}
	private := newPusher(t, host, "team/a", cred).image("v1", erofsLayer, randomBytes(1, 100_000))
	public := newPusher(t, host, "public/a", cred).image("v1", erofsLayer, randomBytes(2, 100_000))
	t.Run("anonymous", func(t *testing.T) {
		s := openStore(t, Config{})
		wantContent(t, acquire(t, s, public.ref, AcquireOptions{}).Blob(), public.content)
		_, err := s.Acquire(t.Context(), private.ref, AcquireOptions{})
		wantError(t, err, ErrUnauthorized, "no credentials were given for "+host)
	})
	for name, entry := range map[string]string{
		"auth":          fmt.Sprintf(`"auth": %q`, basicAuth("user", "hunter22")),
		"user":          `"username": "user", "password": "hunter22"`,
		"identitytoken": `"identitytoken": "identity-hunter22"`,
		"registrytoken": fmt.Sprintf(`"registrytoken": %q`, tokens.token(true, []string{"repository:team/a:pull"})),
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, Config{})
			config := fmt.Appendf(nil, `{"auths":{"example.com":{"auth":"eDp5"},%q:{%s}}}`, host, entry)
			wantContent(t, acquire(t, s, private.ref, AcquireOptions{DockerConfig: config}).Blob(), private.content)
			if err := s.Authorize(t.Context(), private.ref, Credentials{DockerConfig: config}); err != nil {
				t.Errorf("authorize: %v", err)
			}
		})
	}
	for name, entry := range map[string]string{
		"wrong password":      fmt.Sprintf(`"auth": %q`, basicAuth("user", "wrong-pass")),
		"wrong identitytoken": `"identitytoken": "wrong-pass"`,
		"wrong registrytoken": `"registrytoken": "wrong-pass"`,
		"token for another":   fmt.Sprintf(`"registrytoken": %q`, tokens.token(true, []string{"repository:team/b:pull"})),
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, Config{})
			config := fmt.Appendf(nil, `{"auths":{%q:{%s}}}`, host, entry)
			_, err := s.Acquire(t.Context(), private.ref, AcquireOptions{DockerConfig: config})
			wantError(t, err, ErrUnauthorized, "credentials given for "+host)
			noSecrets(t, err)
			wantFiles(t, s.dir.root)
		})
	}
	t.Run("token server down", func(t *testing.T) {
		tokens.status.Store(http.StatusServiceUnavailable)
		defer tokens.status.Store(0)
		tokens.asked.Store(0)
		_, err := openStore(t, Config{}).Acquire(t.Context(), private.ref, AcquireOptions{DockerConfig: dockerConfig(host, "user", "hunter22")})
		wantError(t, err, ErrUnavailable, "token server", "503")
		noSecrets(t, err)
		if n := tokens.asked.Load(); n != int64(quick.attempts) {
			t.Errorf("the token server was asked %d times, want %d", n, quick.attempts)
		}
	})
}

// TestCredentialsStayHome: a blob served by another host is fetched from there
// without what belongs to the registry.
func TestCredentialsStayHome(t *testing.T) {
	host := htpasswdRegistry(t)
	p := newPusher(t, host, "a/b", auth.Credential{Username: "user", Password: "hunter22"}).image("v1", erofsLayer, randomBytes(1, 100_000))
	front := newProxy(t, host)
	elsewhere := newProxy(t, host)
	elsewhere.set(onBlobs(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(p.content) }))
	front.set(onBlobs(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+elsewhere.host+r.URL.Path+"?signature=hunter22", http.StatusTemporaryRedirect)
	}))
	ref := front.host + "/a/b:v1"
	s := openStore(t, Config{})
	config := dockerConfig(front.host, "user", "hunter22")
	wantContent(t, acquire(t, s, ref, AcquireOptions{DockerConfig: config}).Blob(), p.content)
	seen := elsewhere.seen("/blobs/")
	if len(seen) == 0 {
		t.Fatal("the redirect was not followed")
	}
	for _, r := range seen {
		for key, values := range r.Header {
			if all := strings.Join(values, " "); key == "Authorization" || strings.Contains(all, basicAuth("user", "hunter22")) {
				t.Errorf("the other host was sent %s: %s", key, all)
			}
		}
	}
	// The other host asks for credentials: it gets none, and no error tells
	// the signed address.
	elsewhere.set(onBlobs(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="give me"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	s = openStore(t, Config{})
	_, err := s.Acquire(t.Context(), ref, AcquireOptions{DockerConfig: config})
	wantError(t, err, ErrUnauthorized)
	noSecrets(t, err)
	for _, r := range elsewhere.seen("") {
		if r.Header.Get("Authorization") != "" {
			t.Error("the other host was sent credentials when it asked")
		}
	}
	elsewhere.close()
	_, err = s.Acquire(t.Context(), ref, AcquireOptions{DockerConfig: config})
	wantError(t, err, ErrUnavailable)
	noSecrets(t, err)
}

// TestRegistryRepeatsSecrets: what a registry writes into its errors stays out
// of ours.
func TestRegistryRepeatsSecrets(t *testing.T) {
	front := newProxy(t, "127.0.0.1:1")
	config := dockerConfig(front.host, "user", "hunter22")
	for _, status := range []int{400, 401, 403, 404, 500} {
		front.set(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Authorization") == "" {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			w.WriteHeader(status)
			_, _ = fmt.Fprintf(w, `{"errors":[{"code":"hunter22","message":%q,"detail":"hunter22"},{"code":"DENIED"}]}`, r.Header.Get("Authorization"))
			return true
		})
		_, err := openStore(t, Config{}).Acquire(t.Context(), front.host+"/a:v1", AcquireOptions{DockerConfig: config})
		if err == nil {
			t.Fatal("no error")
		}
		noSecrets(t, err)
		if !strings.Contains(err.Error(), "DENIED") {
			t.Errorf("the error does not say DENIED: %v", err)
		}
	}
	front.set(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://127.0.0.1:1/hunter22?x=hunter22",service="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	_, err := openStore(t, Config{}).Acquire(t.Context(), front.host+"/a:v1", AcquireOptions{DockerConfig: config})
	if err == nil {
		t.Fatal("no error")
	}
	noSecrets(t, err)
}

func TestDescribe(t *testing.T) {
	r := &registryClient{hide: secretsOf(auth.Credential{Username: "user", Password: "hunter 22", RefreshToken: "refresh", AccessToken: "access"})}
	for text, want := range map[string]string{
		`GET "https://example.com/x?signature=abc&y=z": refused`: `GET "https://example.com/x?...": refused`,
		"said hunter 22, hunter+22, refresh and access":          "said ..., ..., ... and ...",
		"Basic " + basicAuth("user", "hunter 22"):                "Basic ...",
		"two\nlines\x1b[31m":                                     "two lines [31m",
		strings.Repeat("x", 299) + "\u00e9":                      strings.Repeat("x", 299) + "...",
	} {
		if got := r.describe(errors.New(text)); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
		hidden := &url.Error{Op: "Get", URL: "https://example.com/?hunter22", Err: errors.New(text)}
		if got := r.describe(fmt.Errorf("outer hunter22: %w", hidden)); got != want {
			t.Errorf("in a url.Error: %q, want %q", got, want)
		}
	}
}
