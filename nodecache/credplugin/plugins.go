package credplugin

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// maxKept bounds what is kept of one provider; beyond it what expires first is
// forgotten.
const maxKept = 1000

// Plugins are the providers of a configuration. All methods may be called
// concurrently.
type Plugins struct{ providers []*provider }

// Answer is what one provider says about an image.
type Answer struct {
	Provider string // its name
	// Auth holds user and password by what they are for, as host[:port][/path]
	// with wildcards. Do not modify.
	Auth map[string]Auth
	// Err says why there is no Auth. It holds no secret.
	Err error
}

// provider is one plugin and what it answered.
type provider struct {
	name, apiVersion, path string
	args, env              []string
	match                  []pattern
	limit                  time.Duration // of a run
	lasts                  time.Duration // of an answer that says nothing else
	audience               string        // of tokens; "": it wants none
	needsToken             bool
	needsAnnotations       bool // of the service account, to be run with a token

	running singleflight.Group

	mu    sync.Mutex
	cache map[string]kept // GUARDED_BY(mu)
	hung  time.Time       // of the last run that did not end in time. GUARDED_BY(mu)
}

// kept is an answer and the time until which it may be used.
type kept struct {
	auth  map[string]Auth
	until time.Time
}

// hangs is how long a plugin that did not end in time is not run again: a volume is
// looked up more than once, and kubelet waits for it no longer than two runs take.
const hangs = 30 * time.Second

var errNeedsAnnotations = errors.New("it requires annotations of service accounts, which are not known here: leave out requiredServiceAccountAnnotationKeys, or use pull secrets")

// globalKey is no name of an image or a registry.
const globalKey = "\x00global"

// Lookup asks all providers whose matchImages match the image, a name as
// registry.example:5000/team/app without tag and digest, in the order of the
// configuration. tokens are those of the caller's service account, by audience.
// It takes at most the time of the slowest run, and no longer than ctx.
func (p *Plugins) Lookup(ctx context.Context, image string, tokens map[string]string) []Answer {
	if p == nil {
		return nil
	}
	var asked []*provider
	for _, one := range p.providers {
		if one.matches(image) {
			asked = append(asked, one)
		}
	}
	answers := make([]Answer, len(asked))
	var wg sync.WaitGroup
	for i, one := range asked {
		wg.Go(func() {
			auth, err := one.provide(ctx, image, tokens[one.audience])
			answers[i] = Answer{Provider: one.name, Auth: auth, Err: err}
		})
	}
	wg.Wait()
	return answers
}

// Unusable lists the providers that can't be used here, and why.
func (p *Plugins) Unusable() []error {
	if p == nil {
		return nil
	}
	var errs []error
	for _, one := range p.providers {
		if one.needsToken && one.needsAnnotations {
			errs = append(errs, fmt.Errorf("credential provider %s: %w", one.name, errNeedsAnnotations))
		}
	}
	return errs
}

// Wants tells whether a provider can use a token for the audience.
func (p *Plugins) Wants(audience string) bool {
	return p != nil && audience != "" && slices.ContainsFunc(p.providers, func(one *provider) bool {
		return one.audience == audience && !one.needsAnnotations
	})
}

func (p *provider) matches(image string) bool {
	for _, m := range p.match {
		if m.matches(image) {
			return true
		}
	}
	return false
}

// provide asks for an image, with the caller's token for the audience, if there is one.
func (p *provider) provide(ctx context.Context, image, token string) (map[string]Auth, error) {
	if p.audience == "" || p.needsAnnotations {
		token = ""
	}
	switch {
	case token != "" || !p.needsToken:
	case p.needsAnnotations:
		return nil, errNeedsAnnotations
	default:
		return nil, fmt.Errorf("it requires a service account's token for the audience %.200q, which comes with inline volumes only, and if tokenRequests of the CSIDriver object names the audience; else use a pull secret", p.audience)
	}
	scope := scopeOf(token)
	if auth, ok := p.recall(image, scope); ok {
		return auth, nil
	}
	if p.hasHung() {
		return nil, fmt.Errorf("it took longer than %s a moment ago", p.limit)
	}
	// One run for all who want the same image. It goes on when the first of
	// them has gone: its end is bounded, and the next one uses the answer.
	result := p.running.DoChan(image+scope, func() (any, error) {
		if auth, ok := p.recall(image, scope); ok {
			return auth, nil
		}
		answer, err := p.run(context.WithoutCancel(ctx), image, token)
		if err != nil {
			return nil, err
		}
		return answer.Auth, p.keep(image, scope, answer)
	})
	select {
	case r := <-result:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(map[string]Auth), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *provider) hasHung() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Since(p.hung) < hangs
}

// scopeOf keeps apart what was answered with a token, and is not the token.
func scopeOf(token string) string {
	if token == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(token))
	return "\x00" + string(sum[:])
}

// recall finds an answer about the image, its registry or all images.
func (p *provider) recall(image, scope string) (map[string]Auth, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, key := range []string{image, registryOf(image), globalKey} {
		k, ok := p.cache[key+scope]
		if ok && time.Now().Before(k.until) {
			return k.auth, true
		}
		delete(p.cache, key+scope)
	}
	return nil, false
}

// keep remembers an answer for as long, and for as many images, as it says.
func (p *provider) keep(image, scope string, answer *response) error {
	var key string
	switch answer.CacheKeyType {
	case byImage:
		key = image
	case byRegistry:
		key = registryOf(image)
	case byNothing:
		key = globalKey
	default:
		return errors.New("its answer has no valid cacheKeyType")
	}
	key += scope
	lasts := p.lasts
	if answer.CacheDuration != nil {
		lasts = time.Duration(*answer.CacheDuration)
	}
	if lasts <= 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.cache[key]; !ok && len(p.cache) >= maxKept {
		p.forgetOne()
	}
	p.cache[key] = kept{auth: answer.Auth, until: time.Now().Add(lasts)}
	return nil
}

// forgetOne makes room for an answer. Locked: mu.
func (p *provider) forgetOne() {
	first := ""
	for key, k := range p.cache {
		if first == "" || k.until.Before(p.cache[first].until) {
			first = key
		}
	}
	delete(p.cache, first)
}

func registryOf(image string) string {
	host, _, _ := strings.Cut(image, "/")
	return host
}
