package nodecache

import (
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"
)

// provider makes a credential provider plugin that counts its runs in a file and
// answers with auth, JSON. An answer "" makes it fail.
func provider(t testing.TB, match, lasts, answer string) (cfg RegistryConfig, runs func() int) {
	t.Helper()
	dir := t.TempDir()
	script := "#!/bin/sh\ncat > /dev/null\necho >> " + dir + "/runs\necho hunter22 >&2\n"
	if answer == "" {
		script += "exit 7\n"
	} else {
		script += "cat " + writeFile(t, dir+"/answer", fmt.Appendf(nil,
			`{"kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "cacheKeyType": "Registry", "cacheDuration": %q, "auth": %s}`, lasts, answer)) + "\n"
	}
	if err := os.Chmod(writeFile(t, dir+"/bin/helper", []byte(script)), 0o700); err != nil {
		t.Fatal(err)
	}
	cfg.ProviderBinDir = dir + "/bin"
	cfg.ProviderConfig = writeFile(t, dir+"/config.yaml", fmt.Appendf(nil, `apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- {name: helper, apiVersion: credentialprovider.kubelet.k8s.io/v1, defaultCacheDuration: 1h, matchImages: [%q]}
`, match))
	return cfg, func() int {
		text, _ := os.ReadFile(dir + "/runs")
		return strings.Count(string(text), "\n")
	}
}

// TestCredentialOrder: the volume's secret, the node's file, the plugins, none;
// each is tried until one is accepted, and an error tells which were.
func TestCredentialOrder(t *testing.T) {
	host := htpasswdRegistry(t)
	p := newPusher(t, host, "a/b", auth.Credential{Username: "user", Password: "hunter22"}).image("v1", erofsLayer, randomBytes(1, 100_000))
	good, bad := dockerConfig(host, "user", "hunter22"), dockerConfig(host, "user", "wrong-pass")
	goodAnswer := fmt.Sprintf(`{%q: {"username": "user", "password": "hunter22"}}`, host)
	badAnswer := fmt.Sprintf(`{%q: {"username": "user", "password": "wrong-pass"}}`, host)
	dir := t.TempDir()
	for name, c := range map[string]struct {
		secret, file []byte
		answer       string // of the plugin; "-": there is none
		runs         int    // of the plugin
		words        []string
	}{
		"secret":                   {good, bad, badAnswer, 0, nil},
		"file":                     {nil, good, badAnswer, 0, nil},
		"plugin":                   {nil, nil, goodAnswer, 1, nil},
		"expired secret, file":     {bad, good, badAnswer, 0, nil},
		"expired secret, plugin":   {bad, nil, goodAnswer, 1, nil},
		"both bad, plugin":         {bad, bad, goodAnswer, 1, nil},
		"secret of another, file":  {dockerConfig("example.com", "u", "p"), good, "-", 0, nil},
		"file with two entries":    {nil, fmt.Appendf(nil, `{"auths":{%q:{"auth":%q},%q:{"auth":%q}}}`, host+"/a", basicAuth("user", "wrong-pass"), host, basicAuth("user", "hunter22")), "-", 0, nil},
		"all bad":                  {bad, dockerConfig(host, "user", "wrong-pass-2"), badAnswer, 1, []string{"the credentials given for " + host, "refused as well: the node's registry credentials"}},
		"only the plugin, bad":     {nil, nil, badAnswer, 1, []string{"no pull secret was given for " + host, "refused as well: credential provider helper"}},
		"plugin fails":             {nil, nil, "", 2, []string{"no credentials were given for " + host, "credential provider helper: exit status 7"}},
		"plugin for others":        {nil, nil, `{"example.com": {"username": "user", "password": "hunter22"}}`, 1, []string{"no credentials were given for " + host}},
		"file is no document":      {nil, []byte("hunter22"), "-", 0, []string{"no credentials were given for " + host, "the node's registry credentials", "dockerconfigjson"}},
		"file is missing":          {nil, []byte("missing"), "-", 0, []string{"the node's registry credentials", "no such file"}},
		"bad secret, file missing": {bad, []byte("missing"), "-", 0, []string{"the credentials given for " + host, "no such file"}},
	} {
		t.Run(name, func(t *testing.T) {
			var cfg RegistryConfig
			runs := func() int { return 0 }
			if c.answer != "-" {
				cfg, runs = provider(t, host, "1h", c.answer)
			}
			if c.file != nil {
				cfg.CredentialsFile = filepath.Join(dir, "config.json")
				writeFile(t, cfg.CredentialsFile, c.file)
				if string(c.file) == "missing" {
					cfg.CredentialsFile += ".not"
				}
			}
			s := openStore(t, Config{Registries: cfg})
			img, err := s.Acquire(t.Context(), p.ref, AcquireOptions{DockerConfig: c.secret})
			aerr := s.Authorize(t.Context(), p.ref, Credentials{DockerConfig: c.secret})
			if runs() != c.runs {
				t.Errorf("the plugin ran %d times, want %d", runs(), c.runs)
			}
			if c.words == nil {
				if err != nil || aerr != nil {
					t.Fatalf("%v, authorize: %v", err, aerr)
				}
				wantContent(t, img.Blob(), p.content)
				img.Release()
				return
			}
			for _, err := range []error{err, aerr} {
				wantError(t, err, ErrUnauthorized, append(c.words, p.ref)...)
				noSecrets(t, err)
				if strings.Contains(err.Error(), "wrong-pass-2") {
					t.Errorf("the error tells a secret: %v", err)
				}
			}
		})
	}
}

// TestServiceAccountToken: a plugin gives credentials for the token of the caller's service
// account, to whom has it and to no other; no error tells it.
func TestServiceAccountToken(t *testing.T) {
	host := htpasswdRegistry(t)
	p := newPusher(t, host, "a/b", auth.Credential{Username: "user", Password: "hunter22"}).image("v1", erofsLayer, randomBytes(1, 10<<20))
	cfg, _ := provider(t, host, "1h", "")
	writeFile(t, cfg.ProviderConfig, fmt.Appendf(nil, `apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: helper
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  defaultCacheDuration: 1h
  matchImages: [%q]
  tokenAttributes: {serviceAccountTokenAudience: registry, requireServiceAccount: true, cacheType: Token}
`, host))
	script := fmt.Sprintf(`#!/bin/sh
grep -q '"serviceAccountToken":"hunter22-token"' || exit 7
echo '{"kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "cacheKeyType": "Global", "auth": {%q: {"username": "user", "password": "hunter22"}}}'
`, host)
	if err := os.WriteFile(filepath.Join(cfg.ProviderBinDir, "helper"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, Config{Registries: cfg})
	mine := Credentials{Tokens: map[string]string{"registry": "hunter22-token", "": "hunter22-other"}}
	others := Credentials{Tokens: map[string]string{"registry": "hunter22-wrong"}}
	if err := s.Authorize(t.Context(), p.ref, mine); err != nil {
		t.Fatal(err)
	}
	for words, c := range map[string]Credentials{"exit status 7": others, "tokenRequests": {}} {
		err := s.Authorize(t.Context(), p.ref, c)
		wantError(t, err, ErrUnauthorized, "credential provider helper", words)
		noSecrets(t, err)
	}
	wantContent(t, acquire(t, s, p.ref, AcquireOptions{Tokens: mine.Tokens, Lazy: true}).Blob(), p.content)
}

// TestPluginAnswerExpires: what was kept is asked for anew when its time is
// over, not before.
func TestPluginAnswerExpires(t *testing.T) {
	host := htpasswdRegistry(t)
	p := newPusher(t, host, "a/b", auth.Credential{Username: "user", Password: "hunter22"}).image("v1", erofsLayer, randomBytes(1, 1000))
	for lasts, want := range map[string]int{"1h": 1, "0s": 2} {
		cfg, runs := provider(t, host, lasts, fmt.Sprintf(`{%q: {"username": "user", "password": "hunter22"}}`, host))
		s := openStore(t, Config{Registries: cfg})
		for range 2 {
			if err := s.Authorize(t.Context(), p.ref, Credentials{}); err != nil {
				t.Fatal(err)
			}
		}
		if n := runs(); n != want {
			t.Errorf("%s: %d runs, want %d", lasts, n, want)
		}
	}
}

// TestFileIsReadAgain: the node's credentials are changed, in place and by
// rename, taken away and brought back.
func TestFileIsReadAgain(t *testing.T) {
	host := htpasswdRegistry(t)
	p := newPusher(t, host, "a/b", auth.Credential{Username: "user", Password: "hunter22"}).image("v1", erofsLayer, randomBytes(1, 1000))
	name := filepath.Join(t.TempDir(), "config.json")
	s := openStore(t, Config{Registries: RegistryConfig{CredentialsFile: name}})
	want := func(ok bool) {
		t.Helper()
		if err := s.Authorize(t.Context(), p.ref, Credentials{}); (err == nil) != ok {
			t.Errorf("authorize: %v", err)
		}
		if n := len(s.Problems()); (n == 0) != (ok || exists(name)) {
			t.Errorf("%d problems: %v", n, s.Problems())
		}
	}
	want(false)
	writeFile(t, name, dockerConfig(host, "user", "wrong-pa"))
	want(false)
	writeFile(t, name, dockerConfig(host, "user", "hunter22")) // as long, at once
	want(true)
	writeFile(t, name+".new", dockerConfig(host, "user", "wrong-pa"))
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
	want(false)
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	want(false)
	writeFile(t, name, dockerConfig(host, "user", "hunter22"))
	want(true)
	// What has not changed for a while is not read again.
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(name, old, old); err != nil {
		t.Fatal(err)
	}
	w := &watchedFile{path: name}
	if _, err := w.read(); err != nil {
		t.Fatal(err)
	}
	w.text = []byte("kept")
	if text, err := w.read(); err != nil || string(text) != "kept" {
		t.Errorf("read again: %q, %v", text, err)
	}
	if _, err := (&watchedFile{path: filepath.Dir(name)}).read(); err == nil {
		t.Error("a directory is read")
	}
}

func TestBadProviders(t *testing.T) {
	cfg, _ := provider(t, "[", "1h", "{}")
	_, err := Open(Config{Dir: t.TempDir(), Registries: cfg})
	wantError(t, err, ErrConfiguration, "matchImages", cfg.ProviderConfig)
}

// TestTokenExpires: 401 in the middle of a pull, since the token's time is over.
// A new one is had, and the blob goes on where it was.
func TestTokenExpires(t *testing.T) {
	const size = 4 << 20
	tokens := newTokenServer(t)
	dir := t.TempDir()
	host := startRegistry(t, dir, tokens.config(t, dir))
	p := newPusher(t, host, "team/a", auth.Credential{Username: "user", Password: "hunter22"}).image("v1", erofsLayer, randomBytes(1, size))
	front := newProxy(t, host)
	var expired atomic.Value // the token that is no longer taken
	var cuts, refusals atomic.Int64
	front.set(onBlobs2(func(w http.ResponseWriter, r *http.Request) bool {
		token := r.Header.Get("Authorization")
		if old, _ := expired.Load().(string); token != "" && token == old {
			refusals.Add(1)
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service=%q,scope="repository:team/a:pull",error="invalid_token"`, tokens.server.URL, tokenService))
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		if token != "" && cuts.Add(1) <= 2 {
			expired.Store(token)
			var start int
			_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &start)
			if start > 0 {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, size-1, size))
				w.WriteHeader(http.StatusPartialContent)
			}
			_, _ = w.Write(p.content[start : start+1<<20])
			panic(http.ErrAbortHandler)
		}
		return false
	}))
	s := openStore(t, Config{})
	ref := front.host + "/team/a:v1"
	wantContent(t, acquire(t, s, ref, AcquireOptions{DockerConfig: dockerConfig(front.host, "user", "hunter22")}).Blob(), p.content)
	if refusals.Load() == 0 {
		t.Error("no token was refused")
	}
}

// onBlobs2 is onBlobs for a fault that decides itself.
func onBlobs2(f func(http.ResponseWriter, *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		return strings.Contains(r.URL.Path, "/blobs/") && f(w, r)
	}
}

// TestSecretIsReplaced: a client that reads for long takes a secret that was
// rotated, by its caller or in the node's file.
func TestSecretIsReplaced(t *testing.T) {
	var password atomic.Value
	password.Store("first-hunter22")
	front := newProxy(t, openRegistry(t))
	front.set(func(w http.ResponseWriter, r *http.Request) bool {
		if user, got, _ := r.BasicAuth(); user != "user" || got != password.Load() {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	})
	p := pushImage(t, 1, 1000)
	_, path, _ := strings.Cut(p.ref, "/")
	name := writeFile(t, filepath.Join(t.TempDir(), "config.json"), []byte("{}"))
	s := openStore(t, Config{Registries: RegistryConfig{CredentialsFile: name}})
	ref, err := parseReference(front.host + "/" + path)
	if err != nil {
		t.Fatal(err)
	}
	reg, err := s.newRegistry(ref, Credentials{DockerConfig: dockerConfig(front.host, "user", "first-hunter22")})
	if err != nil {
		t.Fatal(err)
	}
	source := reg.source
	want := func(ok bool) {
		t.Helper()
		_, err := reg.head(t.Context())
		if (err == nil) != ok {
			t.Errorf("%v", err)
		}
		if err != nil {
			wantError(t, err, ErrUnauthorized)
			if strings.Contains(err.Error(), "hunter22") {
				t.Errorf("the error tells a secret: %v", err)
			}
		}
	}
	want(true)
	password.Store("second-hunter22")
	want(false)
	wantError(t, reg.use([]byte("hunter22")), ErrInvalidCredentials)
	if err := reg.use(dockerConfig(front.host, "user", "second-hunter22")); err != nil {
		t.Fatal(err)
	}
	want(true)
	password.Store("third-hunter22")
	want(false)
	writeFile(t, name, dockerConfig(front.host, "user", "third-hunter22"))
	want(true)
	if reg.source != source {
		t.Error("the client is another source now")
	}
}

// TestSecretsStayInMemory: what a store was told in secret, by everybody who can,
// is in no file of it and in no error.
func TestSecretsStayInMemory(t *testing.T) {
	secrets := []string{"hunter22-volume", "hunter22-node", "hunter22-plugin", "hunter22-header", "hunter22-query", "hunter22-identity", "hunter22-token"}
	m := newMirrored(t, 100_000)
	m.hosts(t, fmt.Sprintf("[host.%q]\n[host.%q.header]\nx-a = \"hunter22-header\"\n", "http://"+m.mirror.host, "http://"+m.mirror.host))
	cfg, _ := provider(t, "127.0.0.1:"+m.origin.host[len("127.0.0.1:"):], "1h", fmt.Sprintf(`{%q: {"username": "u", "password": "hunter22-plugin"}}`, m.origin.host))
	cfg.HostsDir = m.dir
	cfg.CredentialsFile = writeFile(t, filepath.Join(t.TempDir(), "c"), fmt.Appendf(nil, `{"auths":{%q:{"username":"u","password":"hunter22-node"},%q:{"identitytoken":"hunter22-identity"}}}`, m.origin.host, m.origin.host+"/test"))
	volume := fmt.Appendf(nil, `{"auths":{%q:{"auth":%q},%q:{"registrytoken":"hunter22-token"}}}`, m.origin.host, basicAuth("u", "hunter22-volume"), m.origin.host+"/test")
	echo := func(status int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Authorization") == "" && r.Header.Get("X-A") == "" {
				w.Header().Set("WWW-Authenticate", `Basic realm="hunter22-query"`)
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			all := fmt.Sprint(r.Header, r.URL)
			w.Header().Set("Location", "http://127.0.0.1:1/?"+strings.Map(func(c rune) rune {
				if c <= ' ' {
					return -1
				}
				return c
			}, all))
			w.WriteHeader(status)
			_, _ = fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, all, all)
			return true
		}
	}
	dir := t.TempDir()
	s := openStore(t, Config{Dir: dir, Registries: cfg})
	check := func(what, text string) {
		t.Helper()
		for _, secret := range secrets {
			if strings.Contains(text, secret) || strings.Contains(text, basicAuth("u", secret)) {
				t.Errorf("%s tells %s: %s", what, secret, text)
			}
		}
	}
	web := strings.Replace("https://"+m.origin.host+"/x?sig=hunter22-query#", "x", "x.erofs", 1) + m.blob.String()
	for _, status := range []int{302, 400, 401, 403, 404, 429, 500} {
		m.origin.set(echo(status))
		m.mirror.set(echo(status))
		for _, ref := range []string{m.ref, web} {
			_, err := s.Acquire(t.Context(), ref, AcquireOptions{DockerConfig: volume})
			if err == nil {
				t.Fatal("no error")
			}
			check("the error of "+fmt.Sprint(status), err.Error())
			check("the error of "+fmt.Sprint(status), s.Authorize(t.Context(), ref, Credentials{DockerConfig: volume}).Error())
		}
	}
	m.origin.set(nil)
	m.mirror.set(nil)
	img := acquire(t, s, m.ref, AcquireOptions{DockerConfig: volume})
	check("the reference", img.Reference())
	m.origin.set(func(w http.ResponseWriter, _ *http.Request) bool { _, _ = w.Write(m.content); return true })
	img = acquire(t, s, web, AcquireOptions{DockerConfig: volume})
	check("the reference", img.Reference())
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		check("the name of a file", path)
		if err != nil || d.IsDir() {
			return err
		}
		n++
		text, err := os.ReadFile(path)
		check(path, string(text))
		return err
	})
	if err != nil || n < 4 {
		t.Errorf("%d files, %v", n, err)
	}
}
