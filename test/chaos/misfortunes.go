package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ownDisk gives the world a cache directory on an ext4 of its own.
func (w *world) ownDisk(mib int) error {
	file, dir := w.path("disk.img"), w.path("disk")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"truncate", "-s", fmt.Sprintf("%dM", mib), file},
		{"mkfs.ext4", "-q", "-m0", file},
		{"mount", "-o", "loop", file, dir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", args[0], err, out)
		}
	}
	w.cache = dir
	return nil
}

// fill fills the disk of the cache directory to the last byte.
func (w *world) fill() (remove func() error, err error) {
	path := w.cache + "/filler"
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	block := make([]byte, 1<<20)
	for size := len(block); size >= 512; {
		if _, err := f.Write(block[:size]); errors.Is(err, unix.ENOSPC) {
			size /= 2
		} else if err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return func() error { return os.Remove(path) }, f.Close()
}

func (w *world) runDiskFull(ctx context.Context, res *result) error {
	if err := w.ownDisk(96); err != nil {
		return err
	}
	before, err := w.under(ctx)
	if err != nil {
		return err
	}
	time.Sleep(5 * time.Second) // the lazy image is complete
	remove, err := w.fill()
	if err != nil {
		return err
	}
	v := &volume{id: "too-much", image: w.spare, attrs: map[string]string{"image": w.spare.ref, "domain_id": "red", "lazy": "never"}, targets: []string{w.path("kubelet", "pod-too-much")}}
	for range 4 {
		if err := w.killOnce(ctx, res); err != nil {
			return err
		}
		_, err := w.plugin.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
			VolumeId: "inline", TargetPath: w.path("kubelet", "pod-inline"), VolumeCapability: capability(true),
			VolumeContext: (&volume{inline: true, attrs: v.attrs}).context(),
		}, grpc.WaitForReady(true))
		if status.Code(err) != codes.ResourceExhausted {
			res.failf("an image that does not fit: %v", err)
		}
		time.Sleep(time.Second)
	}
	if err := remove(); err != nil {
		return err
	}
	c := w.caller()
	if err := errors.Join(c.up(ctx, v), w.verify(ctx, v.image, v.targets[0], 50), c.down(ctx, v)); err != nil {
		res.fail(fmt.Errorf("with room again: %w", err))
	}
	return w.finish(ctx, res, before)
}

func (w *world) runReadOnly(ctx context.Context, res *result) error {
	if err := w.ownDisk(256); err != nil {
		return err
	}
	before, err := w.under(ctx)
	if err != nil {
		return err
	}
	time.Sleep(5 * time.Second) // the lazy image is complete
	for i := range 4 {
		w.control.outage.Add(1)
		w.tally.kills.Add(1)
		if err := w.plugin.kill(); err != nil {
			return err
		}
		// Of the mount, not the file system: the kernel refuses that one while a file there has no
		// name any more.
		flags := uintptr(unix.MS_REMOUNT | unix.MS_BIND)
		if i%2 == 0 {
			flags |= unix.MS_RDONLY
		}
		for start := time.Now(); ; time.Sleep(50 * time.Millisecond) {
			if err = unix.Mount("", w.cache, "", flags, ""); err == nil || time.Since(start) > 10*time.Second {
				break
			}
		}
		if err := errors.Join(err, w.plugin.start(), w.recover(ctx, res)); err != nil {
			return err
		}
		time.Sleep(time.Second)
		c, v := w.caller(), &volume{id: "again", image: w.images[1], attrs: map[string]string{"image": w.images[1].ref, "domain_id": "red"}, targets: []string{w.path("kubelet", "pod-again")}}
		if err := errors.Join(c.up(ctx, v), w.verify(ctx, v.image, v.targets[0], 50), c.down(ctx, v)); err != nil {
			res.fail(fmt.Errorf("an image that is there: %w", err))
		}
	}
	return w.finish(ctx, res, before)
}

func (w *world) runMemory(ctx context.Context, res *result) error {
	if w.group == nil {
		return errors.New("there are no memory cgroups")
	}
	apart, err := newCgroup("readers-" + w.front)
	if err != nil {
		return err
	}
	w.apart = apart
	before, err := w.under(ctx)
	if err != nil {
		return err
	}
	if err := apart.add(w.holder.pid()); err != nil {
		return err
	}
	// Readers of their own group, with less room than what they read.
	for _, r := range w.readers {
		if err := apart.add(r.pid()); err != nil {
			return err
		}
	}
	if err := apart.limit(int64(len(w.readers)) * 24 << 20); err != nil {
		res.note("the readers' limit: %v", err)
	}
	const room = 192 << 20
	if err := w.group.limit(room); err != nil {
		return err
	}
	steps := func() (n uint64) {
		for _, r := range w.readers {
			n += r.counts.steps.Load()
		}
		return n
	}
	for _, phase := range []string{"apart", "together"} {
		if phase == "together" {
			for _, r := range w.readers {
				if err := w.group.add(r.pid()); err != nil {
					return err
				}
			}
			if err := w.group.limit(room + int64(len(w.readers))*24<<20); err != nil {
				return err
			}
		}
		start := steps()
		for range 5 {
			time.Sleep(time.Second)
			if err := errors.Join(w.killOnce(ctx, res), w.stuck()); err != nil {
				return err
			}
		}
		res.note("readers and plugin %s, without room: %d steps", phase, steps()-start)
	}
	for _, r := range w.readers {
		if err := apart.add(r.pid()); err != nil {
			return err
		}
	}
	if err := apart.limit(0); err != nil {
		return err
	}
	for range 5 {
		if err := w.starve(ctx, res); err != nil {
			return err
		}
	}
	return w.finish(ctx, res, before)
}

// starve takes the plugin's memory away until the kernel kills it, and starts it again.
func (w *world) starve(ctx context.Context, res *result) error {
	killed := w.group.oomKills()
	proc := w.plugin.process()
	w.control.outage.Add(1)
	for n, start := int64(40<<20), time.Now(); proc.running(); time.Sleep(20 * time.Millisecond) {
		if w.group.limit(n) == nil { // else: not so little at once
			n = n * 3 / 4
		} else {
			n += 1 << 20
		}
		n = max(n, 1<<20)
		if time.Since(start) > 30*time.Second {
			res.note("the kernel did not kill the plugin for want of memory within 30 s")
			w.tally.kills.Add(1)
			if err := proc.kill(); err != nil {
				return err
			}
		}
	}
	w.plugin.leave(proc)
	if err := errors.Join(w.group.limit(0), w.plugin.start(), w.recover(ctx, res), w.stuck()); err != nil {
		return err
	}
	if n := w.group.oomKills() - killed; n > 0 {
		w.tally.kills.Add(n)
		w.tally.ooms.Add(n)
	}
	time.Sleep(500 * time.Millisecond)
	return nil
}

func (w *world) runClock(ctx context.Context, res *result) error {
	before, err := w.under(ctx)
	if err != nil {
		return err
	}
	begin, at := time.Now(), monotonic()
	defer func() { _ = setClock(begin.Add(monotonic() - at)) }()
	for _, jump := range []time.Duration{time.Hour, -2 * time.Hour, 400 * 24 * time.Hour, -800 * 24 * time.Hour, 5 * time.Second} {
		if err := setClock(begin.Add(monotonic() - at + jump)); err != nil {
			return err
		}
		time.Sleep(3 * time.Second)
		if err := errors.Join(w.killOnce(ctx, res), w.stuck()); err != nil {
			return err
		}
		c, v := w.caller(), &volume{id: "again", image: w.spare, attrs: map[string]string{"image": w.spare.ref, "domain_id": "red"}, targets: []string{w.path("kubelet", "pod-again")}}
		if err := errors.Join(c.up(ctx, v), w.verify(ctx, v.image, v.targets[0], 20), c.down(ctx, v)); err != nil {
			res.fail(fmt.Errorf("with the clock off by %v: %w", jump, err))
		}
	}
	return w.finish(ctx, res, before)
}

func setClock(t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	return nil
}
