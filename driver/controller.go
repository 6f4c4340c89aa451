package driver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"regexp"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// maxVolumeName bounds the names of CreateVolume, the general limit of the
// specification being 128 bytes.
const maxVolumeName = 1024

// volumeIDPattern is the form of the ids that CreateVolume makes.
var volumeIDPattern = regexp.MustCompile(`^erofs-[0-9a-f]{64}$`)

// controllerService is the CSI Controller service. A provisioned volume is no
// more than an image's name, which the volume context carries, so nothing is
// stored: ids are derived from the name and the parameters, a repeated
// CreateVolume finds the same, and any replica answers. What this process
// created it remembers, to refuse a name that comes again with other
// properties; such a name that comes to another process makes another id.
type controllerService struct {
	csi.UnimplementedControllerServer

	mu      sync.Mutex
	created map[string]creation // GUARDED_BY mu; by name
}

type creation struct {
	volumeID         string
	required, limit  int64
	attributesDigest string
}

func newControllerService() *controllerService {
	return &controllerService{created: make(map[string]creation)}
}

func (s *controllerService) CreateVolume(_ context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	name := req.GetName()
	switch {
	case name == "":
		return nil, refuse(errInvalid, "volume name is missing")
	case len(name) > maxVolumeName:
		return nil, refuse(errInvalid, "volume name has %d bytes, at most %d are allowed", len(name), maxVolumeName)
	case req.GetVolumeContentSource() != nil:
		return nil, refuse(errInvalid, "volume content sources are not supported: a volume's content is its image")
	case len(req.GetMutableParameters()) > 0:
		return nil, refuse(errInvalid, "mutable parameters are not supported")
	}
	if err := checkCapabilities(req.GetVolumeCapabilities()); err != nil {
		return nil, err
	}
	attrs, err := parseAttributes(req.GetParameters())
	if err != nil {
		return nil, err
	}
	capacity := req.GetCapacityRange()
	if capacity.GetRequiredBytes() < 0 || capacity.GetLimitBytes() < 0 ||
		(capacity.GetLimitBytes() > 0 && capacity.GetLimitBytes() < capacity.GetRequiredBytes()) {
		return nil, refuse(errInvalid, "capacity range is not a range: required %d bytes, limit %d bytes",
			capacity.GetRequiredBytes(), capacity.GetLimitBytes())
	}
	volumeContext := maps.Clone(req.GetParameters())
	maps.DeleteFunc(volumeContext, func(key, _ string) bool { return kubernetesKey(key) })
	digest, err := digestOf(attrs)
	if err != nil {
		return nil, err
	}
	id, err := digestOf([]string{name, digest})
	if err != nil {
		return nil, err
	}
	made := creation{
		volumeID: "erofs-" + id,
		required: capacity.GetRequiredBytes(), limit: capacity.GetLimitBytes(),
		attributesDigest: digest,
	}
	s.mu.Lock()
	before, again := s.created[name]
	if !again {
		s.created[name] = made
	}
	s.mu.Unlock()
	if again && before != made {
		return nil, refuse(errExists, "volume %q exists with another capacity or other parameters", name)
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{
		VolumeId: made.volumeID,
		// An image has the size it has, and the claim's request, which
		// Kubernetes insists on, says nothing about it: it is granted as asked
		// for.
		CapacityBytes: made.required,
		VolumeContext: volumeContext,
	}}, nil
}

// digestOf returns the SHA-256 of the JSON of v, in which fields are ordered
// and strings are quoted, so no two values have one JSON.
func digestOf(v any) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// DeleteVolume has nothing to delete: an image belongs to no volume.
func (s *controllerService) DeleteVolume(_ context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if err := checkVolumeID(req.GetVolumeId()); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.created, func(_ string, c creation) bool { return c.volumeID == req.GetVolumeId() })
	return &csi.DeleteVolumeResponse{}, nil
}

// ValidateVolumeCapabilities confirms read-only modes. Every id of our form
// exists; others are NotFound.
func (s *controllerService) ValidateVolumeCapabilities(_ context.Context, req *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if err := checkVolumeID(req.GetVolumeId()); err != nil {
		return nil, err
	}
	if len(req.GetVolumeCapabilities()) == 0 {
		return nil, refuse(errInvalid, "volume capabilities are missing")
	}
	if !volumeIDPattern.MatchString(req.GetVolumeId()) {
		return nil, refuse(errVolumeNotFound, "volume %q does not exist", req.GetVolumeId())
	}
	err := checkCapabilities(req.GetVolumeCapabilities())
	if err == nil && hasAttributes(req.GetVolumeContext()) {
		_, err = parseAttributes(req.GetVolumeContext())
	}
	if err == nil && hasAttributes(req.GetParameters()) {
		_, err = parseAttributes(req.GetParameters())
	}
	if err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: err.Error()}, nil //nolint:nilerr // the answer is no, and says why
	}
	return &csi.ValidateVolumeCapabilitiesResponse{
		Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
			VolumeContext:      req.GetVolumeContext(),
			VolumeCapabilities: req.GetVolumeCapabilities(),
			Parameters:         req.GetParameters(),
		},
	}, nil
}

func (s *controllerService) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	return &csi.ControllerGetCapabilitiesResponse{Capabilities: []*csi.ControllerServiceCapability{{
		Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{
			Type: csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		}},
	}}}, nil
}

// checkCapabilities checks the capabilities of a persistent volume.
func checkCapabilities(capabilities []*csi.VolumeCapability) error {
	if len(capabilities) == 0 {
		return refuse(errInvalid, "volume capabilities are missing")
	}
	for _, c := range capabilities {
		if _, err := checkCapability(c, false); err != nil {
			return err
		}
	}
	return nil
}
