package nodecache

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2/registry"
)

// maxReference bounds the text of a reference, in bytes: room for a PATH_MAX
// path; registry references are far shorter.
const maxReference = 4096

// referenceForms is what an error about a reference says is expected.
const referenceForms = "an absolute path (/dir/image.erofs or file:///dir/image.erofs, each extra device appended as ,device=/path), " +
	"a registry reference (host[:port]/name[:tag][@sha256:...], with or without oci:// before it) " +
	"or https://host[:port]/path#sha256:... with the digest of the file"

// reference is a parsed image reference. Either paths is non-empty or registry
// and repository are. Of an https:// reference url is the address as it was
// written, registry its host, repository its path and digest that of the file.
type reference struct {
	paths []string // primary, then the extra devices; absolute, as written

	url string // of an https:// reference, query and fragment included

	registry   string        // host[:port]
	repository string        // as the registry knows it
	tag        string        // "" only together with a digest
	digest     digest.Digest // of the manifest or index; "" when only a tag is given
}

// ValidateReference checks the text of an image reference without looking at
// the node or a registry. The error wraps [ErrInvalidReference].
func ValidateReference(ref string) error {
	_, err := parseReference(ref)
	return err
}

func parseReference(s string) (reference, error) {
	switch {
	case s == "":
		return reference{}, fmt.Errorf("%w: it is empty; want %s", ErrInvalidReference, referenceForms)
	case len(s) > maxReference:
		return reference{}, invalidReference(s, fmt.Sprintf("it is %d bytes long, the limit is %d", len(s), maxReference))
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return reference{}, invalidReference(s, "it holds a control character")
	case strings.HasPrefix(s, "/"):
		return parsePaths(s, s)
	}
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return parseRemote(s, s, false)
	}
	switch scheme {
	case "file":
		if !strings.HasPrefix(rest, "/") {
			return reference{}, invalidReference(s, "file:// needs an absolute path (file:///dir/image.erofs)")
		}
		return parsePaths(s, rest)
	case "oci":
		return parseRemote(s, rest, true)
	case "https":
		return parseWeb(s)
	case "http":
		return reference{}, invalidReference(s, "http:// is refused: what comes over it can be read and held up by anybody on the way; use https://")
	}
	return reference{}, invalidReference(s, "unknown scheme")
}

// parsePaths splits "path,device=path,device=path". There is no escaping: a
// path that holds ",device=" can't be named. A file:// reference is not
// percent-decoded.
func parsePaths(whole, list string) (reference, error) {
	paths := strings.Split(list, ",device=")
	for _, p := range paths {
		if !strings.HasPrefix(p, "/") {
			return reference{}, invalidReference(whole, fmt.Sprintf("the path %q is not absolute", p))
		}
		if strings.HasSuffix(p, "/") {
			return reference{}, invalidReference(whole, fmt.Sprintf("the path %q names a directory", p))
		}
	}
	return reference{paths: paths}, nil
}

// parseWeb parses https://host[:port]/path[?query]#sha256:<hex>. The query is
// sent and is no part of the image's name: it is often a signature, which is a
// secret and expires.
func parseWeb(s string) (reference, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return reference{}, invalidReference(s, "it is not a well-formed URL")
	case u.User != nil:
		return reference{}, invalidReference(s, "it holds a user or a password: put them into a pull secret")
	case u.Host == "" || !looksLikeURLHost(u.Host):
		return reference{}, invalidReference(s, "it has no valid host")
	case strings.Trim(u.Path, "/") == "" || strings.HasSuffix(u.Path, "/"):
		return reference{}, invalidReference(s, "it names no file on the host")
	case u.Fragment == "":
		return reference{}, invalidReference(s, "it has no digest: append #sha256: and the 64 hexadecimal digits that sha256sum prints of the file")
	}
	d := digest.Digest(u.Fragment)
	if validDigest(d) != nil {
		return reference{}, invalidReference(s, "what follows # is not sha256: and 64 lower-case hexadecimal digits")
	}
	return reference{url: s, registry: strings.ToLower(u.Host), repository: strings.TrimPrefix(u.EscapedPath(), "/"), digest: d}, nil
}

// looksLikeURLHost refuses hosts that net/url lets pass.
func looksLikeURLHost(host string) bool {
	return registry.Reference{Registry: host}.ValidateRegistry() == nil && !strings.HasSuffix(host, ":")
}

// parseRemote parses host[:port]/name[:tag][@digest]. Without oci:// the host
// must look like one (a dot, a port, or localhost), so that a relative path or
// a short name such as library/redis is refused and not asked of some host.
func parseRemote(whole, s string, explicit bool) (reference, error) {
	host, name, ok := strings.Cut(s, "/")
	if !ok || host == "" || name == "" {
		return reference{}, invalidReference(whole, "it has no registry host or no name")
	}
	if !explicit && !looksLikeHost(host) || strings.HasPrefix(host, ".") {
		return reference{}, invalidReference(whole, fmt.Sprintf("%q is not a registry host; a relative path is not allowed", redactUserinfo(host)))
	}
	r := reference{registry: host}
	name, d, hasDigest := strings.Cut(name, "@")
	if hasDigest {
		r.digest = digest.Digest(d)
		if err := r.digest.Validate(); err != nil || r.digest.Algorithm() != digest.SHA256 {
			return reference{}, invalidReference(whole, "the digest is not sha256: and 64 lower-case hexadecimal digits")
		}
	}
	name, tag, hasTag := strings.Cut(name, ":")
	r.repository, r.tag = name, tag
	if !hasTag && !hasDigest {
		r.tag = "latest"
	}
	if r.registry == "index.docker.io" {
		r.registry = "docker.io"
	}
	if r.registry == "docker.io" && !strings.Contains(r.repository, "/") {
		r.repository = "library/" + r.repository
	}
	check := registry.Reference{Registry: r.registry, Repository: r.repository, Reference: r.tag}
	if check.ValidateRegistry() != nil {
		return reference{}, invalidReference(whole, "the registry host is malformed")
	}
	if check.ValidateRepository() != nil {
		return reference{}, invalidReference(whole, "the name after the host is malformed (lower-case letters, digits and . _ - between slashes)")
	}
	if (hasTag || !hasDigest) && check.ValidateReferenceAsTag() != nil {
		return reference{}, invalidReference(whole, "the tag is malformed")
	}
	return r, nil
}

func looksLikeHost(host string) bool {
	return host == "localhost" || strings.ContainsAny(host, ".:")
}

// isPath tells whether the image is a file of the node.
func (r reference) isPath() bool { return len(r.paths) > 0 }

// isWeb tells whether the image is a file of a web server.
func (r reference) isWeb() bool { return r.url != "" }

// target is what the registry is asked for: the digest if there is one.
func (r reference) target() string {
	if r.digest != "" {
		return r.digest.String()
	}
	return r.tag
}

// canonical is the text under which the store remembers a reference.
// A tag beside a digest does not count: the digest alone says which bytes.
func (r reference) canonical() string {
	if r.isWeb() {
		return "https://" + r.registry + "/" + r.repository + "#" + r.digest.String()
	}
	if r.digest != "" {
		return r.registry + "/" + r.repository + "@" + r.digest.String()
	}
	return r.registry + "/" + r.repository + ":" + r.tag
}

// withDigest is the same repository at digest d.
func (r reference) withDigest(d digest.Digest) reference {
	r.digest, r.tag = d, ""
	return r
}

// String is the full reference, which parses to the same, but for the query of
// an https:// reference.
func (r reference) String() string {
	switch {
	case r.isPath():
		return strings.Join(r.paths, ",device=")
	case r.isWeb():
		return r.canonical()
	}
	s := r.registry + "/" + r.repository
	if !looksLikeHost(r.registry) {
		s = "oci://" + s
	}
	if r.tag != "" {
		s += ":" + r.tag
	}
	if r.digest != "" {
		s += "@" + r.digest.String()
	}
	return s
}

func invalidReference(ref, why string) error {
	const most = 300
	ref = query.ReplaceAllString(redactUserinfo(ref), "?...")
	if len(ref) > most {
		ref = ref[:most] + "..."
	}
	return fmt.Errorf("%w %q: %s; want %s", ErrInvalidReference, ref, why, referenceForms)
}

// redactUserinfo hides what stands before an @ in the host part: somebody may
// have written user:password@host.
func redactUserinfo(ref string) string {
	scheme, rest, ok := strings.Cut(ref, "://")
	if !ok {
		scheme, rest = "", ref
	} else {
		scheme += "://"
	}
	host, path, slash := strings.Cut(rest, "/")
	if i := strings.LastIndexByte(host, '@'); i >= 0 {
		host = "..." + host[i:]
	}
	if slash {
		path = "/" + path
	}
	return scheme + host + path
}
