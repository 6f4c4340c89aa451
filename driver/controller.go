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
// created it remembers: a repeated CreateVolume gets the same image although
// its tag may have moved, and a name that comes again with other properties is
// refused; such a name that comes to another process makes another id.
type controllerService struct {
	csi.UnimplementedControllerServer

	images imageResolver
	claims claimReader // nil without a Kubernetes API

	mu      sync.Mutex
	created map[string]creation // GUARDED_BY mu; by name
}

// creation is a volume that was created.
type creation struct {
	volumeID        string
	digest          string // of the order
	required, limit int64
	capacity        int64             // bytes
	volumeContext   map[string]string // never changed
}

// same tells whether c is what an order asks for.
func (c creation) same(o order, digest string) bool {
	return c.digest == digest && c.required == o.required && c.limit == o.limit
}

func newControllerService(images imageResolver, reader claimReader) *controllerService {
	return &controllerService{images: images, claims: reader, created: make(map[string]creation)}
}

// CreateVolume fixes what image a volume has: the class's or the claim's, or that of
// the volume it is a clone of, with the digest that its tag has now.
func (s *controllerService) CreateVolume(ctx context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	o, err := s.order(ctx, req)
	if err != nil {
		return nil, err
	}
	topology, err := accessible(o.attributes.needs(), req.GetAccessibilityRequirements())
	if err != nil {
		return nil, err
	}
	digest, err := o.digest()
	if err != nil {
		return nil, err
	}
	made, again := s.named(req.GetName())
	if !again {
		if made, err = s.create(ctx, req, o); err != nil {
			return nil, err
		}
		made = s.remember(req.GetName(), made)
	}
	if !made.same(o, digest) {
		return nil, refuse(errExists, "volume %q exists with another capacity or other parameters", req.GetName())
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{
		VolumeId:           made.volumeID,
		CapacityBytes:      made.capacity,
		VolumeContext:      maps.Clone(made.volumeContext),
		ContentSource:      req.GetVolumeContentSource(),
		AccessibleTopology: topology,
	}}, nil
}

func (s *controllerService) named(name string) (creation, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	made, ok := s.created[name]
	return made, ok
}

// remember returns what was created by the name first.
func (s *controllerService) remember(name string, made creation) creation {
	s.mu.Lock()
	defer s.mu.Unlock()
	if before, ok := s.created[name]; ok {
		return before
	}
	s.created[name] = made
	return made
}

// find looks for a volume that this process created.
func (s *controllerService) find(volumeID string) (creation, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.created {
		if c.volumeID == volumeID {
			return c, true
		}
	}
	return creation{}, false
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
	if err == nil {
		// Without an image they may be: a claim can have named it.
		err = checkKeys(req.GetParameters())
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
	res := &csi.ControllerGetCapabilitiesResponse{}
	for _, c := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
	} {
		res.Capabilities = append(res.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: c}},
		})
	}
	return res, nil
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
