package nodecache

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// This file turns what a registry or the network says into this package's
// errors. Their text is put together from known parts: what a registry writes
// may repeat our credentials, and the address of a redirect is often itself a
// secret (a signed URL). So of an answer only the status and well-formed error
// codes are quoted, and of an address at most host and path.

// attemptError is what one host said, with a short form of it.
type attemptError struct {
	error
	short string
}

func (e *attemptError) Unwrap() error { return e.error }

// inShort names a mirror and what it said.
func inShort(e *endpoint, err error) string {
	short := "failed"
	var attempt *attemptError
	switch {
	case errors.As(err, &attempt):
		short = attempt.short
	case errors.Is(err, ErrUnauthorized):
		short = "unauthorized"
	}
	return e.host + ": " + short
}

func (r *registryClient) liarsInShort() (all []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.hosts {
		if r.liars[e] {
			all = append(all, e.host+": wrong bytes")
		}
	}
	return all
}

// withMirrors tells what mirrors said before the registry failed.
func withMirrors(err error, passed []string) error {
	if passed == nil {
		return err
	}
	text := fmt.Sprintf("mirrors failed before (%s)", strings.Join(passed, ", "))
	var transient *transientError
	if errors.As(err, &transient) {
		return &transientError{err: &hintedError{transient.err, text}, after: transient.after}
	}
	return &hintedError{err, text}
}

// refused is the error for an answer with an unexpected status.
func (r *registryClient) refused(e *endpoint, resp *http.Response, kind string) error {
	short := "HTTP " + strconv.Itoa(resp.StatusCode)
	what := r.who(e) + ": " + short + errorCodes(resp.Body)
	told := func(err error) error { return &attemptError{err, short} }
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return told(fmt.Errorf("%w: %s", ErrUnauthorized, what))
	case code == http.StatusNotFound:
		switch {
		case r.ref.isWeb():
			return told(fmt.Errorf("%w: %s; check the address", ErrNotFound, what))
		case kind == "blobs":
			return told(fmt.Errorf("%w: %s: the manifest is there but the blob it names is not; push the image again", ErrNotFound, what))
		}
		return told(fmt.Errorf("%w: %s; check the name and the tag or digest", ErrNotFound, what))
	case code == http.StatusTooManyRequests, code == http.StatusRequestTimeout, code >= 500:
		return told(&transientError{err: fmt.Errorf("%w: %s", ErrUnavailable, what), after: retryAfter(resp.Header)})
	default:
		return told(fmt.Errorf("%w: %s", ErrUnavailable, what))
	}
}

// who begins an error: whom was asked for what.
func (r *registryClient) who(e *endpoint) string {
	switch {
	case r.ref.isWeb():
		return r.ref.String()
	case e == nil || e.itself:
		return "registry " + r.ref.registry + ", " + r.ref.String()
	}
	return "registry " + e.host + ", " + r.ref.String()
}

// requestFailed is the error for a request without an answer, or whose token
// could not be had.
func (r *registryClient) requestFailed(ctx context.Context, e *endpoint, err error) error {
	if cause := ended(ctx); cause != nil {
		return fmt.Errorf("%s: %w", r.who(e), cause)
	}
	short := r.describe(err)
	what := r.who(e) + ": " + short
	var (
		answer *errcode.ErrorResponse // of the token server
		dial   *url.Error
		cert   *tls.CertificateVerificationError
	)
	told := func(err error) error {
		if errors.Is(err, ErrUnauthorized) {
			short = "unauthorized"
		}
		return &attemptError{err, short}
	}
	switch {
	case errors.As(err, &answer):
		if answer.StatusCode == http.StatusTooManyRequests || answer.StatusCode >= 500 {
			return told(&transientError{err: fmt.Errorf("%w: token server of %s", ErrUnavailable, what)})
		}
		return told(fmt.Errorf("%w: token server of %s", ErrUnauthorized, what))
	case errors.Is(err, http.ErrSchemeMismatch):
		return told(fmt.Errorf("%w: %s: it speaks plain HTTP, which is not allowed for this host; configure it as a plain HTTP registry", ErrUnavailable, r.who(e)))
	case errors.As(err, &cert), errors.Is(err, errDowngrade), errors.Is(err, errTooManyRedirects):
		return told(fmt.Errorf("%w: %s", ErrUnavailable, what))
	case errors.As(err, &dial):
		return told(&transientError{err: fmt.Errorf("%w: %s", ErrUnavailable, what)})
	}
	return told(fmt.Errorf("%w: %s", ErrUnauthorized, what)) // all others are auth.Client's: no usable credential
}

// bodyFailed is the error for an answer whose body broke off.
func (r *registryClient) bodyFailed(ctx context.Context, body *stallReader, err error) error {
	if body.stalled.Load() {
		if b, ok := body.body.(*answerBody); ok {
			b.bench()
		}
		return &transientError{err: fmt.Errorf("%w: %s: nothing was sent for %s", ErrUnavailable, r.who(nil), body.limit)}
	}
	if cause := ended(ctx); cause != nil {
		return fmt.Errorf("%s: %w", r.who(nil), cause)
	}
	return &transientError{err: fmt.Errorf("%w: %s: the answer broke off: %s", ErrUnavailable, r.who(nil), r.describe(err))}
}

// query matches the part of an address that may hold a signature.
var query = regexp.MustCompile(`\?[^\s"]*`)

// describe is the text of err without secrets.
func (r *registryClient) describe(err error) string {
	var (
		answer *errcode.ErrorResponse
		failed *url.Error
	)
	if errors.As(err, &answer) {
		return "HTTP " + strconv.Itoa(answer.StatusCode)
	}
	for errors.As(err, &failed) {
		err = failed.Err
		failed = nil
	}
	if errors.Is(err, io.EOF) {
		return "the connection was closed without an answer"
	}
	return tidy(r.scrub(err.Error()))
}

// scrub takes out what may be secret.
func (r *registryClient) scrub(text string) string {
	text = query.ReplaceAllString(text, "?...")
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, secret := range r.hide {
		text = strings.ReplaceAll(text, secret, "...")
	}
	return text
}

// tidy makes text that a stranger had a part in fit for one line of a log.
func tidy(text string) string {
	const most = 300
	text = strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) {
			return c
		}
		return ' '
	}, text)
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}

// secretsOf lists what must not be in a message. Very short passwords are left
// out: replacing them would garble the text and tell them.
func secretsOf(c auth.Credential) []string {
	var hide []string
	for _, s := range []string{
		base64.StdEncoding.EncodeToString([]byte(c.Username + ":" + c.Password)),
		c.Password, url.QueryEscape(c.Password), c.RefreshToken, c.AccessToken,
	} {
		if len(s) >= 4 {
			hide = append(hide, s)
		}
	}
	return hide
}

// errorCodes lists the codes of a registry's error document, such as
// " (MANIFEST_UNKNOWN)". Reads at most 16 KiB.
func errorCodes(body io.Reader) string {
	var doc struct {
		Errors []struct {
			Code string `json:"code"`
		} `json:"errors"`
	}
	if json.NewDecoder(io.LimitReader(body, 16<<10)).Decode(&doc) != nil {
		return ""
	}
	var codes []string
	for _, e := range doc.Errors {
		if knownCodes[e.Code] && len(codes) < 4 {
			codes = append(codes, e.Code)
		}
	}
	if codes == nil {
		return ""
	}
	return " (" + strings.Join(codes, ", ") + ")"
}

// knownCodes of the OCI distribution specification 1.1, section "Error Codes".
var knownCodes = map[string]bool{
	"BLOB_UNKNOWN": true, "BLOB_UPLOAD_INVALID": true, "BLOB_UPLOAD_UNKNOWN": true,
	"DIGEST_INVALID": true, "MANIFEST_BLOB_UNKNOWN": true, "MANIFEST_INVALID": true,
	"MANIFEST_UNKNOWN": true, "NAME_INVALID": true, "NAME_UNKNOWN": true,
	"SIZE_INVALID": true, "UNAUTHORIZED": true, "DENIED": true,
	"UNSUPPORTED": true, "TOOMANYREQUESTS": true,
}

// retryAfter reads the header of that name, in seconds or as a date.
func retryAfter(h http.Header) time.Duration {
	const most = 1 << 20 // seconds
	v := h.Get("Retry-After")
	n, err := strconv.ParseUint(v, 10, 64)
	if err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(min(n, most)) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(time.Until(t), 0)
	}
	return 0
}
