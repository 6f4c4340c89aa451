package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// image is an image and what it must show.
type image struct {
	name  string
	ref   string
	truth string // file
	lazy  bool   // of the registry
}

// stock is what all worlds are made of, built once.
type stock struct {
	dir      string
	images   []*image
	spare    *image // of the registry, pulled again and again
	registry *registry
	mkfs     string // its version
}

// world is a node: its directories, its holder, its plugin, its volumes.
type world struct {
	*stock
	dir    string
	binary string
	front  string
	rng    *rand.Rand
	group  *cgroup // of the plugin; nil: the harness' own
	apart  *cgroup // of readers; nil: the harness' own

	// commands is held while a command runs that would do a plugin's work where there is
	// none, and by who kills it.
	commands sync.RWMutex

	holder  *process
	plugin  *plugin
	control *control
	volumes []*volume
	// mounting: volumes are made meanwhile, and some kills are to be while the plugin mounts.
	mounting bool
	readers  []*readerProcess
	serial   atomic.Int64
	tally    tally
	devices  map[string]bool // FUSE connections that were seen
	cache    string          // another cache directory
}

// tally counts what the harness did.
type tally struct {
	kills, resumeKills, ooms, waiting, calls, repeated, cancelled, cycles atomic.Int64
}

func (w *world) path(name ...string) string {
	return filepath.Join(append([]string{w.dir}, name...)...)
}

func (w *world) cacheDir() string {
	if w.cache != "" {
		return w.cache
	}
	return w.path("cache")
}

// imageKinds are the six images.
var imageKinds = []struct {
	name string
	tree treeKind
	opts []string
}{
	{"plain", treeKind{seed: 1, files: 120, most: 400_000}, nil},
	{"lz4", treeKind{seed: 2, files: 120, most: 400_000}, []string{"-zlz4hc,9", "-C65536"}},
	{"zstd", treeKind{seed: 3, files: 120, most: 300_000}, []string{"-zzstd,3", "-C131072"}},
	{"lazy", treeKind{seed: 4, files: 60, most: 200_000, big: 12 << 20}, nil},
	{"marked", treeKind{seed: 5, files: 60, most: 200_000, marks: true}, []string{"-zlz4"}},
	{"chunked", treeKind{seed: 6, files: 120, most: 200_000}, []string{"--chunksize=4096"}},
	{"spare", treeKind{seed: 7, files: 40, most: 100_000, big: 10 << 20}, nil},
}

var mkfsVersion = regexp.MustCompile(`(?m)^mkfs\.erofs .*\d+\.\d+.*$`)

func makeStock(ctx context.Context, dir string) (s *stock, err error) {
	s = &stock{dir: dir}
	if s.registry, err = startRegistry(); err != nil {
		return nil, err
	}
	prog, err := buildProgram(dir)
	if err != nil {
		return nil, err
	}
	mkfs := "mkfs.erofs"
	if utils := os.Getenv("EROFS_UTILS"); utils != "" {
		mkfs = filepath.Join(utils, "mkfs.erofs")
	}
	version, err := exec.CommandContext(ctx, mkfs, "-V").CombinedOutput()
	// 1.5 says its version, and that it knows no -V.
	if s.mkfs = mkfsVersion.FindString(string(version)); s.mkfs == "" {
		return nil, fmt.Errorf("%s -V: %w: %s", mkfs, err, version)
	}
	if err := os.MkdirAll(filepath.Join(dir, "images"), 0o755); err != nil {
		return nil, err
	}
	for _, k := range imageKinds {
		tree := filepath.Join(dir, "tree-"+k.name)
		if err := writeTree(tree, prog, k.tree); err != nil {
			return nil, fmt.Errorf("tree of image %s: %w", k.name, err)
		}
		im := &image{name: k.name, ref: filepath.Join(dir, "images", k.name+".erofs"), truth: filepath.Join(dir, k.name+".json")}
		args := append(append([]string{"--quiet"}, k.opts...), im.ref, tree)
		out, err := exec.CommandContext(ctx, mkfs, args...).CombinedOutput()
		if err != nil && k.name == "zstd" { // 1.8 has it
			args[1], args[2] = "-zlz4", "-C16384"
			out, err = exec.CommandContext(ctx, mkfs, args...).CombinedOutput()
		}
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w: %s", mkfs, strings.Join(args, " "), err, out)
		}
		t, err := scan(tree)
		if err != nil {
			return nil, err
		}
		if err := t.write(im.truth); err != nil {
			return nil, err
		}
		if k.name == "lazy" || k.name == "spare" {
			im.lazy = true
			if im.ref, err = s.registry.add(k.name, im.ref); err != nil {
				return nil, err
			}
		}
		if k.name == "spare" {
			s.spare = im
		} else {
			s.images = append(s.images, im)
		}
	}
	return s, nil
}

// newWorld makes a node without a running process.
func (s *stock) newWorld(dir, binary, front string, seed uint64, flags ...string) (w *world, err error) {
	w = &world{stock: s, dir: dir, binary: binary, front: front, rng: rand.New(rand.NewPCG(seed, 1)), devices: make(map[string]bool)}
	for _, d := range []string{"run", "kubelet", "cache", "readers", "fusectl"} {
		if err := os.MkdirAll(w.path(d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.Symlink(filepath.Join(s.dir, "images"), w.path("images")); err != nil {
		return nil, err
	}
	if err := w.mountOwn(); err != nil {
		return nil, err
	}
	if w.control, err = mapFile[control](w.path("control"), true); err != nil {
		return nil, err
	}
	w.plugin, err = newPlugin(w, flags...)
	return w, err
}

// mountOwn mounts what the node has of its own: an empty /run, and fusectl.
func (w *world) mountOwn() error {
	if err := unix.Mount("tmpfs", w.path("run"), "tmpfs", 0, "size=256m,mode=700"); err != nil {
		return fmt.Errorf("mount a tmpfs: %w", err)
	}
	if err := unix.Mount("fusectl", w.path("fusectl"), "fusectl", 0, ""); err != nil {
		return fmt.Errorf("mount fusectl: %w", err)
	}
	return nil
}

// joinGroup puts a process into the world's cgroup.
func (w *world) joinGroup(p *process) error {
	if w.group == nil {
		return nil
	}
	return w.group.add(p.pid())
}

// abortAll ends all FUSE connections of the world by force, so that whoever waits for one goes on.
func (w *world) abortAll() {
	_ = w.noteDevices()
	for minor := range w.devices {
		if !othersHave(minor) {
			_ = os.WriteFile(w.path("fusectl", minor, "abort"), []byte("1"), 0)
		}
	}
}

// makeVolumes says what volumes there are: n, of all images, in two domains.
func (w *world) makeVolumes(n int) {
	list := w.images
	if w.front == "overlay" { // what only a tree can show is left out
		list = slices.DeleteFunc(slices.Clone(list), func(im *image) bool { return im.name == "marked" })
	}
	for i := range n {
		im := list[i%len(list)]
		v := &volume{id: fmt.Sprintf("v%02d", i), image: im, attrs: map[string]string{"image": im.ref}}
		v.attrs["domain_id"] = []string{"red", "blue"}[i/len(list)%2]
		switch {
		case i == 7 && (w.front == "auto" || w.front == "tree-passthrough"):
			v.attrs["userNamespaces"] = "true"
		case i%10 == 9:
			v.inline = true
		case i%10 == 4:
			v.attrs["domain_id"] = "" // shares with none
		}
		v.targets = []string{w.path("kubelet", "pod-"+v.id)}
		if i%8 == 0 && !v.inline {
			v.targets = append(v.targets, w.path("kubelet", "pod2-"+v.id))
		}
		w.volumes = append(w.volumes, v)
	}
}

func (w *world) caller() *caller {
	return &caller{w: w, plugin: w.plugin, rng: rand.New(rand.NewPCG(w.rng.Uint64(), 2))}
}

func (w *world) upAll(ctx context.Context) error {
	c := w.caller()
	for _, v := range w.volumes {
		if err := c.up(ctx, v); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) downAll(ctx context.Context) error {
	c := w.caller()
	var errs []error
	for _, v := range w.volumes {
		errs = append(errs, c.down(ctx, v))
	}
	return errors.Join(errs...)
}

// readerPause is the time between operations of a reader.
const readerPause = 2 * time.Millisecond

// startReaders starts a reader at each target.
func (w *world) startReaders() error {
	for _, v := range w.volumes {
		for _, target := range v.targets {
			r, err := w.startReader(v.image, target, 0, readerPause)
			if err != nil {
				return err
			}
			w.readers = append(w.readers, r)
		}
	}
	return nil
}

// noteDevices remembers which FUSE connections are this world's: those in its own mount
// namespace.
func (w *world) noteDevices() error {
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(i.FSType, "fuse.") || !strings.HasPrefix(i.Mountpoint, w.dir+"/"), false
	})
	for _, i := range infos {
		w.devices[fmt.Sprint(i.Minor)] = true
	}
	return err
}

// close ends all that is left of a world, whatever happened to it.
func (w *world) close() error {
	var errs []error
	for _, r := range w.readers {
		errs = append(errs, r.kill())
	}
	if w.plugin != nil && w.plugin.process() != nil {
		errs = append(errs, w.plugin.process().kill())
	}
	if w.holder != nil {
		errs = append(errs, w.holder.kill())
	}
	errs = append(errs, w.unmountAll())
	if w.plugin != nil {
		errs = append(errs, w.plugin.conn.Close())
	}
	return errors.Join(errs...)
}

// unmountAll takes all mounts below the world's directory away.
func (w *world) unmountAll() error {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(w.dir))
	if err != nil {
		return err
	}
	for i := len(infos) - 1; i >= 0; i-- {
		_ = unix.Unmount(infos[i].Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	return nil
}
