package driver

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/erofs-csi/erofs-csi/test/images"
)

// TestSanity runs csi-sanity against the node plugin and the controller as
// they are: two processes, a real image, real mounts.
//
// The suite asks for SINGLE_NODE_WRITER in all its calls, with no way to
// configure it, and this driver refuses writers of persistent volumes. So the
// client rewrites that one mode to SINGLE_NODE_READER_ONLY on its way to the
// socket; the refusal itself is tested in TestAccessModes and TestBadInput.
func TestSanity(t *testing.T) {
	n := newNode(t, "auto")
	image := n.image(t, "a.erofs", images.TinyTree(t))
	n.start(t)
	controller := filepath.Join(n.dir, "controller.sock")
	startChild(t, childConfig{Controller: true, Config: Config{Endpoint: controller}})

	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"),
		grpc.WithUnaryInterceptor(readOnlyModes),
	}
	config := sanity.NewTestConfig()
	config.Address, config.DialOptions = "unix://"+n.config.Endpoint, options
	config.ControllerAddress, config.ControllerDialOptions = "unix://"+controller, options
	config.TargetPath, config.StagingPath = n.path("sanity-target"), n.path("sanity-staging")
	config.TestVolumeParameters = map[string]string{"image": image, "domain_id": "sanity"}
	sanity.Test(t, config)

	if mounts := n.volumeMounts(t); len(mounts) != 0 {
		t.Errorf("mounts are left: %q", mounts)
	}
	if names := fileNames(t, filepath.Join(n.config.StateDir, "volumes")); len(names) != 0 {
		t.Errorf("records are left: %q", names)
	}
}

// readOnlyModes is the client interceptor that TestSanity tells of.
func readOnlyModes(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	m, ok := req.(proto.Message)
	if ok {
		m = proto.Clone(m)
		for _, c := range capabilitiesOf(m) {
			if mode := c.GetAccessMode(); mode.GetMode() == csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER {
				mode.Mode = csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
			}
		}
		req = m
	}
	return invoke(ctx, method, req, reply, cc, opts...)
}

func capabilitiesOf(m proto.Message) []*csi.VolumeCapability {
	switch m := m.(type) {
	case interface{ GetVolumeCapability() *csi.VolumeCapability }:
		return []*csi.VolumeCapability{m.GetVolumeCapability()}
	case interface {
		GetVolumeCapabilities() []*csi.VolumeCapability
	}:
		return m.GetVolumeCapabilities()
	}
	return nil
}
