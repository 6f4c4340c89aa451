package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// stuckLimit is how long no reader may wait for one thing.
const stuckLimit = 45 * time.Second

// catchPatience is how long a kill may wait for its moment.
const catchPatience = 300 * time.Millisecond

// killPlugin kills the plugin, and starts it again at once.
func (w *world) killPlugin() error {
	if w.mounting && w.rng.IntN(3) == 0 {
		w.plugin.process().catch(catchPatience)
	}
	w.control.outage.Add(1)
	w.tally.kills.Add(1)
	return errors.Join(w.plugin.kill(), w.plugin.start())
}

// recover waits until the plugin is ready, and those before it have ended.
func (w *world) recover(ctx context.Context, res *result) error {
	start := time.Now()
	err := w.plugin.ready(ctx)
	if err == nil {
		res.back = append(res.back, time.Since(start))
		w.control.outage.Add(1)
		w.plugin.bury(res)
	}
	return err
}

// killOnce kills the plugin once, or again and again while it resumes, and waits until it
// is ready.
func (w *world) killOnce(ctx context.Context, res *result) error {
	w.commands.Lock()
	defer w.commands.Unlock()
	if err := w.killPlugin(); err != nil {
		return err
	}
	for w.rng.IntN(3) == 0 { // during resume
		time.Sleep(time.Duration(w.rng.IntN(100)) * time.Millisecond)
		w.tally.kills.Add(1)
		w.tally.resumeKills.Add(1)
		if err := errors.Join(w.plugin.kill(), w.plugin.start()); err != nil {
			return err
		}
	}
	return w.recover(ctx, res)
}

// runKills is the scenario of kills under readers, with calls under way.
func (w *world) runKills(ctx context.Context, res *result, kills int, calls bool) error {
	before, err := w.beginMeasured(ctx)
	if err != nil {
		return err
	}
	if err := w.startReaders(); err != nil {
		return err
	}
	churned := make(chan struct{})
	c := w.caller()
	churnCtx, stopChurn := context.WithCancel(ctx)
	defer stopChurn()
	if w.mounting = calls; calls {
		go func() {
			defer close(churned)
			w.churn(churnCtx, ctx, res, c, 1<<30)
		}()
	} else {
		close(churned)
	}
	for int(w.tally.kills.Load()) < kills && ctx.Err() == nil {
		time.Sleep(time.Duration(100+w.rng.IntN(900)) * time.Millisecond)
		if err := w.killOnce(ctx, res); err != nil {
			return err
		}
		if w.rng.IntN(4) == 0 {
			if out, err := w.command(ctx, "drop", "--state-dir", w.path("run/state")); err != nil {
				res.failf("drop: %v: %s", err, out)
			}
		}
		if err := errors.Join(w.stuck(), w.noteDevices()); err != nil {
			return err
		}
	}
	stopChurn()
	<-churned
	w.mounting = false
	return w.finish(ctx, res, before)
}

// beginMeasured begins, and takes the footprint before there are volumes.
func (w *world) beginMeasured(ctx context.Context) (before footprint, err error) {
	if err := w.startHolder(); err != nil {
		return before, err
	}
	if err := w.joinGroup(w.holder); err != nil {
		return before, err
	}
	if err := errors.Join(w.plugin.start(), w.plugin.ready(ctx)); err != nil {
		return before, err
	}
	c, v := w.caller(), &volume{id: "first", image: w.images[0], attrs: map[string]string{"image": w.images[0].ref, "domain_id": "first"}, targets: []string{w.path("kubelet", "pod-first")}}
	// What is made once and stays, such as the connection by which the holder opens files.
	if err := errors.Join(c.up(ctx, v), w.verify(ctx, v.image, v.targets[0], 20), c.down(ctx, v)); err != nil {
		return before, err
	}
	time.Sleep(time.Second)
	if before, err = w.measure(ctx); err != nil {
		return before, err
	}
	return before, w.upAll(ctx)
}

// finish ends the readers and the volumes, and counts what is left of them.
func (w *world) finish(ctx context.Context, res *result, before footprint) error {
	time.Sleep(300 * time.Millisecond)
	if err := w.noteDevices(); err != nil {
		return err
	}
	for _, v := range w.volumes { // new mounts of the same
		if err := w.verify(ctx, v.image, v.targets[0], 20); err != nil {
			res.fail(err)
		}
	}
	w.stopReaders(res)
	if err := w.downAll(ctx); err != nil {
		res.fail(err)
	}
	w.compare(ctx, before, res)
	if err := w.plugin.process().terminate(); err != nil {
		res.fail(err)
	}
	if err := w.holder.terminate(); err != nil {
		res.fail(err)
	}
	n, err := w.connections()
	if n > 0 {
		res.failf("%d FUSE connections are left when all have ended", n)
	}
	return err
}

// churn makes volumes and takes them away, until ctx ends or there were so many. What it has
// begun it ends within outer.
func (w *world) churn(ctx, outer context.Context, res *result, c *caller, cycles int) {
	c.cancels = 0.2
	for n := 0; n < cycles && ctx.Err() == nil; n++ {
		im := w.volumes[c.rng.IntN(len(w.volumes))].image
		spare := c.rng.IntN(3) == 0
		if spare {
			im = w.spare
		}
		v := &volume{id: fmt.Sprintf("churn-%d", w.serial.Add(1)), image: im, attrs: map[string]string{"image": im.ref}}
		v.attrs["domain_id"] = []string{"red", "green", ""}[c.rng.IntN(3)]
		if im.lazy && c.rng.IntN(2) == 0 {
			v.attrs["lazy"] = "never"
		}
		v.inline = c.rng.IntN(4) == 0
		v.targets = []string{w.path("kubelet", "pod-"+v.id)}
		err := c.up(outer, v)
		if err == nil {
			if err = w.verify(outer, im, v.targets[0], 30); err != nil {
				err = fmt.Errorf("%w: %s", err, c.condition(outer, v))
			}
		}
		if err := errors.Join(err, c.down(outer, v)); err != nil {
			res.fail(fmt.Errorf("%s, image %s: %w", v.id, im.name, err))
		}
		w.tally.cycles.Add(1)
		if c.rng.IntN(10) == 0 {
			missing := &volume{id: v.id, image: im, attrs: map[string]string{"image": w.path("images", "missing.erofs")}}
			if err := c.stage(outer, missing); status.Code(err) != codes.NotFound {
				res.failf("stage an image that is not there: %v", err)
			}
			if err := c.unstage(outer, missing); err != nil {
				res.fail(err)
			}
		}
		if spare {
			// So that it is pulled and hashed again. It may be in use elsewhere, or the plugin down.
			_, _ = w.command(outer, "drop", "--state-dir", w.path("run/state"))
			w.commands.RLock()
			_, _ = w.command(outer, "cache", "rm", "--cache-dir", w.cacheDir(), "--state-dir", w.path("run/state"), im.ref)
			w.commands.RUnlock()
		}
	}
}

// runUpgrade ends the plugin and starts one of another release, again and again.
func (w *world) runUpgrade(ctx context.Context, res *result, other string, rounds int) error {
	before, err := w.beginMeasured(ctx)
	if err != nil {
		return err
	}
	if err := w.startReaders(); err != nil {
		return err
	}
	for i := range rounds {
		time.Sleep(time.Duration(200+w.rng.IntN(800)) * time.Millisecond)
		w.control.outage.Add(1)
		w.tally.kills.Add(1)
		_ = w.plugin.process().cmd.Process.Signal(syscall.SIGTERM)
		<-w.plugin.process().over
		w.plugin.leave(w.plugin.process())
		w.plugin.mu.Lock()
		w.plugin.binary = []string{other, w.binary}[i%2]
		w.plugin.mu.Unlock()
		if err := errors.Join(w.plugin.start(), w.recover(ctx, res), w.stuck()); err != nil {
			return err
		}
	}
	return w.finish(ctx, res, before)
}
