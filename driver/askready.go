package driver

import (
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// AskReady asks the plugin at a unix endpoint, by the Probe of CSI's Identity service,
// whether it is ready. An error means that nothing answered before ctx ended.
func AskReady(ctx context.Context, endpoint string) (ready bool, err error) {
	socket, err := socketPath(endpoint)
	if err != nil {
		return false, err
	}
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return false, fmt.Errorf("socket %s: %w", socket, err)
	}
	defer func() { _ = conn.Close() }()
	res, err := csi.NewIdentityClient(conn).Probe(ctx, &csi.ProbeRequest{})
	if err != nil {
		return false, fmt.Errorf("the plugin at %s does not answer: %s", socket, status.Convert(err).Message())
	}
	// The specification: without the field the plugin is ready.
	return res.GetReady() == nil || res.GetReady().GetValue(), nil
}
