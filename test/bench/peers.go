package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The contenders that are not ours; the first is the reference.
const (
	kernelFile = "kernel, file"
	kernelLoop = "kernel, loop"
	fuseEROFS  = "erofsfuse"
	squash     = "squashfuse"
	ext4       = "ext4"
)

// squashOptions make the squashfs image that corresponds to an image of a kind.
var squashOptions = [len(kindred{})][]string{
	plain: {"-noI", "-noD", "-noF", "-noX"},
	lz4hc: {"-comp", "lz4", "-Xhc"},
	zstd:  {"-comp", "zstd"},
}

// makeForeign puts the same files into file systems of other formats; what there is
// no program for is left out. ext4 has no compression: it is for the plain ones.
func (b *bench) makeForeign(ctx context.Context, im *image, dir string, kind int) error {
	im.foreign = make(map[string]string)
	if _, err := exec.LookPath("mksquashfs"); err == nil {
		path := filepath.Join(b.work, filepath.Base(im.path)+".squashfs")
		args := append([]string{dir, path, "-noappend", "-quiet", "-no-progress"}, squashOptions[kind]...)
		if err := command(ctx, "mksquashfs", args...); err != nil {
			return err
		}
		im.foreign[squash] = path
	}
	if _, err := exec.LookPath("mkfs.ext4"); err == nil && kind == plain {
		path := filepath.Join(b.work, filepath.Base(im.path)+".ext4")
		files := int64(len(im.want))
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return err
		}
		// Each file takes whole blocks, an inode and its name.
		if err := os.Truncate(path, im.size*5/4+files*8192+64<<20); err != nil {
			return err
		}
		if err := command(ctx, "mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", "-N", fmt.Sprint(2*files+1000), "-d", dir, path); err != nil {
			return err
		}
		im.foreign[ext4] = path
	}
	for _, path := range im.foreign {
		if err := syncFile(path); err != nil {
			return err
		}
	}
	return nil
}

// contender is a mounted file system with the files of an image.
type contender struct {
	name    string
	set     *fileSet
	server  *server // of ours
	release func() error
}

// contenders are our fronts and the others, each read whole and found right.
type contenders struct {
	image *image
	list  []*contender
}

// contend mounts an image in every way there is. Those that can't be are named in
// the table's notes.
func (b *bench) contend(ctx context.Context, t *table, im *image) (_ *contenders, err error) {
	all := &contenders{image: im}
	defer func() {
		if err != nil {
			err = errors.Join(err, all.close())
		}
	}()
	add := func(name string, dir string, s *server, release func() error) error {
		c := &contender{name: name, server: s, release: release}
		all.list = append(all.list, c)
		if err := im.verify(ctx, dir); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		c.set, err = openSet(im, dir)
		return err
	}
	for _, front := range b.fronts {
		s, err := b.serve(ctx, front, domain, b.freshCache(), im)
		if err != nil {
			return nil, err
		}
		if err := add(front, s.dirs[0], s, s.close); err != nil {
			return nil, err
		}
	}
	for _, other := range []struct {
		name  string
		mount func() (*mounted, error)
	}{
		{kernelFile, func() (*mounted, error) { return b.kernelMount(im) }},
		{kernelLoop, func() (*mounted, error) { return b.loopMount(im.path, "erofs", false) }},
		{fuseEROFS, func() (*mounted, error) { return b.fuseMount(ctx, b.erofsfuse, im.path) }},
		{squash, func() (*mounted, error) { return b.fuseMount(ctx, "squashfuse_ll", im.foreign[squash]) }},
		{ext4, func() (*mounted, error) { return b.loopMount(im.foreign[ext4], "ext4", true) }},
	} {
		if (other.name == squash || other.name == ext4) && im.foreign[other.name] == "" {
			continue
		}
		m, err := other.mount()
		if err != nil {
			if other.name == kernelFile {
				return nil, err
			}
			t.note("Left out, %s of %s: %v.", other.name, im.name, err)
			continue
		}
		if err := add(other.name, m.dir, nil, m.unmount); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (all *contenders) close() error {
	var errs []error
	for _, c := range all.list {
		if c.set != nil {
			c.set.close()
		}
		errs = append(errs, c.release())
	}
	return errors.Join(errs...)
}

// turns calls measure for each contender in turns.
func (all *contenders) turns(ctx context.Context, rounds int, measure func(c *contender) error) error {
	sides := make([]func() error, len(all.list))
	for i, c := range all.list {
		sides[i] = func() error {
			if err := measure(c); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			return nil
		}
	}
	return turns(ctx, rounds, sides...)
}

// results are samples by contender.
type results map[string]*sample

func (r results) add(c *contender, v float64) {
	if r[c.name] == nil {
		r[c.name] = new(sample)
	}
	r[c.name].add(v)
}

// compare adds a row to the matrix of all reads. The goal is for our fronts.
func (all *contenders) compare(t *table, name, unit string, r results, g *goal) {
	m := t.matrix("In parentheses: of the kernel's EROFS mount of the file, with directio.")
	line := m.row(name, unit)
	for _, c := range all.list {
		if r[c.name] == nil {
			continue
		}
		var bound *goal
		if c.server != nil {
			bound = g
		}
		reference := *r[kernelFile]
		if c.name == kernelFile {
			reference = nil
		}
		m.set(line, c.name, *r[c.name], reference, bound)
	}
}

// fuseMount runs a FUSE file system's program on an image in the foreground.
func (b *bench) fuseMount(ctx context.Context, program, image string) (*mounted, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, err
	}
	dir, err := b.mountpoint()
	if err != nil {
		return nil, err
	}
	// Not CommandContext: its end would be SIGKILL, which leaves a dead mount.
	cmd := exec.Command(path, "-f", image, dir)
	log, err := os.Create(dir + ".log")
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is not for it
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	var exit error
	ended := make(chan struct{})
	go func() {
		exit = cmd.Wait()
		close(ended)
	}()
	for !isMountpoint(dir) {
		select {
		case <-ended:
			text, _ := os.ReadFile(log.Name())
			return nil, errors.Join(fmt.Errorf("%s ended: %w: %s", filepath.Base(program), exit, text), os.Remove(dir))
		case <-ctx.Done():
			_ = cmd.Process.Kill()
			<-ended
			return nil, errors.Join(ctx.Err(), os.Remove(dir))
		case <-time.After(10 * time.Millisecond):
		}
		if time.Since(start) > patience {
			_ = cmd.Process.Kill()
			<-ended
			return nil, errors.Join(fmt.Errorf("%s does not mount", program), os.Remove(dir))
		}
	}
	return &mounted{dir: dir, took: time.Since(start), unmount: func() error {
		err := unmountSoon(dir)
		select {
		case <-ended: // some say by their exit code that they were unmounted
		case <-time.After(patience):
			err = errors.Join(err, fmt.Errorf("%s goes on after its mount is gone", program), cmd.Process.Kill())
		}
		return err
	}}, nil
}

// isMountpoint asks without touching the file system at dir.
func isMountpoint(dir string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_STATX_DONT_SYNC, 0, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}
