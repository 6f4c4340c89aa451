package hosts

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	maxFile  = 1 << 20 // bytes of each file
	maxHosts = 32      // of one hosts.toml, the server aside
)

// Host is a place to ask for a registry's images.
type Host struct {
	// URL is where the API begins, as https://mirror.example/v2: scheme, host
	// and path only. nil stands for the registry itself, at its own address.
	URL *url.URL
	// Server marks the last host, the registry or what stands for it; the
	// others are mirrors.
	Server bool
	// Pull allows what has a digest, Resolve to ask what a tag means.
	Pull, Resolve bool
	// Header goes with each request to this host. It may hold secrets.
	Header http.Header
	// Dial is how to connect.
	Dial Dial
}

// Dial says how to connect to a host. The zero value is the default.
type Dial struct {
	ca         [][]byte // PEM
	pairs      []tls.Certificate
	skipVerify *bool
	Timeout    time.Duration // of a connection; 0: the default
	Proxy      *url.URL      // in place of the environment's
	key        string
}

// Key is equal for equal settings, and "" for the default.
func (d Dial) Key() string { return d.key }

// TLSIsConfigured tells whether a setting is about TLS: then also a host of
// scheme http is to be asked by HTTPS first.
func (d Dial) TLSIsConfigured() bool {
	return d.ca != nil || d.pairs != nil || d.skipVerify != nil
}

// SkipsVerification tells whether any certificate will do.
func (d Dial) SkipsVerification() bool { return d.skipVerify != nil && *d.skipVerify }

// TLS changes a configuration that has none of these settings yet. roots, if
// not nil, are trusted as well as those of the configuration.
func (d Dial) TLS(cfg *tls.Config) error {
	if d.skipVerify != nil {
		cfg.InsecureSkipVerify = *d.skipVerify // the administrator's word
	}
	cfg.Certificates = append(cfg.Certificates, d.pairs...)
	if d.ca == nil {
		return nil
	}
	roots := cfg.RootCAs
	if roots == nil {
		var err error
		if roots, err = x509.SystemCertPool(); err != nil {
			return fmt.Errorf("the system's certificates: %w", err)
		}
	} else {
		roots = roots.Clone()
	}
	for _, pem := range d.ca {
		roots.AppendCertsFromPEM(pem) // checked when it was read
	}
	cfg.RootCAs = roots
	return nil
}

// Lookup returns where to ask for the images of a registry (host[:port]), in
// the order to ask, the server last; nil if dir says nothing about it.
func Lookup(dir, registry string) ([]Host, error) {
	for _, name := range directoryNames(registry) {
		if !filepath.IsLocal(name) || strings.ContainsRune(name, filepath.Separator) {
			continue
		}
		at := filepath.Join(dir, name)
		if _, err := os.Stat(at); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return nil, err
		}
		return load(at)
	}
	return nil, nil
}

// directoryNames are where the directory of a registry may be, the first there
// is counts.
func directoryNames(registry string) []string {
	names := []string{registry, "_default"}
	if i := strings.LastIndexByte(registry, ':'); i > 0 {
		names = append([]string{registry[:i] + "_" + registry[i+1:] + "_"}, names...)
	}
	return names
}

func load(dir string) ([]Host, error) {
	name := filepath.Join(dir, "hosts.toml")
	text, err := readFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if len(text) == 0 {
		return certificates(dir)
	}
	hosts, err := parse(dir, text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return hosts, nil
}

// certificates reads a directory without a hosts.toml.
func certificates(dir string) ([]Host, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var c fileHost
	var ca, pairs []any
	for _, e := range entries {
		base, isCert := strings.CutSuffix(e.Name(), ".cert")
		switch {
		case e.IsDir():
		case strings.HasSuffix(e.Name(), ".crt"):
			ca = append(ca, e.Name())
		case isCert:
			key := base + ".key"
			if _, err := os.Stat(filepath.Join(dir, key)); err != nil {
				key = ""
			}
			pairs = append(pairs, []any{e.Name(), key})
		}
	}
	if ca == nil && pairs == nil {
		return nil, nil
	}
	if ca != nil {
		c.CA = ca
	}
	if pairs != nil {
		c.Client = pairs
	}
	h, err := c.host("", dir)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	h.Server = true
	return []Host{h}, nil
}

// readFile reads a regular file of at most maxFile bytes.
func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s is longer than %d bytes", name, maxFile)
	}
	return text, nil
}

// setKey identifies the settings by the hash of what was read.
func (d *Dial) setKey(parts ...[]byte) {
	sum := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(sum, "%d:", len(p))
		sum.Write(p)
	}
	d.key = hex.EncodeToString(sum.Sum(nil))
}
