package credplugin

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletv1 "k8s.io/kubelet/config/v1"
	pluginv1 "k8s.io/kubelet/pkg/apis/credentialprovider/v1"
)

func write(t testing.TB, name, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return name
}

// answerText is an answer as kubelet's own type says it.
func answerText(t testing.TB, key pluginv1.PluginCacheKeyType, lasts *time.Duration, auth map[string]pluginv1.AuthConfig) string {
	t.Helper()
	a := pluginv1.CredentialProviderResponse{
		TypeMeta:     metav1.TypeMeta{APIVersion: "credentialprovider.kubelet.k8s.io/v1", Kind: "CredentialProviderResponse"},
		CacheKeyType: key, Auth: auth,
	}
	if lasts != nil {
		a.CacheDuration = &metav1.Duration{Duration: *lasts}
	}
	text, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// plugin is a directory with one plugin, a shell script, and its configuration.
type plugin struct{ dir string }

// newPlugin makes one that counts its runs, keeps its last request and then runs
// script.
func newPlugin(t testing.TB, script string) plugin {
	t.Helper()
	dir := t.TempDir()
	write(t, dir+"/bin/test-provider", fmt.Sprintf("#!/bin/sh\ncd %s\necho >> runs\ncat > request\n%s\n", dir, script), 0o700)
	return plugin{dir}
}

// prints is a script that answers with text.
func (p plugin) prints(t testing.TB, text string) string {
	t.Helper()
	write(t, p.dir+"/answer", text, 0o600)
	return "cat answer\n"
}

func (p plugin) runs(t testing.TB) int {
	t.Helper()
	text, err := os.ReadFile(p.dir + "/runs")
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Count(string(text), "\n")
}

func (p plugin) config(edit func(*kubeletv1.CredentialProvider)) kubeletv1.CredentialProviderConfig {
	c := kubeletv1.CredentialProvider{
		Name: "test-provider", MatchImages: []string{"*.example.com", "*.example.com:5000"}, APIVersion: "credentialprovider.kubelet.k8s.io/v1",
		DefaultCacheDuration: &metav1.Duration{Duration: time.Hour},
	}
	if edit != nil {
		edit(&c)
	}
	return kubeletv1.CredentialProviderConfig{
		TypeMeta:  metav1.TypeMeta{APIVersion: "kubelet.config.k8s.io/v1", Kind: "CredentialProviderConfig"},
		Providers: []kubeletv1.CredentialProvider{c},
	}
}

func (p plugin) load(t testing.TB, edit func(*kubeletv1.CredentialProvider)) *Plugins {
	t.Helper()
	text, err := json.Marshal(p.config(edit))
	if err != nil {
		t.Fatal(err)
	}
	all, err := Load(write(t, p.dir+"/config.json", string(text), 0o600), p.dir+"/bin")
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// lookup wants the one answer.
func lookup(t testing.TB, all *Plugins, image string) Answer {
	t.Helper()
	answers := all.Lookup(t.Context(), image, nil)
	if len(answers) != 1 {
		t.Fatalf("%s: %d answers", image, len(answers))
	}
	return answers[0]
}

var someAuth = map[string]pluginv1.AuthConfig{"*.example.com": {Username: "user", Password: "hunter22"}}

// TestRun: what a plugin is asked and answers, by kubelet's own types; its
// arguments and its environment.
func TestRun(t *testing.T) {
	t.Setenv("FROM_OUTSIDE", "outside")
	p := newPlugin(t, `echo "$1 $2 $VAR $FROM_OUTSIDE" > args; echo hunter22 >&2; cat answer`)
	p.prints(t, answerText(t, pluginv1.ImagePluginCacheKeyType, nil, someAuth))
	all := p.load(t, func(c *kubeletv1.CredentialProvider) {
		c.Args = []string{"one", "two words"}
		c.Env = []kubeletv1.ExecEnvVar{{Name: "VAR", Value: "value"}}
	})
	const image = "a.example.com/team/app"
	a := lookup(t, all, image)
	if want := map[string]Auth{"*.example.com": {"user", "hunter22"}}; a.Err != nil || a.Provider != "test-provider" || !reflect.DeepEqual(a.Auth, want) {
		t.Errorf("%+v, want %+v", a, want)
	}
	text, err := os.ReadFile(p.dir + "/request")
	if err != nil {
		t.Fatal(err)
	}
	var got pluginv1.CredentialProviderRequest
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	want := pluginv1.CredentialProviderRequest{TypeMeta: metav1.TypeMeta{APIVersion: "credentialprovider.kubelet.k8s.io/v1", Kind: "CredentialProviderRequest"}, Image: image}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("asked %+v, want %+v", got, want)
	}
	if args, _ := os.ReadFile(p.dir + "/args"); string(args) != "one two words value outside\n" {
		t.Errorf("arguments and environment %q", args)
	}
}

func TestKeeps(t *testing.T) {
	for _, c := range []struct {
		key  pluginv1.PluginCacheKeyType
		runs int // for two images of one registry and one of another, each twice
	}{
		{pluginv1.ImagePluginCacheKeyType, 3},
		{pluginv1.RegistryPluginCacheKeyType, 2},
		{pluginv1.GlobalPluginCacheKeyType, 1},
	} {
		p := newPlugin(t, "cat answer")
		p.prints(t, answerText(t, c.key, nil, someAuth))
		all := p.load(t, nil)
		for _, image := range []string{"a.example.com:5000/x", "a.example.com:5000/y", "b.example.com/x"} {
			for range 2 {
				if a := lookup(t, all, image); a.Err != nil || len(a.Auth) != 1 {
					t.Errorf("%s: %+v", image, a)
				}
			}
		}
		if n := p.runs(t); n != c.runs {
			t.Errorf("%s: %d runs, want %d", c.key, n, c.runs)
		}
	}
	// For as long as the answer says, or the configuration if it doesn't.
	zero, short, long := time.Duration(0), 300*time.Millisecond, time.Hour
	for name, c := range map[string]struct {
		said      *time.Duration
		byDefault time.Duration
		kept      bool // for a moment
		after     bool // after 500 ms
	}{
		"never":             {&zero, long, false, false},
		"never, by default": {nil, zero, false, false},
		"shortly":           {&short, long, true, false},
		"shortly, default":  {nil, short, true, false},
		"long":              {&long, zero, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlugin(t, "cat answer")
			p.prints(t, answerText(t, pluginv1.ImagePluginCacheKeyType, c.said, someAuth))
			all := p.load(t, func(p *kubeletv1.CredentialProvider) { p.DefaultCacheDuration.Duration = c.byDefault })
			start := time.Now()
			lookup(t, all, "a.example.com/x")
			lookup(t, all, "a.example.com/x")
			if n := p.runs(t); (n == 1) != c.kept && time.Since(start) < short {
				t.Errorf("%d runs at once", n)
			}
			before := p.runs(t)
			time.Sleep(500 * time.Millisecond)
			lookup(t, all, "a.example.com/x")
			if n := p.runs(t) - before; (n == 0) != c.after {
				t.Errorf("%d runs later", n)
			}
		})
	}
}

// TestOneRun: many who want the same at once.
func TestOneRun(t *testing.T) {
	p := newPlugin(t, "sleep 0.3; cat answer")
	p.prints(t, answerText(t, pluginv1.ImagePluginCacheKeyType, nil, someAuth))
	all := p.load(t, nil)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if a := lookup(t, all, "a.example.com/x"); a.Err != nil {
				t.Error(a.Err)
			}
		})
	}
	wg.Wait()
	if n := p.runs(t); n != 1 {
		t.Errorf("%d runs", n)
	}
}

// TestBadPlugins: what goes wrong is told without what the plugin wrote, and is
// not kept.
func TestBadPlugins(t *testing.T) {
	good := answerText(t, pluginv1.ImagePluginCacheKeyType, nil, someAuth)
	for name, c := range map[string]struct{ script, answer, want string }{
		"fails":            {"echo hunter22; echo hunter22 >&2; exit 3", "", "exit status 3"},
		"is killed":        {"kill -9 $$", "", "killed"},
		"hangs":            {"sleep 100", "", "took longer than 300ms"},
		"leaves a child":   {"sleep 100 & cat answer; wait", good, "took longer than 300ms"},
		"says nothing":     {"true", "", "not valid JSON"},
		"says too much":    {"yes hunter22", "", "too long"},
		"garbage":          {"cat answer", "hunter22", "not valid JSON"},
		"another kind":     {"cat answer", strings.Replace(good, "Response", "hunter22", 1), "no CredentialProviderResponse"},
		"another version":  {"cat answer", strings.Replace(good, "k8s.io/v1", "k8s.io/v1beta1", 1), "no CredentialProviderResponse"},
		"no cacheKeyType":  {"cat answer", strings.Replace(good, `"Image"`, `"hunter22"`, 1), "cacheKeyType"},
		"a wrong duration": {"cat answer", strings.Replace(good, `"auth"`, `"cacheDuration":"hunter22","auth"`, 1), "not valid JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlugin(t, c.script)
			p.prints(t, c.answer)
			all := p.load(t, nil)
			all.providers[0].limit = 300 * time.Millisecond
			if c.script == "yes hunter22" || c.script == "cat answer" {
				all.providers[0].limit = 20 * time.Second
			}
			for n := 1; n <= 2; n++ {
				start := time.Now()
				a := lookup(t, all, "a.example.com/x")
				if a.Err == nil || !strings.Contains(a.Err.Error(), c.want) || strings.Contains(a.Err.Error(), "hunter22") || a.Auth != nil {
					t.Errorf("%+v, want an error with %q", a, c.want)
				}
				if d := time.Since(start); d > 15*time.Second {
					t.Errorf("it took %v", d)
				}
				want := n
				if strings.Contains(c.want, "took longer") {
					want = 1 // for a while
				}
				if got := p.runs(t); got != want {
					t.Errorf("%d runs, want %d", got, want)
				}
			}
		})
	}
}

// TestGivesUp: the caller's end is no end of the run, whose answer the next gets.
func TestGivesUp(t *testing.T) {
	p := newPlugin(t, "sleep 0.5; cat answer")
	p.prints(t, answerText(t, pluginv1.ImagePluginCacheKeyType, nil, someAuth))
	all := p.load(t, nil)
	ctx := t.Context()
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if a := all.Lookup(short, "a.example.com/x", nil)[0]; a.Err == nil {
		t.Error("no error")
	}
	if a := lookup(t, all, "a.example.com/x"); a.Err != nil || p.runs(t) != 1 {
		t.Errorf("%v after %d runs", a.Err, p.runs(t))
	}
}

// TestTokens: providers get the caller's token for their audience. Without one those that
// require it are not run, and those are that can do without; nor are those run that require
// what is not known here.
func TestTokens(t *testing.T) {
	tokens := map[string]string{"a": "hunter22-token", "b": "another"}
	annotated := []string{"example.com/id"}
	for name, c := range map[string]struct {
		required    bool
		annotations []string
		tokens      map[string]string
		sent        string
		err         string
		unusable    int
	}{
		"required":                      {true, nil, tokens, "hunter22-token", "", 0},
		"optional":                      {false, nil, tokens, "hunter22-token", "", 0},
		"required, none":                {true, nil, nil, "", "a service account's token for the audience \"a\"", 0},
		"required, for others":          {true, nil, map[string]string{"b": "another", "": "x"}, "", "tokenRequests", 0},
		"optional, none":                {false, nil, nil, "", "", 0},
		"required, annotations":         {true, annotated, tokens, "", "requiredServiceAccountAnnotationKeys", 1},
		"optional, without annotations": {false, annotated, tokens, "", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlugin(t, "cat answer")
			p.prints(t, answerText(t, pluginv1.GlobalPluginCacheKeyType, nil, someAuth))
			all := p.load(t, func(cp *kubeletv1.CredentialProvider) {
				cp.TokenAttributes = &kubeletv1.ServiceAccountTokenAttributes{
					ServiceAccountTokenAudience: "a", CacheType: kubeletv1.ServiceAccountServiceAccountTokenCacheType,
					RequireServiceAccount: &c.required, RequiredServiceAccountAnnotationKeys: c.annotations,
				}
			})
			if n := len(all.Unusable()); n != c.unusable {
				t.Errorf("unusable: %v", all.Unusable())
			}
			if want := c.annotations == nil; all.Wants("a") != want || all.Wants("b") || all.Wants("") {
				t.Errorf("wants tokens for a: %v, b: %v", all.Wants("a"), all.Wants("b"))
			}
			a := all.Lookup(t.Context(), "a.example.com/x", c.tokens)[0]
			if c.err != "" {
				if a.Err == nil || !strings.Contains(a.Err.Error(), c.err) || strings.Contains(a.Err.Error(), "hunter22") || p.runs(t) != 0 {
					t.Errorf("%v, %d runs", a.Err, p.runs(t))
				}
				return
			}
			var asked pluginv1.CredentialProviderRequest
			text, err := os.ReadFile(p.dir + "/request")
			if err != nil || json.Unmarshal(text, &asked) != nil || asked.ServiceAccountToken != c.sent || asked.ServiceAccountAnnotations != nil || a.Err != nil {
				t.Errorf("asked %s, %v, %v", text, err, a.Err)
			}
		})
	}
	var none *Plugins
	if none.Lookup(t.Context(), "a", tokens) != nil || none.Unusable() != nil || none.Wants("a") {
		t.Error("no plugins say something")
	}
}

// TestTokensApart: what was answered to one token is not given to another, nor without
// one, whatever the answer says that it is for.
func TestTokensApart(t *testing.T) {
	p := newPlugin(t, "cat answer")
	p.prints(t, answerText(t, pluginv1.GlobalPluginCacheKeyType, nil, someAuth))
	optional := false
	all := p.load(t, func(cp *kubeletv1.CredentialProvider) {
		cp.TokenAttributes = &kubeletv1.ServiceAccountTokenAttributes{
			ServiceAccountTokenAudience: "a", CacheType: kubeletv1.ServiceAccountServiceAccountTokenCacheType, RequireServiceAccount: &optional,
		}
	})
	for i, token := range []string{"one", "two", "", "one", "two", ""} {
		if a := all.Lookup(t.Context(), "a.example.com/x", map[string]string{"a": token})[0]; a.Err != nil {
			t.Fatal(a.Err)
		}
		if n := p.runs(t); n != min(i+1, 3) {
			t.Errorf("%d runs after %d lookups", n, i+1)
		}
	}
}

// TestMatch: the examples of kubelet's documentation and its tests.
func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern string
		yes, no []string
	}{
		{"123456789.dkr.ecr.us-east-1.amazonaws.com", []string{"123456789.dkr.ecr.us-east-1.amazonaws.com/a/b"}, []string{"1.dkr.ecr.us-east-1.amazonaws.com/a"}},
		{"*.azurecr.io", []string{"x.azurecr.io/a"}, []string{"azurecr.io/a", "a.b.azurecr.io/a", "x.azurecr.io:443/a"}},
		{"gcr.io", []string{"gcr.io/a", "gcr.io"}, []string{"us.gcr.io/a", "gcr.io:5000/a", "notgcr.io/a"}},
		{"*.*.registry.io", []string{"a.b.registry.io/x"}, []string{"a.registry.io/x"}},
		{"registry.io:8080/path", []string{"registry.io:8080/path", "registry.io:8080/path/a", "registry.io:8080/pathological"}, []string{"registry.io/path", "registry.io:8080/other", "registry.io:8081/path"}},
		{"app*.k8s.io", []string{"app1.k8s.io/a"}, []string{"web.k8s.io/a"}},
		{"k8s.*", []string{"k8s.io/a"}, []string{"x.k8s.io/a"}},
		{"k8s.*.io", []string{"k8s.gcr.io/a"}, []string{"k8s.io/a"}},
	} {
		p, err := parsePattern(c.pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, image := range c.yes {
			if !p.matches(image) {
				t.Errorf("%s does not match %s", c.pattern, image)
			}
		}
		for _, image := range c.no {
			if p.matches(image) {
				t.Errorf("%s matches %s", c.pattern, image)
			}
		}
	}
}

func TestKeptIsBounded(t *testing.T) {
	p := &provider{lasts: time.Hour, cache: make(map[string]kept)}
	for i := range maxKept + 10 {
		lasts := duration(time.Hour + time.Duration(i)*time.Second)
		if err := p.keep("a/"+strconv.Itoa(i), "", &response{CacheKeyType: byImage, CacheDuration: &lasts}); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := p.cache["a/9"]; ok || len(p.cache) != maxKept {
		t.Errorf("%d are kept", len(p.cache))
	}
}
