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
	"k8s.io/klog/v2/ktesting"
)

// TestSanity runs csi-sanity against the three services on one socket.
//
// The suite asks for SINGLE_NODE_WRITER in all its calls, with no way to
// configure it, and this driver refuses writers of persistent volumes. So the
// client rewrites that one mode to SINGLE_NODE_READER_ONLY on its way to the
// socket; the refusal itself is tested in TestAccessModes and TestBadInput.
func TestSanity(t *testing.T) {
	p := newPlugin(t)
	p.stop()
	runSanity(t, p.manager, p.dir, map[string]string{"image": "registry.example/a:1", "domain_id": "sanity"})
	p.checkClean(t)
}

func runSanity(t *testing.T, manager *volumeManager, dir string, parameters map[string]string) {
	t.Helper()
	_, ctx := ktesting.NewTestContext(t)
	ctx, cancel := context.WithCancel(ctx)
	socket := filepath.Join(dir, "sanity.sock")
	ended := make(chan error, 1)
	go func() {
		ended <- serve(ctx, socket, func(server *grpc.Server) {
			csi.RegisterIdentityServer(server, &identityService{version: "test", capabilities: pluginServices})
			csi.RegisterControllerServer(server, newControllerService())
			csi.RegisterNodeServer(server, &nodeService{nodeID: "node-1", volumes: manager})
		})
	}()
	dial(t, socket)
	config := sanity.NewTestConfig()
	config.Address = "unix://" + socket
	config.DialOptions = []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"),
		grpc.WithUnaryInterceptor(readOnlyModes),
	}
	config.TargetPath = filepath.Join(dir, "sanity-target")
	config.StagingPath = filepath.Join(dir, "sanity-staging")
	config.TestVolumeParameters = parameters
	sanity.Test(t, config)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
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
