package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

// healthReasons are the values of condition.reason.
var healthReasons = []string{
	reasonNotRebuilt, reasonSpoiled, reasonIncomplete, reasonEngineUnhealthy,
	reasonNotResponding, reasonNotMounted, reasonMountDead, reasonOtherMount, reasonPodMountDead,
}

const (
	reasonNotRebuilt      = "NotRebuilt"
	reasonSpoiled         = "ImageSpoiled"
	reasonIncomplete      = "ImageIncomplete"
	reasonEngineUnhealthy = "EngineUnhealthy"
	reasonNotResponding   = "MountNotResponding"
	reasonNotMounted      = "NotMounted"
	reasonMountDead       = "MountDead"
	reasonOtherMount      = "OtherMount"
	reasonPodMountDead    = "PodMountDead"
)

// condition is what is wrong with a volume.
type condition struct {
	status csi.VolumeHealthErrorType
	// reason is one of healthReasons, "" when nothing is wrong; message a
	// sentence for people, of what is wrong or of what the volume is made of.
	reason, message string
}

func (c condition) abnormal() bool { return c.reason != "" }

// maxHealthMessage is what Kubernetes takes for the message of a condition in a pod's
// status, in bytes: v1.VolumeHealthCondition of k8s.io/api 0.37. Kubelet passes on what it
// is told, and the API refuses the whole status with one that is longer.
const maxHealthMessage = 1024

// told is a message as a response may have it: valid UTF-8, without which it could not be
// sent, of at most maxHealthMessage bytes.
func told(message string) string {
	const more = "..."
	message = strings.ToValidUTF8(message, "\uFFFD")
	if len(message) > maxHealthMessage {
		message = strings.ToValidUTF8(message[:maxHealthMessage-len(more)], "") + more
	}
	return message
}

func inaccessible(reason string, err error) condition {
	status := csi.VolumeHealthErrorType_INACCESSIBLE
	if errors.Is(err, erofs.ErrCorrupt) || errors.Is(err, nodecache.ErrDigestMismatch) || errors.Is(err, nodecache.ErrChanged) {
		status = csi.VolumeHealthErrorType_DATA_LOSS
	}
	return condition{status, reason, err.Error()}
}

// Health returns the size of a volume and what is wrong with it: with its
// front, and with its mount at each of paths. A path that is no place of the
// volume is errVolumeNotFound. It takes no lock, so that a volume which hangs
// in some call still has a health, and it asks the mounts for no more than
// probeTimeout each.
func (m *volumeManager) Health(ctx context.Context, volumeID string, paths ...string) (imageStats, condition, error) {
	v := m.lookup(volumeID)
	if v == nil {
		return imageStats{}, condition{}, refuse(errVolumeNotFound, "volume %q is not on this node", volumeID)
	}
	places := v.record.paths()
	stats := imageStats{Bytes: v.record.Bytes, Inodes: v.record.Inodes}
	for _, path := range paths {
		if !slices.ContainsFunc(places, func(p recordPath) bool { return p.Path == path }) {
			return imageStats{}, condition{}, refuse(errVolumeNotFound, "volume %q is not mounted at %s", volumeID, path)
		}
	}
	if c := m.frontHealth(ctx, v); c.abnormal() {
		return stats, c, nil
	}
	for _, p := range v.record.Targets { // nothing is mounted at the staging path
		if len(paths) > 0 && !slices.Contains(paths, p.Path) {
			continue
		}
		if c := m.placeHealth(ctx, v, p); c.abnormal() {
			return stats, c, nil
		}
	}
	if c := m.pods.condition(ctx, volumeID); c.abnormal() {
		return stats, c, nil
	}
	return stats, condition{message: describe(v.front)}, nil
}

// describe tells what a volume is made of, and why that is not the best.
func describe(f front) string {
	text := "front " + f.Kind() + " of engine " + f.Engine()
	if why := f.Reason(); why != "" {
		text += " (" + why + ")"
	}
	return text
}

func (m *volumeManager) frontHealth(ctx context.Context, v *volume) condition {
	why := m.usable(ctx, v)
	switch {
	case why == nil:
		if trouble := v.front.Trouble(); trouble != nil {
			return inaccessible(reasonIncomplete, fmt.Errorf("what of the image is not on the node can't be read at the moment: %w", trouble))
		}
		return condition{}
	case errors.Is(why, nodecache.ErrDigestMismatch):
		return inaccessible(reasonSpoiled, why)
	case v.broken != nil:
		return inaccessible(reasonNotRebuilt, why)
	}
	return inaccessible(reasonEngineUnhealthy, why)
}

func (m *volumeManager) placeHealth(ctx context.Context, v *volume, p recordPath) condition {
	state, info, err := m.places.inspect(ctx, p.Path, v.front.Path(), p.Flags)
	if err != nil {
		return inaccessible(reasonNotResponding, err)
	}
	switch state {
	case placeCorrect:
	case placeFree:
		return inaccessible(reasonNotMounted, refuse(errPrecondition, "nothing is mounted at %s", p.Path))
	case placeDead:
		return inaccessible(reasonMountDead, refuse(errPrecondition, "the mount at %s is dead: its server is gone", p.Path))
	case placeFlags, placeForeign:
		return inaccessible(reasonOtherMount, refuse(errPrecondition, "something else is mounted at %s: %s (%s)", p.Path, info.Source, info.FsType))
	}
	// The first look into the tree itself.
	if _, err := m.places.prober.lstat(ctx, p.Path); errors.Is(err, errNotResponding) {
		return inaccessible(reasonNotResponding, err)
	} else if err != nil {
		return inaccessible(reasonMountDead, err)
	}
	return condition{}
}
