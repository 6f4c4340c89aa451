// Command demo shows on one machine, without Kubernetes or a registry, what
// erofs-csi is for: it builds EROFS images of two versions of a directory tree,
// mounts both, reads every file of both, and prints how much page cache the
// first took and the second added: in one domain, without a domain, and with the
// kernel's own EROFS. The figures are the kernel's (/proc/meminfo), checked by the
// physical addresses of the files' pages. `make run` runs it, as root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	binary := flag.String("binary", "bin/erofs-csi", "the erofs-csi to run")
	tree := flag.String("tree", "", "the directory tree to make images of (default: Go's library, else the largest of a few)")
	work := flag.String("dir", "/var/tmp", "where to work; needs room for three times the tree, not on a tmpfs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *binary, *tree, *work); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, binary, tree, base string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("run it as root: it mounts file systems and drops the page cache")
	}
	if binary, err = filepath.Abs(binary); err != nil {
		return err
	}
	if tree, err = chooseTree(ctx, tree); err != nil {
		return err
	}
	work, err := os.MkdirTemp(base, "erofs-csi-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	state, err := os.MkdirTemp("/run", "erofs-csi-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(state)) }()

	p, err := makePair(ctx, tree, work)
	if err != nil {
		return err
	}
	p.print()
	m := &machine{binary: binary, work: work, state: state, pair: p}
	var results []result
	for _, c := range []struct {
		name  string
		serve func(context.Context) (*mounts, error)
	}{
		{"erofs-csi, one domain", m.serveDomain},
		{"erofs-csi, no domain", m.serveAlone},
		{"kernel EROFS", m.serveKernel},
	} {
		r, err := m.measure(ctx, c.name, c.serve)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		results = append(results, r)
	}
	printTable(p, results)
	return judge(p, results)
}
