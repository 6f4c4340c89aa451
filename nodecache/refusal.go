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

// refused is the error for an answer with an unexpected status.
func (r *registryClient) refused(resp *http.Response, kind string) error {
	what := fmt.Sprintf("registry %s, %s: HTTP %d%s", r.ref.registry, r.ref, resp.StatusCode, errorCodes(resp.Body))
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return r.unauthorized(what)
	case code == http.StatusNotFound:
		if kind == "blobs" {
			return fmt.Errorf("%w: %s: the manifest is there but the blob it names is not; push the image again", ErrNotFound, what)
		}
		return fmt.Errorf("%w: %s; check the name and the tag or digest", ErrNotFound, what)
	case code == http.StatusTooManyRequests, code == http.StatusRequestTimeout, code >= 500:
		return &transientError{err: fmt.Errorf("%w: %s", ErrUnavailable, what), after: retryAfter(resp.Header)}
	default:
		return fmt.Errorf("%w: %s", ErrUnavailable, what)
	}
}

func (r *registryClient) unauthorized(what string) error {
	if r.given {
		return fmt.Errorf("%w: %s; the credentials given for %s are wrong or may not read it", ErrUnauthorized, what, r.ref.registry)
	}
	return fmt.Errorf("%w: %s; no credentials were given for %s: name a pull secret that holds some", ErrUnauthorized, what, r.ref.registry)
}

// requestFailed is the error for a request without an answer, or whose token
// could not be had.
func (r *registryClient) requestFailed(ctx context.Context, err error) error {
	if cause := ended(ctx); cause != nil {
		return fmt.Errorf("registry %s, %s: %w", r.ref.registry, r.ref, cause)
	}
	what := fmt.Sprintf("registry %s, %s: %s", r.ref.registry, r.ref, r.describe(err))
	var (
		answer *errcode.ErrorResponse // of the token server
		dial   *url.Error
		cert   *tls.CertificateVerificationError
	)
	switch {
	case errors.As(err, &answer):
		if answer.StatusCode == http.StatusTooManyRequests || answer.StatusCode >= 500 {
			return &transientError{err: fmt.Errorf("%w: token server of %s", ErrUnavailable, what)}
		}
		return r.unauthorized("token server of " + what)
	case errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("%w: registry %s, %s: it speaks plain HTTP, which is not allowed for this host; configure it as a plain HTTP registry", ErrUnavailable, r.ref.registry, r.ref)
	case errors.As(err, &cert), errors.Is(err, errDowngrade), errors.Is(err, errTooManyRedirects):
		return fmt.Errorf("%w: %s", ErrUnavailable, what)
	case errors.As(err, &dial):
		return &transientError{err: fmt.Errorf("%w: %s", ErrUnavailable, what)}
	}
	return r.unauthorized(what) // all others are auth.Client's: no usable credential
}

// bodyFailed is the error for an answer whose body broke off.
func (r *registryClient) bodyFailed(ctx context.Context, body *stallReader, err error) error {
	if body.stalled.Load() {
		return &transientError{err: fmt.Errorf("%w: registry %s, %s: nothing was sent for %s", ErrUnavailable, r.ref.registry, r.ref, body.limit)}
	}
	if cause := ended(ctx); cause != nil {
		return fmt.Errorf("registry %s, %s: %w", r.ref.registry, r.ref, cause)
	}
	return &transientError{err: fmt.Errorf("%w: registry %s, %s: the answer broke off: %s", ErrUnavailable, r.ref.registry, r.ref, r.describe(err))}
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
	v := h.Get("Retry-After")
	if n, err := strconv.Atoi(v); err == nil && n > 0 && n < 1<<20 {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(time.Until(t), 0)
	}
	return 0
}
