package credplugin

import (
	"errors"
	"net"
	"net/url"
	"path"
	"strings"
)

// pattern is one of matchImages: host[:port][/path], with * and the other
// wildcards of path.Match in the labels of the host. All of the image's labels
// and its port must match, and its path must begin with the pattern's.
type pattern struct {
	labels     []string
	port, path string
}

func parsePattern(s string) (pattern, error) {
	u, err := url.Parse("https://" + s)
	if err != nil || u.Host == "" {
		return pattern{}, errors.New("want host[:port][/path]")
	}
	p := pattern{path: u.Path}
	p.labels, p.port = splitHost(u.Host)
	for _, label := range p.labels {
		if _, err := path.Match(label, ""); err != nil {
			return pattern{}, errors.New("a malformed wildcard")
		}
	}
	return p, nil
}

func splitHost(hostport string) (labels []string, port string) {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		host, port = hostport, ""
	}
	return strings.Split(host, "."), port
}

// matches tells for an image (host[:port]/path).
func (p pattern) matches(image string) bool {
	host, rest, _ := strings.Cut(image, "/")
	labels, port := splitHost(host)
	if port != p.port || len(labels) != len(p.labels) || !strings.HasPrefix("/"+rest, p.path) {
		return false
	}
	for i, label := range labels {
		if ok, err := path.Match(p.labels[i], label); err != nil || !ok {
			return false
		}
	}
	return true
}
