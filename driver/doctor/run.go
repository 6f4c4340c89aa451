package doctor

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/erofs-csi/erofs-csi/driver/engine"
)

// Config says what to look at.
type Config struct {
	CacheDir   string // of the node plugin
	StateDir   string // of the node plugin
	KubeletDir string
	// Scratch is a directory of ours on the file system of CacheDir. It is absolute and
	// has no symbolic links; the caller removes it with all that is in it. Empty: it
	// could not be made, by the error NoScratch, so that nothing is mounted.
	Scratch   string
	NoScratch error
	// Image is the file name of an EROFS image below Scratch that has fingerprints and,
	// in its root, the file Name with Content. Meta is that of its metadata, as the kernel
	// mounts it for the front overlay.
	Image, Meta, Name, Content string
	// Program is the file of this program, and Mount the command line of its mount
	// command, with its name and without arguments. Its directories are its own.
	Program string
	Mount   []string
	// ReadStatus is engine.ReadStatus of StateDir by another process.
	ReadStatus func(context.Context) ([]engine.Status, error)
	// Holder is the socket of the plugin's holder; empty: it has none.
	Holder string
	// Registry is a reference that is to be resolved by Resolve; empty: none.
	Registry string
	// Resolve asks the registry for what Registry means.
	Resolve func(ctx context.Context) (string, error)
	// Built is when this program was built; zero: nobody knows.
	Built time.Time
}

// checkTimeout bounds a check, and tryTimeout each of the mounts that one makes.
const (
	checkTimeout = 40 * time.Second
	tryTimeout   = 30 * time.Second
)

// check is one line of what Run tells.
type check struct {
	name string
	run  func(context.Context) Finding
}

// Run makes all checks, one after the other, and reports what each found, until ctx ends.
func Run(ctx context.Context, cfg Config, report func(Finding)) {
	n := &node{Config: cfg}
	for _, c := range n.checks() {
		f := bounded(ctx, c.run)
		if ctx.Err() != nil {
			return
		}
		f.Check, f.Found = c.name, strings.ReplaceAll(f.Found, "\n", "; ")
		report(f)
	}
}

// bounded runs a check. One that does not end in time is left behind: a thread that
// waits for a disk can't be ended.
func bounded(ctx context.Context, run func(context.Context) Finding) Finding {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	found := make(chan Finding, 1)
	go func() { found <- run(ctx) }()
	select {
	case f := <-found:
		return f
	case <-ctx.Done():
		return fail("look at the kernel's log (dmesg) for what hangs", "no answer: %v", context.Cause(ctx))
	}
}

// node is a machine that is looked at, with what was found so far.
type node struct {
	Config
	fromFiles atomic.Bool // the kernel mounts EROFS images from their files
	overlay   atomic.Bool // the overlay front works
}

func (n *node) checks() []check {
	list := []check{
		{"kernel", n.kernel},
		{"privileges", n.privileges},
		{"cache directory", n.cacheDir},
	}
	if mayMount() == nil && n.Scratch != "" {
		list = append(list,
			check{"/dev/fuse", n.fuse},
			check{"fusectl", n.fusectl},
			check{"erofs", n.erofs},
			check{"loop devices", n.loop},
			check{"overlayfs", n.overlayfs},
		)
		for _, f := range fronts {
			list = append(list, check{f.name, func(ctx context.Context) Finding { return n.front(ctx, f) }})
		}
	}
	list = append(list,
		check{"mount propagation", n.propagation},
		check{"memory limit", n.memory},
		check{"open files", n.openFiles},
		check{"state directory", n.stateDir},
		check{"node plugin", n.plugin},
	)
	if n.Holder != "" {
		list = append(list, check{"holder", n.holder})
	}
	list = append(list, check{"clock", n.clock})
	if n.Registry != "" {
		list = append(list, check{"registry", n.registry})
	}
	return list
}

// sizeText writes a number of bytes in GiB, or MiB below one.
func sizeText(n uint64) string {
	if n < 1<<30 {
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}
