package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/driver/holder"
)

// build makes the program as make build does.
func build(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "erofs-csi-holder")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return program
}

// start runs the program until the test ends, with what it writes to stderr.
func start(t *testing.T, program, socket string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	cmd, stderr := exec.Command(program, "--socket", socket), new(bytes.Buffer)
	cmd.Stderr = stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("want ready, got %q, %v", line, err)
	}
	return cmd, stderr
}

// status is a field of /proc/PID/status in KiB.
func status(t *testing.T, pid int, field string) (kib int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if n, _ := fmt.Sscanf(line, field+": %d kB", &kib); n == 1 {
			return kib
		}
	}
	t.Fatalf("no %s in %s", field, text)
	return 0
}

func memfd(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("kept", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "memfd")
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestMemory: with 500 descriptors the process never had 10 MB, after clients that came,
// took all over and put all again; and it has less than the limit of its pod with as
// much as it ever keeps.
func TestMemory(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	cmd, stderr := start(t, build(t), socket)
	pid := cmd.Process.Pid
	t.Logf("VmRSS with nothing: %d KiB", status(t, pid, "VmRSS"))
	file := memfd(t)
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		c, err := holder.Dial(ctx, socket, "engine")
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		list, err := c.Items()
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range list {
			for _, f := range it.Files {
				_ = f.Close()
			}
		}
		for i := range 250 {
			if err := c.Put(fmt.Sprintf("volume-%04d", i), make([]byte, 1024), file, file); err != nil {
				t.Fatal(err)
			}
		}
		_ = c.Close()
	}
	now, most := status(t, pid, "VmRSS"), status(t, pid, "VmHWM")
	t.Logf("VmRSS with 500 descriptors: %d KiB, at most %d KiB", now, most)
	if most >= 10_000_000/1024 {
		t.Errorf("it had %d KiB, want less than 10 MB", most)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := holder.Dial(ctx, socket, "full")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	items := 0
	for ; err == nil && items < 10_000; items++ {
		err = c.Put(fmt.Sprint(items), make([]byte, holder.MaxMeta), file)
	}
	if !errors.Is(err, holder.ErrLimit) {
		t.Fatalf("error %v, want ErrLimit", err)
	}
	for range 20 { // replaces and takes: garbage
		for i := range items - 1 {
			if err := c.Put(fmt.Sprint(i), make([]byte, holder.MaxMeta), file); err != nil {
				t.Fatal(err)
			}
		}
	}
	most = status(t, pid, "VmHWM")
	t.Logf("at most %d KiB with all the bytes that are kept", most)
	if most >= 24<<10 {
		t.Errorf("it had %d KiB, want less than 24 MiB", most)
	}

	if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	if want := fmt.Sprintf("%d descriptors of %d items are let go", 500+items-1, 250+items-1); !strings.Contains(stderr.String(), want) {
		t.Errorf("log without %q: %s", want, stderr)
	}
}

// TestNobodyReads: a holder goes on when nobody reads its log.
func TestNobodyReads(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	cmd := exec.Command(build(t), "--socket", socket)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = read.Close() }()
	if _, err := unix.FcntlInt(write.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = write
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	_ = write.Close()
	for i := range 500 { // some 100 bytes of log each
		if i == 400 {
			_ = read.Close() // now writing is an error, too
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		c, err := holder.Dial(ctx, socket, "engine")
		cancel()
		if err != nil {
			t.Fatalf("client %d: %v", i, err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
}

// TestUsage: exit codes and messages.
func TestUsage(t *testing.T) {
	program := build(t)
	for _, c := range []struct {
		args []string
		code int
		text string
	}{
		{nil, 2, "want --socket PATH"},
		{[]string{"--socket", "s", "more"}, 2, "nothing else"},
		{[]string{"--bogus"}, 2, "bogus"},
		{[]string{"--socket", "/nowhere/at/all"}, 1, "erofs-csi: open /nowhere"},
	} {
		cmd := exec.Command(program, c.args...)
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != c.code || !strings.Contains(string(out), c.text) {
			t.Errorf("%q: exit code %d, %s; want %d and %q", c.args, got, out, c.code, c.text)
		}
	}
}
