package nodecache

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"

	"oras.land/oras-go/v2/registry/remote/auth"
)

func basicAuth(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
}

// dockerConfig is a dockerconfigjson with one user for one host.
func dockerConfig(host, user, password string) []byte {
	return fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, host, basicAuth(user, password))
}

func TestCredentialsFor(t *testing.T) {
	config := fmt.Sprintf(`{"auths": {
		"example.com": {"auth": %q},
		"https://example.com:5000/v2/": {"username": "u2", "password": "p2"},
		"example.com/team": {"identitytoken": "id"},
		"example.com/team/deep": {"registrytoken": "reg"},
		"*.example.com": {"username": "wild", "password": "card"},
		"exact.example.com": {"username": "ex", "password": "act"},
		"https://index.docker.io/v1/": {"username": "hub", "password": "hubpass"},
		"colon.example.com": {"auth": %q},
		"raw.example.com": {"auth": %q}
	}, "credHelpers": {"x": "y"}}`, basicAuth("u1", "p1"), basicAuth("u", "p:q"), strings.TrimRight(basicAuth("u", "pass"), "="))
	u1 := auth.Credential{Username: "u1", Password: "p1"}
	for ref, want := range map[string][]auth.Credential{
		"example.com/a":           {{Username: "u1", Password: "p1"}},
		"example.com/teamwork":    {{Username: "u1", Password: "p1"}},
		"example.com/team":        {{RefreshToken: "id"}, u1},
		"example.com/team/a":      {{RefreshToken: "id"}, u1},
		"example.com/team/deep/a": {{AccessToken: "reg"}, {RefreshToken: "id"}, u1},
		"example.com:5000/a":      {{Username: "u2", Password: "p2"}},
		"example.com:5001/a":      nil,
		"sub.example.com/a":       {{Username: "wild", Password: "card"}},
		"a.sub.example.com/a":     nil,
		"exact.example.com/a":     {{Username: "ex", Password: "act"}, {Username: "wild", Password: "card"}},
		"colon.example.com/a":     {{Username: "u", Password: "p:q"}, {Username: "wild", Password: "card"}},
		"raw.example.com/a":       {{Username: "u", Password: "pass"}, {Username: "wild", Password: "card"}},
		"docker.io/library/a":     {{Username: "hub", Password: "hubpass"}},
		"index.docker.io/a":       {{Username: "hub", Password: "hubpass"}},
		"127.0.0.1:5000/a":        nil,
	} {
		r, err := parseReference(ref)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := credentialsFor([]byte(config), r.registry, r.repository); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", ref, got, err, want)
		}
	}
}

func TestCredentialsForRefuses(t *testing.T) {
	r, err := parseReference("example.com/a")
	if err != nil {
		t.Fatal(err)
	}
	for _, config := range []string{
		`hunter22`,
		`{"auths": {"example.com": "hunter22"}}`,
		`{"auths": {"example.com": {"auth": "hunter22!"}}}`,
		`{"auths": {"example.com": {"auth": "aHVudGVyMjI="}}}`,
		`{"auths": {"example.com": {"auth": ` + strings.Repeat(" ", maxDockerConfig) + `""}}}`,
	} {
		_, err := credentialsFor([]byte(config), r.registry, r.repository)
		wantError(t, err, ErrInvalidCredentials)
		if strings.Contains(err.Error(), "hunter22") {
			t.Errorf("the error quotes the secret: %v", err)
		}
	}
	if c, err := credentialsFor(nil, r.registry, r.repository); err != nil || c != nil {
		t.Errorf("no config: %+v, %v", c, err)
	}
	if c, err := credentialsFor([]byte(`{}`), r.registry, r.repository); err != nil || c != nil {
		t.Errorf("empty config: %+v, %v", c, err)
	}
}

func FuzzCredentialsFor(f *testing.F) {
	f.Add([]byte(`{"auths":{"example.com":{"auth":"dTpw"},"*.com":{"username":"u"}}}`))
	r, err := parseReference("example.com/a/b")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, config []byte) {
		if _, err := credentialsFor(config, r.registry, r.repository); err != nil {
			wantError(t, err, ErrInvalidCredentials)
		}
	})
}
