package driver

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// maxVolumeID bounds volume ids. The specification's limit is 128 bytes, which
// Kubernetes does not enforce on a PersistentVolume's volumeHandle.
const maxVolumeID = 4096

// identityService is the CSI Identity service of both processes.
type identityService struct {
	csi.UnimplementedIdentityServer

	version      string
	capabilities []csi.PluginCapability_Service_Type
	// ready reports whether the process can do its work; nil is always.
	ready func() bool
}

func (s *identityService) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	version := s.version
	if version == "" {
		version = "unknown" // the specification requires one
	}
	return &csi.GetPluginInfoResponse{Name: Name, VendorVersion: version}, nil
}

func (s *identityService) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	res := &csi.GetPluginCapabilitiesResponse{}
	for _, c := range s.capabilities {
		res.Capabilities = append(res.Capabilities, &csi.PluginCapability{
			Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: c}},
		})
	}
	return res, nil
}

func (s *identityService) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(s.ready == nil || s.ready())}, nil
}

// checkVolumeID checks the id of a volume, which is any text to the driver.
func checkVolumeID(id string) error {
	if id == "" {
		return refuse(errInvalid, "volume id is missing")
	}
	if len(id) > maxVolumeID {
		return refuse(errInvalid, "volume id has %d bytes, at most %d are allowed", len(id), maxVolumeID)
	}
	return nil
}
