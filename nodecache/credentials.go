package nodecache

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"oras.land/oras-go/v2/registry/remote/auth"
)

// maxDockerConfig bounds a pull secret in bytes: that of a Kubernetes Secret.
const maxDockerConfig = 1 << 20

// authEntry is one entry of "auths" in a dockerconfigjson. Of what is given,
// registrytoken is sent as it is, identitytoken is exchanged for a token, and
// auth (base64 of user:password) or username and password are used for basic
// authentication or to ask for a token.
type authEntry struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// credentialsFor finds the entries for a repository in a dockerconfigjson: the
// one with the longest matching path first, and a plain host before one with
// wildcards. There may be none. The error wraps [ErrInvalidCredentials] and
// quotes nothing of the document.
func credentialsFor(config []byte, registry, repository string) ([]auth.Credential, error) {
	if len(config) == 0 {
		return nil, nil
	}
	if len(config) > maxDockerConfig {
		return nil, fmt.Errorf("%w: the dockerconfigjson is longer than %d bytes", ErrInvalidCredentials, maxDockerConfig)
	}
	var doc struct {
		Auths map[string]authEntry `json:"auths"`
	}
	if json.Unmarshal(config, &doc) != nil {
		return nil, fmt.Errorf("%w: not a dockerconfigjson ({\"auths\": {\"host\": {\"auth\": ...}}})", ErrInvalidCredentials)
	}
	return matchingCredentials(doc.Auths, registry, repository)
}

// matchingCredentials are those of the entries that fit, best first, each once,
// and without empty ones.
func matchingCredentials(entries map[string]authEntry, registry, repository string) ([]auth.Credential, error) {
	var keys []string
	rank := make(map[string]int)
	for key := range entries {
		if n := matchAuthKey(key, registry, repository); n >= 0 {
			keys = append(keys, key)
			rank[key] = n
		}
	}
	// The key as a tie-break makes the choice independent of map order.
	slices.SortFunc(keys, func(a, b string) int {
		return cmp.Or(rank[b]-rank[a], strings.Compare(a, b))
	})
	var all []auth.Credential
	for _, key := range keys {
		c, err := entries[key].credential(registry)
		if err != nil {
			return nil, err
		}
		if c != auth.EmptyCredential && !slices.Contains(all, c) {
			all = append(all, c)
		}
	}
	return all, nil
}

func (e authEntry) credential(registry string) (auth.Credential, error) {
	c := auth.Credential{
		Username:     e.Username,
		Password:     e.Password,
		RefreshToken: e.IdentityToken,
		AccessToken:  e.RegistryToken,
	}
	if e.Auth != "" {
		text, err := base64.StdEncoding.DecodeString(e.Auth)
		if err != nil {
			text, err = base64.RawStdEncoding.DecodeString(e.Auth)
		}
		user, password, ok := strings.Cut(strings.TrimRight(string(text), "\x00"), ":")
		if err != nil || !ok {
			return auth.EmptyCredential, fmt.Errorf("%w: auth of %s is not base64 of user:password", ErrInvalidCredentials, registry)
		}
		c.Username, c.Password = user, password
	}
	return c, nil
}

// matchAuthKey ranks how well a key of auths, such as "example.com",
// "https://example.com:5000/v2/", "example.com/team" or "*.example.com", fits
// the repository; -1 means not at all.
func matchAuthKey(key, registry, repository string) int {
	if _, rest, ok := strings.Cut(key, "://"); ok {
		key = rest
	}
	host, under, _ := strings.Cut(key, "/")
	under = strings.Trim(under, "/")
	if under == "v1" || under == "v2" {
		under = ""
	}
	if under != "" && repository != under && !strings.HasPrefix(repository, under+"/") {
		return -1
	}
	rank := 2 * len(under)
	switch host, want := dockerHub(host), dockerHub(registry); {
	case strings.EqualFold(host, want):
		return rank + 1
	case matchHost(host, want):
		return rank
	}
	return -1
}

// matchHost compares label by label, * matching within a label; ports must be
// equal.
func matchHost(pattern, host string) bool {
	if !strings.Contains(pattern, "*") {
		return false
	}
	p, h := strings.Split(strings.ToLower(pattern), "."), strings.Split(strings.ToLower(host), ".")
	if len(p) != len(h) {
		return false
	}
	for i := range p {
		if ok, err := path.Match(p[i], h[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

// dockerHub maps the names under which credentials of docker.io are kept to one.
func dockerHub(host string) string {
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}
