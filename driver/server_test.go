package driver

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"k8s.io/klog/v2/ktesting"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// serveFor serves the Identity service on socket until the returned stop,
// which returns serve's error.
func serveFor(t *testing.T, socket string) (stop func() error) {
	t.Helper()
	_, ctx := ktesting.NewTestContext(t)
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		ended <- serve(ctx, socket, func(s *grpc.Server) {
			csi.RegisterIdentityServer(s, &identityService{version: "1"})
		})
	}()
	t.Cleanup(cancel)
	return func() error { cancel(); return <-ended }
}

func TestSocket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "plugin")
	socket := filepath.Join(dir, "csi.sock")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	// What a killed process leaves: a socket that nobody listens on.
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	stop := serveFor(t, socket)
	for {
		if conn, err := net.Dial("unix", socket); err == nil {
			_ = conn.Close()
			break
		}
	}
	conn := dial(t, socket)
	info, err := csi.NewIdentityClient(conn).GetPluginInfo(context.Background(), &csi.GetPluginInfoRequest{})
	if err != nil || info.GetName() != Name {
		t.Errorf("over the socket: %v, %v", info, err)
	}
	if st, err := os.Lstat(socket); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v; want mode 0600", st, err)
	}
	if err := stop(); err != nil {
		t.Errorf("an orderly end returned %v", err)
	}
	if names := fileNames(t, dir); len(names) != 0 {
		t.Errorf("left: %q", names)
	}
}

func TestSocketDirectoryIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	stop := serveFor(t, filepath.Join(dir, "s"))
	dial(t, filepath.Join(dir, "s"))
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the directory: %v, %v; want mode 0700", st, err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestSocketRefusals(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	writeFile(t, file)
	if err := serveFor(t, file)(); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("a file at the endpoint: %v", err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "x" {
		t.Errorf("the file: %q, %v", b, err)
	}
	long := filepath.Join(dir, strings.Repeat("s", 108))
	if err := serveFor(t, long)(); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("a long endpoint: %v", err)
	}
}

func TestSocketPath(t *testing.T) {
	for in, want := range map[string]string{
		"unix:///run/csi.sock":  "/run/csi.sock",
		"unix:/run/csi.sock":    "/run/csi.sock",
		"/run//csi.sock":        "/run/csi.sock",
		"":                      "",
		"csi.sock":              "",
		"/":                     "",
		"unix://":               "",
		"unix://csi.sock":       "",
		"unix:csi.sock":         "",
		"tcp://127.0.0.1:10000": "",
		"127.0.0.1:10000":       "",
		"unix:///%zz":           "",
	} {
		got, err := socketPath(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestNodeConfig(t *testing.T) {
	good := Config{NodeID: "n"}
	if err := good.checkNode(); err != nil {
		t.Fatal(err)
	}
	if want := (Config{NodeID: "n", CacheDir: DefaultCacheDir, StateDir: DefaultStateDir, Front: "auto"}); good.CacheDir != want.CacheDir ||
		good.StateDir != want.StateDir || good.Front != want.Front {
		t.Errorf("defaults %+v, want %+v", good, want)
	}
	for name, edit := range map[string]func(*Config){
		"no node id":            func(c *Config) { c.NodeID = "" },
		"long node id":          func(c *Config) { c.NodeID = strings.Repeat("n", 257) },
		"relative cache":        func(c *Config) { c.CacheDir = "cache" },
		"relative state":        func(c *Config) { c.StateDir = "state" },
		"relative registration": func(c *Config) { c.KubeletRegistrationPath = "csi.sock" },
		"unknown front":         func(c *Config) { c.Front = "kernel" },
		"relative allowed path": func(c *Config) { c.AllowedPaths = []string{"/images", "images"} },
	} {
		bad := Config{NodeID: "n"}
		edit(&bad)
		if err := bad.checkNode(); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestRegistration(t *testing.T) {
	needMounts(t)
	p := newPlugin(t)
	p.stop()
	_, ctx := ktesting.NewTestContext(t)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	node := &nodeServer{
		cfg:     Config{RegistrationDir: p.path("registry"), KubeletRegistrationPath: "/var/lib/kubelet/plugins/erofs.csi.dev/csi.sock"},
		socket:  p.path("csi.sock"),
		service: &nodeService{nodeID: "n", volumes: p.manager, able: ableOfAll},
	}
	ended := make(chan error, 1)
	go func() { ended <- node.run(ctx, func() {}) }()
	client := registerapi.NewRegistrationClient(dial(t, p.path("registry/erofs.csi.dev-reg.sock")))
	info, err := client.GetInfo(ctx, &registerapi.InfoRequest{})
	if err != nil || info.GetType() != "CSIPlugin" || info.GetName() != "erofs.csi.dev" ||
		info.GetEndpoint() != "/var/lib/kubelet/plugins/erofs.csi.dev/csi.sock" || len(info.GetSupportedVersions()) != 1 {
		t.Errorf("GetInfo: %v, %v", info, err)
	}
	for _, status := range []*registerapi.RegistrationStatus{{PluginRegistered: true}, {Error: "no"}} {
		if _, err := client.NotifyRegistrationStatus(ctx, status); err != nil {
			t.Error(err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("the end: %v", err)
	}
	if names := fileNames(t, p.path("registry")); len(names) != 0 {
		t.Errorf("left: %q", names)
	}
}

// TestOneSocketFails: the end of one socket is the end of both.
func TestOneSocketFails(t *testing.T) {
	p := newPlugin(t)
	p.stop()
	writeFile(t, p.path("registry"))
	node := &nodeServer{
		cfg: Config{RegistrationDir: p.path("registry")}, socket: p.path("csi.sock"),
		service: &nodeService{nodeID: "n", volumes: p.manager, able: ableOfAll},
	}
	_, ctx := ktesting.NewTestContext(t)
	if err := node.run(ctx, func() {}); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want why the registration socket cannot be", err)
	}
}
