// Command bench compares `erofs-csi mount` with the kernel's own EROFS mount of
// the same images: mount(2) of the image file with "directio". `make bench` runs
// it, as root.
//
// It measures what a node does with images: the page cache that versions of images of
// one domain take, all read or with their servers running; reads, cold and warm, next
// to other file systems; cold walks; and the time until a mount is ready. And it
// measures package erofs by itself, reading a tree by each codec and a great many
// inodes, against fsck.erofs and a new mount of the kernel's; and the pull of an image from a
// registry on loopback, against curl and sha256sum. Each workload runs in
// turns, ours, the others', the others', ours, and so on, and the medians are compared,
// so that a slow minute of the machine hits all alike. Every file of each image is read
// through each mount, and its SHA-256 must be that of the tree the image was made of.
//
// The reader of mounts is this process, which serves no file system; it reads by raw system
// calls into one buffer, so that Go's runtime is no part of what is measured.
//
// Trees: pairs NAME-A and NAME-B, versions of one image each, in the directory
// $BENCH_PAIRS (or -pairs); or one pair, two directories in $BENCH_TREES (or -trees); by
// default Go's own tree and a changed copy of it. The large and small files hold pieces
// of the first tree's. mkfs.erofs is taken from the directory $EROFS_UTILS when that is
// set. Images of pairs that are there already (-images) need neither.
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
	binary  string
	trees   []string
	pairs   string
	names   []string // of the pairs; empty: all
	kinds   []string // of their images; empty: all
	images  string
	dir     string
	fronts  []string
	only    map[string]bool // workloads to run; empty: all
	rounds  int
	bigMiB  int
	small   int
	pullMiB int
	json    bool
	strict  bool

	makeOnly  bool
	fleet     bool
	script    string
	erofsfuse string
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
	flags.StringVar(&o.dir, "dir", "/var/tmp", "where to work: on a disk, not a tmpfs, with room for about 5 GB")
	flags.StringVar(&o.pairs, "pairs", os.Getenv("BENCH_PAIRS"), "a `directory` of trees NAME-A and NAME-B, versions of one image each, for memory (default: the pair of -trees)")
	names := flags.String("names", "", "of the pairs only these, with commas between")
	kindList := flags.String("kinds", "", "of the images of the pairs only "+strings.Join(collectionKinds(), ", ")+", with commas between; mixed is A plain and B zstd")
	flags.StringVar(&o.images, "images", "", "a `directory` where the images of the pairs are kept: those there are used and need no -pairs, others are made")
	flags.BoolVar(&o.makeOnly, "make-images", false, "make the images of the pairs in -images, and stop")
	flags.BoolVar(&o.fleet, "fleet", false, "memory of all pairs at once only, not of each pair")
	flags.StringVar(&o.script, "workload", "", "`SCRIPT` that does what is called as SCRIPT NAME ROOT PORT start|load|stop with the servers of the pairs")
	flags.StringVar(&o.erofsfuse, "erofsfuse", "erofsfuse", "the erofsfuse to compare with; see test/bench/get-erofsfuse")
	fronts := flags.String("fronts", "overlay,overlay+store,tree-passthrough,tree", "the fronts to measure; +store keeps plain copies of large files")
	only := flags.String("only", "", "of "+strings.Join(workloadNames(), ",")+" only these (default: all); peers are all those that other file systems take part in")
	flags.IntVar(&o.rounds, "rounds", 9, "turns of each side")
	flags.IntVar(&o.bigMiB, "big", 384, "MiB of large files")
	flags.IntVar(&o.small, "small", 10_000, "small files")
	flags.IntVar(&o.pullMiB, "pull", 1024, "MiB of the image that is pulled from a registry")
	flags.BoolVar(&o.json, "json", false, "print JSON, with every sample")
	flags.BoolVar(&o.strict, "strict", false, "exit 1 when a goal is missed")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	o.trees = strings.Fields(*trees)
	o.fronts = strings.Split(*fronts, ",")
	if *names != "" {
		o.names = strings.Split(*names, ",")
	}
	if *kindList != "" {
		o.kinds = strings.Split(*kindList, ",")
	}
	for _, k := range o.kinds {
		if !slices.Contains(collectionKinds(), k) {
			return nil, fmt.Errorf("-kinds %s: want some of %s", k, strings.Join(collectionKinds(), ","))
		}
	}
	if o.makeOnly && o.images == "" {
		return nil, errors.New("-make-images needs -images")
	}
	if len(o.trees) != 0 && len(o.trees) != 2 {
		return nil, fmt.Errorf("%d trees are given: want two, or none", len(o.trees))
	}
	if o.rounds < 1 || o.bigMiB < bigFiles || o.small < 1 || o.pullMiB < bigFiles {
		return nil, fmt.Errorf("-rounds and -small must be at least 1, -big and -pull at least %d", bigFiles)
	}
	known := workloadNames()
	for name := range strings.SplitSeq(*only, ",") {
		switch name {
		case "":
			continue
		case "peers":
			for _, w := range peerWorkloads() {
				o.only[w.name] = true
			}
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
	if o.makeOnly {
		return rep, nil
	}
	stages := []struct {
		title, front string
		list         []workload
	}{
		{"Package erofs", "", packageWorkloads()},
		{"Reads", "", peerWorkloads()},
		{"Registries", "", registryWorkloads()},
	}
	for _, front := range o.fronts {
		stages = append(stages, stages[0])
		last := &stages[len(stages)-1]
		last.title, last.front, last.list = "--front "+front, front, workloads()
	}
	for _, s := range stages {
		table, err := b.measure(ctx, s.title, s.front, s.list)
		if err != nil {
			return nil, err
		}
		if len(table.Rows)+len(table.Matrices) > 0 {
			rep.Tables = append(rep.Tables, table)
		}
	}
	return rep, nil
}

// progress tells the one who waits what is being done.
func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }
