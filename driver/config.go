package driver

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/driver/podmount"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

// Name is the name of the driver, as CSIDriver objects and StorageClasses
// spell it.
const Name = "erofs.csi.dev"

// Defaults of [Config].
const (
	DefaultCacheDir = "/var/lib/erofs-csi"
	DefaultStateDir = "/run/erofs-csi"
)

// maxSocketPath is the size of sun_path (unix(7)) without its terminating NUL.
const maxSocketPath = 107

// Config configures [RunNode] and [RunController]. The controller uses
// Endpoint, Version, PlainHTTPRegistries, Registries, Kubeconfig and StartupTaint only.
type Config struct {
	// Endpoint is the CSI socket, "unix:///absolute/path" or
	// "/absolute/path"; the path has at most 107 bytes less the 16 of a
	// temporary name.
	Endpoint string
	// NodeID names this node to the cluster; 1 to 256 bytes.
	NodeID string
	// MaxVolumes is how many volumes the scheduler may bring to this node at most, not
	// counting inline ones; 0: any number. Nothing here refuses more.
	MaxVolumes int64
	// Version is reported by GetPluginInfo; "" is "unknown".
	Version string

	// CacheDir is the store of images, owned by one process; "" is
	// DefaultCacheDir.
	CacheDir string
	// StateDir holds what must not outlive the kernel's mounts, so it belongs
	// on a tmpfs; "" is DefaultStateDir.
	StateDir string
	// Front is one of engine.Fronts; "" is "auto".
	Front string
	// Holder is the socket of a holder, with which mounts outlive this process: see
	// package driver/holder. "" is none: they die with it, and are rebuilt.
	Holder string
	// StoreLimit is how much of CacheDir's file system plain copies of large files may
	// take, as engine.StoreConfig takes it; "" is none.
	StoreLimit string

	// ImageSpace says how much of CacheDir's file system images may take.
	ImageSpace engine.ImageSpace

	// AllowedPaths are the directories below which an image may be named by
	// an absolute path. Nil or empty: no image may be, because any pod author
	// can write such a path into an inline volume.
	AllowedPaths []string
	// PlainHTTPRegistries are the registries ("host" or "host:port") that are
	// spoken to without TLS. Empty: those of this machine, if they speak none.
	PlainHTTPRegistries []string
	// Registries are the process' own credentials, mirrors and limits.
	Registries nodecache.RegistryConfig
	// InlineDomains are "NAMESPACE=DOMAIN" pairs: inline volumes of pods of
	// NAMESPACE may ask for DOMAIN.
	InlineDomains []string
	// TrustedInlineNamespaces are those whose inline volumes may ask for
	// "engine: kernel" and "fingerprints: trusted".
	TrustedInlineNamespaces []string

	// Kubeconfig is the file that says how to reach the Kubernetes API; "" is
	// that of the cluster the process runs in, if it does.
	Kubeconfig string
	// StartupTaint is the key of a taint that is removed from nodes where the plugin can
	// serve; "" is none.
	StartupTaint string

	// MetricsAddress is the TCP address, host:port, at which Prometheus may ask for
	// /metrics without authentication; "" is none.
	MetricsAddress string
	// ReadStatus is engine.ReadStatus of StateDir by another process, since this one
	// must not look into its own mounts; it returns soon after its context ends. Nil:
	// the metrics of domains and their page cache are not there.
	ReadStatus func(context.Context) ([]engine.Status, error) `json:"-"`

	// Pods has another process replace dead mounts in pods' mount namespaces:
	// podmount.Run. /proc has to show their processes. Nil: pods that run keep what is
	// dead.
	Pods podmount.Helper `json:"-"`

	// RegistrationDir is kubelet's directory of registration sockets
	// (/var/lib/kubelet/plugins_registry); "" leaves registration to the
	// registrar sidecar.
	RegistrationDir string
	// KubeletRegistrationPath is Endpoint's path as kubelet sees it on the
	// host; "" is the path of Endpoint.
	KubeletRegistrationPath string
}

// socketPath returns the path of a unix endpoint.
func socketPath(endpoint string) (string, error) {
	path := endpoint
	if strings.Contains(endpoint, ":") {
		u, err := url.Parse(endpoint)
		if err != nil {
			return "", fmt.Errorf("endpoint %q: %w", endpoint, err)
		}
		if u.Scheme != "unix" || u.Host != "" || u.Opaque != "" {
			return "", fmt.Errorf("endpoint %q: want unix:///absolute/path/of/the.sock", endpoint)
		}
		path = u.Path
	}
	if !filepath.IsAbs(path) || path == "/" {
		return "", fmt.Errorf("endpoint %q: want unix:///absolute/path/of/the.sock", endpoint)
	}
	return filepath.Clean(path), nil
}

// checkNode validates what RunNode needs and fills in the defaults.
func (c *Config) checkNode() error {
	if c.NodeID == "" {
		return errors.New("no node id: pass --node-id with the name of the node")
	}
	if len(c.NodeID) > 256 {
		// CSI NodeGetInfoResponse.node_id: at most 256 bytes.
		return fmt.Errorf("node id of %d bytes: at most 256 are allowed", len(c.NodeID))
	}
	if c.MaxVolumes < 0 {
		return fmt.Errorf("%d volumes at most: want 0, for no limit, or more", c.MaxVolumes)
	}
	if c.CacheDir == "" {
		c.CacheDir = DefaultCacheDir
	}
	if c.StateDir == "" {
		c.StateDir = DefaultStateDir
	}
	if c.Front == "" {
		c.Front = "auto"
	}
	if !slices.Contains(engine.Fronts, c.Front) {
		return fmt.Errorf("front %q: want one of %s", c.Front, strings.Join(engine.Fronts, ", "))
	}
	for _, d := range []struct{ what, path string }{
		{"cache directory", c.CacheDir},
		{"state directory", c.StateDir},
	} {
		if !filepath.IsAbs(d.path) {
			return fmt.Errorf("%s %q: want an absolute path", d.what, d.path)
		}
	}
	if p := c.KubeletRegistrationPath; p != "" && !filepath.IsAbs(p) {
		return fmt.Errorf("kubelet registration path %q: want an absolute path", p)
	}
	for _, p := range c.AllowedPaths {
		if !filepath.IsAbs(p) {
			return fmt.Errorf("allowed path %q: want an absolute path", p)
		}
	}
	return nil
}

// plainHTTP is nodecache's PlainHTTP: nil, its own rule, without a list.
func (c *Config) plainHTTP() func(host string) bool {
	if len(c.PlainHTTPRegistries) == 0 {
		return nil
	}
	return func(host string) bool { return slices.Contains(c.PlainHTTPRegistries, host) }
}
