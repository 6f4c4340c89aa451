package nodecache

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"

	"oras.land/oras-go/v2/registry/remote/auth"
)

// authenticate makes a request with the credential that the endpoint accepted
// last or else with each there is, until one is not refused. A registry may say
// of what a credential may not read that it is not there, so that counts as
// refused, too.
func (r *registryClient) authenticate(ctx context.Context, e *endpoint, request func(*session) (*http.Response, error)) (*http.Response, error) {
	t := trial{client: r, endpoint: e, request: request}
	if s := e.current(); s != nil {
		if resp, done, err := t.try(s); done {
			return resp, err
		}
		e.accept(nil) // expired, or rotated
	}
	places := e.places(r.ref)
	for _, look := range []func() []candidate{
		func() []candidate { return r.fromSecret(places) },
		func() []candidate {
			found, problem := r.shared.keys.fromFile(places)
			t.problem(problem)
			return found
		},
		func() []candidate {
			found, problems := r.shared.keys.fromPlugins(ctx, place{r.ref.registry, r.ref.repository}, places, r.tokens)
			t.problem(problems...)
			return found
		},
		func() []candidate { return []candidate{{}} },
	} {
		for _, c := range look() {
			if slices.ContainsFunc(t.tried, func(o candidate) bool { return o.cred == c.cred }) {
				continue
			}
			r.conceal(secretsOf(c.cred))
			if resp, done, err := t.try(e.session(c)); done {
				return resp, err
			}
		}
	}
	return nil, t.refusal()
}

// fromSecret looks into the caller's secret, which was found to be valid.
func (r *registryClient) fromSecret(places []place) (found []candidate) {
	r.mu.Lock()
	secret := r.secret
	r.mu.Unlock()
	for _, p := range places {
		list, _ := credentialsFor(secret, p.registry, p.repository)
		for _, c := range list {
			found = append(found, candidate{cred: c, given: true})
		}
	}
	return found
}

// trial is one request with several credentials.
type trial struct {
	client   *registryClient
	endpoint *endpoint
	request  func(*session) (*http.Response, error)
	tried    []candidate
	missing  error // the first "not found"
	denied   error // the first "unauthorized"
	problems []error
}

// try makes the request with one of them; done unless it was refused.
func (t *trial) try(s *session) (resp *http.Response, done bool, err error) {
	resp, err = t.request(s)
	if err == nil {
		t.endpoint.accept(s)
		return resp, true, nil
	}
	t.tried = append(t.tried, s.candidate)
	switch {
	case errors.Is(err, ErrUnauthorized):
		if t.denied == nil {
			t.denied = err
		}
		return nil, false, err
	case errors.Is(err, ErrNotFound):
		if t.missing == nil {
			t.missing = err
		}
		return nil, false, err
	}
	return nil, true, err
}

func (t *trial) problem(errs ...error) {
	for _, err := range errs {
		if err != nil {
			t.problems = append(t.problems, err)
		}
	}
}

// refusal is the error when no credential was accepted. Where some were and
// others found nothing, the latter is what the caller needs to know.
func (t *trial) refusal() error {
	if t.missing != nil {
		return t.missing
	}
	var given bool
	var others []string
	for _, c := range t.tried {
		given = given || c.given
		if c.from != "" && !slices.Contains(others, c.from) {
			others = append(others, c.from)
		}
	}
	host := t.endpoint.host
	if t.endpoint.itself {
		host = t.client.ref.registry
	}
	var b strings.Builder
	switch {
	case given:
		b.WriteString("the credentials given for " + host + " are wrong or may not read it")
	case others == nil:
		b.WriteString("no credentials were given for " + host + ": name a pull secret that holds some")
	default:
		b.WriteString("no pull secret was given for " + host)
	}
	if others != nil {
		b.WriteString("; refused as well: " + strings.Join(others, ", "))
	}
	for _, p := range t.problems {
		b.WriteString("; " + tidy(p.Error()))
	}
	return &hintedError{t.denied, b.String()}
}

// hintedError adds to the text of an error.
type hintedError struct {
	error
	hint string
}

func (e *hintedError) Error() string { return e.error.Error() + "; " + e.hint }
func (e *hintedError) Unwrap() error { return e.error }

// conceal adds to what no message may hold.
func (r *registryClient) conceal(secrets []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range secrets {
		if !slices.Contains(r.hide, s) {
			r.hide = append(r.hide, s)
		}
	}
}

// secretsIn are the values of headers that an administrator configured.
func secretsIn(h http.Header) (all []string) {
	for _, values := range h {
		for _, v := range values {
			all = append(all, secretsOf(auth.Credential{AccessToken: v})...)
		}
	}
	return all
}
