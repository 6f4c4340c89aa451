package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// lazyMiB is the size of the image that is far away.
const lazyMiB = 128

// measureLazy mounts an image of a registry that is far away, lazily and when it is
// complete, and reads the first MB of its last file, then all files.
func (b *bench) measureLazy(ctx context.Context, t *table) (err error) {
	if _, err := exec.LookPath("docker-registry"); err != nil {
		t.note("lazy is left out: there is no docker-registry.")
		return nil
	}
	r, err := b.startRegistry(ctx, b.far)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	w, err := newWire(ctx, r.host)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	var first, all [2]sample
	side := func(i int, lazy string) func() error {
		return func() error {
			one, whole, err := b.readLazily(ctx, t.Front, w.host, lazy)
			first[i].add(one.Seconds())
			all[i].add(whole.Seconds())
			return err
		}
	}
	if err := turns(ctx, b.rounds, side(0, "auto"), side(1, "never")); err != nil {
		return err
	}
	name := fmt.Sprintf("%.0f MB over 100 Mbit/s, 50 ms away", mb(r.blob.Size))
	t.compare(name+": start to the first MB of a file", "s", "pulled whole", first[0], first[1], nil)
	t.compare(name+": start to all read", "s", "pulled whole", all[0], all[1], atMost(1.05))
	return nil
}

// readLazily mounts the image with an empty cache directory and reads it. It returns how
// long after the start one MB was there, and all.
func (b *bench) readLazily(ctx context.Context, front, host, lazy string) (one, all time.Duration, err error) {
	dir, err := b.mountpoint()
	if err != nil {
		return 0, 0, err
	}
	cache := b.freshCache()
	s := &server{dirs: []string{dir}}
	s.cmd = exec.Command(b.binary, "mount", "--front", front, "--lazy", lazy, "--plain-http", host, "--domain", domain,
		"--cache-dir", cache, "--state-dir", b.state, host+"/image:v1", dir)
	s.cmd.Stderr = &s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return 0, 0, err
	}
	start := time.Now()
	if err := s.cmd.Start(); err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, s.close(), os.RemoveAll(cache)) }()
	if err := waitReady(ctx, bufio.NewReader(out)); err != nil {
		return 0, 0, err
	}
	var files []string
	if err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	}); err != nil {
		return 0, 0, err
	}
	if len(files) == 0 {
		return 0, 0, errors.New("the image has no files")
	}
	if err := readFile(files[len(files)-1], 1<<20); err != nil {
		return 0, 0, err
	}
	one = time.Since(start)
	for _, path := range files {
		if err := readFile(path, 1<<62); err != nil {
			return 0, 0, err
		}
	}
	return one, time.Since(start), nil
}

// readFile reads the first n bytes of a file, or all of them.
func readFile(path string, n int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = io.Copy(io.Discard, io.LimitReader(f, n))
	return err
}
