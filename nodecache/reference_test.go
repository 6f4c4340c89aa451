package nodecache

import (
	"slices"
	"strings"
	"testing"
)

const someDigest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestParseReference(t *testing.T) {
	for _, c := range []struct {
		in, canonical, full string
	}{
		{"oci://example.com/a/b:1", "example.com/a/b:1", "example.com/a/b:1"},
		{"example.com/a", "example.com/a:latest", "example.com/a:latest"},
		{"example.com:5000/a/b@" + someDigest, "example.com:5000/a/b@" + someDigest, "example.com:5000/a/b@" + someDigest},
		{"oci://registry/a:v1@" + someDigest, "registry/a@" + someDigest, "oci://registry/a:v1@" + someDigest},
		{"localhost/a", "localhost/a:latest", "localhost/a:latest"},
		{"127.0.0.1:5000/a:t", "127.0.0.1:5000/a:t", "127.0.0.1:5000/a:t"},
		{"[::1]:5000/a:t", "[::1]:5000/a:t", "[::1]:5000/a:t"},
		{"https://Example.com/a.erofs#" + someDigest, "https://example.com/a.erofs#" + someDigest, "https://example.com/a.erofs#" + someDigest},
		{"https://example.com:444/a/b%20c?sig=1&x#" + someDigest, "https://example.com:444/a/b%20c#" + someDigest, "https://example.com:444/a/b%20c#" + someDigest},
	} {
		r, err := parseReference(c.in)
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		if r.isPath() || r.canonical() != c.canonical || r.String() != c.full {
			t.Errorf("%s: canonical %q, full %q", c.in, r.canonical(), r)
		}
		again, err := parseReference(r.String())
		if err != nil || again.canonical() != r.canonical() {
			t.Errorf("%s: printed and parsed again: %v, %v", c.in, again, err)
		}
	}
	for in, want := range map[string][]string{
		"/x/y.erofs":                              {"/x/y.erofs"},
		"file:///x/y.erofs":                       {"/x/y.erofs"},
		"/x/y.erofs,device=/d/1,device=/d/2":      {"/x/y.erofs", "/d/1", "/d/2"},
		"file:///x/y.erofs,device=/d/1":           {"/x/y.erofs", "/d/1"},
		"/with,comma:and@at.erofs,device=/e/a,bc": {"/with,comma:and@at.erofs", "/e/a,bc"},
	} {
		r, err := parseReference(in)
		if err != nil || !slices.Equal(r.paths, want) {
			t.Errorf("%s: %q, %v; want %q", in, r.paths, err, want)
		}
	}
}

func TestParseReferenceRefuses(t *testing.T) {
	for in, why := range map[string]string{
		"":                            "empty",
		"image.erofs":                 "no registry host",
		"./image.erofs":               "relative path",
		"../a/image.erofs":            "relative path",
		"dir/image.erofs":             "not a registry host",
		"library/redis:7":             "not a registry host",
		"/x/y.erofs,device=z":         `"z" is not absolute`,
		"/x/":                         "directory",
		"file://host/x":               "absolute",
		"https://example.com/a.erofs": "no digest: append #sha256:",
		"https://example.com/a.erofs#" + someDigest[7:]:    "what follows #",
		"https://example.com/a.erofs#sha512:abc":           "what follows #",
		"https://example.com/#" + someDigest:               "names no file",
		"https://example.com#" + someDigest:                "names no file",
		"https://example.com/dir/#" + someDigest:           "names no file",
		"https:///a.erofs#" + someDigest:                   "no valid host",
		"https://example.com:x/a#" + someDigest:            "not a well-formed URL",
		"https://exa mple.com/a#" + someDigest:             "not a well-formed URL",
		"https://example.com/a%zz#" + someDigest:           "not a well-formed URL",
		"http://example.com/a.erofs":                       "http:// is refused",
		"http://example.com/a.erofs#" + someDigest:         "http:// is refused",
		"docker://example.com/a":                           "unknown scheme",
		"oci://example.com":                                "no name",
		"oci:///a":                                         "no registry host",
		"example.com/A":                                    "malformed",
		"example.com/a:":                                   "tag",
		"example.com/a:b:c":                                "tag",
		"example.com/a:-x":                                 "tag",
		"example.com/a@sha256:12":                          "digest",
		"example.com/a@md5:12":                             "digest",
		"example.com/a:bad/tag@" + someDigest:              "tag",
		"example.com/a@sha512:" + strings.Repeat("a", 128): "digest",
		"example.com:port/a":                               "host is malformed",
		"example.com/a\nb":                                 "control",
		"/x/\x00":                                          "control",
		"example.com/" + strings.Repeat("a", 5000):         "limit",
	} {
		_, err := parseReference(in)
		wantError(t, err, ErrInvalidReference, why)
		if in != "" && len(in) < 100 && !strings.ContainsAny(in, "\n\x00") {
			wantError(t, err, ErrInvalidReference, in, "want an absolute path")
		}
	}
}

func TestParseReferenceHidesPassword(t *testing.T) {
	for _, in := range []string{"https://example.com/a?token=hunter22", "https://user:hunter22@example.com/a", "https://user:hunter22@example.com/a#" + someDigest, "oci://user:hunter22@example.com/a", "user:hunter22@example.com/a", "user:hunter22@com/a"} {
		_, err := parseReference(in)
		wantError(t, err, ErrInvalidReference)
		if strings.Contains(err.Error(), "hunter22") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"/x/y,device=/z", "example.com/a:b@" + someDigest, "file:///x", "oci://h/a", "https://u:p@h/", "https://h/a?b#" + someDigest} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseReference(s)
		if err != nil {
			wantError(t, err, ErrInvalidReference)
			return
		}
		again, err := parseReference(r.String())
		if err != nil || again.String() != r.String() {
			t.Fatalf("%q parses to %q, which parses to %q, %v", s, r, again, err)
		}
	})
}
