package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
)

// footprint is what a world without volumes has.
type footprint struct {
	mounts      int64 // of volumes, and of the engine
	nodeFiles   int64 // descriptors
	holderFiles int64
	held        int64 // descriptors that the holder keeps
	goroutines  int64
	connections int64
	records     int64 // files in the state directory
	holderRSS   int64 // KiB
	nodeRSS     int64
	kernel      int64 // KiB of kernel memory of the group; 0: not known
}

// settlePatience is how long what is not in use any more may take to go.
const settlePatience = 40 * time.Second

// measure takes the footprint: drops what is idle first.
func (w *world) measure(ctx context.Context) (f footprint, err error) {
	if out, err := w.command(ctx, "drop", "--state-dir", w.path("run/state")); err != nil {
		return f, fmt.Errorf("drop: %w: %s", err, out)
	}
	var errs []error
	number := func(n int64, err error) int64 {
		errs = append(errs, err)
		return n
	}
	f.mounts = number(w.mountsBelow("kubelet", "run/state"))
	f.nodeFiles = number(descriptors(w.plugin.process().pid()))
	f.holderFiles = number(descriptors(w.holder.pid()))
	f.held = number(w.heldDescriptors(ctx))
	f.connections = number(w.connections())
	f.records = number(filesBelow(w.path("run/state")))
	f.holderRSS, f.nodeRSS = number(rss(w.holder.pid())), number(rss(w.plugin.process().pid()))
	n, err := w.plugin.metric(ctx, "go_goroutines")
	f.goroutines = number(int64(n), err)
	if w.group != nil {
		f.kernel = w.group.kernelKiB()
	}
	return f, errors.Join(errs...)
}

// nodeSlack is what a plugin may have resident after much work, in KiB: what it does not use
// any more goes back to the kernel slowly.
const nodeSlack = 384 << 10

// leaks compares two footprints.
func (f footprint) leaks(after footprint) []leak {
	return []leak{
		{"mounts", f.mounts, after.mounts, 0},
		{"descriptors of the plugin", f.nodeFiles, after.nodeFiles, 0},
		{"descriptors of the holder", f.holderFiles, after.holderFiles, 0},
		{"descriptors that the holder keeps", f.held, after.held, 0},
		{"goroutines of the plugin", f.goroutines, after.goroutines, 2},
		{"FUSE connections", f.connections, after.connections, 0},
		{"files in the state directory", f.records, after.records, 0},
		{"KiB resident of the holder", f.holderRSS, after.holderRSS, 8 << 10},
		{"KiB resident of the plugin", f.nodeRSS, after.nodeRSS, nodeSlack},
		{"KiB of kernel memory", f.kernel, after.kernel, 8 << 10},
	}
}

// compare measures until nothing is leaked, or settlePatience is over.
func (w *world) compare(ctx context.Context, before footprint, res *result) {
	for start := time.Now(); ; time.Sleep(time.Second) {
		w.registry.closeIdle()
		after, err := w.measure(ctx)
		if err != nil {
			res.fail(err)
			w.dumpPlugin()
			return
		}
		res.leaks = before.leaks(after)
		leaked := false
		for _, l := range res.leaks {
			leaked = leaked || l.leaked()
		}
		if !leaked {
			return
		}
		if time.Since(start) > settlePatience {
			for _, l := range res.leaks {
				if l.leaked() {
					res.failf("leaked: %s: %d before, %d after", l.what, l.before, l.after)
				}
			}
			res.note("left: %s", w.whatIsLeft(ctx))
			w.dumpPlugin()
			return
		}
	}
}

func (w *world) whatIsLeft(ctx context.Context) string {
	list, _ := w.command(ctx, "holder", "--socket", w.path("run/holder.sock"), "--list")
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", w.plugin.process().pid()))
	for i := range fds {
		fds[i], _ = os.Readlink(fds[i])
	}
	infos, _ := mountinfo.GetMounts(mountinfo.PrefixFilter(w.path("run/state")))
	var mounts []string
	for _, i := range infos {
		mounts = append(mounts, i.FSType+" "+i.Mountpoint)
	}
	return fmt.Sprintf("%s %q %q", list, mounts, fds)
}

// dumpPlugin ends the plugin with the stacks of its goroutines in its log.
func (w *world) dumpPlugin() {
	_ = w.plugin.process().cmd.Process.Signal(syscall.SIGQUIT)
	<-w.plugin.process().over
}

func (w *world) command(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return exec.CommandContext(ctx, w.binary, args...).CombinedOutput()
}

func (w *world) mountsBelow(dirs ...string) (n int64, err error) {
	for _, dir := range dirs {
		infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(w.path(dir)))
		if err != nil {
			return 0, err
		}
		n += int64(len(infos))
	}
	return n, nil
}

func descriptors(pid int) (int64, error) {
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return int64(len(list)), err
}

func (w *world) heldDescriptors(ctx context.Context) (n int64, err error) {
	out, err := w.command(ctx, "holder", "--socket", w.path("run/holder.sock"), "--list")
	if err != nil {
		return 0, fmt.Errorf("what the holder keeps: %w: %s", err, out)
	}
	for line := range bytes.Lines(out) {
		fields := strings.Fields(string(line))
		if len(fields) < 2 {
			continue
		}
		if d, err := strconv.ParseInt(fields[len(fields)-2], 10, 64); err == nil {
			n += d
		}
	}
	return n, nil
}

// connections counts the FUSE connections of this world that are left in the kernel.
func (w *world) connections() (n int64, err error) {
	if err := w.noteDevices(); err != nil {
		return 0, err
	}
	for minor := range w.devices {
		if _, err := os.Stat(w.path("fusectl", minor)); err != nil || othersHave(minor) {
			delete(w.devices, minor) // gone: its number is free for others' connections
			continue
		}
		n++
	}
	return n, nil
}

// othersHave tells whether a device is mounted in another mount namespace: numbers are
// used again.
func othersHave(minor string) bool {
	own, _ := os.Readlink("/proc/self/ns/mnt")
	procs, _ := filepath.Glob("/proc/[0-9]*")
	seen := map[string]bool{own: true}
	for _, p := range procs {
		ns, err := os.Readlink(p + "/ns/mnt")
		if err != nil || seen[ns] {
			continue
		}
		seen[ns] = true
		text, err := os.ReadFile(p + "/mountinfo")
		if err == nil && bytes.Contains(text, []byte(" 0:"+minor+" ")) {
			return true
		}
	}
	return false
}

func filesBelow(dir string) (n int64, err error) {
	list, err := os.ReadDir(filepath.Join(dir, "volumes"))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	engines, err2 := os.ReadDir(filepath.Join(dir, "engines"))
	return int64(len(list) + len(engines)), errors.Join(err, err2)
}

// rss is what a process has resident, in KiB.
func rss(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
		}
	}
	return 0, errors.New("no VmRSS in the status of a process")
}
