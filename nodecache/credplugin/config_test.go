package credplugin

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// goodConfig is the example of the Kubernetes documentation, shortened.
const goodConfig = `apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
# providers is a list of credential provider helper plugins
providers:
  - name: ecr-credential-provider
    matchImages:
      - "*.dkr.ecr.*.amazonaws.com"
      - "*.dkr.ecr.*.amazonaws.com.cn"
    defaultCacheDuration: "12h"
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args:
      - get-credentials
    env:
      - name: AWS_PROFILE
        value: example_profile
`

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	bin := dir + "/bin"
	for _, name := range []string{"ecr-credential-provider", "second"} {
		write(t, bin+"/"+name, "#!/bin/sh\n", 0o700)
	}
	for _, versions := range [][2]string{{"v1", "v1"}, {"v1beta1", "v1"}, {"v1alpha1", "v1beta1"}, {"v1", "v1alpha1"}} {
		text := strings.Replace(goodConfig, "config.k8s.io/v1", "config.k8s.io/"+versions[0], 1)
		text = strings.Replace(text, "kubelet.k8s.io/v1", "kubelet.k8s.io/"+versions[1], 1)
		all, err := Load(write(t, dir+"/config.yaml", text, 0o600), bin)
		if err != nil {
			t.Errorf("%s: %v", versions, err)
			continue
		}
		p := all.providers[0]
		if len(all.providers) != 1 || p.apiVersion != "credentialprovider.kubelet.k8s.io/"+versions[1] || p.lasts != 12*time.Hour ||
			p.path != bin+"/ecr-credential-provider" || len(p.args) != 1 || len(p.env) != 1 || p.env[0] != "AWS_PROFILE=example_profile" || len(p.match) != 2 {
			t.Errorf("%s: %+v", versions, p)
		}
	}
	// A directory, in the order of the names.
	many := dir + "/many"
	write(t, many+"/2.yaml", goodConfig, 0o600)
	write(t, many+"/1.yml", strings.Replace(goodConfig, "name: ecr-credential-provider", "name: second", 1), 0o600)
	write(t, many+"/3.txt", "not read", 0o600)
	all, err := Load(many, bin)
	if err != nil || len(all.providers) != 2 || all.providers[0].name != "second" {
		t.Errorf("%+v, %v", all, err)
	}
	write(t, many+"/4.json", goodConfig, 0o600)
	if _, err := Load(many, bin); err == nil || !strings.Contains(err.Error(), "there twice") {
		t.Errorf("twice: %v", err)
	}
}

func TestLoadRefuses(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/bin/ecr-credential-provider", "#!/bin/sh\n", 0o700)
	write(t, dir+"/bin/plain-file", "#!/bin/sh\n", 0o600)
	with := func(old, text string) string {
		if !strings.Contains(goodConfig, old) {
			t.Fatalf("no %q", old)
		}
		return strings.Replace(goodConfig, old, text, 1)
	}
	providers := ""
	for i := range maxProviders + 1 {
		providers += fmt.Sprintf("  - {name: p%d}\n", i)
	}
	for text, want := range map[string]string{
		"":     "want a CredentialProviderConfig",
		"{":    "line 1",
		"1: b": "keys",
		with("config.k8s.io/v1", "config.k8s.io/v2"):                                                     "want a CredentialProviderConfig",
		with("kind: Cred", "kind: Kred"):                                                                 "want a CredentialProviderConfig",
		with("    args:", "    arguments:"):                                                              "arguments",
		with("ecr-cred", "../cred"):                                                                      "its name",
		with("ecr-cred", "missing-cred"):                                                                 "no such executable",
		with("ecr-credential-provider", "plain-file"):                                                    "no such executable",
		with("kubelet.k8s.io/v1", "kubelet.k8s.io/v9"):                                                   "apiVersion",
		with(`"12h"`, `"-1h"`):                                                                           "defaultCacheDuration",
		with(`"12h"`, `"soon"`):                                                                          "duration",
		with(`    defaultCacheDuration: "12h"`+"\n", ""):                                                 "defaultCacheDuration",
		with(`"*.dkr.ecr.*.amazonaws.com"`, `"[x/"`):                                                     "matchImages",
		with(`"*.dkr.ecr.*.amazonaws.com"`, `"/x"`):                                                      "matchImages",
		with("    args:", "    tokenAttributes: {cacheType: Token}\n    args:"):                          "tokenAttributes",
		"apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders: []":            "names no providers",
		"apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n" + providers: "at most 64",
		strings.Repeat("#", maxConfig+1):                                                                 "longer than",
	} {
		if _, err := Load(write(t, dir+"/config.yaml", text, 0o600), dir+"/bin"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.300q: %v, want an error with %q", text, err, want)
		}
	}
	for _, path := range []string{dir + "/missing", t.TempDir()} {
		if _, err := Load(path, dir+"/bin"); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
