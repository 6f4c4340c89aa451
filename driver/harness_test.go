package driver

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2/ktesting"

	"github.com/erofs-csi/erofs-csi/driver/engine"
)

// plugin is a node plugin on a unix socket, with fakes behind it.
type plugin struct {
	csi.NodeClient
	identity csi.IdentityClient

	manager *volumeManager
	store   *fakeStore
	engine  *fakeEngine
	mounts  *brokenMounter
	dir     string // staging, targets and state are below it
	stop    func()
}

// newPlugin starts a plugin in a fresh directory.
func newPlugin(t *testing.T) *plugin {
	t.Helper()
	needMounts(t)
	dir := t.TempDir()
	p := &plugin{store: newFakeStore(), engine: newFakeEngine(t), dir: dir}
	p.start(t, inlinePolicy{})
	t.Cleanup(func() { unmountBelow(t, dir) })
	return p
}

// start starts the plugin process, as it were: what it knows of volumes is in
// the state directory.
func (p *plugin) start(t *testing.T, inline inlinePolicy) {
	t.Helper()
	node := p.startUnready(t, inline)
	for !node.ready.Load() {
		time.Sleep(time.Millisecond)
	}
}

// ableOfAll is the node of the tests.
func ableOfAll() (engine.Abilities, error) {
	return engine.Abilities{FUSE: true, Kernel: true, IDMapped: true}, nil
}

// startUnready does not wait for the rebuild of the volumes.
func (p *plugin) startUnready(t *testing.T, inline inlinePolicy) *nodeServer {
	t.Helper()
	_, ctx := ktesting.NewTestContext(t)
	ctx, cancel := context.WithCancel(ctx)
	p.mounts = &brokenMounter{mounter: sysMounter{}}
	p.manager = newVolumeManager(p.store, p.engine, p.mounts, recordDir(filepath.Join(p.dir, "state", "volumes")))
	wait, err := p.manager.Restore(ctx)
	if err != nil {
		t.Fatal(err)
	}
	node := &nodeServer{
		cfg:     Config{Version: "test"},
		socket:  filepath.Join(p.dir, "csi.sock"),
		service: &nodeService{nodeID: "node-1", inline: inline, volumes: p.manager, able: ableOfAll},
	}
	ended := make(chan error, 1)
	go func() { ended <- node.run(ctx, wait) }()
	var stopped atomic.Bool
	p.stop = func() {
		if stopped.Swap(true) {
			return
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the plugin ended with %v", err)
		}
	}
	t.Cleanup(p.stop)
	conn := dial(t, node.socket)
	p.NodeClient, p.identity = csi.NewNodeClient(conn), csi.NewIdentityClient(conn)
	return node
}

// crash ends the process without its leaving anything in order: its fronts
// go, and what was bound from them is dead weight.
func (p *plugin) crash(t *testing.T) {
	t.Helper()
	p.crashHeld(t)
	p.engine.held = nil
	for _, f := range p.engine.all() {
		if err := f.Release(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}

// crashHeld is crash with a holder: the fronts wait for the next process.
func (p *plugin) crashHeld(t *testing.T) {
	t.Helper()
	p.stop()
	p.engine.held = make(map[string]*fakeFront)
	for _, f := range p.engine.all() {
		if !f.isReleased() {
			p.engine.held[f.request.VolumeID] = f
		}
	}
	p.store.mu.Lock()
	p.store.pins = 0
	p.store.mu.Unlock()
}

func dial(t *testing.T, socket string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	opts = append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))
	// A first attempt that fails makes gRPC wait for a second.
	for start := time.Now(); time.Since(start) < 10*time.Second; time.Sleep(time.Millisecond) {
		if _, err := os.Lstat(socket); err == nil {
			break
		}
	}
	conn, err := grpc.NewClient("unix:"+socket, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client := csi.NewIdentityClient(conn)
	if _, err := client.Probe(ctx, &csi.ProbeRequest{}, grpc.WaitForReady(true)); err != nil && status.Code(err) != codes.Unimplemented {
		t.Fatal(err)
	}
	return conn
}

func (p *plugin) path(name string) string { return filepath.Join(p.dir, name) }

// reader is the capability of a persistent volume.
func reader(flags ...string) *csi.VolumeCapability {
	return capability(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY, flags...)
}

func capability(mode csi.VolumeCapability_AccessMode_Mode, flags ...string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{MountFlags: flags}},
	}
}

func imageA() map[string]string { return map[string]string{"image": "registry.example/a:1"} }

// stageRequest stages a volume at <dir>/staging-<id>, which it makes, as
// kubelet does.
func (p *plugin) stageRequest(t *testing.T, id string) *csi.NodeStageVolumeRequest {
	t.Helper()
	staging := p.path("staging-" + id)
	if err := os.MkdirAll(staging, 0o750); err != nil && !strings.Contains(err.Error(), "transport endpoint") {
		t.Fatal(err)
	}
	return &csi.NodeStageVolumeRequest{
		VolumeId: id, StagingTargetPath: staging, VolumeCapability: reader(), VolumeContext: imageA(),
	}
}

func (p *plugin) publishRequest(id, target string) *csi.NodePublishVolumeRequest {
	return &csi.NodePublishVolumeRequest{
		VolumeId: id, StagingTargetPath: p.path("staging-" + id), TargetPath: p.path(target),
		VolumeCapability: reader(), VolumeContext: imageA(), Readonly: true,
	}
}

func (p *plugin) inlineRequest(id, target string) *csi.NodePublishVolumeRequest {
	volumeContext := imageA()
	volumeContext[keyEphemeral] = "true"
	volumeContext[keyNamespace] = "team-a"
	volumeContext[keyPodName] = "pod"
	return &csi.NodePublishVolumeRequest{
		VolumeId: id, TargetPath: p.path(target), VolumeContext: volumeContext,
		VolumeCapability: capability(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER),
	}
}

func (p *plugin) mustStage(t *testing.T, id string) {
	t.Helper()
	if _, err := p.NodeStageVolume(context.Background(), p.stageRequest(t, id)); err != nil {
		t.Fatal(err)
	}
}

func (p *plugin) mustPublish(t *testing.T, id, target string) {
	t.Helper()
	if _, err := p.NodePublishVolume(context.Background(), p.publishRequest(id, target)); err != nil {
		t.Fatal(err)
	}
}

func (p *plugin) unpublish(id, target string) error {
	_, err := p.NodeUnpublishVolume(context.Background(), &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: p.path(target)})
	return err
}

func (p *plugin) unstage(id string) error {
	_, err := p.NodeUnstageVolume(context.Background(), &csi.NodeUnstageVolumeRequest{
		VolumeId: id, StagingTargetPath: p.path("staging-" + id),
	})
	return err
}

// checkContent reads the volume's one file at a place of the directory.
func (p *plugin) checkContent(t *testing.T, place, want string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(p.path(place), "content"))
	if err != nil || string(got) != want {
		t.Errorf("%s: content %q, %v; want %q", place, got, err, want)
	}
}

// checkUnmounted fails if something is mounted at a place of the directory.
func (p *plugin) checkUnmounted(t *testing.T, place string) {
	t.Helper()
	table, err := readMountTable()
	if err != nil {
		t.Fatal(err)
	}
	if m, ok := table.at(p.path(place)); ok {
		t.Errorf("%s: %s is mounted there", place, m.Source)
	}
}

// checkClean fails if anything of the volumes is left: pins, fronts, mounts,
// records, known volumes.
func (p *plugin) checkClean(t *testing.T) {
	t.Helper()
	if n := p.store.pinned(); n != 0 {
		t.Errorf("%d images are still pinned", n)
	}
	if n := p.engine.live(); n != 0 {
		t.Errorf("%d fronts are still mounted", n)
	}
	for _, m := range mountsBelow(t, p.dir) {
		t.Errorf("%s is still mounted", m)
	}
	files, err := os.ReadDir(p.path("state/volumes"))
	if err != nil {
		t.Error(err)
	}
	for _, f := range files {
		t.Errorf("record %s is left", f.Name())
	}
	p.manager.mu.Lock()
	defer p.manager.mu.Unlock()
	for id := range p.manager.volumes {
		t.Errorf("volume %s is still known", id)
	}
	p.manager.inflight.mu.Lock()
	defer p.manager.inflight.mu.Unlock()
	for name := range p.manager.inflight.names {
		t.Errorf("%s is still locked", name)
	}
}

// wantCode fails unless err has the code and names all of words.
func wantCode(t *testing.T, err error, code codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("got %v, want code %s", err, code)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error %q does not say %q", err, word)
		}
	}
}

func mountsBelow(t *testing.T, dir string) []string {
	t.Helper()
	table, err := readMountTable()
	if err != nil {
		t.Fatal(err)
	}
	var points []string
	for _, m := range table {
		if strings.HasPrefix(m.MountPoint, dir+"/") {
			points = append(points, m.MountPoint)
		}
	}
	return points
}

func unmountBelow(t *testing.T, dir string) {
	t.Helper()
	points := mountsBelow(t, dir)
	for i := len(points) - 1; i >= 0; i-- {
		if err := (sysMounter{}).Unmount(points[i], true); err != nil {
			t.Log(err)
		}
	}
}
