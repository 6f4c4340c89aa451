package driver

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

func TestLifeOfAVolume(t *testing.T) {
	p := newPlugin(t)
	ctx := context.Background()
	for range 3 { // each call is idempotent
		p.mustStage(t, "v")
	}
	p.checkUnmounted(t, "staging-v")
	for range 3 {
		p.mustPublish(t, "v", "pod1")
		p.mustPublish(t, "v", "pod2")
	}
	p.checkContent(t, "pod1", "content of a")
	p.checkContent(t, "pod2", "content of a")
	if p.store.acquired != 1 || p.engine.live() != 1 {
		t.Errorf("acquired %d images, mounted %d fronts; want 1 and 1", p.store.acquired, p.engine.live())
	}
	err := os.WriteFile(p.path("pod1/new"), nil, 0o600)
	if !errors.Is(err, syscall.EROFS) {
		t.Errorf("writing to a volume: %v, want EROFS", err)
	}
	stats, err := p.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: "v", VolumePath: p.path("pod1")})
	if err != nil {
		t.Fatal(err)
	}
	want := []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: 4096, Used: 4096},
		{Unit: csi.VolumeUsage_INODES, Total: 2, Used: 2},
	}
	for i, u := range stats.GetUsage() {
		if !proto.Equal(u, want[i]) {
			t.Errorf("usage %v, want %v", u, want[i])
		}
	}
	wantCode(t, p.unstage("v"), codes.FailedPrecondition, "pod1", "unpublish")
	for range 3 {
		if err := p.unpublish("v", "pod1"); err != nil {
			t.Fatal(err)
		}
	}
	p.checkContent(t, "pod2", "content of a")
	if _, err := os.Lstat(p.path("pod1")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the target path is still there: %v", err)
	}
	if err := p.unpublish("v", "pod2"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := p.unstage("v"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(p.path("staging-v")); err != nil {
		t.Errorf("the staging directory, which the caller made: %v", err)
	}
	p.checkClean(t)
}

func TestLifeOfAnInlineVolume(t *testing.T) {
	p := newPlugin(t)
	req := p.inlineRequest("csi-1", "pod")
	req.Secrets = map[string]string{secretKey: `{"auths":{}}`}
	for range 3 {
		if _, err := p.NodePublishVolume(context.Background(), req); err != nil {
			t.Fatal(err)
		}
	}
	p.checkContent(t, "pod", "content of a")
	if got := p.store.authorized; len(got) != 1 || got[0] != `{"auths":{}}` {
		t.Errorf("the pull secret was checked with %q, want once", got)
	}
	record, err := os.ReadFile(p.manager.saved.file("csi-1"))
	if err != nil || strings.Contains(string(record), "auths") {
		t.Errorf("record %s, %v: must hold no secret", record, err)
	}
	for range 3 {
		if err := p.unpublish("csi-1", "pod"); err != nil {
			t.Fatal(err)
		}
	}
	p.checkClean(t)
}

func TestInlineVolumeNeedsItsOwnSecret(t *testing.T) {
	p := newPlugin(t)
	p.mustStage(t, "v") // the blob is on the node
	p.store.authorize = func(string, []byte) error { return nodecache.ErrUnauthorized }
	for _, policy := range []nodecache.PullPolicy{nodecache.IfNotPresent, nodecache.Never, nodecache.Always} {
		req := p.inlineRequest("csi-1", "pod")
		req.VolumeContext["pullPolicy"] = string(policy)
		_, err := p.NodePublishVolume(context.Background(), req)
		wantCode(t, err, codes.Unauthenticated, "registry.example/a:1", "nodePublishSecretRef")
	}
	if err := p.unstage("v"); err != nil {
		t.Fatal(err)
	}
	p.checkClean(t)
}

func TestDomains(t *testing.T) {
	p := newPlugin(t)
	p.stop()
	policy, err := parseInlinePolicy([]string{"team-b=shared"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.start(t, policy)
	stage := p.stageRequest(t, "v")
	stage.VolumeContext["domain_id"] = "shared"
	if _, err := p.NodeStageVolume(context.Background(), stage); err != nil {
		t.Fatal(err)
	}
	for _, namespace := range []string{"team-a", "team-b"} {
		req := p.inlineRequest("csi-"+namespace, namespace)
		req.VolumeContext["domain_id"] = "shared"
		req.VolumeContext[keyNamespace] = namespace
		if _, err := p.NodePublishVolume(context.Background(), req); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, f := range p.engine.all() {
		got = append(got, f.domain)
	}
	if want := "shared namespace/team-a shared"; strings.Join(got, " ") != want {
		t.Errorf("domains %q, want %q", got, want)
	}
}

// TestBadInput is the bad input that the driver itself or what is below it
// refuses: each has its code, names what is wrong, and leaves nothing behind.
// What a volume asks of its front: a limit of its domain's page cache, and that its
// pages stay unless it can't come back.
func TestFrontRequests(t *testing.T) {
	p := newPlugin(t)
	p.stop()
	p.start(t, inlinePolicy{domains: map[string]map[string]bool{"allowed": {"team": true}}})
	ctx := context.Background()
	stage := p.stageRequest(t, "v")
	stage.VolumeContext["cacheLimit"] = "64Mi"
	stage.VolumeContext["userNamespaces"] = "true"
	if _, err := p.NodeStageVolume(ctx, stage); err != nil {
		t.Fatal(err)
	}
	inline := func(id, namespace, domain string) error {
		req := p.inlineRequest(id, id)
		req.VolumeContext[keyNamespace] = namespace
		req.VolumeContext["domain_id"] = domain
		req.VolumeContext["cacheLimit"] = "32Mi"
		_, err := p.NodePublishVolume(ctx, req)
		return err
	}
	for id, domain := range map[string]string{"csi-1": "", "csi-2": "any"} {
		if err := inline(id, "n", domain); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, inline("csi-3", "allowed", "team"), codes.InvalidArgument, "cacheLimit", `"team"`)
	want := map[string]frontRequest{
		"v":     {VolumeID: "v", CacheLimit: 64 << 20, IDMapped: true, Keep: true},
		"csi-1": {VolumeID: "csi-1", CacheLimit: 32 << 20},
		"csi-2": {VolumeID: "csi-2", CacheLimit: 32 << 20, Domain: "namespace/n", Keep: true},
	}
	got := make(map[string]frontRequest)
	for _, f := range p.engine.all() {
		got[f.request.VolumeID] = f.request
	}
	if !maps.Equal(got, want) {
		t.Errorf("asked for %+v, want %+v", got, want)
	}
}

// TestInlineVolumesNeedTrust: what would let a pod's author into the kernel's parser,
// or have an image's word count, is the administrator's to allow.
func TestInlineVolumesNeedTrust(t *testing.T) {
	p := newPlugin(t)
	p.stop()
	policy, err := parseInlinePolicy([]string{"neighbour=team"}, []string{"trusted"})
	if err != nil {
		t.Fatal(err)
	}
	p.start(t, policy)
	ctx := context.Background()
	attributes := []string{"engine=kernel", "fingerprints=trusted"}
	for _, attribute := range attributes {
		for _, namespace := range []string{"", "other", "neighbour", "trusted"} {
			id := "csi-" + attribute + "-" + namespace
			req := p.inlineRequest(id, id)
			req.VolumeContext[keyNamespace] = namespace
			key, value, _ := strings.Cut(attribute, "=")
			req.VolumeContext[key] = value
			_, err := p.NodePublishVolume(ctx, req)
			if namespace != "trusted" {
				wantCode(t, err, codes.InvalidArgument, key+": "+value, "inline", "--trust-inline-namespace "+namespace, "PersistentVolume")
			} else if err != nil {
				t.Errorf("%s of a trusted namespace: %v", attribute, err)
			}
		}
	}
	stage := p.stageRequest(t, "v")
	stage.VolumeContext["engine"], stage.VolumeContext["fingerprints"], stage.VolumeContext["domain_id"] = "kernel", "trusted", "team"
	if _, err := p.NodeStageVolume(ctx, stage); err != nil {
		t.Fatal(err)
	}
	want := map[string]frontRequest{
		"csi-engine=kernel-trusted":        {VolumeID: "csi-engine=kernel-trusted", Kernel: true},
		"csi-fingerprints=trusted-trusted": {VolumeID: "csi-fingerprints=trusted-trusted", Trusted: true},
		"v":                                {VolumeID: "v", Domain: "team", Keep: true, Kernel: true, Trusted: true},
	}
	got := make(map[string]frontRequest)
	for _, f := range p.engine.all() {
		got[f.request.VolumeID] = f.request
	}
	if !maps.Equal(got, want) {
		t.Errorf("asked for %+v, want %+v", got, want)
	}
	for _, bad := range []string{"", "a/b", "a=b", "a b"} {
		if _, err := parseInlinePolicy(nil, []string{bad}); err == nil {
			t.Errorf("%q was accepted as a namespace", bad)
		}
	}
}

func TestBadInput(t *testing.T) {
	const mib = 1 << 20
	type request = csi.NodeStageVolumeRequest
	tests := []struct {
		name    string
		edit    func(*request)
		acquire error
		mount   error
		code    codes.Code
		words   []string
	}{
		{name: "unknown attribute", edit: func(r *request) { r.VolumeContext["domian_id"] = "x" }, code: codes.InvalidArgument, words: []string{`"domian_id"`, "domain_id"}},
		{name: "no image", edit: func(r *request) { delete(r.VolumeContext, "image") }, code: codes.InvalidArgument, words: []string{"image"}},
		{name: "no volume id", edit: func(r *request) { r.VolumeId = "" }, code: codes.InvalidArgument, words: []string{"volume id"}},
		{name: "long volume id", edit: func(r *request) { r.VolumeId = strings.Repeat("v", mib) }, code: codes.InvalidArgument, words: []string{"4096"}},
		{name: "no staging path", edit: func(r *request) { r.StagingTargetPath = "" }, code: codes.InvalidArgument, words: []string{"staging"}},
		{name: "relative staging path", edit: func(r *request) { r.StagingTargetPath = "a/b" }, code: codes.InvalidArgument, words: []string{"absolute"}},
		{name: "climbing staging path", edit: func(r *request) { r.StagingTargetPath += "/../x" }, code: codes.InvalidArgument, words: []string{".."}},
		{name: "no capability", edit: func(r *request) { r.VolumeCapability = nil }, code: codes.InvalidArgument, words: []string{"capability"}},
		{name: "write mode", edit: func(r *request) {
			r.VolumeCapability = capability(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)
		}, code: codes.InvalidArgument, words: []string{"MULTI_NODE_MULTI_WRITER", "ReadOnlyMany"}},
		{name: "inline volume", edit: func(r *request) { r.VolumeContext[keyEphemeral] = "true" }, code: codes.InvalidArgument, words: []string{"inline"}},
		{name: "secret of another type", edit: func(r *request) { r.Secrets = map[string]string{"password": "hunter2"} }, code: codes.InvalidArgument, words: []string{secretKey}},

		{name: "not allowed path", acquire: nodecache.ErrNotAllowed, code: codes.PermissionDenied, words: []string{"path not allowed"}},
		{name: "bad reference", acquire: nodecache.ErrInvalidReference, code: codes.InvalidArgument},
		{name: "digest mismatch", acquire: nodecache.ErrDigestMismatch, code: codes.DataLoss},
		{name: "registry down", acquire: nodecache.ErrUnavailable, code: codes.Unavailable},
		{name: "401", acquire: nodecache.ErrUnauthorized, code: codes.Unauthenticated, words: []string{"nodeStageSecretRef"}},
		{name: "404", acquire: nodecache.ErrNotFound, code: codes.NotFound},
		{name: "full disk", acquire: nodecache.ErrNoSpace, code: codes.ResourceExhausted},
		{name: "not EROFS", mount: erofs.ErrFormat, code: codes.InvalidArgument},
		{name: "unsupported feature", mount: erofs.ErrUnsupported, code: codes.FailedPrecondition},
		{name: "corrupt image", mount: erofs.ErrCorrupt, code: codes.DataLoss},
		{name: "engine broken", mount: errors.New("out of luck"), code: codes.Internal, words: []string{"out of luck"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := newPlugin(t)
			if test.acquire != nil {
				p.store.acquire = func(context.Context, string, nodecache.AcquireOptions) error { return test.acquire }
			}
			if test.mount != nil {
				p.engine.mount = func(context.Context, string, string) error { return test.mount }
			}
			req := p.stageRequest(t, "v")
			if test.edit != nil {
				test.edit(req)
			}
			_, err := p.NodeStageVolume(context.Background(), req)
			wantCode(t, err, test.code, test.words...)
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("error %q tells a secret", err)
			}
			p.checkClean(t)
		})
	}
}

func TestPublishRefusals(t *testing.T) {
	tests := []struct {
		name  string
		edit  func(t *testing.T, p *plugin, r *csi.NodePublishVolumeRequest)
		code  codes.Code
		words []string
	}{
		{"not staged", func(_ *testing.T, _ *plugin, r *csi.NodePublishVolumeRequest) { r.VolumeId = "other" }, codes.FailedPrecondition, []string{"not staged"}},
		{"staged elsewhere", func(_ *testing.T, _ *plugin, r *csi.NodePublishVolumeRequest) { r.StagingTargetPath += "2" }, codes.FailedPrecondition, []string{"staged at"}},
		{"no staging path", func(_ *testing.T, _ *plugin, r *csi.NodePublishVolumeRequest) { r.StagingTargetPath = "" }, codes.FailedPrecondition, []string{"podInfoOnMount"}},
		{"no target path", func(_ *testing.T, _ *plugin, r *csi.NodePublishVolumeRequest) { r.TargetPath = "" }, codes.InvalidArgument, []string{"target path"}},
		{"other image", func(_ *testing.T, _ *plugin, r *csi.NodePublishVolumeRequest) {
			r.VolumeContext["image"] = "registry.example/b:1"
		}, codes.AlreadyExists, []string{"registry.example/a:1"}},
		{"other kind", func(_ *testing.T, _ *plugin, r *csi.NodePublishVolumeRequest) {
			r.VolumeContext[keyEphemeral] = "true"
			r.StagingTargetPath = ""
		}, codes.AlreadyExists, []string{"inline"}},
		{"unknown mount option", func(_ *testing.T, _ *plugin, r *csi.NodePublishVolumeRequest) {
			r.VolumeCapability = reader("uid=0")
		}, codes.InvalidArgument, []string{`"uid=0"`}},
		{"file at the target", func(t *testing.T, _ *plugin, r *csi.NodePublishVolumeRequest) {
			t.Helper()
			writeFile(t, r.TargetPath)
		}, codes.FailedPrecondition, []string{"in use", "file"}},
		{"link at the target", func(t *testing.T, p *plugin, r *csi.NodePublishVolumeRequest) {
			t.Helper()
			if err := os.Symlink(p.dir, r.TargetPath); err != nil {
				t.Fatal(err)
			}
		}, codes.FailedPrecondition, []string{"in use", "symbolic link"}},
		{"files in the target", func(t *testing.T, _ *plugin, r *csi.NodePublishVolumeRequest) {
			t.Helper()
			if err := os.Mkdir(r.TargetPath, 0o700); err != nil {
				t.Fatal(err)
			}
			writeFile(t, filepath.Join(r.TargetPath, "x"))
		}, codes.FailedPrecondition, []string{"in use", "not empty"}},
		{"mount at the target", func(t *testing.T, _ *plugin, r *csi.NodePublishVolumeRequest) {
			t.Helper()
			if err := os.Mkdir(r.TargetPath, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("other", r.TargetPath, "tmpfs", 0, "size=4k"); err != nil {
				t.Fatal(err)
			}
		}, codes.FailedPrecondition, []string{"in use", "other (tmpfs)"}},
		{"no parent of the target", func(_ *testing.T, _ *plugin, r *csi.NodePublishVolumeRequest) {
			r.TargetPath += "/a/b"
		}, codes.FailedPrecondition, []string{"parent"}},
		{"the staging path as target", func(_ *testing.T, _ *plugin, r *csi.NodePublishVolumeRequest) {
			r.TargetPath = r.StagingTargetPath
		}, codes.FailedPrecondition, []string{"in use"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := newPlugin(t)
			p.mustStage(t, "v")
			before := mountsBelow(t, p.dir)
			req := p.publishRequest("v", "pod")
			test.edit(t, p, req)
			added := len(mountsBelow(t, p.dir)) - len(before)
			_, err := p.NodePublishVolume(context.Background(), req)
			wantCode(t, err, test.code, test.words...)
			if after := mountsBelow(t, p.dir); len(after) != len(before)+added {
				t.Errorf("mounts after the refusal: %q", after)
			}
			if n := len(p.manager.lookup("v").record.Targets); n != 0 {
				t.Errorf("%d targets after the refusal", n)
			}
		})
	}
}

func writeFile(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestConflicts(t *testing.T) {
	p := newPlugin(t)
	ctx := context.Background()
	p.mustStage(t, "v")
	p.mustPublish(t, "v", "pod")

	stage := p.stageRequest(t, "v")
	stage.VolumeContext["domain_id"] = "x"
	_, err := p.NodeStageVolume(ctx, stage)
	wantCode(t, err, codes.AlreadyExists, "other attributes")

	stage = p.stageRequest(t, "v")
	stage.StagingTargetPath = p.path("staging-2")
	_, err = p.NodeStageVolume(ctx, stage)
	wantCode(t, err, codes.AlreadyExists, p.path("staging-v"))

	publish := p.publishRequest("v", "pod")
	publish.VolumeCapability = reader("noexec")
	_, err = p.NodePublishVolume(ctx, publish)
	wantCode(t, err, codes.AlreadyExists, "noexec")

	p.mustStage(t, "w")
	publish = p.publishRequest("w", "pod")
	_, err = p.NodePublishVolume(ctx, publish)
	wantCode(t, err, codes.FailedPrecondition, `volume "v"`)
	wantCode(t, p.unpublish("w", "pod"), codes.FailedPrecondition, `volume "v"`)
	wantCode(t, p.unpublish("v", "staging-v"), codes.FailedPrecondition, "staging path")
	p.checkContent(t, "pod", "content of a")
}

func TestMountOptions(t *testing.T) {
	p := newPlugin(t)
	p.mustStage(t, "v")
	req := p.publishRequest("v", "pod")
	req.VolumeCapability = reader("noexec", "nosuid", "noatime")
	for range 2 {
		if _, err := p.NodePublishVolume(context.Background(), req); err != nil {
			t.Fatal(err)
		}
	}
	p.mustPublish(t, "v", "other")
	for place, want := range map[string]string{
		"pod":   "ro,nosuid,nodev,noexec,noatime",
		"other": "ro,nodev,relatime",
	} {
		table, err := readMountTable()
		if err != nil {
			t.Fatal(err)
		}
		m, _ := table.at(p.path(place))
		if got := strings.Join(m.MountOptions, ","); got != want {
			t.Errorf("%s: options %s, want %s", place, got, want)
		}
	}
}

func TestNothingThere(t *testing.T) {
	p := newPlugin(t)
	if err := p.unpublish("never", "pod"); err != nil {
		t.Error(err)
	}
	if err := p.unpublish("never", "no/such/parent"); err != nil {
		t.Error(err)
	}
	if err := p.unstage("never"); err != nil {
		t.Error(err)
	}
	// A volume that nobody remembers is unmounted all the same.
	if err := os.Mkdir(p.path("pod"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("lost", p.path("pod"), "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	if err := p.unpublish("never", "pod"); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(p.path("pod")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the target path is still there: %v", err)
	}
	// What the driver did not make stays.
	writeFile(t, p.path("file"))
	wantCode(t, p.unpublish("never", "file"), codes.FailedPrecondition, "not removed")
	p.checkClean(t)
}

func TestOperationInFlightIsAborted(t *testing.T) {
	p := newPlugin(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	p.store.acquire = func(_ context.Context, ref string, _ nodecache.AcquireOptions) error {
		if ref == "registry.example/a:1" {
			close(entered)
			<-leave
		}
		return nil
	}
	first := make(chan error, 1)
	req := p.stageRequest(t, "v")
	go func() {
		_, err := p.NodeStageVolume(context.Background(), req)
		first <- err
	}()
	<-entered
	_, err := p.NodeStageVolume(context.Background(), req)
	wantCode(t, err, codes.Aborted, "in progress")
	wantCode(t, p.unstage("v"), codes.Aborted)
	wantCode(t, p.unpublish("v", "pod"), codes.Aborted)

	// Another volume does not wait.
	other := p.stageRequest(t, "w")
	other.VolumeContext["image"] = "registry.example/b:1"
	if _, err := p.NodeStageVolume(context.Background(), other); err != nil {
		t.Error(err)
	}
	publish := p.publishRequest("w", "pod-w")
	publish.VolumeContext = other.GetVolumeContext()
	if _, err := p.NodePublishVolume(context.Background(), publish); err != nil {
		t.Error(err)
	}
	p.checkContent(t, "pod-w", "content of b")
	close(leave)
	if err := <-first; err != nil {
		t.Error(err)
	}
	p.mustPublish(t, "v", "pod")
	p.checkContent(t, "pod", "content of a")
}

// TestPullOutlivesItsCall: a call out of time ends, its pull goes on, and the
// next call finds it; the volume's undoing ends it.
func TestPullOutlivesItsCall(t *testing.T) {
	p := newPlugin(t)
	leave, begun, ended := make(chan struct{}), make(chan struct{}), make(chan error, 3)
	p.store.acquire = func(ctx context.Context, _ string, _ nodecache.AcquireOptions) error {
		begun <- struct{}{}
		select {
		case <-leave:
		case <-ctx.Done():
		}
		ended <- ctx.Err()
		return ctx.Err()
	}
	// late makes a call that ends while its pull runs.
	late := func(call func(context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- call(ctx) }()
		<-begun
		cancel()
		wantCode(t, <-done, codes.Canceled)
	}
	stage := func(id string) func(context.Context) error {
		req := p.stageRequest(t, id)
		return func(ctx context.Context) error {
			_, err := p.NodeStageVolume(ctx, req)
			return err
		}
	}
	// The client returns at once; the server's end may be behind.
	retry := func(call func() error) error {
		for {
			err := call()
			if status.Code(err) != codes.Aborted {
				return err
			}
			time.Sleep(time.Millisecond)
		}
	}
	late(stage("v"))
	late(stage("w"))
	if err := retry(func() error { return p.unstage("w") }); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the pull of the volume that was undone: %v", err)
	}
	late(func(ctx context.Context) error {
		_, err := p.NodePublishVolume(ctx, p.inlineRequest("csi-1", "inline"))
		return err
	})
	if err := retry(func() error { return p.unpublish("csi-1", "inline") }); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the pull of the inline volume that was undone: %v", err)
	}
	close(leave)
	if err := <-ended; err != nil {
		t.Errorf("the pull of the late call: %v", err)
	}
	again := stage("v")
	if err := retry(func() error { return again(context.Background()) }); err != nil {
		t.Fatal(err)
	}
	p.mustPublish(t, "v", "pod")
	p.checkContent(t, "pod", "content of a")
	if p.store.acquired != 1 {
		t.Errorf("the image was acquired %d times", p.store.acquired)
	}
	if err := p.unpublish("v", "pod"); err != nil {
		t.Fatal(err)
	}
	if err := p.unstage("v"); err != nil {
		t.Fatal(err)
	}
	p.checkClean(t)
}

// TestRollback fails each step of Stage and Publish in turn.
func TestRollback(t *testing.T) {
	broken := errors.New("broken by the test")
	steps := map[string]func(*plugin){
		"acquire": func(p *plugin) {
			p.store.acquire = func(context.Context, string, nodecache.AcquireOptions) error { return broken }
		},
		"authorize": func(p *plugin) { p.store.authorize = func(string, []byte) error { return broken } },
		"mount":     func(p *plugin) { p.engine.mount = func(context.Context, string, string) error { return broken } },
		"bind":      func(p *plugin) { p.mounts.bind = func(string) error { return broken } },
		"record":    func(p *plugin) { p.manager.saved = recordDir(p.path("no/such/directory")) },
	}
	for name, fail := range steps {
		t.Run("stage/"+name, func(t *testing.T) {
			if name == "authorize" || name == "bind" {
				return // inline volumes alone ask, and are mounted
			}
			p := newPlugin(t)
			req := p.stageRequest(t, "v")
			if err := os.Remove(req.GetStagingTargetPath()); err != nil {
				t.Fatal(err)
			}
			fail(p)
			_, err := p.NodeStageVolume(context.Background(), req)
			wantCode(t, err, codes.Internal)
			if _, err := os.Lstat(req.GetStagingTargetPath()); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the staging path that the failed call made: %v", err)
			}
			p.checkClean(t)
		})
		t.Run("inline/"+name, func(t *testing.T) {
			p := newPlugin(t)
			fail(p)
			_, err := p.NodePublishVolume(context.Background(), p.inlineRequest("v", "pod"))
			wantCode(t, err, codes.Internal)
			if _, err := os.Lstat(p.path("pod")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the target path that the failed call made: %v", err)
			}
			p.checkClean(t)
		})
	}
	for _, name := range []string{"bind", "record"} {
		t.Run("publish/"+name, func(t *testing.T) {
			p := newPlugin(t)
			p.mustStage(t, "v")
			saved := p.manager.saved
			steps[name](p)
			_, err := p.NodePublishVolume(context.Background(), p.publishRequest("v", "pod"))
			wantCode(t, err, codes.Internal)
			if _, err := os.Lstat(p.path("pod")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the target path that the failed call made: %v", err)
			}
			p.manager.saved = saved
			if r, err := saved.read(saved.file("v")); err != nil || len(r.Targets) != 0 {
				t.Errorf("record %+v, %v: want no targets", r, err)
			}
			p.mounts.bind = nil
			p.mustPublish(t, "v", "pod")
			p.checkContent(t, "pod", "content of a")
			if err := p.unpublish("v", "pod"); err != nil {
				t.Fatal(err)
			}
			if err := p.unstage("v"); err != nil {
				t.Fatal(err)
			}
			p.checkClean(t)
		})
	}
}

func TestPanicIsInternal(t *testing.T) {
	p := newPlugin(t)
	p.engine.mount = func(context.Context, string, string) error { panic("a bug") }
	_, err := p.NodeStageVolume(context.Background(), p.stageRequest(t, "v"))
	wantCode(t, err, codes.Internal, "log")
	p.checkClean(t) // the lock is free and what was done is undone
	p.engine.mount = nil
	p.mustStage(t, "v")
}

func TestNodeInfoAndIdentity(t *testing.T) {
	p := newPlugin(t)
	ctx := context.Background()
	info, err := p.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
	if err != nil || info.GetNodeId() != "node-1" || info.GetMaxVolumesPerNode() != 0 || len(info.GetAccessibleTopology().GetSegments()) != 3 {
		t.Errorf("NodeGetInfo: %v, %v", info, err)
	}
	plugin, err := p.identity.GetPluginInfo(ctx, &csi.GetPluginInfoRequest{})
	if err != nil || plugin.GetName() != "erofs.csi.dev" || plugin.GetVendorVersion() != "test" {
		t.Errorf("GetPluginInfo: %v, %v", plugin, err)
	}
	probe, err := p.identity.Probe(ctx, &csi.ProbeRequest{})
	if err != nil || !probe.GetReady().GetValue() {
		t.Errorf("Probe: %v, %v", probe, err)
	}
	caps, err := p.NodeGetCapabilities(ctx, &csi.NodeGetCapabilitiesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []int32
	for _, c := range caps.GetCapabilities() {
		got = append(got, int32(c.GetRpc().GetType()))
	}
	// STAGE_UNSTAGE_VOLUME, GET_VOLUME_STATS, GET_VOLUME_HEALTH and, for
	// kubelets before CSI 1.13, VOLUME_CONDITION.
	if want := []int32{1, 2, 7, 4}; !slices.Equal(got, want) {
		t.Errorf("capabilities %v, want %v", got, want)
	}
	_, err = p.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: "v", VolumePath: "/x"})
	wantCode(t, err, codes.Unimplemented)
}
