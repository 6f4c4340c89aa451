package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/erofs-csi/erofs-csi/test/images"
)

// pressureEnv makes the test binary a process with much garbage; it holds the path of a file
// to read meanwhile.
const pressureEnv = "EROFS_CSI_TEST_PRESSURE"

const (
	pressureLimit = 192 << 20 // of the group
	pressureLive  = 48 << 20  // what the process has in use
)

// runPressure makes garbage of which Go would let lie ten times as much as is in use, and
// reads a file that has no room in the group.
func runPressure(file string) error {
	ctx := klog.NewContext(context.Background(), textlogger.NewLogger(textlogger.NewConfig()))
	debug.SetGCPercent(1000)
	LimitMemory(ctx)
	live := make([][]byte, pressureLive>>20)
	buf := make([]byte, 1<<20)
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	for i := range 2048 {
		b := make([]byte, 1<<20)
		for at := 0; at < len(b); at += 4096 {
			b[at] = byte(i)
		}
		live[i%len(live)] = b
		if n, err := f.ReadAt(buf, int64(i%256)<<20); n != len(buf) || buf[n-1] != byte(i%256) {
			return fmt.Errorf("read %d bytes, %w", n, err)
		}
	}
	runtime.KeepAlive(live) // it is in use up to here
	_, err = fmt.Fprintln(os.Stdout, debug.SetMemoryLimit(-1))
	return errors.Join(err, f.Close())
}

// memoryGroup makes a memory control group with a limit. It returns its directory, and the
// file of the limit.
func memoryGroup(t *testing.T) (dir, limit string) {
	t.Helper()
	const root = "/sys/fs/cgroup"
	parent, name := root+"/memory", "memory.limit_in_bytes"
	if _, err := os.Stat(filepath.Join(parent, name)); err != nil {
		parent, name = root, "memory.max"
		controllers, _ := os.ReadFile(root + "/cgroup.controllers")
		images.Need(t, "a memory cgroup, of version 1 or 2", strings.Contains(string(controllers), "memory"))
		_ = os.WriteFile(root+"/cgroup.subtree_control", []byte("+memory"), 0) // it may be on already
	}
	dir = filepath.Join(parent, fmt.Sprintf("erofs-csi-test-%d", os.Getpid()))
	must(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() {
		var err error
		for range 100 { // its processes have ended, but for the kernel
			if err = os.Remove(dir); err == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Error(err)
	})
	limit = filepath.Join(dir, name)
	must(t, os.WriteFile(limit, []byte(strconv.Itoa(pressureLimit)), 0))
	if swap := filepath.Join(dir, "memory.swap.max"); name == "memory.max" {
		_ = os.WriteFile(swap, []byte("0"), 0) // where there is swap
	}
	return dir, limit
}

// TestMemoryPressure: in a real control group with little room a process lives that the
// kernel kills without LimitMemory.
func TestMemoryPressure(t *testing.T) {
	images.Need(t, "root", os.Geteuid() == 0)
	dir, limit := memoryGroup(t)
	t.Log(limit)
	file := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(file)
	must(t, err)
	for i := range 256 {
		_, err := f.Write([]byte(strings.Repeat(string([]byte{byte(i)}), 1<<20)))
		must(t, err)
	}
	must(t, errors.Join(f.Sync(), f.Close()))
	exe, err := os.Executable()
	must(t, err)
	run := func(env ...string) (stdout, stderr string, state *os.ProcessState) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		// It is in the group before it is the program.
		cmd := exec.CommandContext(ctx, "sh", "-c", `echo $$ > "$0"/cgroup.procs && exec "$@"`, dir, exe, "-test.run=^$")
		cmd.Env = append(append(os.Environ(), pressureEnv+"="+file), env...)
		var out, log strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &log
		_ = cmd.Run()
		must(t, ctx.Err())
		return out.String(), log.String(), cmd.ProcessState
	}
	want := strconv.Itoa(pressureLimit - pressureLimit/10 - besideGo)
	out, log, state := run()
	if !state.Success() || strings.TrimSpace(out) != want {
		t.Errorf("%v, limit %q, want %s: %s", state, out, want, log)
	}
	if !strings.Contains(log, `file="`+limit+`" bytes=`+strconv.Itoa(pressureLimit)) {
		t.Errorf("the log does not say what the limit is: %s", log)
	}
	// GOMEMLIMIT goes before it: with none the kernel kills the process.
	_, log, state = run("GOMEMLIMIT=off")
	if ws := state.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != syscall.SIGKILL { //nolint:forcetypeassert // it is on Unix
		t.Errorf("without a limit: %v, want that the kernel kills it: %s", state, log)
	}
}
