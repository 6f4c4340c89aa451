package hosts

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// certificate is a self-signed one and its key, PEM.
func certificate(t testing.TB, name string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
}

// describe puts into words what a list of hosts says.
func describe(list []Host) []string {
	all := make([]string, 0, len(list))
	for _, h := range list {
		s := "itself"
		if h.URL != nil {
			s = h.URL.String()
		}
		for _, w := range []struct {
			word string
			is   bool
		}{
			{"server", h.Server},
			{"pull", h.Pull},
			{"resolve", h.Resolve},
			{"skip_verify", h.Dial.skipVerify != nil && *h.Dial.skipVerify},
			{"verify", h.Dial.skipVerify != nil && !*h.Dial.skipVerify},
			{"ca", h.Dial.ca != nil},
			{"client", h.Dial.pairs != nil},
			{"proxy", h.Dial.Proxy != nil},
			{"timeout", h.Dial.Timeout != 0},
		} {
			if w.is {
				s += " " + w.word
			}
		}
		for key, values := range h.Header {
			s += fmt.Sprintf(" %s=%q", key, values)
		}
		all = append(all, s)
	}
	return all
}

// TestContainerdsExamples: the files of containerd's docs/hosts.md.
func TestContainerdsExamples(t *testing.T) {
	dir := t.TempDir()
	cert, key := certificate(t, "ca")
	for _, name := range []string{"docker-mirror.crt", "certs/mirror.pem", "certs/test-1-ca.pem", "certs/special.pem"} {
		write(t, filepath.Join(dir, "docker.io", name), cert)
	}
	write(t, filepath.Join(dir, "docker.io/certs/client.cert"), cert)
	write(t, filepath.Join(dir, "docker.io/certs/client.key"), key)
	for _, name := range []string{"client.pem", "client-1.pem", "client-2.pem"} {
		write(t, filepath.Join(dir, "docker.io/certs", name), cert+key)
	}
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"simple": {`
server = "https://docker.io"

[host."https://registry-1.docker.io"]
  capabilities = ["pull", "resolve"]
`, []string{"https://registry-1.docker.io/v2 pull resolve", "https://docker.io/v2 server pull resolve"}},
		"local mirror": {`
server = "https://registry-1.docker.io"    # Exclude this to not use upstream

[host."https://public-mirror.example.com"]
  capabilities = ["pull"]                  # Requires less trust, won't resolve tag to digest from this host
[host."https://docker-mirror.internal"]
  capabilities = ["pull", "resolve"]
  ca = "docker-mirror.crt"
`, []string{"https://public-mirror.example.com/v2 pull", "https://docker-mirror.internal/v2 pull resolve ca", "https://registry-1.docker.io/v2 server pull resolve"}},
		"default mirror": {`
[host."https://registry.example.com"]
  capabilities = ["pull", "resolve"]
`, []string{"https://registry.example.com/v2 pull resolve", "itself server pull resolve"}},
		"mirror only": {`server = "https://registry.example.com"`, []string{"https://registry.example.com/v2 server pull resolve"}},
		"proxy": {`
server = "https://my-registry.io"
proxy = "http://different-proxy:8080"

[host."https://mirror.my-registry.io"]
  capabilities = ["pull", "resolve"]
  proxy = "http://my-proxy:8080"
`, []string{"https://mirror.my-registry.io/v2 pull resolve proxy", "https://my-registry.io/v2 server pull resolve proxy"}},
		"bypass TLS": {`
server = "https://registry-1.docker.io"

[host."http://192.168.31.250:5000"]
  capabilities = ["pull", "resolve", "push"]
  skip_verify = true
`, []string{"http://192.168.31.250:5000/v2 pull resolve skip_verify", "https://registry-1.docker.io/v2 server pull resolve"}},
		"detail": {`
[host."https://mirror.registry"]
  capabilities = ["pull"]
  ca = "certs/mirror.pem"
  skip_verify = false
  [host."https://mirror.registry".header]
    x-custom-2 = ["value1", "value2"]

[host."https://mirror-bak.registry/us"]
  capabilities = ["pull"]
  skip_verify = true

[host."http://mirror.registry"]
  capabilities = ["pull"]

[host."https://test-1.registry"]
  capabilities = ["pull", "resolve", "push"]
  ca = ["certs/test-1-ca.pem", "certs/special.pem"]
  client = [["certs/client.cert", "certs/client.key"],["certs/client.pem", ""]]

[host."https://test-2.registry"]
  client = "certs/client.pem"

[host."https://test-3.registry"]
  client = ["certs/client-1.pem", "certs/client-2.pem"]

[host."https://non-compliant-mirror.registry/v2/upstream"]
  capabilities = ["pull"]
  override_path = true
`, []string{
			`https://mirror.registry/v2 pull verify ca X-Custom-2=["value1" "value2"]`,
			"https://mirror-bak.registry/us/v2 pull skip_verify",
			"http://mirror.registry/v2 pull",
			"https://test-1.registry/v2 pull resolve ca client",
			"https://test-2.registry/v2 pull resolve client",
			"https://test-3.registry/v2 pull resolve client",
			"https://non-compliant-mirror.registry/v2/upstream pull",
			"itself server pull resolve",
		}},
		"server's fields": {`
capabilities = ["pull"]
dial_timeout = "1s"
[header]
  x-custom-1 = "custom header"
`, []string{`itself server pull timeout X-Custom-1=["custom header"]`}},
		"no scheme":    {`[host."mirror.example:5000"]`, []string{"https://mirror.example:5000/v2 pull resolve", "itself server pull resolve"}},
		"inline table": {`host = {"https://b.example" = {capabilities = ["pull"]}, "https://a.example" = {}}`, []string{"https://a.example/v2 pull resolve", "https://b.example/v2 pull", "itself server pull resolve"}},
		"unknown keys": {"new_key = 1\n[host.\"https://a.example\"]\nanother = [2]\n", []string{"https://a.example/v2 pull resolve", "itself server pull resolve"}},
	} {
		write(t, filepath.Join(dir, "docker.io/hosts.toml"), c.text)
		list, err := Lookup(dir, "docker.io")
		if got := describe(list); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s:\n got %q, %v\nwant %q", name, got, err, c.want)
		}
	}
}

func TestLookupDirectory(t *testing.T) {
	dir := t.TempDir()
	mirror := func(name string) string { return fmt.Sprintf("[host.%q]\n", "https://"+name) }
	if list, err := Lookup(dir, "example.com:5000"); list != nil || err != nil {
		t.Errorf("nothing there: %v, %v", list, err)
	}
	if list, err := Lookup(filepath.Join(dir, "missing"), "example.com"); list != nil || err != nil {
		t.Errorf("no directory: %v, %v", list, err)
	}
	for _, c := range []struct{ name, text, registry, want string }{
		{"_default", mirror("d"), "example.com:5000", "https://d/v2"},
		{"example.com", mirror("noport"), "example.com:5000", "https://d/v2"},
		{"example.com:5000", mirror("colon"), "example.com:5000", "https://colon/v2"},
		{"example.com_5000_", mirror("under"), "example.com:5000", "https://under/v2"},
		{"[::1]_5000_", mirror("six"), "[::1]:5000", "https://six/v2"},
		{"example.com", mirror("noport"), "example.com", "https://noport/v2"},
	} {
		write(t, filepath.Join(dir, c.name, "hosts.toml"), c.text)
		list, err := Lookup(dir, c.registry)
		if err != nil || len(list) == 0 || list[0].URL == nil || list[0].URL.String() != c.want {
			t.Errorf("%s with %s: %q, %v; want %s", c.registry, c.name, describe(list), err, c.want)
		}
	}
	write(t, filepath.Join(filepath.Dir(dir), "hosts.toml"), mirror("outside"))
	for _, registry := range []string{"..", ".", "a/../..", ""} {
		if list, _ := Lookup(dir, registry); len(list) > 0 && list[0].URL != nil && list[0].URL.Host == "outside" {
			t.Errorf("%q leads out of the directory", registry)
		}
	}
}

// TestDockersCertificates: a directory without a hosts.toml.
func TestDockersCertificates(t *testing.T) {
	dir := t.TempDir()
	cert, key := certificate(t, "ca")
	at := filepath.Join(dir, "example.com")
	write(t, filepath.Join(at, "README"), "not a certificate")
	if list, err := Lookup(dir, "example.com"); list != nil || err != nil {
		t.Errorf("without any: %q, %v", describe(list), err)
	}
	write(t, filepath.Join(at, "ca.crt"), cert)
	write(t, filepath.Join(at, "me.cert"), cert)
	write(t, filepath.Join(at, "me.key"), key)
	list, err := Lookup(dir, "example.com")
	if want := []string{"itself server pull resolve ca client"}; err != nil || !slices.Equal(describe(list), want) {
		t.Errorf("%q, %v; want %q", describe(list), err, want)
	}
}

func TestRefuses(t *testing.T) {
	dir := t.TempDir()
	cert, key := certificate(t, "a")
	_, other := certificate(t, "b")
	at := filepath.Join(dir, "example.com")
	write(t, filepath.Join(at, "cert.pem"), cert)
	write(t, filepath.Join(at, "other.key"), other)
	write(t, filepath.Join(at, "key.pem"), key)
	write(t, filepath.Join(at, "none.pem"), "hunter22")
	write(t, filepath.Join(at, "long.pem"), strings.Repeat("x", maxFile+1))
	many := ""
	for i := range maxHosts + 1 {
		many += fmt.Sprintf("[host.\"https://m%d.example\"]\n", i)
	}
	for text, want := range map[string]string{
		"server = ":                            "line 1",
		"x = 1\nserver = 17":                   "line 2",
		"[header]\nauthorization = \"hunter22": "line 2",
		"[header]\nx = 1":                      "header \"x\": want a string",
		"[header]\nx = [1]":                    "want strings",
		"[header]\n\"a b\" = \"x\"":            "a character",
		"[header]\na = \"x\\ny\"":              "a character",
		`capabilities = ["pull", "delete"]`:    `"delete"`,
		`server = "ftp://example.com"`:         "http[s]://",
		`server = "https://u:hunter22@h"`:      "http[s]://",
		`[host."https:///x"]`:                  "http[s]://",
		`[host."https://h?x=1"]`:               "http[s]://",
		`ca = "missing.pem"`:                   "no such file",
		`ca = "none.pem"`:                      "holds no certificate",
		`ca = "long.pem"`:                      "longer than",
		`ca = 1`:                               "want a string",
		`client = "cert.pem"`:                  "no certificate with its key",
		`client = [["cert.pem", "other.key"]]`: "no certificate with its key",
		`client = [["cert.pem"]]`:              "pairs",
		`client = 1`:                           "want a path",
		`dial_timeout = "soon"`:                "duration",
		`dial_timeout = "-1s"`:                 "duration",
		`proxy = "ftp://hunter22@p"`:           "scheme",
		`proxy = "http://hunter22@p/path"`:     "without a path",
		many:                                   "at most 32",
		strings.Repeat("#", maxFile+1):         "longer than",
	} {
		write(t, filepath.Join(at, "hosts.toml"), text)
		list, err := Lookup(dir, "example.com")
		if err == nil {
			t.Errorf("%.60q is accepted: %q", text, describe(list))
			continue
		}
		if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), at) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.60q: error %q, want one line with %q and %s", text, err, want, at)
		}
		if strings.Contains(err.Error(), "hunter22") {
			t.Errorf("the error tells a secret: %v", err)
		}
	}
}

func TestDial(t *testing.T) {
	dir := t.TempDir()
	cert, key := certificate(t, "a")
	at := filepath.Join(dir, "example.com")
	write(t, filepath.Join(at, "ca.pem"), cert)
	write(t, filepath.Join(at, "client.pem"), cert+key)
	seen := map[string]string{"": "the default"}
	for _, text := range []string{
		"skip_verify = true", "skip_verify = false", `dial_timeout = "2s"`, `dial_timeout = "3s"`, `proxy = "http://p:1"`,
		`ca = "ca.pem"`, `client = "client.pem"`, "ca = \"ca.pem\"\nclient = \"client.pem\"",
	} {
		write(t, filepath.Join(at, "hosts.toml"), text)
		list, err := Lookup(dir, "example.com")
		if err != nil {
			t.Fatal(err)
		}
		d := list[0].Dial
		if was, ok := seen[d.Key()]; ok {
			t.Errorf("%q has the key of %q", text, was)
		}
		seen[d.Key()] = text
		var cfg tls.Config
		if err := d.TLS(&cfg); err != nil {
			t.Fatal(err)
		}
		if cfg.InsecureSkipVerify != (text == "skip_verify = true") || (cfg.RootCAs != nil) != strings.Contains(text, "ca =") || (len(cfg.Certificates) == 1) != strings.Contains(text, "client =") {
			t.Errorf("%q: %+v", text, &cfg)
		}
	}
	write(t, filepath.Join(at, "ca.pem"), cert+cert)
	write(t, filepath.Join(at, "hosts.toml"), `ca = "ca.pem"`)
	if list, err := Lookup(dir, "example.com"); err != nil || seen[list[0].Dial.Key()] != "" {
		t.Errorf("a changed certificate has the old key: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("server = \"https://a\"\n[host.\"https://b\"]\ncapabilities = [\"pull\"]\n[host.\"https://b\".header]\nx = [\"y\"]\n")
	f.Add("host = {a = {}}\nclient = [[\"a\", \"b\"], \"c\"]\n")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parse(dir, []byte(text))
		if err == nil && (len(list) == 0 || !list[len(list)-1].Server) {
			t.Errorf("no server at the end of %q", describe(list))
		}
	})
}
