package driver

import (
	"errors"
	"strings"
	"testing"

	"github.com/erofs-csi/erofs-csi/nodecache"
)

func TestParseAttributes(t *testing.T) {
	defaults := attributes{
		Image: "r/a:1", PullPolicy: nodecache.IfNotPresent,
		Fingerprints: "verified", Engine: "auto", Lazy: "auto",
	}
	with := func(edit func(*attributes)) attributes {
		a := defaults
		edit(&a)
		return a
	}
	tests := []struct {
		name string
		in   map[string]string // beside image=r/a:1
		want attributes
	}{
		{"defaults", nil, defaults},
		{"empty values", map[string]string{"domain_id": "", "pullPolicy": "", "fingerprints": "", "engine": "", "lazy": ""}, defaults},
		{"defaults by name", map[string]string{"pullPolicy": "IfNotPresent", "fingerprints": "verified", "engine": "auto", "lazy": "auto"}, defaults},
		{"all", map[string]string{"domain_id": "team/x_1.2:3-4", "pullPolicy": "Always", "engine": "fuse", "lazy": "never"}, with(func(a *attributes) {
			a.Domain, a.PullPolicy, a.Engine, a.Lazy = "team/x_1.2:3-4", nodecache.Always, "fuse", "never"
		})},
		{"kernel engine", map[string]string{"engine": "kernel"}, with(func(a *attributes) { a.Engine = "kernel" })},
		{"trusted fingerprints", map[string]string{"fingerprints": "trusted"}, with(func(a *attributes) { a.Fingerprints = "trusted" })},
		{"cache limit", map[string]string{"cacheLimit": "1.5Gi"}, with(func(a *attributes) { a.CacheLimit = 3 << 29 })},
		{"least cache limit", map[string]string{"cacheLimit": "16777216"}, with(func(a *attributes) { a.CacheLimit = 16 << 20 })},
		{"user namespaces", map[string]string{"userNamespaces": "true"}, with(func(a *attributes) { a.UserNamespaces = true })},
		{"no user namespaces", map[string]string{"userNamespaces": "false"}, defaults},
		{"never", map[string]string{"pullPolicy": "Never"}, with(func(a *attributes) { a.PullPolicy = nodecache.Never })},
		{"path", map[string]string{"image": "/images/a.erofs,device=/images/b"}, with(func(a *attributes) { a.Image = "/images/a.erofs,device=/images/b" })},
		{"Kubernetes' keys", map[string]string{
			"csi.storage.k8s.io/pod.name":                     "p",
			"csi.storage.k8s.io/pod.uid":                      "u",
			"csi.storage.k8s.io/serviceAccount.tokens":        "{}",
			"csi.storage.k8s.io/pvc/name":                     "c",
			"storage.kubernetes.io/csiProvisionerIdentity":    "1-2-erofs.csi.dev",
			"csi.storage.k8s.io/something.of.a.later.release": "x",
		}, defaults},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			in := map[string]string{"image": "r/a:1"}
			for k, v := range test.in {
				in[k] = v
			}
			got, err := parseAttributes(in)
			if err != nil || got != test.want {
				t.Errorf("got %+v, %v; want %+v", got, err, test.want)
			}
		})
	}
}

func TestParseAttributesRefuses(t *testing.T) {
	tests := []struct {
		name  string
		in    map[string]string
		words []string
	}{
		{"no image", map[string]string{}, []string{"image", "missing"}},
		{"empty image", map[string]string{"image": ""}, []string{"image", "missing"}},
		{"long image", map[string]string{"image": strings.Repeat("a", 4097)}, []string{"4097", "4096"}},
		{"control character in image", map[string]string{"image": "a\nb"}, []string{`"a\nb"`}},
		{"image is no text", map[string]string{"image": "a\xff"}, []string{"printed"}},
		{"unknown keys", map[string]string{"image": "a", "Image": "b", "domain-id": "c"}, []string{`"Image", "domain-id"`, "pullPolicy"}},
		{"key of another company", map[string]string{"image": "a", "storage.kubernetes.io/x": "b"}, []string{"storage.kubernetes.io/x"}},
		{"space in domain", map[string]string{"image": "a", "domain_id": "a b"}, []string{"domain_id", `"a b"`}},
		{"letters beyond ASCII", map[string]string{"image": "a", "domain_id": "ä"}, []string{"domain_id"}},
		{"long domain", map[string]string{"image": "a", "domain_id": strings.Repeat("d", 129)}, []string{"128"}},
		{"pull policy", map[string]string{"image": "a", "pullPolicy": "always"}, []string{`"always"`, "IfNotPresent, Always, Never"}},
		{"fingerprints", map[string]string{"image": "a", "fingerprints": "yes"}, []string{`"yes"`, "verified"}},
		{"cache limit of the kernel engine", map[string]string{"image": "a", "engine": "kernel", "cacheLimit": "1Gi"}, []string{"cacheLimit", "engine: kernel"}},
		{"engine", map[string]string{"image": "a", "engine": "steam"}, []string{`"steam"`}},
		{"lazy", map[string]string{"image": "a", "lazy": "true"}, []string{"auto, never"}},
		{"cache limit", map[string]string{"image": "a", "cacheLimit": "much"}, []string{"cacheLimit", `"much"`, "512Mi"}},
		{"small cache limit", map[string]string{"image": "a", "cacheLimit": "15Mi"}, []string{`"15Mi"`, "between 16Mi and 8Ei"}},
		{"endless cache limit", map[string]string{"image": "a", "cacheLimit": "9e30"}, []string{`"9e30"`, "8Ei"}},
		{"user namespaces", map[string]string{"image": "a", "userNamespaces": "yes"}, []string{"userNamespaces", `"yes"`, "true nor false"}},
		{"negative cache limit", map[string]string{"image": "a", "cacheLimit": "-1Gi"}, []string{`"-1Gi"`}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := parseAttributes(test.in)
			if !errors.Is(err, errInvalid) {
				t.Fatalf("got %v, want errInvalid", err)
			}
			for _, word := range test.words {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("error %q does not say %q", err, word)
				}
			}
		})
	}
}

func TestParsePodInfo(t *testing.T) {
	got, err := parsePodInfo(map[string]string{keyEphemeral: "true", keyNamespace: "n", keyPodName: "p"})
	if want := (podInfo{Ephemeral: true, Namespace: "n", Name: "p"}); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for _, v := range []string{"", "false"} {
		if got, err := parsePodInfo(map[string]string{keyEphemeral: v}); err != nil || got.Ephemeral {
			t.Errorf("%q: got %+v, %v", v, got, err)
		}
	}
	if _, err := parsePodInfo(map[string]string{keyEphemeral: "1"}); !errors.Is(err, errInvalid) {
		t.Errorf("got %v, want errInvalid", err)
	}
}

// TestDomainsNeverMeet: no administrator's name is the name of an inline
// domain, and no two names become one.
func TestDomainsNeverMeet(t *testing.T) {
	seen := make(map[string]string)
	for _, id := range []string{
		"", "x", "namespace", "namespace/", "namespace/x", "domain", "domain/", "domain/x",
		"domain/namespace/x", "domain/domain/namespace/x", "Namespace/x", "x/namespace/x",
	} {
		got := administratorDomain(id)
		if strings.HasPrefix(got, inlineDomainPrefix) {
			t.Errorf("%q became %q, the name of an inline domain", id, got)
		}
		if other, ok := seen[got]; ok {
			t.Errorf("%q and %q both became %q", id, other, got)
		}
		if (id == "") != (got == "") {
			t.Errorf("%q became %q", id, got)
		}
		seen[got] = id
	}
	if got := administratorDomain("redis"); got != "redis" {
		t.Errorf("a plain name became %q", got)
	}
}

func TestInlinePolicy(t *testing.T) {
	policy, err := parseInlinePolicy([]string{"a=shared", "a=namespace/b", "c=other"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ id, namespace, want string }{
		{"", "a", ""},
		{"", "", ""},
		{"shared", "a", "shared"},
		{"shared", "b", "namespace/b"},
		{"other", "a", "namespace/a"},
		{"anything", "c", "namespace/c"},
		{"namespace/b", "c", "namespace/c"},
		{"namespace/b", "a", "domain/namespace/b"}, // the administrator's, not the inline one
	} {
		got, err := policy.domain(test.id, test.namespace)
		if err != nil || got != test.want {
			t.Errorf("%q asked for by namespace %q: %q, %v; want %q", test.id, test.namespace, got, err, test.want)
		}
	}
	if _, err := policy.domain("shared", ""); !errors.Is(err, errInvalid) || !strings.Contains(err.Error(), "podInfoOnMount") {
		t.Errorf("no namespace: %v", err)
	}
	for _, bad := range []string{"", "a", "=b", "a=", "a/b=c", "a=b c"} {
		if _, err := parseInlinePolicy([]string{bad}, nil); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
