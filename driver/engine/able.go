package engine

import (
	"fmt"
	"os"
)

// Abilities are the kinds of volumes that a machine can mount.
type Abilities struct {
	// FUSE: the FUSE engine can serve.
	FUSE bool
	// Kernel: the kernel's own EROFS can be asked for, and shares page cache.
	Kernel bool
	// IDMapped: the FUSE engine's mounts can be id-mapped.
	IDMapped bool
}

// Able finds out what this machine can do, for an engine with that front. It mounts
// nothing.
//
// The error says why there is no FUSE: the rest is then worth nothing.
func Able(front string) (Abilities, error) {
	fd, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0) // loads the module
	if err != nil {
		return Abilities{}, fmt.Errorf("%w (is the fuse module loaded?)", err)
	}
	_ = fd.Close()
	_, major, minor := kernelRelease()
	return Abilities{
		FUSE:   true,
		Kernel: checkSharing() == nil,
		// FUSE_ALLOW_IDMAP, of which the kernel tells only a mount.
		IDMapped: front != FrontOverlay && (major > 6 || major == 6 && minor >= 12),
	}, nil
}
