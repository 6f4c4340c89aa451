package credplugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	maxConfig    = 1 << 20 // bytes of the configuration
	maxProviders = 64
)

// versions that the configuration and the plugins may speak; their documents
// differ in nothing that is used here.
var versions = []string{"v1", "v1beta1", "v1alpha1"}

const (
	configGroup = "kubelet.config.k8s.io/"
	pluginGroup = "credentialprovider.kubelet.k8s.io/"
)

// Load reads a CredentialProviderConfig in YAML or JSON from a file, or from
// all *.json, *.yaml and *.yml files of a directory in the order of their
// names. The plugins are the executables in binDir that have the names of the
// providers. What kubelet would not start with is an error.
func Load(config, binDir string) (*Plugins, error) {
	files, err := configFiles(config)
	if err != nil {
		return nil, err
	}
	var all []providerConfig
	for _, name := range files {
		list, err := readConfig(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, list...)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: it names no providers", config)
	}
	if len(all) > maxProviders {
		return nil, fmt.Errorf("%s: %d providers, at most %d are allowed", config, len(all), maxProviders)
	}
	p := &Plugins{}
	seen := make(map[string]bool)
	for _, c := range all {
		if seen[c.Name] {
			return nil, fmt.Errorf("%s: provider %q is there twice", config, c.Name)
		}
		seen[c.Name] = true
		provider, err := newProvider(c, binDir)
		if err != nil {
			return nil, fmt.Errorf("%s: provider %q: %w", config, c.Name, err)
		}
		p.providers = append(p.providers, provider)
	}
	return p, nil
}

func configFiles(config string) ([]string, error) {
	st, err := os.Stat(config)
	if err != nil || !st.IsDir() {
		return []string{config}, err
	}
	entries, err := os.ReadDir(config) // sorted
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".json", ".yaml", ".yml":
			if !e.IsDir() {
				files = append(files, filepath.Join(config, e.Name()))
			}
		}
	}
	if files == nil {
		return nil, fmt.Errorf("%s holds no *.json, *.yaml or *.yml file", config)
	}
	return files, nil
}

func readConfig(name string) ([]providerConfig, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxConfig {
		return nil, fmt.Errorf("it is longer than %d bytes", maxConfig)
	}
	// The types have the tags of JSON, of which YAML is a superset.
	var tree any
	if err := yaml.Unmarshal(text, &tree); err != nil {
		return nil, err
	}
	if text, err = json.Marshal(tree); err != nil {
		return nil, errors.New("it has keys that are no strings")
	}
	var doc configuration
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields() // as kubelet
	if err := d.Decode(&doc); err != nil {
		return nil, err
	}
	version, ok := strings.CutPrefix(doc.APIVersion, configGroup)
	if doc.Kind != "CredentialProviderConfig" || !ok || !slices.Contains(versions, version) {
		return nil, fmt.Errorf("it is a %.80q of %.80q, want a CredentialProviderConfig of %sv1", doc.Kind, doc.APIVersion, configGroup)
	}
	return doc.Providers, nil
}

// newProvider checks what kubelet checks.
func newProvider(c providerConfig, binDir string) (*provider, error) {
	if c.Name == "" || c.Name == "." || c.Name == ".." || strings.ContainsAny(c.Name, "/ \x00") {
		return nil, errors.New("its name can't be that of a file")
	}
	if version, ok := strings.CutPrefix(c.APIVersion, pluginGroup); !ok || !slices.Contains(versions, version) {
		return nil, fmt.Errorf("apiVersion %.80q: want %sv1", c.APIVersion, pluginGroup)
	}
	if len(c.MatchImages) == 0 {
		return nil, errors.New("it has no matchImages")
	}
	if c.DefaultCacheDuration == nil || *c.DefaultCacheDuration < 0 {
		return nil, errors.New("it needs a defaultCacheDuration of 0 or more")
	}
	p := &provider{
		name:       c.Name,
		apiVersion: c.APIVersion,
		path:       filepath.Join(binDir, c.Name),
		args:       c.Args,
		limit:      maxRun,
		lasts:      time.Duration(*c.DefaultCacheDuration),
		cache:      make(map[string]kept),
	}
	for _, m := range c.MatchImages {
		pattern, err := parsePattern(m)
		if err != nil {
			return nil, fmt.Errorf("matchImages %.200q: %w", m, err)
		}
		p.match = append(p.match, pattern)
	}
	for _, v := range c.Env {
		p.env = append(p.env, v.Name+"="+v.Value)
	}
	if a := c.TokenAttributes; a != nil {
		if a.RequireServiceAccount == nil || a.Audience == "" || c.APIVersion != pluginGroup+"v1" {
			return nil, fmt.Errorf("tokenAttributes need serviceAccountTokenAudience, requireServiceAccount and apiVersion %sv1", pluginGroup)
		}
		p.needsToken = *a.RequireServiceAccount
		p.needsAnnotations = len(a.RequiredAnnotations) > 0
		p.audience = a.Audience
	}
	if _, err := exec.LookPath(p.path); err != nil {
		return nil, fmt.Errorf("there is no such executable in %s", binDir)
	}
	return p, nil
}
