package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds the start of a server, which hashes both images, and its end.
const patience = 2 * time.Minute

// machine makes the mounts that are compared.
type machine struct {
	binary, work, state string
	pair                *pair
}

// mounts are the two images, mounted.
type mounts struct {
	dirs  [2]string
	how   string // for the table
	close func() error
}

func (m *machine) serveDomain(ctx context.Context) (*mounts, error) {
	return m.serve(ctx, "--domain", "demo")
}

func (m *machine) serveAlone(ctx context.Context) (*mounts, error) { return m.serve(ctx) }

// serve starts `erofs-csi mount` with both images and waits until it is ready.
func (m *machine) serve(ctx context.Context, flags ...string) (*mounts, error) {
	dirs, err := m.directories()
	if err != nil {
		return nil, err
	}
	args := append([]string{"mount", "--cache-dir", filepath.Join(m.work, "cache"), "--state-dir", m.state}, flags...)
	for i, dir := range dirs {
		args = append(args, m.pair.images[i], dir)
	}
	// Not CommandContext: its end is SIGKILL, which leaves dead mounts.
	cmd := exec.Command(m.binary, args...)
	var log bytes.Buffer
	cmd.Stderr = &log
	// A Ctrl-C at the terminal goes to this program alone, which ends the server.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop := func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		killer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
		defer killer.Stop()
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("%s mount: %w: %s", m.binary, err, bytes.TrimSpace(log.Bytes()))
		}
		return nil
	}
	if err := waitReady(ctx, bufio.NewReader(out)); err != nil {
		return nil, errors.Join(err, stop())
	}
	how, err := m.fronts(ctx)
	if err != nil {
		return nil, errors.Join(err, stop())
	}
	return &mounts{dirs: dirs, how: how, close: stop}, nil
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
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(patience):
		return fmt.Errorf("not ready after %s", patience)
	}
}

// fronts asks the server what the mounts are made of.
func (m *machine) fronts(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, m.binary, "status", "--json", "--state-dir", m.state).Output()
	if err != nil {
		return "", fmt.Errorf("%s status: %w", m.binary, err)
	}
	var engines []struct {
		Domains []struct {
			Fronts []struct{ Front, Reason string }
		}
	}
	if err := json.Unmarshal(out, &engines); err != nil {
		return "", fmt.Errorf("%s status: %w", m.binary, err)
	}
	var kinds []string
	for _, e := range engines {
		for _, d := range e.Domains {
			for _, f := range d.Fronts {
				kind := f.Front
				if f.Reason != "" {
					kind += " (" + f.Reason + ")"
				}
				if len(kinds) == 0 || kinds[len(kinds)-1] != kind {
					kinds = append(kinds, kind)
				}
			}
		}
	}
	return strings.Join(kinds, ", "), nil
}

// serveKernel mounts both images with the kernel's own EROFS: from the file,
// without caching it, where it can (Linux 6.12), else by loop devices.
func (m *machine) serveKernel(ctx context.Context) (*mounts, error) {
	dirs, err := m.directories()
	if err != nil {
		return nil, err
	}
	k := &mounts{dirs: dirs, how: "from the file, directio"}
	mounted := 0
	k.close = func() error {
		var errs []error
		for _, dir := range dirs[:mounted] {
			errs = append(errs, unix.Unmount(dir, 0))
		}
		return errors.Join(errs...)
	}
	for i, dir := range dirs {
		if err := unix.Mount(m.pair.images[i], dir, "erofs", unix.MS_RDONLY, "directio"); err != nil {
			k.how = "by loop devices"
			if err := command(ctx, "mount", "-t", "erofs", "-o", "ro,loop", m.pair.images[i], dir); err != nil {
				return nil, errors.Join(err, k.close())
			}
		}
		mounted++
	}
	return k, nil
}

func (m *machine) directories() (dirs [2]string, err error) {
	for i := range dirs {
		dirs[i] = filepath.Join(m.work, fmt.Sprintf("v%d", i+1))
		if err := os.MkdirAll(dirs[i], 0o755); err != nil {
			return dirs, err
		}
	}
	return dirs, nil
}
