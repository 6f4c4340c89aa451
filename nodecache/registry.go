package nodecache

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	orasregistry "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// maxRedirects of one request, as net/http's default.
const maxRedirects = 10

var (
	errTooManyRedirects = errors.New("too many redirects")
	errDowngrade        = errors.New("redirected from HTTPS to plain HTTP")
)

// newTransport bounds each phase of a request but the body, which the stall
// timer and the context bound.
func newTransport(roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // the digest is that of the bytes as sent
		MaxIdleConns:           16,
		IdleConnTimeout:        30 * time.Second,
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  30 * time.Second,
		MaxResponseHeaderBytes: 256 << 10,
	}
}

// registryClient speaks to the registry of one reference with the credentials
// of one caller. Nothing it learns, tokens least of all, is shared with another.
type registryClient struct {
	ref    reference
	host   string // where to connect: docker.io is served elsewhere
	source string // identifies registry, repository and credentials
	auth   *auth.Client
	given  bool // credentials were given for this registry
	hide   []string
	retry  retryPolicy
	// plain: speak HTTP. mayFallBack: become plain when the answer to HTTPS is.
	plain       atomic.Bool
	mayFallBack bool
}

func (s *Store) newRegistry(ref reference, dockerConfig []byte) (*registryClient, error) {
	cred, err := credentialFor(dockerConfig, ref)
	if err != nil {
		return nil, fmt.Errorf("credentials for %s: %w", ref.registry, err)
	}
	host := orasregistry.Reference{Registry: ref.registry}.Host()
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q", ref.registry, ref.repository, cred))
	r := &registryClient{
		ref:    ref,
		host:   host,
		source: hex.EncodeToString(sum[:]),
		given:  cred != auth.EmptyCredential,
		hide:   secretsOf(cred),
		retry:  s.retry,
		auth: &auth.Client{
			Client: &http.Client{Transport: s.transport, CheckRedirect: checkRedirect},
			Header: http.Header{"User-Agent": {"erofs-csi"}},
			Cache:  auth.NewCache(),
			Credential: func(_ context.Context, hostport string) (auth.Credential, error) {
				if hostport == host {
					return cred, nil
				}
				return auth.EmptyCredential, nil
			},
		},
	}
	if s.plainHTTP != nil {
		r.plain.Store(s.plainHTTP(ref.registry))
	} else {
		r.mayFallBack = isLoopback(ref.registry)
	}
	return r, nil
}

// checkRedirect is asked after auth.Client, which has taken the credentials
// from a request that left the registry's scheme, host and port.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return errTooManyRedirects
	}
	if req.URL.Scheme != "https" && via[len(via)-1].URL.Scheme == "https" {
		return errDowngrade
	}
	return nil
}

// send makes one request for /v2/<repository>/<kind>/<name>. The caller closes
// the body of the answer, whose status is 200, or 206 or 416 if a range was
// asked for; all else is an error.
func (r *registryClient) send(ctx context.Context, method, kind, name string, header http.Header) (*http.Response, error) {
	ctx = auth.AppendRepositoryScope(ctx, orasregistry.Reference{Registry: r.ref.registry, Repository: r.ref.repository}, auth.ActionPull)
	for {
		scheme := "https"
		if r.plain.Load() {
			scheme = "http"
		}
		req, err := http.NewRequestWithContext(ctx, method, scheme+"://"+r.host+"/v2/"+r.ref.repository+"/"+kind+"/"+name, http.NoBody)
		if err != nil {
			return nil, invalidReference(r.ref.String(), "it makes no URL")
		}
		req.Header = header.Clone()
		if req.Header == nil {
			req.Header = make(http.Header)
		}
		req.Header.Set("Accept-Encoding", "identity")
		resp, err := r.auth.Do(req)
		if err != nil && scheme == "https" && r.mayFallBack && errors.Is(err, http.ErrSchemeMismatch) {
			r.plain.Store(true) // nothing secret was sent: the handshake failed
			continue
		}
		if err != nil {
			return nil, r.requestFailed(ctx, err)
		}
		ranged := header.Get("Range") != ""
		switch {
		case resp.StatusCode == http.StatusOK,
			ranged && resp.StatusCode == http.StatusPartialContent,
			ranged && resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
			return resp, nil
		}
		err = r.refused(resp, kind)
		_ = resp.Body.Close()
		return nil, err
	}
}

// head asks for the digest that the reference means now; for a tag whose
// registry does not say, it is "".
func (r *registryClient) head(ctx context.Context) (d digest.Digest, err error) {
	err = r.retry.do(ctx, func() (int64, error) {
		resp, err := r.send(ctx, http.MethodHead, "manifests", r.ref.target(), acceptManifests())
		if err != nil {
			return 0, err
		}
		_ = resp.Body.Close()
		d = digest.Digest(resp.Header.Get("Docker-Content-Digest"))
		return 0, nil
	})
	if r.ref.digest != "" || validDigest(d) != nil {
		d = r.ref.digest
	}
	return d, err
}

// fetchManifest gets a manifest or index of at most maxManifest bytes, by
// digest or tag, and checks a digest.
func (r *registryClient) fetchManifest(ctx context.Context, target string) (text []byte, contentType string, err error) {
	err = r.retry.do(ctx, func() (int64, error) {
		var err error
		text, contentType, err = r.fetchManifestOnce(ctx, target)
		return 0, err
	})
	if err != nil {
		return nil, "", err
	}
	if want := digest.Digest(target); want.Validate() == nil {
		if got := digest.FromBytes(text); got != want {
			return nil, "", fmt.Errorf("%w: the registry sent a manifest %s for %s of %s", ErrDigestMismatch, got, want, r.ref)
		}
	}
	return text, contentType, nil
}

func (r *registryClient) fetchManifestOnce(ctx context.Context, target string) ([]byte, string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := r.send(ctx, http.MethodGet, "manifests", target, acceptManifests())
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.ContentLength > maxManifest {
		return nil, "", r.manifestTooLong()
	}
	body := newStallReader(resp.Body, r.retry.stall, cancel)
	defer body.stop()
	text, err := io.ReadAll(io.LimitReader(body, maxManifest+1))
	if len(text) > maxManifest {
		return nil, "", r.manifestTooLong()
	}
	if err != nil {
		return nil, "", r.bodyFailed(ctx, body, err)
	}
	contentType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return text, strings.TrimSpace(contentType), nil
}

func (r *registryClient) manifestTooLong() error {
	return fmt.Errorf("%w: the manifest of %s is longer than %d bytes", ErrUnsupportedImage, r.ref, maxManifest)
}

// isLoopback tells for host or host:port whether it is this machine by name.
func isLoopback(host string) bool {
	name := strings.Trim(host, "[]")
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	addr, err := netip.ParseAddr(name)
	return strings.EqualFold(name, "localhost") || err == nil && addr.IsLoopback()
}
