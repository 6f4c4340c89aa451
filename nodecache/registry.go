package nodecache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
)

// maxRedirects of one request, as net/http's default.
const maxRedirects = 10

var (
	errTooManyRedirects = errors.New("too many redirects")
	errDowngrade        = errors.New("redirected from HTTPS to plain HTTP")
)

// registryClient speaks to the registry of one reference, or a mirror of it,
// for one caller. Nothing it learns, tokens least of all, is shared with
// another. All methods may be called concurrently.
//
// Credentials are tried in this order until one is accepted: the caller's
// secret, the node's file, kubelet's plugins, none. The one that was accepted
// is used until it is refused; then all are looked for anew.
type registryClient struct {
	ref    reference
	source string // identifies registry, repository and the caller's credentials
	shared *registries
	hosts  []*endpoint // in the order to ask; the registry, or what stands for it, is the last
	retry  retryPolicy
	tokens map[string]string // of the caller's service account, by audience, that plugins want

	mu      sync.Mutex
	secret  []byte                        // dockerconfigjson of the caller, or nil. GUARDED_BY(mu)
	hide    []string                      // what no message may hold. GUARDED_BY(mu)
	senders map[string]map[*endpoint]bool // mirrors that sent something, by its name. GUARDED_BY(mu)
	liars   map[*endpoint]bool            // mirrors that sent wrong bytes. GUARDED_BY(mu)
}

func (s *Store) newRegistry(ref reference, c Credentials) (*registryClient, error) {
	r := &registryClient{
		ref:     ref,
		shared:  s.registries,
		retry:   s.retry,
		senders: make(map[string]map[*endpoint]bool),
		liars:   make(map[*endpoint]bool),
		tokens:  s.registries.keys.wanted(c.Tokens),
	}
	for _, token := range r.tokens {
		r.conceal([]string{token})
	}
	if err := r.use(c.DockerConfig); err != nil {
		return nil, err
	}
	var err error
	if r.hosts, err = s.registries.endpoints(ref); err != nil {
		return nil, err
	}
	for _, e := range r.hosts {
		r.conceal(secretsIn(e.header))
	}
	return r, nil
}

// use takes another secret (dockerconfigjson, nil for none) for requests to
// come, such as one that was rotated. After an error the old one stays.
func (r *registryClient) use(dockerConfig []byte) error {
	creds, err := credentialsFor(dockerConfig, r.ref.registry, r.ref.repository)
	if err != nil {
		return fmt.Errorf("credentials for %s: %w", r.ref.registry, err)
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q %q", r.ref.registry, r.ref.repository, r.ref.url, creds, r.tokens))
	r.mu.Lock()
	changed := !bytes.Equal(r.secret, dockerConfig)
	r.secret = dockerConfig
	if r.source == "" {
		r.source = hex.EncodeToString(sum[:])
	}
	r.mu.Unlock()
	if changed {
		for _, e := range r.hosts {
			e.accept(nil)
		}
	}
	return nil
}

// send makes one request for /v2/<repository>/<kind>/<name>: to the first host
// that answers it with success, the registry itself last. The caller closes
// the body of the answer, whose status is 200, or 206 or 416 if a range was
// asked for; all else is an error. When the registry itself fails for good no
// more is tried; what mirrors said before is told in its error.
func (r *registryClient) send(ctx context.Context, method, kind, name string, header http.Header) (*http.Response, error) {
	return r.sendTo(ctx, r.order(kind, name), method, kind, name, header)
}

func (r *registryClient) sendTo(ctx context.Context, order []*endpoint, method, kind, name string, header http.Header) (*http.Response, error) {
	var failed error // of the registry
	var passed []string
	for _, e := range order {
		resp, err := r.sendOne(ctx, e, method, kind, name, header)
		if err == nil {
			return resp, nil
		}
		if ended(ctx) != nil {
			return nil, err
		}
		var transient *transientError
		again := errors.As(err, &transient)
		if e.server {
			failed = err
			if !again {
				break
			}
			continue
		}
		if again {
			e.health.bench(e.key(), transient.after)
		}
		passed = append(passed, inShort(e, err))
	}
	if failed == nil && passed == nil {
		return nil, fmt.Errorf("%w: %s: the registry hosts of %s allow none of them to be asked for it", ErrConfiguration, r.ref, r.ref.registry)
	}
	if failed == nil {
		failed = &transientError{err: fmt.Errorf("%w: %s: no mirror has it, and the registry may not be asked", ErrUnavailable, r.ref)}
	}
	return nil, withMirrors(failed, append(r.liarsInShort(), passed...))
}

// order is who to ask: mirrors that failed a while ago after all others, those
// that sent wrong bytes never.
func (r *registryClient) order(kind, name string) []*endpoint {
	resolve := kind == "manifests" && validDigest(digest.Digest(name)) != nil
	r.mu.Lock()
	defer r.mu.Unlock()
	var first, last []*endpoint
	for _, e := range r.hosts {
		switch {
		case r.liars[e], resolve && !e.resolve, !resolve && !e.pull:
		case !e.server && e.health.isBenched(e.key()):
			last = append(last, e)
		default:
			first = append(first, e)
		}
	}
	return append(first, last...)
}

// sendOne makes one request to one host, when the limits allow it.
func (r *registryClient) sendOne(ctx context.Context, e *endpoint, method, kind, name string, header http.Header) (*http.Response, error) {
	release, err := r.shared.limits.take(ctx, e.host, method == http.MethodGet && kind == "blobs")
	if err != nil {
		return nil, fmt.Errorf("registry %s, %s: %w", e.host, r.ref, err)
	}
	resp, err := r.authenticate(ctx, e, func(s *session) (*http.Response, error) {
		resp, err := e.do(ctx, s, r.ref, method, kind, name, header)
		if err != nil {
			return nil, r.requestFailed(ctx, e, err)
		}
		ranged := header.Get("Range") != ""
		switch {
		case !e.server && ranged && otherRange(header, resp):
			_ = resp.Body.Close()
			return nil, &attemptError{&transientError{err: fmt.Errorf("%w: %s: it sent other bytes than were asked for", ErrUnavailable, r.who(e))}, "another range"}
		case resp.StatusCode == http.StatusOK,
			ranged && resp.StatusCode == http.StatusPartialContent,
			ranged && resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
			return resp, nil
		}
		err = r.refused(e, resp, kind)
		_ = resp.Body.Close()
		return nil, err
	})
	if err != nil {
		release()
		return nil, err
	}
	b := &answerBody{ReadCloser: resp.Body, release: release, received: r.shared.received.from(r.ref, e)}
	if !e.server {
		r.sent(name, e)
		b.mirror, b.impatient = e, !e.health.isBenched(e.key())
	}
	resp.Body = b
	return resp, nil
}

// otherRange tells whether an answer is a part that was not asked for, or says that
// there is none: a mirror that can't do ranges is worth less than another host.
func otherRange(header http.Header, resp *http.Response) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(header.Get("Range"), "bytes="), "-")
	return resp.StatusCode == http.StatusRequestedRangeNotSatisfiable ||
		resp.StatusCode == http.StatusPartialContent && !strings.HasPrefix(resp.Header.Get("Content-Range"), "bytes "+first+"-")
}

// sent notes that a mirror sends something.
func (r *registryClient) sent(name string, e *endpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.senders[name] == nil {
		r.senders[name] = make(map[*endpoint]bool)
	}
	r.senders[name][e] = true
}

// verified calls fetch, which gets the manifest or blob called name and checks
// it, until it is satisfied or none but the registry has sent anything of it:
// a mirror that sent a part of what turned out wrong is not asked again.
func (r *registryClient) verified(name string, fetch func() error) error {
	for {
		err := fetch()
		if !errors.Is(err, ErrDigestMismatch) && !errors.Is(err, ErrUnsupportedImage) || !r.distrust(name) {
			return err
		}
	}
}

// distrust reports whether there was a mirror to distrust.
func (r *registryClient) distrust(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := false
	for e := range r.senders[name] {
		found = true
		r.liars[e] = true
		e.health.bench(e.key(), maxBenched)
	}
	delete(r.senders, name)
	return found
}

// head asks for the digest that the reference means now; for a tag whose
// registry does not say, it is "".
func (r *registryClient) head(ctx context.Context) (digest.Digest, error) {
	return r.headFrom(ctx, r.order("manifests", r.ref.target()))
}

// authorize asks whether the caller may read the reference: the registry, whose
// word it is, and mirrors only when that can't be reached.
func (r *registryClient) authorize(ctx context.Context) error {
	if r.ref.isWeb() {
		return r.authorizeWeb(ctx)
	}
	order := r.order("manifests", r.ref.target())
	slices.SortStableFunc(order, func(a, b *endpoint) int {
		switch {
		case a.server == b.server:
			return 0
		case a.server:
			return -1
		}
		return 1
	})
	_, err := r.headFrom(ctx, order)
	return err
}

func (r *registryClient) headFrom(ctx context.Context, order []*endpoint) (d digest.Digest, err error) {
	err = r.retry.do(ctx, func() (int64, error) {
		resp, err := r.sendTo(ctx, order, http.MethodHead, "manifests", r.ref.target(), acceptManifests())
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
	err = r.verified(target, func() error {
		err := r.retry.do(ctx, func() (int64, error) {
			var err error
			text, contentType, err = r.fetchManifestOnce(ctx, target)
			return 0, err
		})
		if err != nil {
			return err
		}
		if want := digest.Digest(target); want.Validate() == nil {
			if got := digest.FromBytes(text); got != want {
				return fmt.Errorf("%w: the registry sent a manifest %s for %s of %s", ErrDigestMismatch, got, want, r.ref)
			}
		}
		if !json.Valid(text) { // else another error page of a mirror
			return fmt.Errorf("%w: %s: the manifest is not valid JSON", ErrUnsupportedImage, r.ref)
		}
		return nil
	})
	return text, contentType, err
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
	if err != nil || body.stalled.Load() { // a server may take our giving up for a reason to end in order
		return nil, "", r.bodyFailed(ctx, body, err)
	}
	contentType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return text, strings.TrimSpace(contentType), nil
}

func (r *registryClient) manifestTooLong() error {
	return fmt.Errorf("%w: the manifest of %s is longer than %d bytes", ErrUnsupportedImage, r.ref, maxManifest)
}

// isLoopbackName tells for a name or an address without port whether it is this
// machine.
func isLoopbackName(name string) bool {
	addr, err := netip.ParseAddr(name)
	return strings.EqualFold(name, "localhost") || err == nil && addr.IsLoopback()
}
