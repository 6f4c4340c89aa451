package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// convertNames are the pairs whose first tree measureConvert packs, a small image and
// a large one.
var convertNames = []string{"redis", "tensorflow"}

// measureConvert makes EROFS images of compressed archives: by erofs-csi build, by
// mkfs.erofs, and by unpacking with tar, as container runtimes do. The time ends when
// all is on the disk; the memory is the largest resident set of
// the program, not of what it starts.
func (b *bench) measureConvert(ctx context.Context, t *table) error {
	trees, err := b.convertTrees(ctx)
	if err != nil {
		return err
	}
	for _, tree := range trees {
		if err := b.convertTree(ctx, t, tree); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(tree), err)
		}
	}
	return nil
}

func (b *bench) convertTrees(ctx context.Context) (trees []string, err error) {
	if b.pairs != "" {
		names, err := b.corpusNames()
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if slices.Contains(convertNames, name) {
				trees = append(trees, filepath.Join(b.pairs, name+"-A"))
			}
		}
	}
	if len(trees) == 0 {
		tree, err := b.contentTree(ctx)
		if err != nil {
			return nil, err
		}
		trees = []string{tree}
	}
	return trees, nil
}

func (b *bench) convertTree(ctx context.Context, t *table, tree string) error {
	dir, err := os.MkdirTemp(b.work, "convert-")
	if err != nil {
		return err
	}
	archive := filepath.Join(dir, "layer.tar.gz")
	if err := command(ctx, "tar", "-C", tree, "--format=pax", "--xattrs", "--xattrs-include=*", "-I", "gzip -1", "-cf", archive, "."); err != nil {
		return err
	}
	want, err := scan(ctx, tree)
	if err != nil {
		return err
	}
	name := strings.TrimSuffix(filepath.Base(tree), "-A")
	image := filepath.Join(dir, "ours.erofs")
	ours := []string{b.binary, "build", archive, image}
	theirs := append([]string{mkfsPath(), "--quiet", "--ungzip", "--tar=f", "--sort=none"}, fingerprints(ctx)...)
	theirs = append(theirs, filepath.Join(dir, "theirs.erofs"))
	unpacked := filepath.Join(dir, "unpacked")

	if err := command(ctx, ours[0], ours[1:]...); err != nil {
		return err
	}
	if err := b.verifyConverted(ctx, name, image, want); err != nil {
		return err
	}
	var seconds, peak [3]sample
	run := func(i int, args []string, stdin string) error {
		took, mem, err := runTimed(ctx, dir, args, stdin)
		seconds[i].add(took.Seconds())
		peak[i].add(mem)
		return err
	}
	sides := []func() error{
		func() error { return errors.Join(removeIfThere(image), run(0, ours, "")) },
		func() error {
			return errors.Join(os.RemoveAll(unpacked), os.Mkdir(unpacked, 0o755),
				run(2, []string{"tar", "-C", unpacked, "--xattrs", "--xattrs-include=*", "-xpzf", archive}, ""))
		},
	}
	if mkfsTakesTar(ctx) {
		sides = append(sides, func() error { return errors.Join(removeIfThere(theirs[len(theirs)-1]), run(1, theirs, archive)) })
	} else {
		progress("left out: %s has no --tar or no --ungzip", mkfsPath())
	}
	if err := turns(ctx, b.rounds, sides...); err != nil {
		return err
	}
	for i, other := range []string{"mkfs.erofs --tar", "tar x"} {
		if len(seconds[i+1]) > 0 {
			t.compare(name+" from tar.gz", "s", other, seconds[0], seconds[i+1], nil)
			t.compare(name+" from tar.gz, memory", "MB", other, peak[0], peak[i+1], nil)
		}
	}
	return os.RemoveAll(dir)
}

// verifyConverted compares the files of our image, through the kernel, with the tree.
func (b *bench) verifyConverted(ctx context.Context, name, path string, want contents) error {
	im, err := existingImage(name, path, want)
	if err != nil {
		return err
	}
	m, err := b.kernelMount(im)
	if err != nil {
		return err
	}
	return errors.Join(im.verify(ctx, m.dir), m.unmount())
}

func mkfsTakesTar(ctx context.Context) bool {
	help, _ := exec.CommandContext(ctx, mkfsPath(), "--help").CombinedOutput()
	return bytes.Contains(help, []byte("--tar")) && bytes.Contains(help, []byte("--ungzip"))
}

// runTimed runs a command until what it wrote below dir is on the disk. It returns the
// time and the largest resident set in MB.
func runTimed(ctx context.Context, dir string, args []string, stdin string) (time.Duration, float64, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	if stdin != "" {
		f, err := os.Open(stdin)
		if err != nil {
			return 0, 0, err
		}
		defer func() { _ = f.Close() }()
		cmd.Stdin = f
	}
	d, err := os.Open(dir)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = d.Close() }()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return 0, 0, err
	}
	var log bytes.Buffer
	cmd.Stderr = &log
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	ended := make(chan struct{})
	watched := make(chan float64)
	go func() { watched <- watchPeak(cmd.Process.Pid, ended) }()
	err = cmd.Wait()
	close(ended)
	peak := <-watched
	if err != nil {
		return 0, 0, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(log.Bytes()))
	}
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return 0, 0, err
	}
	return time.Since(start), peak, nil
}

// watchPeak asks for a process's largest resident set until it ended, in MB. What
// wait4(2) says would count the memory of who started it.
func watchPeak(pid int, ended chan struct{}) (peak float64) {
	for {
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for line := range strings.Lines(string(status)) {
			var kib float64
			if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kib); n == 1 {
				peak = max(peak, kib*1024/1e6)
			}
		}
		select {
		case <-ended:
			return peak
		case <-time.After(5 * time.Millisecond):
		}
	}
}
