package driver

import (
	"github.com/container-storage-interface/spec/lib/go/csi"
)

// fsType is the only file system type that volumes have.
const fsType = "erofs"

// checkCapability checks a volume capability and returns the flags of its
// mounts.
//
// Persistent volumes take the two read-only modes. Kubelet knows none for
// inline volumes: it always sends SINGLE_NODE_WRITER for them (csi_mounter.go,
// SetUpAt: api.ReadWriteOnce), so they take any mode and are mounted read-only
// like all others.
func checkCapability(c *csi.VolumeCapability, ephemeral bool) (mountFlags, error) {
	if c == nil {
		return 0, refuse(errInvalid, "volume capability is missing")
	}
	if c.GetBlock() != nil {
		return 0, refuse(errInvalid, "block volumes are not supported: an image is a file system; use volumeMode: Filesystem")
	}
	mount := c.GetMount()
	if mount == nil {
		return 0, refuse(errInvalid, "volume capability has no access type: want mount")
	}
	switch mode := c.GetAccessMode().GetMode(); {
	case ephemeral:
	case mode == csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
		mode == csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY:
	default:
		return 0, refuse(errInvalid, "access mode %s is not supported: images are read-only; use accessModes: [ReadOnlyMany]", mode)
	}
	if fs := mount.GetFsType(); fs != "" && fs != fsType {
		return 0, refuse(errInvalid, "file system type %q is not supported: leave fsType empty or use %q", fs, fsType)
	}
	if group := mount.GetVolumeMountGroup(); group != "" {
		return 0, refuse(errInvalid, "volume mount group %q is not supported: owners are those of the image; use fsGroupPolicy: None", group)
	}
	return parseMountFlags(mount.GetMountFlags())
}
