package nodecache

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	orasregistry "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// endpoint is one place that a reference's bytes are asked for: the registry or
// a mirror of it.
type endpoint struct {
	host   string // host[:port] to connect to
	path   string // before /<repository>
	whole  string // the address of the one file that is there, for https:// references
	server bool   // the registry, or what stands for it; else a mirror
	itself bool   // the registry, not another in its place
	// exposed: somebody on the way may read or answer what is sent.
	exposed bool
	// pull: what has a digest may be asked for; resolve: what a tag means.
	pull, resolve bool
	header        http.Header // with every request; may hold secrets
	transport     *http.Transport
	// plain: speak HTTP. mayFallBack: become plain when the answer to HTTPS is.
	plain       atomic.Bool
	mayFallBack bool
	health      *health

	mu       sync.Mutex
	accepted *session // whose credential was accepted last. GUARDED_BY(mu)
}

// session is an endpoint with one credential and the tokens had for it.
type session struct {
	candidate
	client *auth.Client
}

// key identifies the endpoint among those of all registries.
func (e *endpoint) key() string { return e.host + e.path }

// address is the URL of a manifest or blob.
func (e *endpoint) address(ref reference, kind, name string) string {
	scheme := "https"
	if e.plain.Load() {
		scheme = "http"
	}
	if ref.isWeb() {
		return scheme + strings.TrimPrefix(e.whole, "https")
	}
	address := scheme + "://" + e.host + e.path + "/" + ref.repository + "/" + kind + "/" + name
	if !e.itself {
		address += "?ns=" + url.QueryEscape(ref.registry) // as containerd tells a mirror whose images it means
	}
	return address
}

// places are where in a set of credentials those for this endpoint are: under
// its own name, and a mirror's also under the registry's, since it may ask for
// what the registry would, unless others on the way could read them.
func (e *endpoint) places(ref reference) []place {
	own := place{e.host, ref.repository}
	named := place{ref.registry, ref.repository}
	switch {
	case e.itself:
		return []place{named}
	case e.exposed:
		return []place{own}
	}
	return []place{own, named}
}

// session returns a new session with one credential.
func (e *endpoint) session(c candidate) *session {
	return &session{candidate: c, client: &auth.Client{
		Client: &http.Client{Transport: e.transport, CheckRedirect: e.checkRedirect},
		Header: http.Header{"User-Agent": {"erofs-csi"}},
		Cache:  auth.NewCache(),
		Credential: func(_ context.Context, hostport string) (auth.Credential, error) {
			if hostport == e.host {
				return c.cred, nil
			}
			return auth.EmptyCredential, nil
		},
	}}
}

func (e *endpoint) current() *session {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.accepted
}

func (e *endpoint) accept(s *session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.accepted = s
}

// checkRedirect is asked after auth.Client, which has taken the credentials
// from a request that left the endpoint's scheme, host and port.
func (e *endpoint) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return errTooManyRedirects
	}
	if req.URL.Scheme != "https" && via[len(via)-1].URL.Scheme == "https" {
		return errDowngrade
	}
	from := via[0].URL
	if left := func(r *http.Request) bool { return r.URL.Scheme != from.Scheme || r.URL.Host != from.Host }; left(req) || slices.ContainsFunc(via, left) {
		for name := range e.header {
			req.Header.Del(name)
		}
	}
	return nil
}

// do makes one request with a session.
func (e *endpoint) do(ctx context.Context, s *session, ref reference, method, kind, name string, header http.Header) (*http.Response, error) {
	ctx = auth.AppendRepositoryScope(ctx, orasregistry.Reference{Registry: e.host, Repository: ref.repository}, auth.ActionPull)
	if ref.isWeb() {
		ctx = auth.WithScopes(ctx)
	}
	for {
		plain := e.plain.Load()
		req, err := http.NewRequestWithContext(ctx, method, e.address(ref, kind, name), http.NoBody) //nolint:gosec // what the user and the administrator named is to be asked
		if err != nil {
			return nil, invalidReference(ref.String(), "it makes no URL")
		}
		for _, h := range []http.Header{header, e.header} {
			for key, values := range h {
				req.Header[http.CanonicalHeaderKey(key)] = values
			}
		}
		req.Header.Set("Accept-Encoding", "identity")
		resp, err := s.client.Do(req)
		if err != nil && !plain && e.mayFallBack && errors.Is(err, http.ErrSchemeMismatch) {
			e.plain.Store(true) // nothing secret was sent: the handshake failed
			continue
		}
		return resp, err
	}
}

const (
	// benched is how long a mirror that failed is asked last.
	benched = 30 * time.Second
	// maxBenched bounds what a mirror's Retry-After makes of it.
	maxBenched = 5 * time.Minute
)

// health remembers which mirrors failed, for all pulls of a node.
type health struct {
	mu    sync.Mutex
	until map[string]time.Time // GUARDED_BY(mu)
}

func newHealth() *health { return &health{until: make(map[string]time.Time)} }

func (h *health) bench(key string, after time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	for k, until := range h.until {
		if now.After(until) {
			delete(h.until, k)
		}
	}
	h.until[key] = now.Add(min(max(after, benched), maxBenched))
}

func (h *health) isBenched(key string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Before(h.until[key])
}

// isLoopback tells for host or host:port whether it is this machine by name.
func isLoopback(host string) bool {
	name := strings.Trim(host, "[]")
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	return isLoopbackName(name)
}
