// Command damage compares erofs.Verify with fsck.erofs of erofs-utils: of images
// each of which has one structure damaged in one way, which does either find?
//
// It builds an image of a small tree for each way that mkfs.erofs has to store
// one, and damages copies of them: fields of the superblock, of inodes, entries,
// attributes and indexes, compressed data, and the end of the file. It prints a
// table in Markdown; docs/verify.md has one.
//
// It needs mkfs.erofs, fsck.erofs and dump.erofs 1.9, from the directory
// $EROFS_UTILS when that is set, and a temporary directory whose file system
// takes user attributes. It needs no privileges.
//
// Exit code: 0 when the table was made, whatever is in it; 1 when something
// failed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
)

func main() {
	list := flag.Bool("list", false, "print the outcome of each image on stderr")
	only := flag.String("kinds", "", "make only these kinds of images, with commas between")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	outcomes, err := compare(ctx, tools(os.Getenv("EROFS_UTILS")), *only)
	if err != nil {
		fmt.Fprintln(os.Stderr, "damage:", err)
		stop()
		os.Exit(1)
	}
	if *list {
		for _, o := range outcomes {
			fmt.Fprintf(os.Stderr, "%s\n\t%s\n\tfsck.erofs: %s%s\n\tverify:     %s\n\tvisible:    %s\n",
				o.name(), columns[o.column()], o.crash, o.fsck, o.verify, o.visible)
		}
	}
	fmt.Print(table(outcomes))
}

// compare builds, damages and judges all images of the kinds with these names,
// or of all kinds.
func compare(ctx context.Context, t tools, only string) ([]outcome, error) {
	dir, err := os.MkdirTemp("", "erofs-csi-damage-")
	if err != nil {
		return nil, err
	}
	outcomes, err := compareIn(ctx, t, only, dir)
	return outcomes, errors.Join(err, os.RemoveAll(dir))
}

func compareIn(ctx context.Context, t tools, only, dir string) (all []outcome, err error) {
	tree := filepath.Join(dir, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return nil, err
	}
	if err := makeTree(tree); err != nil {
		return nil, err
	}
	for i := range kinds {
		k := &kinds[i]
		if only != "" && !strings.Contains(","+only+",", ","+k.name+",") {
			continue
		}
		im, err := k.build(ctx, t, dir, tree)
		if err != nil {
			return nil, err
		}
		list, err := im.damage(ctx)
		if err != nil {
			return nil, err
		}
		outcomes, err := im.judgeAll(ctx, list, dir)
		if err != nil {
			return nil, err
		}
		all = append(all, outcomes...)
	}
	return all, nil
}

// judgeAll judges the damages of an image, as many at a time as there are CPUs,
// after the good image.
func (im *image) judgeAll(ctx context.Context, list []damage, dir string) ([]outcome, error) {
	opened, done, err := openBytes(im.b, im.blob)
	if err != nil {
		return nil, err
	}
	defer done()
	good := look(opened)
	o, err := judge(ctx, im, damage{kind: im.kind, what: "nothing"}, dir, good)
	if err != nil || o.column() != 4 {
		return nil, errors.Join(err, fmt.Errorf("the good image %s: %+v", im.kind.name, o))
	}
	outcomes := make([]outcome, len(list))
	errs := make([]error, runtime.GOMAXPROCS(0))
	var wg sync.WaitGroup
	for worker := range errs {
		wg.Go(func() {
			dir, err := os.MkdirTemp(dir, "worker-")
			for i := worker; i < len(list) && err == nil; i += len(errs) {
				outcomes[i], err = judge(ctx, im, list[i], dir, good)
			}
			errs[worker] = err
		})
	}
	wg.Wait()
	return outcomes, errors.Join(errs...)
}
