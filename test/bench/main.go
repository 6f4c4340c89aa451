// Command bench compares `erofs-csi mount` with the kernel's own EROFS mount of
// the same images: mount(2) of the image file with "directio". `make bench` runs
// it, as root.
//
// It measures what a node does with images: cold sequential reads, warm opens of
// small files, the page cache that two images of one domain take, cold walks, and
// the time until a mount is ready. And it measures package erofs by itself, reading
// a tree by each codec and a great many inodes, against fsck.erofs and a new mount
// of the kernel's. Each workload runs in turns, ours, the kernel's,
// the kernel's, ours, and so on, and the medians are compared, so that a slow
// minute of the machine hits both alike. Nothing is measured before every file of
// each image was read through both mounts and its SHA-256 was found to be that of
// the tree the image was made of.
//
// The reader of mounts is this process, which serves no file system; it reads by raw system
// calls into one buffer, so that Go's runtime is no part of what is measured.
//
// Trees: two directories in $BENCH_TREES (or -trees), the versions of one image,
// for the page cache; by default Go's own tree and a changed copy of it. The other
// images hold pieces of the first tree's files. mkfs.erofs is taken from the
// directory $EROFS_UTILS when that is set.
//
// Exit code: 0 when everything was measured, whether or not the goals were met (1
// for a missed goal with -strict); 1 when something failed or read wrong bytes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// options are the flags.
type options struct {
	binary string
	trees  []string
	dir    string
	fronts []string
	only   map[string]bool // workloads to run; empty: all
	rounds int
	bigMiB int
	small  int
	json   bool
	strict bool
}

func main() {
	o, err := parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	rep, err := run(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
	if o.json {
		err = rep.writeJSON(os.Stdout)
	} else {
		err = rep.writeText(os.Stdout)
	}
	if missed := rep.count("missed"); err == nil && o.strict && missed > 0 {
		err = fmt.Errorf("%d goals are missed", missed)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func parse(args []string) (*options, error) {
	o := &options{only: make(map[string]bool)}
	flags := flag.NewFlagSet("bench", flag.ExitOnError)
	flags.StringVar(&o.binary, "binary", "bin/erofs-csi", "the erofs-csi to run")
	trees := flags.String("trees", os.Getenv("BENCH_TREES"), "two directories, versions of one image, with a space between (default: made from Go's tree)")
	flags.StringVar(&o.dir, "dir", "/var/tmp", "where to work: on a disk, not a tmpfs, with room for about 2 GB")
	fronts := flags.String("fronts", "overlay,overlay+store,tree-passthrough,tree", "the fronts to measure; +store keeps plain copies of large files")
	only := flags.String("only", "", "of "+strings.Join(workloadNames(), ",")+" only these (default: all)")
	flags.IntVar(&o.rounds, "rounds", 9, "turns of each side")
	flags.IntVar(&o.bigMiB, "big", 384, "MiB of large files")
	flags.IntVar(&o.small, "small", 10_000, "small files")
	flags.BoolVar(&o.json, "json", false, "print JSON, with every sample")
	flags.BoolVar(&o.strict, "strict", false, "exit 1 when a goal is missed")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	o.trees = strings.Fields(*trees)
	o.fronts = strings.Split(*fronts, ",")
	if len(o.trees) != 0 && len(o.trees) != 2 {
		return nil, fmt.Errorf("%d trees are given: want two, or none", len(o.trees))
	}
	if o.rounds < 1 || o.bigMiB < bigFiles || o.small < 1 {
		return nil, fmt.Errorf("-rounds and -small must be at least 1, -big at least %d", bigFiles)
	}
	known := workloadNames()
	for name := range strings.SplitSeq(*only, ",") {
		if name == "" {
			continue
		}
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("-only %s: want some of %s", name, strings.Join(known, ","))
		}
		o.only[name] = true
	}
	return o, nil
}

// run makes the images, measures every front and takes away what it made.
func run(ctx context.Context, o *options) (_ *report, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("run it as root: it mounts file systems and drops the page cache")
	}
	if o.binary, err = filepath.Abs(o.binary); err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(o.dir, "erofs-csi-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	state, err := os.MkdirTemp("/run", "erofs-csi-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(state)) }()

	b := &bench{options: o, work: work, state: state}
	rep, err := describe(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := b.makeImages(ctx); err != nil {
		return nil, err
	}
	rep.Images = b.imageInfos()
	for _, front := range append([]string{""}, o.fronts...) {
		list := workloads()
		if front == "" {
			list = packageWorkloads()
		}
		table, err := b.measure(ctx, front, list)
		if err != nil {
			return nil, err
		}
		if len(table.Rows) > 0 {
			rep.Tables = append(rep.Tables, table)
		}
	}
	return rep, nil
}

// progress tells the one who waits what is being done.
func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }
