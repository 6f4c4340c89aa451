// Command csi calls the driver's sockets from a pod of the end-to-end tests.
//
//	csi sanity NODE CONTROLLER DIR IMAGE   the conformance suite of CSI; DIR is one that the
//	                                       node plugin sees by the same path
//	csi health NODE VOLUME PATH            what is wrong with a volume, a line for each
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
)

var options = []grpc.DialOption{
	grpc.WithTransportCredentials(insecure.NewCredentials()),
	grpc.WithAuthority("localhost"),
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "csi:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 5 && args[0] == "sanity":
		return conform("unix://"+args[1], "unix://"+args[2], args[3], args[4])
	case len(args) == 4 && args[0] == "health":
		return health("unix://"+args[1], args[2], args[3])
	}
	return errors.New("usage: csi sanity NODE CONTROLLER DIR IMAGE | csi health NODE VOLUME PATH")
}

func health(node, volume, path string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := grpc.NewClient(node, options...)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	res, err := csi.NewNodeClient(conn).NodeGetVolumeHealth(ctx, &csi.NodeGetVolumeHealthRequest{VolumeId: volume, VolumePublishPath: path})
	for _, s := range res.GetVolumeHealth().GetHealthStatuses() {
		fmt.Println(s.GetStatus(), s.GetReason(), s.GetMessage())
	}
	return err
}

// suite is what the conformance suite tells the end to.
type suite struct{ failed bool }

func (s *suite) Fail() { s.failed = true }

// conform runs the suite. It asks for SINGLE_NODE_WRITER in all its calls, with no way to
// configure it, which this driver refuses; so that one mode is rewritten to
// SINGLE_NODE_READER_ONLY on its way.
func conform(node, controller, dir, image string) error {
	config := sanity.NewTestConfig()
	config.Address, config.ControllerAddress = node, controller
	config.DialOptions = append(options, grpc.WithUnaryInterceptor(readOnlyModes))
	config.ControllerDialOptions = config.DialOptions
	config.TargetPath, config.StagingPath = filepath.Join(dir, "target"), filepath.Join(dir, "staging")
	config.TestVolumeParameters = map[string]string{"image": image, "domain_id": "sanity"}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var s suite
	sanity.Test(&s, config)
	if s.failed {
		return errors.New("the suite failed")
	}
	return os.Remove(dir) // it must have removed what it made
}

func readOnlyModes(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if m, ok := req.(proto.Message); ok {
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
