package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/driver/holder"
	"github.com/erofs-csi/erofs-csi/test/images"
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
	return startBy(t, program, socket, (*exec.Cmd).Start)
}

// startBy starts it by a function.
func startBy(t *testing.T, program, socket string, begin func(*exec.Cmd) error) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	cmd, stderr := exec.Command(program, "--socket", socket), new(bytes.Buffer)
	cmd.Stderr = stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := begin(cmd); err != nil {
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

// cpuTime is what a process has used, in ticks of 10 ms.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')'):]))
	var user, system int
	if _, err := fmt.Sscan(fields[12]+" "+fields[13], &user, &system); err != nil { // 14 and 15 of proc_pid_stat(5)
		t.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
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
		c := dial(t, socket, "engine")
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
	t.Logf("CPU time for taking over and putting 500 descriptors again, 20 times: %s", cpuTime(t, pid))
	t.Logf("VmRSS with 500 descriptors: %d KiB, at most %d KiB", now, most)
	if most >= 10_000_000/1024 {
		t.Errorf("it had %d KiB, want less than 10 MB", most)
	}

	c := dial(t, socket, "full")
	items := 0
	var err error
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

// dial claims a name until the test ends, or the client is closed.
func dial(t *testing.T, socket, name string) *holder.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := holder.Dial(ctx, socket, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// withoutCapabilities starts a process that can have none, as in its pod.
func withoutCapabilities(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
				started <- err
				return
			}
		}
		started <- cmd.Start()
	}()
	return <-started
}

// TestFUSEConnection: a holder without capabilities keeps a FUSE mount alive without the
// process that mounted it, and its end is the mount's.
func TestFUSEConnection(t *testing.T) {
	images.Need(t, "root", os.Geteuid() == 0)
	_, err := os.Stat("/dev/fuse")
	images.Need(t, "/dev/fuse", err == nil)

	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	cmd, _ := startBy(t, build(t), socket, withoutCapabilities)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil || !strings.Contains(string(text), "CapEff:\t0000000000000000") {
		t.Fatalf("it has capabilities: %s, %v", text, err)
	}
	mountpoint := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mountpoint, 0o700); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	device := os.NewFile(uintptr(fd), "/dev/fuse")
	if err := unix.Mount("test", mountpoint, "fuse.test", unix.MS_NODEV|unix.MS_NOSUID,
		fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mountpoint, unix.MNT_DETACH) })
	c := dial(t, socket, "engine")
	if err := c.Put("mount", []byte("meta"), device); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(device.Close(), c.Close()); err != nil { // as if killed
		t.Fatal(err)
	}

	c = dial(t, socket, "engine")
	list, err := c.Items()
	if err != nil || len(list) != 1 || len(list[0].Files) != 1 {
		t.Fatalf("kept: %v, %v", list, err)
	}
	request := make([]byte, 64<<10)
	n, err := list[0].Files[0].Read(request)
	if err != nil || n < 40 || binary.LittleEndian.Uint32(request[4:]) != 26 { // fuse_in_header.opcode: FUSE_INIT
		t.Fatalf("read %d bytes of the connection, %v: %x", n, err, request[:max(n, 0)])
	}
	if err := errors.Join(list[0].Files[0].Close(), c.Close()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(mountpoint, &st); !errors.Is(err, unix.ENOTCONN) { // it would hang if anybody had it
		t.Errorf("the mount after the end of the holder: %v", err)
	}
}

// slow is a file system of one file, whose flushes, one for each close, wait until they
// may go on.
type slow struct {
	fs.Inode
	armed  atomic.Bool
	goOn   chan struct{}
	waited chan struct{}
}

func (s *slow) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, fs.OK
}

func (s *slow) Flush(context.Context, fs.FileHandle) syscall.Errno {
	if s.armed.Load() {
		s.waited <- struct{}{}
		<-s.goOn
	}
	return fs.OK
}

// TestSlowClose: a descriptor whose close hangs holds up neither its client nor others,
// nor the end.
func TestSlowClose(t *testing.T) {
	images.Need(t, "root", os.Geteuid() == 0)
	_, err := os.Stat("/dev/fuse")
	images.Need(t, "/dev/fuse", err == nil)

	dir := t.TempDir()
	mountpoint := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mountpoint, 0o700); err != nil {
		t.Fatal(err)
	}
	file := &slow{goOn: make(chan struct{}), waited: make(chan struct{}, 1)}
	root := &fs.Inode{}
	server, err := fs.Mount(mountpoint, root, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMountStrict: true},
		OnAdd: func(ctx context.Context) {
			root.AddChild("file", root.NewPersistentInode(ctx, file, fs.StableAttr{Mode: unix.S_IFREG}), false)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
		}
	})
	socket := filepath.Join(dir, "s")
	cmd, stderr := start(t, build(t), socket)
	c, other := dial(t, socket, "engine"), dial(t, socket, "other")
	f, err := os.Open(filepath.Join(mountpoint, "file"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Put("slow", nil, f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	file.armed.Store(true)
	began := time.Now()
	if err := c.Delete("slow"); err != nil {
		t.Error(err)
	}
	<-file.waited
	if err := errors.Join(c.Put("a", nil), other.Put("b", nil)); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 4*time.Second || c.Status().Losses != 0 {
		t.Errorf("it took %s: %+v", took, c.Status())
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	close(file.goOn) // the kernel ends no process in the middle of a close
	if err := cmd.Wait(); err != nil || !strings.Contains(stderr.String(), "Closing 1 descriptors takes more than 1s") {
		t.Errorf("end: %v, log %s", err, stderr)
	}
}

// TestMountCopy: a mount that nobody has mounted any more is kept, and mounted again.
func TestMountCopy(t *testing.T) {
	images.Need(t, "root", os.Geteuid() == 0)
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	startBy(t, build(t), socket, withoutCapabilities)
	mountpoint := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mountpoint, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mountpoint, unix.MNT_DETACH) })
	if err := unix.Mount("tmpfs", mountpoint, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(mountpoint, "f"), []byte("still there"), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, mountpoint, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	tree := os.NewFile(uintptr(fd), "tree")
	c := dial(t, socket, "engine")
	if err := errors.Join(c.Put("mount", nil, tree), unix.Unmount(mountpoint, 0), tree.Close(), c.Close()); err != nil {
		t.Fatal(err)
	}
	list, err := dial(t, socket, "engine").Items()
	if err != nil || len(list) != 1 || len(list[0].Files) != 1 {
		t.Fatalf("kept: %v, %v", list, err)
	}
	defer func() { _ = list[0].Files[0].Close() }()
	if err := unix.MoveMount(int(list[0].Files[0].Fd()), "", unix.AT_FDCWD, mountpoint, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(mountpoint, "f")); err != nil || string(text) != "still there" {
		t.Errorf("read %q, %v", text, err)
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
		if err := dial(t, socket, "engine").Close(); err != nil {
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
