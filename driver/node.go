package driver

import (
	"context"
	"math"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/driver/engine"
)

// nodeService is the CSI Node service: it checks requests and translates them
// for the volume manager.
type nodeService struct {
	csi.UnimplementedNodeServer

	nodeID     string
	maxVolumes int64 // 0: no limit
	inline     inlinePolicy
	volumes    *volumeManager
	able       func() (engine.Abilities, error)
}

func (s *nodeService) NodeStageVolume(ctx context.Context, req *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if err := checkVolumeID(req.GetVolumeId()); err != nil {
		return nil, err
	}
	staging, err := checkPath("staging target path", req.GetStagingTargetPath())
	if err != nil {
		return nil, err
	}
	flags, err := checkCapability(req.GetVolumeCapability(), false)
	if err != nil {
		return nil, err
	}
	pod, err := parsePodInfo(req.GetVolumeContext())
	if err != nil {
		return nil, err
	}
	if pod.Ephemeral {
		return nil, refuse(errInvalid, "volume attribute %s: inline volumes are not staged", keyEphemeral)
	}
	attrs, err := parseAttributes(req.GetVolumeContext())
	if err != nil {
		return nil, err
	}
	config, err := dockerConfig(req.GetSecrets())
	if err != nil {
		return nil, err
	}
	err = s.volumes.Stage(ctx, mountRequest{
		VolumeID:     req.GetVolumeId(),
		Path:         staging,
		Attributes:   &attrs,
		Domain:       administratorDomain(attrs.Domain),
		Flags:        flags,
		DockerConfig: config,
	})
	if err != nil {
		return nil, err
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

func (s *nodeService) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	m, err := s.checkPublish(req)
	if err != nil {
		return nil, err
	}
	if err := s.volumes.Publish(ctx, m); err != nil {
		return nil, err
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// checkPublish checks a NodePublishVolume. Its readonly field does not matter:
// every mount is read-only.
func (s *nodeService) checkPublish(req *csi.NodePublishVolumeRequest) (mountRequest, error) {
	m := mountRequest{VolumeID: req.GetVolumeId()}
	err := checkVolumeID(m.VolumeID)
	if err != nil {
		return m, err
	}
	if m.Path, err = checkPath("target path", req.GetTargetPath()); err != nil {
		return m, err
	}
	pod, err := parsePodInfo(req.GetVolumeContext())
	if err != nil {
		return m, err
	}
	m.Ephemeral = pod.Ephemeral
	if m.Flags, err = checkCapability(req.GetVolumeCapability(), m.Ephemeral); err != nil {
		return m, err
	}
	if m.DockerConfig, err = dockerConfig(req.GetSecrets()); err != nil {
		return m, err
	}
	if m.Tokens, err = serviceAccountTokens(req.GetVolumeContext()); err != nil {
		return m, err
	}
	switch {
	case m.Ephemeral && req.GetStagingTargetPath() != "":
		return m, refuse(errInvalid, "volume attribute %s: an inline volume has no staging target path", keyEphemeral)
	case !m.Ephemeral && req.GetStagingTargetPath() == "":
		return m, refuse(errPrecondition, "volume %q has no staging target path: call NodeStageVolume first; for an inline volume set podInfoOnMount: true in the CSIDriver object %s",
			m.VolumeID, Name)
	case !m.Ephemeral:
		if m.StagingPath, err = checkPath("staging target path", req.GetStagingTargetPath()); err != nil {
			return m, err
		}
	}
	if !m.Ephemeral && !hasAttributes(req.GetVolumeContext()) {
		// The specification lets the CO repeat no volume context here.
		return m, nil
	}
	attrs, err := parseAttributes(req.GetVolumeContext())
	if err != nil {
		return m, err
	}
	m.Attributes = &attrs
	if m.Ephemeral {
		m.Domain, err = s.inline.domain(attrs.Domain, pod.Namespace)
		if err == nil {
			err = s.inline.check(&attrs, m.Domain, pod.Namespace)
		}
	} else {
		m.Domain = administratorDomain(attrs.Domain)
	}
	return m, err
}

func (s *nodeService) NodeUnpublishVolume(ctx context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := checkVolumeID(req.GetVolumeId()); err != nil {
		return nil, err
	}
	target, err := checkPath("target path", req.GetTargetPath())
	if err != nil {
		return nil, err
	}
	if err := s.volumes.Unpublish(ctx, req.GetVolumeId(), target); err != nil {
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

func (s *nodeService) NodeUnstageVolume(ctx context.Context, req *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if err := checkVolumeID(req.GetVolumeId()); err != nil {
		return nil, err
	}
	staging, err := checkPath("staging target path", req.GetStagingTargetPath())
	if err != nil {
		return nil, err
	}
	if err := s.volumes.Unstage(ctx, req.GetVolumeId(), staging); err != nil {
		return nil, err
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

// NodeGetVolumeStats reports an image as full: nothing can be written to it.
func (s *nodeService) NodeGetVolumeStats(ctx context.Context, req *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	if err := checkVolumeID(req.GetVolumeId()); err != nil {
		return nil, err
	}
	if req.GetVolumePath() == "" {
		return nil, refuse(errInvalid, "volume path is missing")
	}
	stats, condition, err := s.volumes.Health(ctx, req.GetVolumeId(), cleanPath(req.GetVolumePath()))
	if err != nil {
		return nil, err
	}
	res := &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: clamp(stats.Bytes), Used: clamp(stats.Bytes)},
		{Unit: csi.VolumeUsage_INODES, Total: clamp(stats.Inodes), Used: clamp(stats.Inodes)},
	}}
	setVolumeCondition(res, condition)
	return res, nil
}

func (s *nodeService) NodeGetVolumeHealth(ctx context.Context, req *csi.NodeGetVolumeHealthRequest) (*csi.NodeGetVolumeHealthResponse, error) {
	if err := checkVolumeID(req.GetVolumeId()); err != nil {
		return nil, err
	}
	var paths []string
	for _, p := range []string{req.GetStagingTargetPath(), req.GetVolumePublishPath()} {
		if p != "" {
			paths = append(paths, cleanPath(p))
		}
	}
	_, condition, err := s.volumes.Health(ctx, req.GetVolumeId(), paths...)
	if err != nil {
		return nil, err
	}
	health := &csi.VolumeHealth{VolumeId: req.GetVolumeId()}
	if condition.abnormal() {
		health.HealthStatuses = []*csi.VolumeHealth_VolumeHealthEntry{{
			Status: condition.status, Reason: condition.reason, Message: told(condition.message),
		}}
	}
	return &csi.NodeGetVolumeHealthResponse{VolumeHealth: health}, nil
}

func (s *nodeService) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	res := &csi.NodeGetCapabilitiesResponse{}
	for _, c := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_GET_VOLUME_HEALTH,
		legacyVolumeCondition,
	} {
		res.Capabilities = append(res.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: c}},
		})
	}
	return res, nil
}

// NodeGetInfo tells what kinds of volumes the node can mount. Any node can pull any image.
// Without FUSE it has no topology, so that provisioned volumes are not brought here.
func (s *nodeService) NodeGetInfo(ctx context.Context, _ *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	can, err := s.able()
	if err != nil {
		klog.FromContext(ctx).Error(err, "This node can mount no volumes")
	}
	return &csi.NodeGetInfoResponse{NodeId: s.nodeID, MaxVolumesPerNode: s.maxVolumes, AccessibleTopology: nodeTopology(can)}, nil
}

// clamp fits a size of a (maybe absurd) image into the protocol's int64.
func clamp(n uint64) int64 {
	return int64(min(n, math.MaxInt64)) // #nosec G115 -- bounded in the same expression
}
