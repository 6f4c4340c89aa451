package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// volume is a volume as kubelet knows it.
type volume struct {
	id      string
	image   *image
	attrs   map[string]string
	inline  bool
	targets []string // of pods
}

// patience is how long kubelet's part of the harness repeats a call.
const patience = 2 * time.Minute

// caller does kubelet's part: it repeats calls that may pass, and sometimes gives one up
// half done and calls again.
type caller struct {
	w       *world
	plugin  *plugin
	cancels float64 // how many of the calls are given up first
	rng     *rand.Rand
}

// transient tells whether kubelet's call may pass later, and is as an outage makes it.
func transient(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.Aborted, codes.Canceled, codes.DeadlineExceeded, codes.ResourceExhausted:
		return true
	default:
		return false
	}
}

// call repeats a call until it passes, fails for good, or the patience is over.
func (c *caller) call(ctx context.Context, what string, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		limit := 20 * time.Second
		if c.rng.Float64() < c.cancels {
			limit = time.Duration(c.rng.IntN(int(150 * time.Millisecond)))
			c.w.tally.cancelled.Add(1)
		}
		one, cancel := context.WithTimeout(ctx, limit)
		err := do(one)
		cancel()
		c.w.tally.calls.Add(1)
		if err == nil {
			return nil
		}
		if !transient(err) || ctx.Err() != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		c.w.tally.repeated.Add(1)
		time.Sleep(wait)
	}
}

func capability(inline bool) *csi.VolumeCapability {
	mode := csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
	if inline {
		mode = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	}
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
	}
}

func (w *world) staging(v *volume) string { return w.path("kubelet", "staging-"+v.id) }

func (v *volume) context() map[string]string {
	attrs := maps.Clone(v.attrs)
	if v.inline {
		attrs["csi.storage.k8s.io/ephemeral"] = "true"
		attrs["csi.storage.k8s.io/pod.namespace"] = "team"
		attrs["csi.storage.k8s.io/pod.name"] = "pod"
	}
	return attrs
}

func (c *caller) stage(ctx context.Context, v *volume) error {
	if v.inline {
		return nil
	}
	if err := os.MkdirAll(c.w.staging(v), 0o750); err != nil {
		return err
	}
	return c.call(ctx, "stage "+v.id, func(ctx context.Context) error {
		_, err := c.plugin.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
			VolumeId: v.id, StagingTargetPath: c.w.staging(v), VolumeCapability: capability(false), VolumeContext: v.context(),
		}, grpc.WaitForReady(true))
		return err
	})
}

func (c *caller) publish(ctx context.Context, v *volume, target string) error {
	staging := c.w.staging(v)
	if v.inline {
		staging = ""
	}
	return c.call(ctx, "publish "+v.id, func(ctx context.Context) error {
		_, err := c.plugin.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
			VolumeId: v.id, StagingTargetPath: staging, TargetPath: target, Readonly: !v.inline,
			VolumeCapability: capability(v.inline), VolumeContext: v.context(),
		}, grpc.WaitForReady(true))
		return err
	})
}

func (c *caller) unpublish(ctx context.Context, v *volume, target string) error {
	return c.call(ctx, "unpublish "+v.id, func(ctx context.Context) error {
		_, err := c.plugin.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: v.id, TargetPath: target}, grpc.WaitForReady(true))
		return err
	})
}

func (c *caller) unstage(ctx context.Context, v *volume) error {
	if v.inline {
		return nil
	}
	err := c.call(ctx, "unstage "+v.id, func(ctx context.Context) error {
		_, err := c.plugin.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: v.id, StagingTargetPath: c.w.staging(v)}, grpc.WaitForReady(true))
		return err
	})
	if err != nil {
		return err
	}
	return os.Remove(c.w.staging(v))
}

// up makes a volume and mounts it at all its targets.
func (c *caller) up(ctx context.Context, v *volume) error {
	if err := c.stage(ctx, v); err != nil {
		return err
	}
	for _, target := range v.targets {
		if err := c.publish(ctx, v, target); err != nil {
			return err
		}
	}
	return nil
}

// down takes it away.
func (c *caller) down(ctx context.Context, v *volume) error {
	var errs []error
	for _, target := range v.targets {
		errs = append(errs, c.unpublish(ctx, v, target))
	}
	return errors.Join(append(errs, c.unstage(ctx, v))...)
}

// condition is what the plugin says of a volume.
func (c *caller) condition(ctx context.Context, v *volume) string {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	res, err := c.plugin.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: v.id, VolumePath: v.targets[0]})
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%v %q", res.GetUsage(), res.ProtoReflect().GetUnknown())
}
