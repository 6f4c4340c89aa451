package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/driver/supervise"
	"github.com/erofs-csi/erofs-csi/erofs/apart"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// The variables that make this test's program one to be supervised.
const (
	asksVariable  = "SUPERVISOR_TEST_ASKS"  // the mount that its first life asks
	livesVariable = "SUPERVISOR_TEST_LIVES" // where it writes down that it lives
)

func TestMain(m *testing.M) {
	if lives := os.Getenv(livesVariable); lives != "" {
		live(lives)
	}
	os.Exit(m.Run())
}

// live is a life of a supervised program, whose first waits in the kernel.
func live(lives string) {
	unix.CloseOnExec(supervise.Alive)
	writeLine(lives, fmt.Sprint(os.Getpid(), " ", os.Getenv(supervise.DeathsVariable)))
	if os.Getenv(supervise.DeathsVariable) == "0" {
		go func() {
			_ = apart.Run(func() error {
				var st unix.Statfs_t
				return unix.Statfs(os.Getenv(asksVariable), &st)
			})
		}()
	}
	time.Sleep(time.Hour)
}

func writeLine(path, line string) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = fmt.Fprintln(f, line)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		panic(err)
	}
}

// build makes the program as make build does.
func build(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "erofs-csi-supervisor")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return program
}

// waitFor waits until a file has so many lines, and returns them.
func waitFor(t *testing.T, path string, n int) []string {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		text, _ := os.ReadFile(path)
		if lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n"); len(lines) >= n && lines[n-1] != "" {
			return lines
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s has %q after 30 s, want %d lines", path, text, n)
		}
	}
}

// TestEnds: what a program's end is, for its supervisor.
func TestEnds(t *testing.T) {
	program := build(t)
	for _, c := range []struct {
		name, script string
		code, lives  int
		log          string
	}{
		{"done", `exit 0`, 0, 1, ""},
		{"failed", `exit 7`, 7, 1, ""},
		{"wrong usage", `exit 2`, 2, 5, "wrong usage"},
		{"killed", `[ $n -gt 1 ] && exit 3; kill -9 $$`, 3, 2, "killed"},
		{"panics", `[ $n -gt 1 ] && exit 0; exit 2`, 0, 2, "panic"},
		{"killed always", `kill -9 $$`, 128 + 9, 5, "Giving up: 5 times"},
		{"crashes", `[ $n -gt 2 ] && exit 0; kill -SEGV $$`, 0, 3, "segmentation fault"},
		{"leaves children", `(sleep 0.1; sleep 0.1) & (sleep 0.2; kill -9 $$) & sleep 0.4; exit 4`, 128 + 9, 5, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			lives := filepath.Join(t.TempDir(), "lives")
			cmd := exec.Command(program, "sh", "-c", `n=$((EROFS_CSI_DEATHS + 1)); echo $n >> `+lives+`; `+c.script)
			out, err := cmd.CombinedOutput()
			if got := cmd.ProcessState.ExitCode(); got != c.code {
				t.Errorf("exit code %d, %v, want %d: %s", got, err, c.code, out)
			}
			var want strings.Builder
			for n := range c.lives {
				fmt.Fprintln(&want, n+1)
			}
			if got, err := os.ReadFile(lives); string(got) != want.String() || err != nil {
				t.Errorf("lives %q, %v, want %q", got, err, want.String())
			}
			if !strings.Contains(string(out), c.log) || (c.log == "" && c.lives == 1 && len(out) > 0) {
				t.Errorf("log %q, want %q", out, c.log)
			}
		})
	}
	for args, code := range map[string]int{"": 2, "/no/such/program": 127} {
		cmd := exec.Command(program, strings.Fields(args)...)
		if out, err := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != code || len(out) == 0 {
			t.Errorf("%q: %v, %s; want exit code %d and why", args, err, out, code)
		}
	}
}

// TestSignals: signals reach the program, and one that asks for the end is the last.
func TestSignals(t *testing.T) {
	program := build(t)
	lives := filepath.Join(t.TempDir(), "lives")
	cmd := exec.Command(program, "sh", "-c", `trap 'echo hup >> `+lives+`' HUP; trap 'echo term >> `+lives+`; exit 5' TERM
		echo started >> `+lives+`; while :; do sleep 0.02; done`)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	waitFor(t, lives, 1)
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	waitFor(t, lives, 2)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if got := strings.Join(waitFor(t, lives, 3), " "); got != "started hup term" || cmd.ProcessState.ExitCode() != 5 {
		t.Errorf("%s, exit code %d; want all signals, and 5", got, cmd.ProcessState.ExitCode())
	}

	// In the pause after a short life.
	lives = filepath.Join(t.TempDir(), "lives")
	cmd = exec.Command(program, "sh", "-c", `echo $EROFS_CSI_DEATHS >> `+lives+`; kill -9 $$`)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, lives, 4) // 800 ms follow
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if n := len(waitFor(t, lives, 4)); n != 4 || cmd.ProcessState.ExitCode() != 128+9 {
		t.Errorf("%d lives, exit code %d; want 4, and the last one's", n, cmd.ProcessState.ExitCode())
	}
}

// TestMemory: the supervisor is small.
func TestMemory(t *testing.T) {
	cmd := exec.Command(build(t), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err := errors.Join(err, cmd.Process.Signal(syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil || kib > 6<<10 {
		t.Errorf("it has %d KiB, %v, want at most 6 MiB", kib, err)
	}
	t.Logf("VmHWM %d KiB", kib)
}

// TestThreadThatWaits: a killed program whose thread waits in the kernel for its successor
// gets one.
func TestThreadThatWaits(t *testing.T) {
	images.Need(t, "root", os.Geteuid() == 0)
	mountpoint, lives := t.TempDir(), filepath.Join(t.TempDir(), "lives")
	device, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(device) }() // ends whoever waits
	if err := unix.Mount("test", mountpoint, "fuse.test", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", device)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mountpoint, unix.MNT_DETACH) })
	answer(t, device, 26, []uint32{7, 31, 0, 0}, 64) // FUSE_INIT: version 7.31

	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(build(t), self)
	cmd.Env = append(os.Environ(), asksVariable+"="+mountpoint, livesVariable+"="+lives)
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	first, _, _ := strings.Cut(waitFor(t, lives, 1)[0], " ")
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	unique := request(t, device, 17) // FUSE_STATFS: taken, so that the asking thread can't be killed
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := waitFor(t, lives, 2)[1]; !strings.HasSuffix(got, " 1") {
		t.Errorf("the second life is %q, want one after 1 death", got)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil || !strings.Contains(string(stat), ") Z ") {
		t.Errorf("the first life is over before it has its answer: %s, %v", stat, err)
	}
	reply(t, device, unique, nil, 80)
	for deadline := time.Now().Add(30 * time.Second); unix.Kill(pid, 0) == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the first life does not end after its answer")
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 128+int(unix.SIGTERM) || !strings.Contains(log.String(), "still waits in the kernel") {
		t.Errorf("exit code %d, log %s", got, log.String())
	}
}

// request takes a request of a kind from a FUSE connection.
func request(t *testing.T, device int, opcode uint32) (unique uint64) {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Read(device, buf)
	if err != nil || n < 40 || binary.LittleEndian.Uint32(buf[4:]) != opcode { // fuse_in_header
		t.Fatalf("a request of %d bytes, %v: %x; want opcode %d", n, err, buf[:max(min(n, 40), 0)], opcode)
	}
	return binary.LittleEndian.Uint64(buf[8:])
}

// reply answers it with numbers, and zeros up to a size.
func reply(t *testing.T, device int, unique uint64, numbers []uint32, size int) {
	t.Helper()
	out := make([]byte, 16+size) // fuse_out_header
	binary.LittleEndian.PutUint32(out, uint32(len(out)))
	binary.LittleEndian.PutUint64(out[8:], unique)
	for i, n := range numbers {
		binary.LittleEndian.PutUint32(out[16+4*i:], n)
	}
	if _, err := unix.Write(device, out); err != nil {
		t.Fatal(err)
	}
}

func answer(t *testing.T, device int, opcode uint32, numbers []uint32, size int) {
	t.Helper()
	reply(t, device, request(t, device, opcode), numbers, size)
}
