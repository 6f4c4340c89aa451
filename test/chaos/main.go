// Command chaos kills erofs-csi under readers, and counts what they notice: the node
// plugin and its holder run as on a node, with kubelet's part played here, and readers in
// processes of their own compare all that they read with the trees that the images were made
// of. `make chaos` runs it, as root; `go test` runs a short form.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

type options struct {
	binary, other, dir, report string
	scenarios, fronts          string
	kills, volumes             int
	cycles, upgrades           int
	seed                       uint64
	store                      string
	keep, setClock, calls      bool
}

func main() {
	var err error
	switch os.Getenv(roleEnv) {
	case roleReader:
		err = readerMain(os.Args[1:])
	case roleInside:
		err = inside(os.Args[1:])
	default:
		err = outside(os.Args[1:])
	}
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

func parse(args []string) (o options, err error) {
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.StringVar(&o.binary, "binary", "bin/erofs-csi", "the erofs-csi to run, with erofs-csi-holder beside it")
	flags.StringVar(&o.other, "other", "", "an erofs-csi of another release, to upgrade to and to downgrade from")
	flags.StringVar(&o.dir, "dir", "/var/tmp", "where to work; needs 1 GiB on a disk")
	flags.StringVar(&o.report, "report", "", "Markdown file whose measured part is to be replaced")
	flags.StringVar(&o.scenarios, "scenario", strings.Join(scenarioNames(), ","), "what to do, separated by commas")
	flags.StringVar(&o.fronts, "front", "auto,overlay,tree-passthrough,tree", "fronts to do it with, separated by commas")
	flags.IntVar(&o.kills, "kills", 100, "kills in scenario kills")
	flags.IntVar(&o.volumes, "volumes", 20, "volumes with readers")
	flags.IntVar(&o.cycles, "cycles", 1000, "lives of volumes in scenario cycles")
	flags.IntVar(&o.upgrades, "upgrades", 10, "upgrades and downgrades in scenario upgrade")
	flags.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "of what happens when")
	flags.StringVar(&o.store, "store-limit", "0", "--store-limit of the plugin")
	flags.BoolVar(&o.keep, "keep", false, "keep the directory with all logs")
	flags.BoolVar(&o.calls, "calls", true, "in scenario kills, make and end volumes meanwhile")
	flags.BoolVar(&o.setClock, "set-clock", false, "scenario clock may set the machine's clock")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	for _, name := range strings.Split(o.scenarios, ",") {
		if !slices.Contains(append(scenarioNames(), "clock"), name) {
			return o, fmt.Errorf("-scenario %s: there is no such scenario", name)
		}
	}
	for _, path := range []*string{&o.binary, &o.other, &o.dir, &o.report} {
		if *path != "" {
			if *path, err = filepath.Abs(*path); err != nil {
				return o, err
			}
		}
	}
	return o, nil
}

// outside runs the harness in a mount namespace of its own, so that nothing it mounts is
// anybody else's, whatever happens to it.
func outside(args []string) error {
	if _, err := parse(args); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("run it as root: it mounts file systems")
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleEnv+"="+roleInside)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Setpgid: true, Pdeathsig: syscall.SIGTERM}
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := cmd.Start(); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })()
	return cmd.Wait() // it has said why
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s %s\n", time.Now().Format("15:04:05"), fmt.Sprintf(format, args...))
}

// letGoOfOthers takes copies of others' mounts out of this mount namespace, which would keep
// their FUSE connections alive.
func letGoOfOthers() error {
	infos, err := mountinfo.GetMounts(nil)
	if err != nil {
		return err
	}
	for _, i := range slices.Backward(infos) {
		if i.Mountpoint != "/" && (strings.HasPrefix(i.FSType, "fuse") || i.FSType == "overlay" || i.FSType == "erofs") {
			_ = unix.Unmount(i.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) // it may have gone with another
		}
	}
	return nil
}

func inside(args []string) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	go func() {
		runtime.LockOSThread()
		for f := range starts {
			f()
		}
	}()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := letGoOfOthers(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.dir, "chaos-")
	if err != nil {
		return err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return err
	}
	if o.keep {
		progress("working in %s", dir)
	} else {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	progress("seed %d: making images", o.seed)
	s, err := makeStock(ctx, dir)
	if err != nil {
		return err
	}
	defer s.registry.close()
	var results []*result
	for _, name := range strings.Split(o.scenarios, ",") {
		sc := scenarioByName(name)
		fronts := strings.Split(o.fronts, ",")
		if !sc.eachFront {
			fronts = fronts[:1]
		}
		for _, front := range fronts {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			res, err := s.runScenario(ctx, o, sc, front, filepath.Join(dir, fmt.Sprintf("w%d", len(results))))
			if err != nil {
				return err
			}
			results = append(results, res)
		}
	}
	return conclude(ctx, o, s, results)
}

// runScenario runs a scenario on a node of its own.
func (s *stock) runScenario(ctx context.Context, o options, sc *scenario, front, dir string) (*result, error) {
	res := &result{name: sc.name, front: front}
	progress("scenario %s, front %s", sc.name, front)
	s.registry.down.Store(false)
	s.registry.rate.Store(6 << 20)
	start := time.Now()
	w, err := s.newWorld(dir, o.binary, front, o.seed, "--store-limit", o.store)
	if err != nil {
		return nil, err
	}
	if w.group, err = newCgroup(filepath.Base(dir)); err != nil {
		return nil, err
	}
	w.makeVolumes(o.volumes)
	err = sc.run(ctx, w, o, res)
	if err != nil {
		res.fail(err)
		w.abortAll()
	}
	w.stopReaders(res)
	res.tally(w)
	res.took = time.Since(start)
	if err := w.close(); err != nil {
		res.fail(err)
	}
	for _, g := range []*cgroup{w.group, w.apart} {
		if g != nil {
			res.fail(g.remove())
		}
	}
	if text, err := os.ReadFile(w.path("plugin.log")); err == nil && strings.Contains(string(text), "\npanic: ") {
		res.failf("the plugin panicked: see %s", w.path("plugin.log"))
	}
	progress("  %d steps of %d readers, %d errors, %d wrong; %d kills; under way at a kill: %d, p50 %v, p99 %v, longest %v; %v",
		res.steps, res.readers, res.errors, res.wrong, res.kills, res.struck.count(), res.struck.percentile(0.5), res.struck.percentile(0.99), res.struck.longest(), res.took.Round(time.Second))
	return res, nil
}
