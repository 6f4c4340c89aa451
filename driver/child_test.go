package driver

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/driver/podmount"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// The tests with real mounts run the plugin in a process of its own, for two
// reasons: a process that page-faults on its own FUSE mount can stop its own
// server, and only a process can be killed.

// childEnv makes the test binary a plugin; it holds a childConfig.
const childEnv = "EROFS_CSI_TEST_CHILD"

type childConfig struct {
	Controller bool // RunController instead of RunNode
	Pods       bool // Config.Pods
	Config     Config
}

// statusEnv makes the test binary an erofs-csi status of a state directory.
const statusEnv = "EROFS_CSI_TEST_STATUS"

// podsArg makes the test binary a helper of package podmount.
const podsArg = "-pods"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == podsArg {
		if err := podmount.Main(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "pods:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir := os.Getenv(statusEnv); dir != "" {
		list, err := engine.ReadStatus(context.Background(), dir)
		if err == nil {
			err = json.NewEncoder(os.Stdout).Encode(list)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "status:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if file := os.Getenv(pressureEnv); file != "" {
		if err := runPressure(file); err != nil {
			fmt.Fprintln(os.Stderr, "pressure:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if text := os.Getenv(childEnv); text != "" {
		if err := runChild(text); err != nil {
			fmt.Fprintln(os.Stderr, "child:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runChild(text string) error {
	var c childConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ctx = klog.NewContext(ctx, textlogger.NewLogger(textlogger.NewConfig(textlogger.Verbosity(4))))
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	go func() {
		for range asked {
			_, _ = fmt.Fprintln(os.Stdout, runtime.NumGoroutine())
		}
	}()
	c.Config.ReadStatus = func(ctx context.Context) (list []engine.Status, err error) {
		cmd := exec.CommandContext(ctx, "/proc/self/exe")
		cmd.Env = append(os.Environ(), statusEnv+"="+c.Config.StateDir)
		out, err := cmd.Output()
		if err != nil {
			return nil, err
		}
		return list, json.Unmarshal(out, &list)
	}
	if c.Pods {
		c.Config.Pods = func(ctx context.Context, task podmount.Task) (podmount.Answer, error) {
			return podmount.Run(ctx, task, "/proc/self/exe", podsArg)
		}
	}
	if c.Controller {
		return RunController(ctx, c.Config)
	}
	return RunNode(ctx, c.Config)
}

// child is a plugin in a process of its own.
type child struct {
	csi.NodeClient
	identity csi.IdentityClient

	cmd    *exec.Cmd
	conn   *grpc.ClientConn
	stdout *bufio.Reader
	log    string
	ended  bool
}

// startChild starts a plugin and waits until its volumes are restored.
func startChild(t *testing.T, c childConfig) *child {
	t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ch := &child{cmd: exec.Command(exe, "-test.run=^$"), log: filepath.Join(t.TempDir(), "log")}
	log, err := os.Create(ch.log)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	ch.cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	ch.cmd.Stderr = log
	out, err := ch.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	ch.stdout = bufio.NewReader(out)
	if err := ch.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ch.end(t, syscall.SIGKILL)
		if t.Failed() {
			text, _ := os.ReadFile(ch.log)
			t.Logf("log of the plugin:\n%s", text[max(0, len(text)-20000):])
		}
	})
	ch.conn, err = grpc.NewClient("unix:"+c.Config.Endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ch.conn.Close() })
	ch.NodeClient, ch.identity = csi.NewNodeClient(ch.conn), csi.NewIdentityClient(ch.conn)
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		// A failed attempt would make gRPC wait for a second.
		if _, err := os.Lstat(c.Config.Endpoint); err == nil {
			res, err := ch.identity.Probe(context.Background(), &csi.ProbeRequest{})
			if err == nil && res.GetReady().GetValue() {
				return ch
			}
		}
		if time.Since(start) > 30*time.Second {
			t.Fatal("the plugin does not become ready")
		}
	}
}

// end ends the process by a signal. SIGTERM is an orderly end.
func (ch *child) end(t *testing.T, by syscall.Signal) {
	t.Helper()
	if ch.ended {
		return
	}
	ch.ended = true
	if err := ch.cmd.Process.Signal(by); err != nil {
		t.Error(err)
	}
	err := ch.cmd.Wait()
	if by == syscall.SIGTERM && err != nil {
		t.Errorf("the orderly end of the plugin: %v", err)
	}
}

// goroutines asks the process for their number.
func (ch *child) goroutines(t *testing.T) int {
	t.Helper()
	if err := ch.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	line, err := ch.stdout.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (ch *child) descriptors(t *testing.T) []string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", ch.cmd.Process.Pid)
	var to []string
	for _, name := range fileNames(t, dir) {
		if target, err := os.Readlink(filepath.Join(dir, name)); err == nil {
			to = append(to, target)
		}
	}
	return to
}

// node is a node directory, with a plugin's sockets, store, state and paths.
type node struct {
	dir    string
	config Config
	pods   bool
}

// newNode makes a node.
func newNode(t *testing.T, front string) *node {
	t.Helper()
	needMounts(t)
	_, err := os.Stat("/dev/fuse")
	images.Need(t, "/dev/fuse", err == nil)
	dir, err := os.MkdirTemp("", "node") //nolint:usetesting // the path of a test with a long name is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unmountBelow(t, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for _, d := range []string{"images", "kubelet"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return &node{dir: dir, config: Config{
		Endpoint: filepath.Join(dir, "csi.sock"), NodeID: "node-1", Version: "test", Front: front,
		CacheDir: filepath.Join(dir, "cache"), StateDir: filepath.Join(dir, "state"),
		AllowedPaths: []string{filepath.Join(dir, "images")},
	}}
}

func (n *node) start(t *testing.T) *child {
	t.Helper()
	return startChild(t, childConfig{Config: n.config, Pods: n.pods})
}

// path is a path of kubelet's.
func (n *node) path(name string) string { return filepath.Join(n.dir, "kubelet", name) }

// image builds an image of tree below the allowed directory.
func (n *node) image(t *testing.T, name, tree string, opts ...string) string {
	t.Helper()
	built := images.Build(t, images.NewestMkfs(t), opts, tree)
	path := filepath.Join(n.dir, "images", name)
	b, err := os.ReadFile(built)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// stage stages a volume with attributes "key=value" beside the image, and publishes it
// at show-<id>.
func (n *node) stage(ch *child, id, image string, attributes ...string) error {
	staging := n.path("staging-" + id)
	if err := os.MkdirAll(staging, 0o750); err != nil {
		return err
	}
	_, err := ch.NodeStageVolume(context.Background(), &csi.NodeStageVolumeRequest{
		VolumeId: id, StagingTargetPath: staging, VolumeCapability: reader(), VolumeContext: volumeContext(image, attributes),
	})
	if err != nil {
		return err
	}
	return n.publish(ch, id, "show-"+id, image, attributes...)
}

func (n *node) publish(ch *child, id, target, image string, attributes ...string) error {
	_, err := ch.NodePublishVolume(context.Background(), &csi.NodePublishVolumeRequest{
		VolumeId: id, StagingTargetPath: n.path("staging-" + id), TargetPath: n.path(target),
		VolumeCapability: reader(), VolumeContext: volumeContext(image, attributes),
	})
	return err
}

func (n *node) inline(ch *child, id, target, namespace, image string, attributes ...string) error {
	c := volumeContext(image, attributes)
	c[keyEphemeral], c[keyNamespace] = "true", namespace
	_, err := ch.NodePublishVolume(context.Background(), &csi.NodePublishVolumeRequest{
		VolumeId: id, TargetPath: n.path(target), VolumeContext: c,
		VolumeCapability: capability(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER),
	})
	return err
}

func (n *node) unpublish(ch *child, id, target string) error {
	_, err := ch.NodeUnpublishVolume(context.Background(), &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: n.path(target)})
	return err
}

// unstage undoes stage.
func (n *node) unstage(ch *child, id string) error {
	if err := n.unpublish(ch, id, "show-"+id); err != nil {
		return err
	}
	_, err := ch.NodeUnstageVolume(context.Background(), &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: n.path("staging-" + id)})
	return err
}

func volumeContext(image string, attributes []string) map[string]string {
	c := map[string]string{"image": image}
	for _, a := range attributes {
		key, value, _ := strings.Cut(a, "=")
		c[key] = value
	}
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// volumeMounts returns what is mounted at kubelet's paths.
func (n *node) volumeMounts(t *testing.T) []string {
	t.Helper()
	return mountsBelow(t, filepath.Join(n.dir, "kubelet"))
}
