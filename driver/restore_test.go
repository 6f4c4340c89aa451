package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/erofs-csi/erofs-csi/nodecache"
)

// oldCondition reads volume_condition as a kubelet of CSI 1.12 does.
func (p *plugin) oldCondition(t *testing.T, id, place string) (abnormal bool, message string) {
	t.Helper()
	res, err := p.NodeGetVolumeStats(context.Background(), &csi.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: p.path(place)})
	if err != nil {
		t.Fatal(err)
	}
	b := res.ProtoReflect().GetUnknown()
	number, kind, n := protowire.ConsumeTag(b)
	if number != 2 || kind != protowire.BytesType {
		t.Fatalf("field %d of type %d, want volume_condition", number, kind)
	}
	b, _ = protowire.ConsumeBytes(b[n:])
	for len(b) > 0 {
		number, _, n := protowire.ConsumeTag(b)
		b = b[n:]
		switch number {
		case 1:
			v, n := protowire.ConsumeVarint(b)
			abnormal, b = v != 0, b[n:]
		case 2:
			v, n := protowire.ConsumeString(b)
			message, b = v, b[n:]
		default:
			t.Fatalf("unknown field %d", number)
		}
	}
	return abnormal, message
}

// health reads NodeGetVolumeHealth: "" or "STATUS Reason".
func (p *plugin) health(t *testing.T, id string) string {
	t.Helper()
	res, err := p.NodeGetVolumeHealth(context.Background(), &csi.NodeGetVolumeHealthRequest{VolumeId: id})
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, s := range res.GetVolumeHealth().GetHealthStatuses() {
		words = append(words, s.GetStatus().String()+" "+s.GetReason())
	}
	return strings.Join(words, ", ")
}

func TestRestore(t *testing.T) {
	p := newPlugin(t)
	stage := p.stageRequest(t, "v")
	stage.VolumeContext["domain_id"] = "d"
	if _, err := p.NodeStageVolume(context.Background(), stage); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"pod1", "pod2"} {
		req := p.publishRequest("v", target)
		req.VolumeContext["domain_id"] = "d"
		req.VolumeCapability = reader("noexec")
		if _, err := p.NodePublishVolume(context.Background(), req); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.NodePublishVolume(context.Background(), p.inlineRequest("csi-1", "inline")); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		p.crash(t)
		p.store.acquire = func(_ context.Context, ref string, opts nodecache.AcquireOptions) error {
			if opts.Policy != nodecache.Never || opts.DockerConfig != nil {
				return fmt.Errorf("image %s was asked for with %+v", ref, opts)
			}
			return nil
		}
		p.store.authorize = func(string, []byte) error { return nodecache.ErrUnavailable }
		// Earlier versions mounted volumes at their staging paths, too.
		if err := (sysMounter{}).Bind(p.dir, p.path("staging-v"), defaultMountFlags); err != nil {
			t.Fatal(err)
		}
		p.start(t, inlinePolicy{})
		p.checkUnmounted(t, "staging-v")
		for _, place := range []string{"pod1", "pod2", "inline"} {
			p.checkContent(t, place, "content of a")
			if n := len(mountsAt(t, p.path(place))); n != 1 {
				t.Errorf("%d mounts at %s", n, place)
			}
		}
		if p.engine.live() != 2 || p.store.pinned() != 2 {
			t.Errorf("%d fronts, %d pins; want 2 and 2", p.engine.live(), p.store.pinned())
		}
		for _, id := range []string{"v", "csi-1"} {
			if h := p.health(t, id); h != "" {
				t.Errorf("volume %s: %s", id, h)
			}
		}
	}
	// The rebuilt volume is the same volume: calls on it stay idempotent.
	if _, err := p.NodeStageVolume(context.Background(), stage); err != nil {
		t.Error(err)
	}
	table, err := readMountTable()
	if err != nil {
		t.Fatal(err)
	}
	if m, _ := table.at(p.path("pod2")); !strings.Contains(strings.Join(m.MountOptions, ","), "noexec") {
		t.Errorf("mount options after the restart: %s", m.MountOptions)
	}
	for _, f := range p.engine.all()[len(p.engine.all())-2:] {
		if f.domain != "d" && f.domain != "" {
			t.Errorf("a front in domain %q", f.domain)
		}
	}
	for id, targets := range map[string][]string{"v": {"pod1", "pod2"}, "csi-1": {"inline"}} {
		for _, target := range targets {
			if err := p.unpublish(id, target); err != nil {
				t.Error(err)
			}
		}
	}
	if err := p.unstage("v"); err != nil {
		t.Error(err)
	}
	p.checkClean(t)
}

func mountsAt(t *testing.T, path string) []string {
	t.Helper()
	var found []string
	for _, m := range mountsBelow(t, strings.TrimSuffix(path, "/"+lastElement(path))) {
		if m == path {
			found = append(found, m)
		}
	}
	return found
}

func lastElement(path string) string { return path[strings.LastIndex(path, "/")+1:] }

func TestRestoreForgetsWhatIsGone(t *testing.T) {
	p := newPlugin(t)
	p.mustStage(t, "v")
	p.mustPublish(t, "v", "pod1")
	p.mustPublish(t, "v", "pod2")
	p.mustStage(t, "w")
	p.crash(t)
	unmountBelow(t, p.dir)
	for _, place := range []string{"pod1", "staging-w"} {
		if err := os.Remove(p.path(place)); err != nil {
			t.Fatal(err)
		}
	}
	p.start(t, inlinePolicy{})
	p.checkContent(t, "pod2", "content of a")
	if r := p.manager.lookup("v").record; len(r.Targets) != 1 || r.Targets[0].Path != p.path("pod2") {
		t.Errorf("targets %+v, want pod2 only", r.Targets)
	}
	if v := p.manager.lookup("w"); v != nil {
		t.Errorf("volume w, whose paths are gone, is still known: %+v", v)
	}
	if _, err := os.Lstat(p.manager.saved.file("w")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its record: %v", err)
	}
	if _, err := os.Lstat(p.path("pod1")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a path that was gone came back: %v", err)
	}
}

// TestRestoreOfOneVolumeFails: the others come back; the failed one says why,
// and comes back with the next call that has what is needed.
func TestRestoreOfOneVolumeFails(t *testing.T) {
	p := newPlugin(t)
	p.mustStage(t, "v")
	p.mustPublish(t, "v", "pod")
	other := p.stageRequest(t, "w")
	other.VolumeContext["image"] = "registry.example/b:1"
	if _, err := p.NodeStageVolume(context.Background(), other); err != nil {
		t.Fatal(err)
	}
	publish := p.publishRequest("w", "pod-w")
	publish.VolumeContext = other.GetVolumeContext()
	if _, err := p.NodePublishVolume(context.Background(), publish); err != nil {
		t.Fatal(err)
	}
	p.crash(t)
	p.store.set("registry.example/a:1", "")
	p.start(t, inlinePolicy{})
	p.checkContent(t, "pod-w", "content of b")
	if abnormal, message := p.oldCondition(t, "v", "pod"); !abnormal || !strings.Contains(message, "image not found") {
		t.Errorf("condition %t, %q", abnormal, message)
	}
	if kept := p.store.keeps(); len(kept) != 1 {
		t.Errorf("kept from eviction: %q, want the image of the volume that is to be rebuilt", kept)
	}
	if h := p.health(t, "v"); h != "INACCESSIBLE NotRebuilt" {
		t.Errorf("health %q", h)
	}
	if abnormal, message := p.oldCondition(t, "w", "staging-w"); abnormal || !strings.Contains(message, "readable, front tree of engine fuse (it is a fake)") {
		t.Errorf("condition of the other volume %t, %q", abnormal, message)
	}
	_, err := p.NodePublishVolume(context.Background(), p.publishRequest("v", "pod2"))
	wantCode(t, err, codes.NotFound, "cannot be rebuilt")

	p.store.set("registry.example/a:1", "changed")
	_, err = p.NodePublishVolume(context.Background(), p.publishRequest("v", "pod2"))
	wantCode(t, err, codes.FailedPrecondition, "other bytes")

	p.store.set("registry.example/a:1", "content of a")
	p.mustPublish(t, "v", "pod2")
	for _, place := range []string{"pod", "pod2"} {
		p.checkContent(t, place, "content of a")
	}
	if kept := p.store.keeps(); len(kept) != 0 {
		t.Errorf("still kept: %q", kept)
	}
	if h := p.health(t, "v"); h != "" {
		t.Errorf("health after the repair: %s", h)
	}
}

// TestBrokenVolumeCanBeUndone: what cannot be rebuilt can still be unmounted.
func TestBrokenVolumeCanBeUndone(t *testing.T) {
	p := newPlugin(t)
	p.mustStage(t, "v")
	p.mustPublish(t, "v", "pod")
	p.crash(t)
	p.store.set("registry.example/a:1", "")
	p.start(t, inlinePolicy{})
	if err := p.unpublish("v", "pod"); err != nil {
		t.Error(err)
	}
	if err := p.unstage("v"); err != nil {
		t.Error(err)
	}
	if kept := p.store.keeps(); len(kept) != 0 {
		t.Errorf("still kept: %q", kept)
	}
	p.checkClean(t)
}

func TestDamagedRecordDelaysNobody(t *testing.T) {
	p := newPlugin(t)
	p.mustStage(t, "v")
	p.mustStage(t, "w")
	p.mustPublish(t, "w", "pod")
	p.crash(t)
	writeFile(t, p.manager.saved.file("v"))
	p.start(t, inlinePolicy{})
	p.checkContent(t, "pod", "content of a")
	// Kubelet undoes the volume by its paths.
	if err := p.unstage("v"); err != nil {
		t.Error(err)
	}
	if n := len(mountsAt(t, p.path("staging-v"))); n != 0 {
		t.Errorf("%d mounts at the staging path of the lost volume", n)
	}
}

// TestCallsWhileRestoring: volumes under rebuild are Aborted, others are
// served, and Probe says not ready.
func TestCallsWhileRestoring(t *testing.T) {
	p := newPlugin(t)
	p.mustStage(t, "v")
	p.crash(t)
	leave := make(chan struct{})
	p.store.acquire = func(_ context.Context, _ string, opts nodecache.AcquireOptions) error {
		if opts.Policy == nodecache.Never {
			<-leave
		}
		return nil
	}
	node := p.startUnready(t, inlinePolicy{})
	probe, err := p.identity.Probe(context.Background(), &csi.ProbeRequest{})
	if err != nil || probe.GetReady().GetValue() {
		t.Errorf("Probe: %v, %v; want not ready", probe, err)
	}
	want := (&fakeImage{content: "content of a"}).ID()
	if kept := p.store.keeps(); !slices.Equal(kept, []string{want}) {
		t.Errorf("kept from eviction while it is rebuilt: %q, want %q", kept, want)
	}
	wantCode(t, p.unstage("v"), codes.Aborted)
	_, err = p.NodePublishVolume(context.Background(), p.publishRequest("v", "pod"))
	wantCode(t, err, codes.Aborted)
	if abnormal, message := p.oldCondition(t, "v", "staging-v"); !abnormal || !strings.Contains(message, "rebuilt") {
		t.Errorf("condition %t, %q", abnormal, message)
	}
	p.mustStage(t, "w")
	close(leave)
	for start := time.Now(); !node.ready.Load(); time.Sleep(time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Fatal("the rebuild does not end")
		}
	}
	if kept := p.store.keeps(); len(kept) != 0 {
		t.Errorf("still kept: %q", kept)
	}
	p.mustPublish(t, "v", "pod")
	p.checkContent(t, "pod", "content of a")
}

// TestVolumesAreMountedInParallel: eight calls meet inside of the store.
func TestVolumesAreMountedInParallel(t *testing.T) {
	p := newPlugin(t)
	const volumes = 8
	arrived, leave := make(chan struct{}, volumes), make(chan struct{})
	p.store.acquire = func(ctx context.Context, _ string, _ nodecache.AcquireOptions) error {
		arrived <- struct{}{}
		select {
		case <-leave:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	errs := make(chan error, volumes)
	for i := range volumes {
		req := p.stageRequest(t, fmt.Sprint("v", i))
		go func() {
			_, err := p.NodeStageVolume(ctx, req)
			errs <- err
		}()
	}
	for range volumes {
		select {
		case <-arrived:
		case <-ctx.Done():
			t.Fatal("the calls wait for one another")
		}
	}
	close(leave)
	for range volumes {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// TestSickFrontIsReplaced: a front that can no longer be read is reported, and
// the next call mounts another one at all paths.
func TestSickFrontIsReplaced(t *testing.T) {
	p := newPlugin(t)
	p.mustStage(t, "v")
	p.mustPublish(t, "v", "pod")
	p.engine.all()[0].fall(errors.New("the server is gone"))
	p.store.acquire = func(context.Context, string, nodecache.AcquireOptions) error {
		if kept := p.store.keeps(); len(kept) != 1 {
			t.Errorf("kept from eviction while the front is replaced: %q, want its image", kept)
		}
		return nil
	}
	if abnormal, message := p.oldCondition(t, "v", "pod"); !abnormal || !strings.Contains(message, "the server is gone") {
		t.Errorf("condition %t, %q", abnormal, message)
	}
	if h := p.health(t, "v"); h != "INACCESSIBLE EngineUnhealthy" {
		t.Errorf("health %q", h)
	}
	p.mustPublish(t, "v", "pod")
	if !p.engine.all()[0].isReleased() || p.engine.live() != 1 || p.store.pinned() != 1 {
		t.Errorf("%d fronts, %d pins; want the new one only", p.engine.live(), p.store.pinned())
	}
	p.checkContent(t, "pod", "content of a")
	if h := p.health(t, "v"); h != "" {
		t.Errorf("health after the repair: %s", h)
	}
}

// TestPublishToAVanishedTarget: kubelet's clean-up may have removed a target
// that the driver still knows.
func TestPublishToAVanishedTarget(t *testing.T) {
	p := newPlugin(t)
	p.mustStage(t, "v")
	p.mustPublish(t, "v", "pod")
	if err := (sysMounter{}).Unmount(p.path("pod"), false); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(p.path("pod")); err != nil {
		t.Fatal(err)
	}
	p.mustPublish(t, "v", "pod")
	p.checkContent(t, "pod", "content of a")
}

// TestMountWithoutItsFlagsIsMadeAgain: a crash can fall between a bind and the
// setting of its flags.
func TestMountWithoutItsFlagsIsMadeAgain(t *testing.T) {
	p := newPlugin(t)
	p.mustStage(t, "v")
	p.mustPublish(t, "v", "pod")
	if err := unix.Mount("", p.path("pod"), "", unix.MS_BIND|unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	if h := p.health(t, "v"); h != "INACCESSIBLE OtherMount" {
		t.Errorf("health %q", h)
	}
	p.mustPublish(t, "v", "pod")
	if h := p.health(t, "v"); h != "" {
		t.Errorf("health after the repair: %s", h)
	}
	if mounts := mountsBelow(t, p.dir); len(mounts) != 1 {
		t.Errorf("mounts %q, want one", mounts)
	}
}

// TestRecordPrecedesItsMount: whatever is mounted is in a record already, so
// that a crash at any moment leaves no mount that nobody knows.
func TestRecordPrecedesItsMount(t *testing.T) {
	p := newPlugin(t)
	var unknown []string
	p.mounts.bind = func(target string) error {
		r, err := p.manager.saved.read(p.manager.saved.file("v"))
		if err != nil || !slices.ContainsFunc(r.paths(), func(o recordPath) bool { return o.Path == target }) {
			unknown = append(unknown, target)
		}
		return nil
	}
	p.mustStage(t, "v")
	p.mustPublish(t, "v", "pod")
	if len(unknown) != 0 {
		t.Errorf("mounted without a record: %q", unknown)
	}
}

func TestPublishAfterLostMount(t *testing.T) {
	p := newPlugin(t)
	p.mustStage(t, "v")
	p.mustPublish(t, "v", "pod")
	if err := (sysMounter{}).Unmount(p.path("pod"), false); err != nil {
		t.Fatal(err)
	}
	if h := p.health(t, "v"); h != "INACCESSIBLE NotMounted" {
		t.Errorf("health %q", h)
	}
	p.mustStage(t, "v")
	p.mustPublish(t, "v", "pod")
	p.checkContent(t, "pod", "content of a")
	if err := p.unpublish("v", "pod"); err != nil {
		t.Fatal(err)
	}
	if err := p.unstage("v"); err != nil {
		t.Fatal(err)
	}
	p.checkClean(t)
}

// TestRestoreResumes: fronts that outlived the process are the volumes' again, and no
// mount is touched. Those that no volume has any more are let go of.
func TestRestoreResumes(t *testing.T) {
	p := newPlugin(t)
	for _, id := range []string{"v", "gone"} {
		if _, err := p.NodeStageVolume(context.Background(), p.stageRequest(t, id)); err != nil {
			t.Fatal(err)
		}
		if _, err := p.NodePublishVolume(context.Background(), p.publishRequest(id, "pod-"+id)); err != nil {
			t.Fatal(err)
		}
	}
	before := mountIDs(t, p.path("pod-v"))
	p.crashHeld(t)
	if err := p.manager.saved.remove("gone"); err != nil {
		t.Fatal(err)
	}
	p.start(t, inlinePolicy{})
	if after := mountIDs(t, p.path("pod-v")); len(before) != 1 || !slices.Equal(after, before) {
		t.Errorf("mounts %q, were %q", after, before)
	}
	if p.engine.live() != 1 || p.store.pinned() != 1 {
		t.Errorf("%d fronts, %d pins; want 1 and 1", p.engine.live(), p.store.pinned())
	}
	if h := p.health(t, "v"); h != "" {
		t.Errorf("the volume: %s", h)
	}
	// A directory that went away meanwhile is forgotten, and one whose mount is gone is
	// mounted again.
	p.crashHeld(t)
	if err := unix.Unmount(p.path("pod-v"), 0); err != nil {
		t.Fatal(err)
	}
	p.start(t, inlinePolicy{})
	p.checkContent(t, "pod-v", "content of a")
	if err := errors.Join(p.unpublish("v", "pod-v"), p.unstage("v")); err != nil {
		t.Error(err)
	}
}
