package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/erofs-csi/erofs-csi/driver/doctor"
	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/build"
	"github.com/erofs-csi/erofs-csi/erofs/metaimage"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

const defaultKubeletDir = "/var/lib/kubelet"

// doctorFlags are the flags of doctor.
type doctorFlags struct {
	asJSON                         bool
	cacheDir, stateDir, kubeletDir string
	holder, registry               string
	plainHTTP                      []string
	registries                     nodecache.RegistryConfig
}

func doctorCommand() *cobra.Command {
	var f doctorFlags
	cmd := &cobra.Command{
		Use:   "doctor [--registry HOST/REPO[:TAG]] [--json]",
		Short: "Check what this node can do, and say what to do",
		Long: `Tries on this machine what a node plugin needs of it: mounts a small image by each
front, writes to the cache directory, looks at limits, mount propagation, the clock,
the plugin itself and its holder, and with --registry asks a registry for an image. Each line is
a check: ok, warn or fail, what was found, and after "->" what to do. Exit code 1 if
one fails.

Flags that are not given are those of the node plugin that runs with the state
directory, where this command runs in its container.`,
		Example: `  erofs-csi doctor

  # the registry, with the node's mirrors and credentials
  erofs-csi doctor --registry registry.example/app:v1`,
		Args: exactly(0, "no arguments"),
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.asJSON, "json", false, "print JSON")
	addCacheDir(flags, &f.cacheDir)
	addStateDir(flags, &f.stateDir)
	flags.StringVar(&f.kubeletDir, "kubelet-dir", defaultKubeletDir, "kubelet's `DIR`, below which the plugin mounts volumes")
	flags.StringVar(&f.holder, "holder", "", "`SOCK` of the plugin's holder")
	flags.StringVar(&f.registry, "registry", "", "`HOST/REPO[:TAG]` of an image to ask its registry for")
	addPlainHTTP(flags, &f.plainHTTP)
	addRegistries(flags, &f.registries)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		takePluginFlags(cmd, &f)
		if err := checkRegistries(&f.registries); err != nil {
			return err
		}
		if f.registry != "" {
			if err := nodecache.ValidateReference(f.registry); err != nil {
				return usagef("--registry: %v", err)
			}
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT) // so that nothing is left
		defer stop()
		return runDoctor(ctx, cmd.OutOrStdout(), &f)
	}
	return cmd
}

func runDoctor(ctx context.Context, out io.Writer, f *doctorFlags) error {
	cfg := doctor.Config{
		CacheDir: f.cacheDir, StateDir: f.stateDir, KubeletDir: f.kubeletDir,
		ReadStatus: statusByChild(f.stateDir), Built: builtAt(),
		Holder: f.holder, Registry: f.registry,
		Resolve: func(ctx context.Context) (string, error) { return resolve(ctx, f) },
	}
	remove, err := makeScratch(ctx, &cfg)
	if err == nil {
		defer remove()
	}
	all := []doctor.Finding{}
	failed := 0
	doctor.Run(ctx, cfg, func(found doctor.Finding) {
		all = append(all, found)
		if found.Result == doctor.Fail {
			failed++
		}
		if !f.asJSON {
			fmt.Fprintln(out, findingLine(found))
		}
	})
	if f.asJSON {
		if err := printJSON(out, all); err != nil {
			return err
		}
	}
	if failed > 0 {
		return failf("%d of %d checks failed: do what stands after \"->\" in the lines that begin with fail", failed, len(all))
	}
	return ctx.Err()
}

func findingLine(f doctor.Finding) string {
	line := fmt.Sprintf("%-4s  %-22s  %s", f.Result, f.Check, printable(oneLine(f.Found)))
	if f.Fix != "" {
		line += "  -> " + f.Fix
	}
	return line
}

// makeScratch makes the directories that mounts are tried in, with an image, and says in
// cfg where they are. remove takes away what it made.
func makeScratch(ctx context.Context, cfg *doctor.Config) (remove func(), err error) {
	var undo []func()
	removeAll := func() {
		for i := len(undo) - 1; i >= 0; i-- {
			undo[i]()
		}
	}
	defer func() {
		if err != nil {
			removeAll()
			cfg.Scratch, cfg.NoScratch = "", err
		}
	}()
	if cfg.Scratch, err = makePrivate(cfg.CacheDir, &undo); err != nil {
		return nil, err
	}
	// Not the plugin's own: an engine that starts takes what dead ones left there. It is
	// beside that for its short name, which the socket there needs.
	state, err := makePrivate(cfg.StateDir, &undo)
	if err != nil {
		return nil, err
	}
	cfg.Name, cfg.Content = "file", strings.Repeat("erofs-csi doctor\n", 4096)
	cfg.Image = filepath.Join(cfg.Scratch, "image.erofs")
	cfg.Meta = filepath.Join(cfg.Scratch, "meta.erofs")
	if err := errors.Join(writeDoctorImage(ctx, cfg), writeDoctorMeta(ctx, cfg)); err != nil {
		return nil, err
	}
	// The program that runs, even if another has its name by now.
	cfg.Program = "/proc/self/exe"
	cfg.Mount = []string{os.Args[0], "mount", "--cache-dir", filepath.Join(cfg.Scratch, "cache"), "--state-dir", state}
	return removeAll, nil
}

// makePrivate makes a directory of this process below dir, and returns it without
// symbolic links. It has the name of a private store, so that another process removes it
// if this one is killed.
func makePrivate(dir string, undo *[]func()) (string, error) {
	_, statErr := os.Stat(dir)
	removeStalePrivate(dir)
	private := filepath.Join(dir, privatePrefix+strconv.Itoa(os.Getpid()))
	if err := os.RemoveAll(private); err != nil { // of an earlier process of this pid
		return "", err
	}
	if err := os.MkdirAll(private, 0o700); err != nil {
		return "", err
	}
	*undo = append(*undo, func() {
		_ = os.RemoveAll(private)
		if statErr != nil {
			_ = os.Remove(dir)
		}
	})
	private, err := filepath.EvalSymlinks(private)
	if err != nil {
		return "", err
	}
	return filepath.Abs(private)
}

// writeDoctorImage makes an image of one file.
func writeDoctorImage(ctx context.Context, cfg *doctor.Config) error {
	return replaceFile(cfg.Image, func(f, scratch *os.File) error {
		b := build.New(ctx, f, scratch, build.Options{})
		b.Layer("doctor")
		err := b.Add(&build.Entry{
			Path: cfg.Name, Mode: 0o100444,
			Size: int64(len(cfg.Content)), Content: strings.NewReader(cfg.Content),
		})
		if err != nil {
			return err
		}
		_, err = b.Finish()
		return err
	})
}

// writeDoctorMeta writes the metadata of the image.
func writeDoctorMeta(ctx context.Context, cfg *doctor.Config) error {
	var closers []func()
	defer func() {
		for _, c := range closers {
			c()
		}
	}()
	devices, err := openFiles([]string{cfg.Image}, &closers)
	if err != nil {
		return err
	}
	im, err := erofs.Open(devices[0].R, devices[0].Size)
	if err != nil {
		return err
	}
	return replaceFile(cfg.Meta, func(f, _ *os.File) error {
		_, err := metaimage.Write(ctx, f, im, func(*erofs.Inode) string { return "/content" })
		return err
	})
}

// resolve asks a registry as the plugin would for a volume without a pull secret.
func resolve(ctx context.Context, f *doctorFlags) (string, error) {
	cfg := nodecache.Config{Registries: f.registries}
	if len(f.plainHTTP) > 0 {
		cfg.PlainHTTP = (&pull{plainHTTP: f.plainHTTP}).usesPlainHTTP
	}
	r, err := nodecache.NewResolver(cfg)
	if err != nil {
		return "", err
	}
	if problems := r.Problems(); len(problems) > 0 {
		return "", fmt.Errorf("%w: %w", nodecache.ErrConfiguration, errors.Join(problems...))
	}
	start := time.Now()
	got, err := r.Resolve(ctx, f.registry, nil)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s, %s, asked for in %s", got.Reference, bytesText(notNegative(got.Size)), time.Since(start).Round(time.Millisecond)), nil
}

// builtAt is the time of the commit that the program was built of; zero if it does
// not know.
func builtAt() time.Time {
	info, found := debug.ReadBuildInfo()
	if !found {
		return time.Time{}
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.time" {
			t, _ := time.Parse(time.RFC3339, s.Value)
			return t
		}
	}
	return time.Time{}
}
