package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/driver"
	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/driver/holder"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

// mountFlags are the flags of mount.
type mountFlags struct {
	domain, cacheDir, stateDir, pprof string
	holder                            string
	metricsAddress                    string
	cacheLimit, storeLimit            string
	imageSpace                        engine.ImageSpace
	userNamespaces                    bool
	front, engine, fingerprints, lazy *choice
	pull                              *pull
}

// pair is one IMAGE DIR of the command line.
type pair struct {
	image imageArg
	arg   string // as given
	dir   string
	left  *targetRecord // of a process that is gone, whose mount may go on
}

func mountCommand() *cobra.Command {
	var f mountFlags
	cmd := &cobra.Command{
		Use:   "mount [--domain ID] IMAGE DIR [IMAGE DIR]...",
		Short: "Mount images, until SIGTERM or SIGINT",
		Long: `Mounts each IMAGE read-only onto the directory DIR after it, prints "ready" when
all are mounted, and serves them in the foreground until SIGTERM or SIGINT; then
it unmounts them and exits 0. With --domain, files of equal content share one
page cache in all images of this process; without it, nothing is shared.

IMAGE is the path of an EROFS file or block device, with extra devices as
PATH,device=PATH..., a reference HOST/NAME:TAG or HOST/NAME@DIGEST to an EROFS
artifact in a registry, or https://HOST/PATH#sha256:... Credentials come from
$REGISTRY_AUTH_FILE, $DOCKER_CONFIG/config.json or ~/.docker/config.json, then from
--registry-config and the image credential providers.`,
		Example: `  erofs-csi mount app.erofs /mnt

  # two versions of one image, one page cache
  erofs-csi mount --domain web v1.erofs /mnt/v1 v2.erofs /mnt/v2

  # mounts that outlive a crash: the same command takes them over
  erofs-csi holder --socket /run/erofs-csi/holder.sock &
  erofs-csi mount --holder /run/erofs-csi/holder.sock app.erofs /mnt

  # from a registry
  erofs-csi mount registry.example/app:v1 /mnt`,
		Args: arguments(func(n int) bool { return n > 0 && n%2 == 0 }, "pairs of IMAGE and DIR"),
	}
	flags := cmd.Flags()
	flags.StringVar(&f.domain, "domain", "", "`ID` of the domain whose images share memory; empty: nothing is shared")
	addCacheDir(flags, &f.cacheDir)
	addStateDir(flags, &f.stateDir)
	addHolder(flags, &f.holder)
	f.front = addFront(cmd)
	f.engine = addChoice(cmd, "engine", "who serves; kernel is the kernel's own EROFS, never taken by auto", "auto", engine.EngineFUSE, engine.EngineKernel)
	f.fingerprints = addChoice(cmd, "fingerprints", "what makes files equal: their hash, or what the images say of them", "verified", "trusted")
	flags.StringVar(&f.cacheLimit, "cache-limit", "", "`SIZE` that the page cache of all images together may have, as 512Mi; empty: no limit")
	addStoreLimit(flags, &f.storeLimit, "0")
	addImageSpace(flags, &f.imageSpace, "0")
	flags.BoolVar(&f.userNamespaces, "user-namespaces", false, "mounts can be id-mapped, for containers in user namespaces (Linux 6.12)")
	f.lazy = addChoice(cmd, "lazy", "auto mounts an image of a registry when its metadata is there, and pulls the rest meanwhile", "never", "auto")
	f.pull = addPull(cmd)
	addMetricsAddress(flags, &f.metricsAddress)
	flags.StringVar(&f.pprof, "pprof", "", "serve net/http/pprof at `ADDR`")
	_ = flags.MarkHidden("pprof") // it fails only for a flag that does not exist
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, stop := signal.NotifyContext(logged(cmd.Context()), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
		defer stop()
		signal.Ignore(syscall.SIGPIPE) // a reader of "ready" that has gone must not kill a file server
		driver.LimitMemory(ctx)
		err := runMount(ctx, cmd.OutOrStdout(), &f, args)
		if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
			err = fmt.Errorf("%w: mounting needs root", err)
		}
		return err
	}
	return cmd
}

// runMount mounts all pairs, says so, and takes them down when ctx ends, or
// those it had when one fails.
func runMount(ctx context.Context, out io.Writer, f *mountFlags, args []string) (err error) {
	if f.holder != "" {
		if f.holder, err = filepath.Abs(f.holder); err != nil {
			return err
		}
	}
	if err := checkMetricsAddress(f.metricsAddress); err != nil {
		return err
	}
	pairs, err := parsePairs(ctx, f, args)
	if err != nil {
		return err
	}
	if f.pprof != "" {
		if err := servePprof(ctx, f.pprof); err != nil {
			return err
		}
	}
	server, err := newMountServer(ctx, f, pairs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.close(context.WithoutCancel(ctx))) }()
	if f.metricsAddress != "" {
		server.serveMetrics(ctx, f.metricsAddress)
	}
	for _, p := range pairs {
		if err := server.mount(ctx, p); err != nil {
			if ctx.Err() != nil {
				return nil // told to stop before all were mounted
			}
			return err
		}
	}
	if err := server.engine.EndResume(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Something is left of mounts of a process that is gone")
	}
	if err := server.store.Tend(); err != nil {
		return err
	}
	server.ready.Store(true)
	if _, err := fmt.Fprintln(out, "ready"); err != nil {
		return fmt.Errorf("nobody reads ready: %w: keep stdout open", err)
	}
	<-ctx.Done()
	return nil
}

// parsePairs checks every argument before anything is mounted.
func parsePairs(ctx context.Context, f *mountFlags, args []string) ([]pair, error) {
	pairs := make([]pair, 0, len(args)/2)
	used := make(map[string]bool)
	for i := 0; i < len(args); i += 2 {
		image, err := parseImage(args[i])
		if err != nil {
			return nil, err
		}
		dir, left, err := mountDirectory(ctx, f, args[i+1])
		if err != nil {
			return nil, err
		}
		if used[dir] {
			return nil, usagef("%s is given twice: mount each image onto a directory of its own", args[i+1])
		}
		used[dir] = true
		pairs = append(pairs, pair{image: image, arg: args[i], dir: dir, left: left})
	}
	return pairs, nil
}

// mountServer is the store, the engine and what is mounted.
type mountServer struct {
	flags   *mountFlags
	store   *nodecache.Store
	cleanup func() // of the store, after its Close
	engine  *engine.Engine
	holder  *holder.Client // nil: none
	kept    string         // the name that is claimed there
	options nodecache.AcquireOptions
	ready   atomic.Bool // all pairs are mounted

	mu      sync.Mutex
	mounted []mounted // in order of mounting; GUARDED_BY(mu), but read where it is written

	cacheLimit int64
}

// mounted is one front at its directory.
type mounted struct {
	image  *nodecache.Image
	front  *engine.Front
	target *target
}

func newMountServer(ctx context.Context, f *mountFlags, pairs []pair) (*mountServer, error) {
	s := &mountServer{flags: f}
	var err error
	if s.cacheLimit, err = engine.ParseCacheLimit(f.cacheLimit); err != nil {
		return nil, usagef("--cache-limit: %v", err)
	}
	if s.cacheLimit != 0 && f.engine.value == engine.EngineKernel {
		return nil, usagef("--cache-limit: the kernel's page cache has no such limit; leave it out with --engine kernel")
	}
	if f.front.value != engine.FrontAuto && f.engine.value == engine.EngineKernel {
		return nil, usagef("--front %s: is a front of --engine fuse", f.front.value)
	}
	pathsOnly := true
	for _, p := range pairs {
		pathsOnly = pathsOnly && p.image.path
	}
	if !pathsOnly {
		if s.options, err = f.pull.options(); err != nil {
			return nil, err
		}
		s.options.Lazy = f.lazy.value == "auto" && f.engine.value != engine.EngineKernel
	}
	var lockPatience time.Duration
	if f.holder != "" {
		var dirs []string
		for _, p := range pairs {
			dirs = append(dirs, p.dir)
			if p.left != nil {
				lockPatience = endPatience
			}
		}
		s.kept = mountName(dirs)
		if s.holder, err = dialHolder(ctx, f.holder, s.kept); err != nil {
			return nil, err
		}
	}
	if s.store, s.cleanup, err = openMountStore(f.cacheDir, f.pull, f.imageSpace, pathsOnly, lockPatience); err != nil {
		s.closeHolder()
		return nil, err
	}
	if s.engine, err = s.newEngine(ctx); err != nil {
		_ = s.store.Close()
		s.closeHolder()
		s.cleanup()
		return nil, err
	}
	return s, nil
}

func (s *mountServer) newEngine(ctx context.Context) (*engine.Engine, error) {
	files, err := engine.StoreConfig(s.store.Dir(), s.flags.storeLimit)
	if err != nil {
		return nil, usagef("--store-limit: %v", err)
	}
	cfg := engine.Config{StateDir: s.flags.stateDir, Front: s.flags.front.value, Files: files, Images: s.store}
	if s.holder != nil {
		cfg.Holder = s.holder
	}
	return engine.New(ctx, cfg)
}

func (s *mountServer) closeHolder() {
	if s.holder != nil {
		_ = s.holder.Close() // nothing is left there that matters
	}
}

// mount mounts one pair; on failure it leaves nothing of it.
func (s *mountServer) mount(ctx context.Context, p pair) (err error) {
	var m mounted
	defer func() {
		if err != nil {
			_, undoErr := m.undo(context.WithoutCancel(ctx))
			err = errors.Join(err, undoErr)
		}
	}()
	if m.image, err = s.store.Acquire(ctx, p.image.ref, s.options); err != nil {
		return imageError(p.arg, err)
	}
	m.front, err = s.engine.Mount(ctx, engine.Request{
		Domain: s.flags.domain, VolumeID: p.dir, Image: m.image, CacheLimit: s.cacheLimit,
		Trusted: s.flags.fingerprints.value == "trusted", Kernel: s.flags.engine.value == engine.EngineKernel,
		IDMapped: s.flags.userNamespaces,
	})
	if err != nil {
		return imageError(p.arg, err)
	}
	if m.target, err = s.bind(ctx, p, m.front); err != nil {
		return err
	}
	s.mu.Lock()
	s.mounted = append(s.mounted, m)
	s.mu.Unlock()
	klog.FromContext(ctx).V(2).Info("Mounted", "image", p.arg, "dir", p.dir, "engine", m.front.Engine(), "front", m.front.Kind())
	return nil
}

// bind shows a front at the directory of a pair, where it may be already.
func (s *mountServer) bind(ctx context.Context, p pair, f *engine.Front) (*target, error) {
	if p.left != nil {
		if f.Resumed() && p.left.Name == s.kept {
			if t, err := takeTarget(s.flags, s.kept, f.Path(), p.dir); t != nil || err != nil {
				return t, err
			}
		}
		// What this process has not taken over of that one nobody serves.
		if p.left.Name == s.kept {
			p.left.Holder = ""
		}
		if err := p.left.end(ctx); err != nil {
			return nil, err
		}
	}
	return bindFront(s.flags, s.kept, f.Path(), p.dir)
}

// undo unmounts and releases what there is, in the reverse order. detached says
// that the directory was in use, so that others of our mounts are busy, too.
func (m *mounted) undo(ctx context.Context) (detached bool, err error) {
	var errs []error
	if m.target != nil {
		errs = append(errs, m.target.unmount(ctx))
		detached = m.target.detached
	}
	if m.front != nil {
		errs = append(errs, m.front.Release(ctx))
	}
	if m.image != nil {
		m.image.Release()
	}
	return detached, errors.Join(errs...)
}

// close takes everything down, the last mount first. Where a directory had to
// be detached, the internal mounts that its users hold fail to unmount; they go
// with this process, so that is told and no failure.
func (s *mountServer) close(ctx context.Context) error {
	var errs []error
	anyDetached := false
	for i := len(s.mounted) - 1; i >= 0; i-- {
		detached, err := s.mounted[i].undo(ctx)
		anyDetached = anyDetached || detached
		errs = append(errs, err)
	}
	errs = append(errs, s.engine.Close(ctx), s.store.Close())
	s.closeHolder()
	s.cleanup()
	err := errors.Join(errs...)
	if err != nil && anyDetached {
		klog.FromContext(ctx).Info("Internal mounts were busy at exit", "reason", oneLine(err.Error()))
		return nil
	}
	return err
}
