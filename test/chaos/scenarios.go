package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// scenario is one kind of misfortune.
type scenario struct {
	name      string
	what      string // for the report
	eachFront bool
	run       func(context.Context, *world, options, *result) error
}

var scenarios = []*scenario{
	{
		"kills", "the plugin is killed at random moments, a third of the times again while it resumes, with stage and publish calls, pulls and hashing under way", true,
		func(ctx context.Context, w *world, o options, res *result) error {
			return w.runKills(ctx, res, o.kills, o.calls)
		},
	},
	{
		"upgrade", "the plugin ends by SIGTERM, and one of another version goes on", true,
		func(ctx context.Context, w *world, o options, res *result) error {
			if o.other == "" {
				return errors.New("pass -other, an erofs-csi of another version")
			}
			return w.runUpgrade(ctx, res, o.other, o.upgrades)
		},
	},
	{
		"holder", "the holder is killed and started again, then the plugin killed", true,
		func(ctx context.Context, w *world, _ options, res *result) error { return w.runHolder(ctx, res) },
	},
	{
		"both", "plugin and holder are killed at once; errors are to be expected until the plugin is ready, and counted apart", true,
		func(ctx context.Context, w *world, _ options, res *result) error { return w.runBoth(ctx, res) },
	},
	{
		"reboot", "all is killed, all mounts and the state directory are gone, and kubelet calls again", false,
		func(ctx context.Context, w *world, _ options, res *result) error { return w.runReboot(ctx, res) },
	},
	{
		"disk-full", "the disk of the cache directory is full, the plugin killed, an image pulled", false,
		func(ctx context.Context, w *world, _ options, res *result) error { return w.runDiskFull(ctx, res) },
	},
	{
		"disk-read-only", "the plugin is killed, and finds its cache directory read-only", false,
		func(ctx context.Context, w *world, _ options, res *result) error { return w.runReadOnly(ctx, res) },
	},
	{
		"cycles", "volumes are staged, published, read, unpublished and unstaged, four at a time, with kills, calls given up, a registry that fails and images that are missing", false,
		func(ctx context.Context, w *world, o options, res *result) error {
			return w.runCycles(ctx, res, o.cycles)
		},
	},
	{
		"memory", "plugin and readers in memory cgroups without room, together and apart; then the plugin killed for want of memory, again and again", true,
		func(ctx context.Context, w *world, _ options, res *result) error { return w.runMemory(ctx, res) },
	},
	{
		"clock", "the machine's clock jumps by hours and days, forth and back, and the plugin is killed in between", false,
		func(ctx context.Context, w *world, o options, res *result) error {
			if !o.setClock {
				return errors.New("pass -set-clock, on a machine whose clock may be set")
			}
			return w.runClock(ctx, res)
		},
	},
}

// scenarioNames are those that harm nobody else.
func scenarioNames() (names []string) {
	for _, s := range scenarios {
		if s.name != "clock" {
			names = append(names, s.name)
		}
	}
	return names
}

func scenarioByName(name string) *scenario {
	for _, s := range scenarios {
		if s.name == name {
			return s
		}
	}
	return nil
}

// under begins a world with readers.
func (w *world) under(ctx context.Context) (before footprint, err error) {
	if before, err = w.beginMeasured(ctx); err != nil {
		return before, err
	}
	return before, w.startReaders()
}

func (w *world) runHolder(ctx context.Context, res *result) error {
	before, err := w.under(ctx)
	if err != nil {
		return err
	}
	for range 3 {
		time.Sleep(time.Second)
		want, err := w.heldDescriptors(ctx)
		if err != nil {
			return err
		}
		if err := errors.Join(w.holder.kill(), w.startHolder()); err != nil {
			return err
		}
		if err := w.joinGroup(w.holder); err != nil {
			return err
		}
		start := time.Now()
		for n := int64(0); n < want; time.Sleep(20 * time.Millisecond) {
			if n, err = w.heldDescriptors(ctx); err != nil {
				return err
			}
			if time.Since(start) > readyPatience {
				return fmt.Errorf("a new holder has %d descriptors, the one before had %d", n, want)
			}
		}
		res.note("a new holder had all descriptors after %v", time.Since(start).Round(10*time.Millisecond))
		if err := errors.Join(w.killOnce(ctx, res), w.stuck()); err != nil {
			return err
		}
	}
	return w.finish(ctx, res, before)
}

// bothDie kills plugin and holder, and starts both.
func (w *world) bothDie(ctx context.Context, res *result) error {
	w.control.outage.Add(1)
	w.tally.kills.Add(1)
	first, second := w.holder.kill, w.plugin.kill
	if w.rng.IntN(2) == 0 {
		first, second = second, first
	}
	if err := errors.Join(first(), second(), w.startHolder(), w.joinGroup(w.holder), w.plugin.start()); err != nil {
		return err
	}
	return w.recover(ctx, res)
}

func (w *world) runBoth(ctx context.Context, res *result) error {
	before, err := w.under(ctx)
	if err != nil {
		return err
	}
	for range 4 {
		time.Sleep(time.Second)
		w.control.lenient.Store(1)
		if err := w.bothDie(ctx, res); err != nil {
			return err
		}
		time.Sleep(500 * time.Millisecond) // readers let go of what they have of the dead mounts
		w.control.lenient.Store(0)
		if err := errors.Join(w.stuck(), w.noteDevices()); err != nil {
			return err
		}
	}
	return w.finish(ctx, res, before)
}

func (w *world) runReboot(ctx context.Context, res *result) error {
	before, err := w.under(ctx)
	if err != nil {
		return err
	}
	for range 2 {
		time.Sleep(time.Second)
		w.stopReaders(res)
		w.tally.kills.Add(1)
		w.control.outage.Add(1)
		if err := errors.Join(w.holder.kill(), w.plugin.kill(), w.unmountAll(), w.mountOwn()); err != nil {
			return err
		}
		if err := errors.Join(w.startHolder(), w.joinGroup(w.holder), w.plugin.start(), w.recover(ctx, res), w.upAll(ctx), w.startReaders()); err != nil {
			return err
		}
	}
	time.Sleep(time.Second)
	return w.finish(ctx, res, before)
}

func (w *world) runCycles(ctx context.Context, res *result, cycles int) error {
	before, err := w.under(ctx)
	if err != nil {
		return err
	}
	const churners = 4
	ended := make(chan struct{}, churners)
	w.mounting = true
	for range churners {
		c := w.caller() // of this goroutine's random numbers
		go func() {
			w.churn(ctx, ctx, res, c, cycles/churners)
			ended <- struct{}{}
		}()
	}
	for running := churners; running > 0; {
		select {
		case <-ended:
			running--
			continue
		case <-time.After(time.Duration(500+w.rng.IntN(4000)) * time.Millisecond):
		}
		switch w.rng.IntN(3) {
		case 0:
			w.registry.down.Store(true)
			time.Sleep(time.Duration(w.rng.IntN(2000)) * time.Millisecond)
			w.registry.down.Store(false)
		default:
			if err := w.killOnce(ctx, res); err != nil {
				return err
			}
		}
		if err := errors.Join(w.stuck(), w.noteDevices(), ctx.Err()); err != nil {
			return err
		}
	}
	return w.finish(ctx, res, before)
}
