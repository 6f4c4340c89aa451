package nodecache

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	orasregistry "oras.land/oras-go/v2/registry"

	"github.com/erofs-csi/erofs-csi/nodecache/hosts"
)

// RegistryConfig says how a node gets at registries. The zero value has no
// credentials, no mirrors and the default limits.
type RegistryConfig struct {
	// CredentialsFile is a dockerconfigjson for all images of the node, of at
	// most 1 MiB, or "". It is read when it is needed and has changed, and may
	// be missing for a time.
	CredentialsFile string
	// ProviderConfig is kubelet's CredentialProviderConfig, a file or a
	// directory of them, or ""; the plugins are in ProviderBinDir. They are
	// read once.
	ProviderConfig, ProviderBinDir string
	// HostsDir is a directory as containerd's certs.d, or "": see package
	// nodecache/hosts. It is read for each pull.
	HostsDir string
	// MaxRequests and MaxRequestsPerHost bound the requests for blobs under
	// way at once, and as many others; 0 means DefaultMaxRequests and
	// DefaultMaxRequestsPerHost.
	MaxRequests, MaxRequestsPerHost int
}

// registries is what all registry clients of a store share.
type registries struct {
	plainHTTP  func(string) bool
	hostsDir   string
	keys       *keychain
	limits     *limits
	health     *health
	transports *transports
	received   received
}

func newRegistries(cfg Config) (*registries, error) {
	keys, err := newKeychain(cfg.Registries)
	if err != nil {
		return nil, err
	}
	return &registries{
		plainHTTP:  cfg.PlainHTTP,
		hostsDir:   cfg.Registries.HostsDir,
		keys:       keys,
		limits:     newLimits(cfg.Registries.MaxRequests, cfg.Registries.MaxRequestsPerHost),
		health:     newHealth(),
		transports: newTransports(cfg.RootCAs),
	}, nil
}

// endpoints are where to ask for a reference, in order.
func (g *registries) endpoints(ref reference) ([]*endpoint, error) {
	if ref.isWeb() {
		u, err := url.Parse(ref.url)
		if err != nil {
			return nil, invalidReference(ref.url, "it is not a well-formed URL")
		}
		e := g.itself(ref.registry)
		e.host, u.Host, u.Fragment = ref.registry, ref.registry, ""
		e.whole = u.String()
		return []*endpoint{e}, nil
	}
	var list []hosts.Host
	if g.hostsDir != "" {
		var err error
		if list, err = hosts.Lookup(g.hostsDir, ref.registry); err != nil {
			return nil, fmt.Errorf("%w: registry hosts: %w", ErrConfiguration, err)
		}
	}
	if list == nil {
		return []*endpoint{g.itself(ref.registry)}, nil
	}
	all := make([]*endpoint, 0, len(list))
	for _, h := range list {
		e, err := g.endpoint(ref, h)
		if err != nil {
			return nil, fmt.Errorf("%w: registry hosts: %w", ErrConfiguration, err)
		}
		all = append(all, e)
	}
	return all, nil
}

// itself is the registry at its own address. docker.io is served elsewhere.
func (g *registries) itself(registry string) *endpoint {
	e := &endpoint{
		host: orasregistry.Reference{Registry: registry}.Host(), path: "/v2",
		server: true, itself: true, pull: true, resolve: true,
		transport: g.transports.plain, health: g.health,
	}
	if g.plainHTTP != nil {
		e.plain.Store(g.plainHTTP(registry))
	} else {
		e.mayFallBack = isLoopback(registry)
	}
	return e
}

func (g *registries) endpoint(ref reference, h hosts.Host) (*endpoint, error) {
	e := g.itself(ref.registry)
	if h.URL != nil {
		own := orasregistry.Reference{Registry: ref.registry}.Host()
		e.host, e.path = orasregistry.Reference{Registry: h.URL.Host}.Host(), h.URL.Path
		e.itself = strings.EqualFold(e.host, own)
		_, port, _ := net.SplitHostPort(e.host)
		e.mayFallBack = h.URL.Scheme == "http" && h.Dial.TLSIsConfigured() && port != "80"
		e.plain.Store(h.URL.Scheme == "http" && !e.mayFallBack)
		e.exposed = (h.URL.Scheme == "http" || h.Dial.SkipsVerification()) && !isLoopback(e.host)
	}
	e.server, e.pull, e.resolve, e.header = h.Server, h.Pull, h.Resolve, h.Header
	var err error
	e.transport, err = g.transports.get(h.Dial)
	return e, err
}

// maxTransports bounds those with settings of their own; beyond it all are
// dropped, and their connections end when the requests on them have.
const maxTransports = 64

// transports keeps connections to be used again, apart for different settings.
type transports struct {
	roots *x509.CertPool
	plain *http.Transport // of the default settings

	mu    sync.Mutex
	other map[string]*http.Transport // by hosts.Dial.Key. GUARDED_BY(mu)
}

func newTransports(roots *x509.CertPool) *transports {
	return &transports{roots: roots, plain: newTransport(roots), other: make(map[string]*http.Transport)}
}

func (t *transports) get(d hosts.Dial) (*http.Transport, error) {
	if d.Key() == "" {
		return t.plain, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if have := t.other[d.Key()]; have != nil {
		return have, nil
	}
	made := newTransport(t.roots)
	if err := d.TLS(made.TLSClientConfig); err != nil {
		return nil, err
	}
	if d.Timeout != 0 {
		made.DialContext = dialer(d.Timeout).DialContext
	}
	if d.Proxy != nil {
		made.Proxy = http.ProxyURL(d.Proxy)
	}
	if len(t.other) >= maxTransports {
		for key, old := range t.other {
			old.CloseIdleConnections()
			delete(t.other, key)
		}
	}
	t.other[d.Key()] = made
	return made, nil
}

// close closes the connections that no request uses.
func (t *transports) close() {
	t.plain.CloseIdleConnections()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, one := range t.other {
		one.CloseIdleConnections()
	}
}

func dialer(timeout time.Duration) *net.Dialer {
	return &net.Dialer{Timeout: timeout, KeepAlive: 30 * time.Second}
}

// newTransport bounds each phase of a request but the body, which the stall
// timer and the context bound.
func newTransport(roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer(10 * time.Second).DialContext,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // the digest is that of the bytes as sent
		MaxIdleConns:           64,
		MaxIdleConnsPerHost:    maxStreams + maxDemands,
		IdleConnTimeout:        30 * time.Second,
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  30 * time.Second,
		MaxResponseHeaderBytes: 256 << 10,
	}
}

// Problems are what is wrong with the node's configuration of registries and
// does not keep it from working. Log them at start.
func (s *Store) Problems() []error {
	errs := s.registries.keys.problems()
	if dir := s.registries.hostsDir; dir != "" {
		if _, err := hosts.Lookup(dir, "_default"); err != nil {
			errs = append(errs, fmt.Errorf("registry hosts: %w", err))
		}
	}
	return errs
}
