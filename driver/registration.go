package driver

import (
	"context"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// csiVersions are the CSI versions that are offered to kubelet, which compares
// the major one.
var csiVersions = []string{"1.0.0"}

// registrationService tells kubelet of the plugin: kubelet watches a directory
// for sockets and calls GetInfo on each.
type registrationService struct {
	registerapi.UnimplementedRegistrationServer

	// endpoint is the path of the CSI socket on the host.
	endpoint string
}

func (s *registrationService) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{
		Type:              registerapi.CSIPlugin,
		Name:              Name,
		Endpoint:          s.endpoint,
		SupportedVersions: csiVersions,
	}, nil
}

// NotifyRegistrationStatus only logs a failure. Kubelet tries again by itself
// while the socket is there, and the end of this process, which is what the
// registrar sidecar does then, would be the end of the node's mounts.
func (s *registrationService) NotifyRegistrationStatus(ctx context.Context, status *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	logger := klog.FromContext(ctx)
	if status.GetPluginRegistered() {
		logger.V(2).Info("Kubelet registered the plugin")
	} else {
		logger.Error(nil, "Kubelet did not register the plugin", "reason", status.GetError())
	}
	return &registerapi.RegistrationStatusResponse{}, nil
}

func (s *registrationService) register(server *grpc.Server) {
	registerapi.RegisterRegistrationServer(server, s)
}
