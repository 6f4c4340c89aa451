package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// patience bounds the start of a server, which hashes its images, and its end.
const patience = 3 * time.Minute

// server is a running `erofs-csi mount`.
type server struct {
	cmd  *exec.Cmd
	log  bytes.Buffer
	dirs []string      // of the images, in order
	took time.Duration // from its start until it was ready
}

// domain is the one domain there is.
const domain = "bench"

// serve starts a server with a domain, or none, and a cache directory, which it makes
// when it is not there, and waits until all images are mounted.
func (b *bench) serve(ctx context.Context, front, domain, cacheDir string, images ...*image) (_ *server, err error) {
	s := &server{}
	front, store, _ := strings.Cut(front, "+")
	limit := "0"
	if store != "" {
		limit = "50%"
	}
	args := []string{"mount", "--front", front, "--store-limit", limit, "--domain", domain, "--cache-dir", cacheDir, "--state-dir", b.state}
	for _, im := range images {
		dir, err := b.mountpoint()
		if err != nil {
			return nil, err
		}
		s.dirs = append(s.dirs, dir)
		args = append(args, im.path, dir)
	}
	// Not CommandContext: its end is SIGKILL, which leaves dead mounts.
	s.cmd = exec.Command(b.binary, args...)
	s.cmd.Stderr = &s.log
	// A Ctrl-C at the terminal goes to this program alone, which ends the server.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	if err := waitReady(ctx, bufio.NewReader(out)); err != nil {
		return nil, errors.Join(err, s.close())
	}
	s.took = time.Since(start)
	if store != "" && slices.ContainsFunc(images, func(im *image) bool { return slices.Contains(b.big[:], im) }) && !hasPlainCopies(cacheDir) {
		err := fmt.Errorf("--store-limit %s made no plain copy of a large file, so it would measure --front %s: is less than a fifth of the disk free?", limit, front)
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// hasPlainCopies tells whether a server has made any in its cache directory.
func hasPlainCopies(cacheDir string) bool {
	found := false
	_ = filepath.WalkDir(filepath.Join(cacheDir, "files"), func(_ string, d fs.DirEntry, err error) error {
		found = found || err == nil && d.Type().IsRegular()
		return nil
	})
	return found
}

// freshCache is the path of a cache directory that is not there yet.
func (b *bench) freshCache() string {
	b.serial++
	return filepath.Join(b.work, fmt.Sprintf("cache-%d", b.serial))
}

func waitReady(ctx context.Context, out *bufio.Reader) error {
	ready := make(chan error, 1)
	go func() {
		line, err := out.ReadString('\n')
		if err == nil && line != "ready\n" {
			err = fmt.Errorf("want ready, got %q", line)
		}
		ready <- err
	}()
	select {
	case err := <-ready:
		if err != nil {
			return fmt.Errorf("the server is not ready: %w", err)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(patience):
		return fmt.Errorf("the server is not ready after %s", patience)
	}
}

// close ends the server, which unmounts.
func (s *server) close() error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	killer := time.AfterFunc(patience, func() { _ = s.cmd.Process.Kill() })
	defer killer.Stop()
	if err := s.cmd.Wait(); err != nil {
		return fmt.Errorf("%s mount: %w: %s", filepath.Base(s.cmd.Path), err, bytes.TrimSpace(s.log.Bytes()))
	}
	var errs []error
	for _, dir := range s.dirs {
		errs = append(errs, os.Remove(dir))
	}
	return errors.Join(errs...)
}

// cpuTime is what a process used.
type cpuTime struct{ user, system time.Duration }

func (c cpuTime) sub(o cpuTime) cpuTime { return cpuTime{c.user - o.user, c.system - o.system} }
func (c cpuTime) add(o cpuTime) cpuTime { return cpuTime{c.user + o.user, c.system + o.system} }

// tick is the unit of CPU times in /proc (USER_HZ, the same on all architectures
// that Go runs on).
const tick = time.Second / 100

// cpu reads the server's CPU time, in units of 10 ms.
func (s *server) cpu() (c cpuTime, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return c, err
	}
	// The second field, the name, may hold anything; it ends with the last ")".
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const utime, stime = 14 - 3, 15 - 3 // proc(5) counts from 1, and two are cut off
	if len(fields) <= stime {
		return c, fmt.Errorf("/proc/%d/stat has %d fields", s.cmd.Process.Pid, len(fields))
	}
	u, err1 := strconv.ParseInt(fields[utime], 10, 64)
	v, err2 := strconv.ParseInt(fields[stime], 10, 64)
	return cpuTime{time.Duration(u) * tick, time.Duration(v) * tick}, errors.Join(err1, err2)
}

// anonymous is the memory of the server that is no file's, in bytes.
func (s *server) anonymous() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	n, err := kilobytes(text, "RssAnon:")
	return n << 10, err
}
