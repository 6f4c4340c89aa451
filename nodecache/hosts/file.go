package hosts

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// fileHost is the part of a hosts.toml about one host.
type fileHost struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`     // a path or a list of them
	Client       any            `toml:"client"` // a path, a list of them, or a list of pairs
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"` // to a string or a list of them
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
	Proxy        string         `toml:"proxy"`
}

// file is a whole hosts.toml; what stands above its tables is about the server.
type file struct {
	fileHost
	Server string              `toml:"server"`
	Host   map[string]fileHost `toml:"host"`
}

func parse(dir string, text []byte) ([]Host, error) {
	var f file
	if err := toml.Unmarshal(text, &f); err != nil {
		var at *toml.DecodeError
		if errors.As(err, &at) {
			row, column := at.Position()
			return nil, fmt.Errorf("line %d, column %d: not what a hosts.toml has there", row, column)
		}
		return nil, errors.New("not a TOML document") // err may quote a header
	}
	if len(f.Host) > maxHosts {
		return nil, fmt.Errorf("%d hosts, at most %d are allowed", len(f.Host), maxHosts)
	}
	hosts := make([]Host, 0, len(f.Host)+1)
	for _, address := range order(text, f.Host) {
		h, err := f.Host[address].host(address, dir)
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", address, err)
		}
		hosts = append(hosts, h)
	}
	server, err := f.host(f.Server, dir)
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	server.Server = true
	return append(hosts, server), nil
}

// order lists the keys of the host table as they stand in the file: a map has
// lost that.
func order(text []byte, hosts map[string]fileHost) []string {
	var names []string
	seen := make(map[string]bool)
	p := unstable.Parser{}
	p.Reset(text)
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table {
			continue
		}
		var key []string
		for it := e.Key(); it.Next(); {
			key = append(key, string(it.Node().Data))
		}
		if len(key) < 2 || key[0] != "host" || seen[key[1]] {
			continue
		}
		if _, ok := hosts[key[1]]; ok {
			seen[key[1]] = true
			names = append(names, key[1])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(hosts)) {
		if !seen[name] { // written as inline tables, which have no order
			names = append(names, name)
		}
	}
	return names
}

// host makes a Host; address "" is the registry itself. Files are relative to
// dir.
func (c fileHost) host(address, dir string) (Host, error) {
	var h Host
	var err error
	if h.URL, err = parseAddress(address, c.OverridePath); err != nil {
		return h, err
	}
	if err := c.capabilities(&h); err != nil {
		return h, err
	}
	if h.Header, err = header(c.Header); err != nil {
		return h, err
	}
	h.Dial, err = c.dial(dir)
	return h, err
}

func parseAddress(address string, override bool) (*url.URL, error) {
	if address == "" {
		return nil, nil
	}
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("want http[s]://host[:port][/path]")
	}
	at := path.Clean("/" + u.Path)
	if !override && at != "/v2" && !strings.HasSuffix(at, "/v2") {
		at = path.Join(at, "v2")
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimSuffix(at, "/")}, nil
}

func (c fileHost) capabilities(h *Host) error {
	if len(c.Capabilities) == 0 {
		h.Pull, h.Resolve = true, true
	}
	for _, word := range c.Capabilities {
		switch strings.ToLower(word) {
		case "pull":
			h.Pull = true
		case "resolve":
			h.Resolve = true
		case "push":
		default:
			return fmt.Errorf("capability %.40q: want pull, resolve or push", word)
		}
	}
	return nil
}

func header(table map[string]any) (http.Header, error) {
	if len(table) == 0 {
		return nil, nil
	}
	h := make(http.Header)
	for key, value := range table {
		list, err := texts(value)
		if err != nil {
			return nil, fmt.Errorf("header %.80q: %w", key, err)
		}
		for _, v := range list {
			if strings.ContainsAny(key, " :\r\n") || strings.ContainsAny(v, "\r\n\x00") {
				return nil, fmt.Errorf("header %.80q: a character that a header can't have", key)
			}
			h.Add(key, v)
		}
	}
	return h, nil
}

// texts reads a string or a list of strings.
func texts(value any) ([]string, error) {
	switch v := value.(type) {
	case string:
		return []string{v}, nil
	case []any:
		list := make([]string, 0, len(v))
		for _, one := range v {
			s, ok := one.(string)
			if !ok {
				return nil, errors.New("want strings")
			}
			list = append(list, s)
		}
		return list, nil
	}
	return nil, errors.New("want a string or a list of strings")
}

// dial reads all that says how to connect, and its files.
func (c fileHost) dial(dir string) (d Dial, err error) {
	parts := make([][]byte, 0, 8)
	if c.SkipVerify != nil {
		d.skipVerify = c.SkipVerify
		parts = append(parts, strconv.AppendBool([]byte("skip_verify="), *c.SkipVerify))
	}
	if c.DialTimeout != "" {
		if d.Timeout, err = time.ParseDuration(c.DialTimeout); err != nil || d.Timeout <= 0 {
			return d, fmt.Errorf("dial_timeout %.40q: want a duration, as 5s", c.DialTimeout)
		}
		parts = append(parts, []byte("dial_timeout="+d.Timeout.String()))
	}
	if c.Proxy != "" {
		if d.Proxy, err = parseProxy(c.Proxy); err != nil {
			return d, err
		}
		parts = append(parts, []byte("proxy="+c.Proxy))
	}
	if c.CA != nil {
		list, err := texts(c.CA)
		if err != nil {
			return d, fmt.Errorf("ca: %w", err)
		}
		for _, name := range list {
			pem, err := readFile(absolute(name, dir))
			if err != nil {
				return d, fmt.Errorf("ca: %w", err)
			}
			if !x509.NewCertPool().AppendCertsFromPEM(pem) {
				return d, fmt.Errorf("ca: %s holds no certificate", absolute(name, dir))
			}
			d.ca = append(d.ca, pem)
			parts = append(parts, []byte("ca"), pem)
		}
	}
	pairs, err := c.clientPairs()
	if err != nil {
		return d, fmt.Errorf("client: %w", err)
	}
	for _, p := range pairs {
		cert, raw, err := loadPair(p, dir)
		if err != nil {
			return d, fmt.Errorf("client: %w", err)
		}
		d.pairs = append(d.pairs, cert)
		parts = append(parts, []byte("client"), raw)
	}
	if len(parts) > 0 {
		d.setKey(parts...)
	}
	return d, nil
}

// parseProxy quotes nothing: the address may hold a password.
func parseProxy(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("proxy: want http://host:port, or another proxy's address without a path")
	}
	switch u.Scheme {
	case "http", "https", "socks5", "socks5h":
		return u, nil
	}
	return nil, errors.New("proxy: its scheme is none of http, https, socks5 and socks5h")
}

// clientPairs reads the three forms of client; a key "" is in the file of the
// certificate.
func (c fileHost) clientPairs() ([][2]string, error) {
	switch v := c.Client.(type) {
	case nil:
		return nil, nil
	case string:
		return [][2]string{{v}}, nil
	case []any:
		pairs := make([][2]string, 0, len(v))
		for _, one := range v {
			if s, ok := one.(string); ok {
				pairs = append(pairs, [2]string{s})
				continue
			}
			list, err := texts(one)
			if err != nil || len(list) != 2 {
				return nil, errors.New("want paths, or pairs of a certificate's path and its key's")
			}
			pairs = append(pairs, [2]string{list[0], list[1]})
		}
		return pairs, nil
	}
	return nil, errors.New("want a path, or a list of paths or of pairs of paths")
}

func loadPair(pair [2]string, dir string) (cert tls.Certificate, raw []byte, err error) {
	certName := absolute(pair[0], dir)
	certPEM, err := readFile(certName)
	if err != nil {
		return cert, nil, err
	}
	keyPEM := certPEM
	if pair[1] != "" {
		if keyPEM, err = readFile(absolute(pair[1], dir)); err != nil {
			return cert, nil, err
		}
	}
	if cert, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		return cert, nil, fmt.Errorf("%s has no certificate with its key", certName)
	}
	return cert, bytes.Join([][]byte{certPEM, keyPEM}, []byte{0}), nil
}

func absolute(name, dir string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(dir, name)
}
