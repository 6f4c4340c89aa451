package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/driver/supervise"
	"github.com/erofs-csi/erofs-csi/test/images"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"erofs-csi": main, kubectlName: main})
}

// TestCommandLine runs the scripts that mount nothing.
func TestCommandLine(t *testing.T) { runScripts(t, "testdata") }

// TestMount runs the scripts that mount.
func TestMount(t *testing.T) {
	images.Need(t, "root", os.Geteuid() == 0)
	_, err := os.Stat("/dev/fuse")
	images.Need(t, "/dev/fuse", err == nil)
	needPrograms(t, "docker-registry", "htpasswd")
	runScripts(t, "testdata/mount")
}

func runScripts(t *testing.T, dir string) {
	t.Helper()
	needPrograms(t, "mkfs.erofs", "dd")
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setUp,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve":     serve,
			"terminate": terminate,
			"code":      code,
			"kubectl":   kubectlErofs,
			"mounted":   mountedCommand,
			"flip":      flip,
			"plugin":    plugin,
			"hold":      hold,
			"kept":      keptCommand,
			"freePort":  freePort,
			"fetch":     fetch,

			"startRegistry": startRegistry,
			"stopRegistry":  stopRegistry,
			"shortRegistry": shortRegistry,
			"push":          push,
			"pushContainer": pushContainer,
		},
		Condition: kernelCan,
	})
}

// kernelCan tells what scripts ask of the kernel in square brackets: whether it mounts
// EROFS images from their files, and shares page cache between such mounts.
func kernelCan(what string) (bool, error) {
	since := map[string][2]int{"kernel-mounts-files": {6, 12}, "kernel-shares": {7, 3}}
	want, known := since[what]
	if !known {
		return false, fmt.Errorf("no condition %q", what)
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return false, err
	}
	var major, minor int
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	return major > want[0] || major == want[0] && minor >= want[1], err
}

func needPrograms(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		_, err := exec.LookPath(name)
		images.Need(t, name, err == nil)
	}
}

// A served is a mount command that a script runs in the background.
type served struct {
	cmd    *exec.Cmd
	stdout *bufio.Reader
	stderr bytes.Buffer
}

type servedKey struct{}

func setUp(env *testscript.Env) error {
	work := env.WorkDir
	env.Setenv("CACHE", filepath.Join(work, "cache"))
	env.Setenv("STATE", filepath.Join(work, "state"))
	running := make(map[string]*served)
	env.Values[servedKey{}] = running
	env.Defer(func() {
		for _, s := range running {
			_ = s.cmd.Process.Kill()
			_ = s.cmd.Wait()
		}
		for _, dir := range mountsBelow(work) { // else the removal of $WORK would enter them
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return nil
}

// serve NAME ARGS... starts `erofs-csi mount ARGS` and waits for ready.
func serve(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: serve NAME ARGS...")
	}
	awaitReady(ts, args[0], append([]string{"mount", "--cache-dir", ts.Getenv("CACHE"), "--state-dir", ts.Getenv("STATE")}, args[1:]...))
}

// hold NAME SOCKET starts `erofs-csi holder` and waits for ready.
func hold(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: hold NAME SOCKET")
	}
	awaitReady(ts, args[0], []string{"holder", "--socket", args[1]})
}

// kept SOCKET REGEXP waits until what a holder keeps matches.
func keptCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: kept SOCKET REGEXP")
	}
	want := regexp.MustCompile(args[1])
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		cmd := exec.Command("erofs-csi", "holder", "--socket", args[0], "--list")
		cmd.Dir = ts.MkAbs(".")
		out, err := cmd.CombinedOutput()
		if err == nil && want.Match(out) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("the holder keeps: %s, %v", out, err)
		}
	}
}

// awaitReady starts a command that prints ready.
func awaitReady(ts *testscript.TestScript, name string, args []string) {
	s := &served{}
	s.cmd = exec.Command("erofs-csi", args...)
	s.cmd.Dir = ts.MkAbs(".")
	s.cmd.Env = append(os.Environ(), supervise.DeathsVariable+"="+ts.Getenv(supervise.DeathsVariable))
	s.cmd.Stderr = &s.stderr
	out, err := s.cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(s.cmd.Start())
	ts.Value(servedKey{}).(map[string]*served)[name] = s
	s.stdout = bufio.NewReader(out)
	line, err := s.stdout.ReadString('\n')
	if err != nil || line != "ready\n" {
		_ = s.cmd.Wait()
		ts.Fatalf("want ready, got %q, %v, stderr:\n%s", line, err, s.stderr.Bytes())
	}
}

// plugin NAME SOCKET ARGS... starts `erofs-csi ARGS` and waits until something
// answers at the unix socket.
func plugin(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: plugin NAME SOCKET ARGS...")
	}
	s := &served{stdout: bufio.NewReader(strings.NewReader(""))}
	s.cmd = exec.Command("erofs-csi", args[2:]...)
	s.cmd.Dir = ts.MkAbs(".")
	s.cmd.Stderr = &s.stderr
	ts.Check(s.cmd.Start())
	ts.Value(servedKey{}).(map[string]*served)[args[0]] = s
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("unix", args[1])
		if err == nil {
			ts.Check(c.Close())
			return
		}
		if time.Now().After(deadline) {
			_ = s.cmd.Process.Kill()
			_ = s.cmd.Wait()
			ts.Fatalf("%s does not answer: %v, stderr:\n%s", args[0], err, s.stderr.Bytes())
		}
	}
}

// freePort NAME puts a port of this machine that nobody listens on into a variable.
func freePort(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: freePort NAME")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	_, port, err := net.SplitHostPort(l.Addr().String())
	ts.Check(err)
	ts.Check(l.Close())
	ts.Setenv(args[0], port)
}

// fetch URL gets what is there into stdout.txt, waiting for somebody to listen.
func fetch(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: fetch URL")
	}
	client := &http.Client{Timeout: 30 * time.Second}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		res, err := client.Get(args[0])
		if err != nil && time.Now().Before(deadline) {
			continue
		}
		ts.Check(err)
		text, err := io.ReadAll(res.Body)
		ts.Check(err)
		ts.Check(res.Body.Close())
		ts.Check(os.WriteFile(ts.MkAbs("stdout.txt"), text, 0o600))
		if res.StatusCode != http.StatusOK {
			ts.Fatalf("%s: %s", args[0], res.Status)
		}
		return
	}
}

// terminate NAME SIGNAL sends TERM, INT or KILL. After the first two it expects
// the exit code 0 and nothing more on stdout.
func terminate(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: terminate NAME TERM|INT|KILL")
	}
	signal := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "KILL": syscall.SIGKILL}[args[1]]
	running := ts.Value(servedKey{}).(map[string]*served)
	s := running[args[0]]
	if signal == 0 || s == nil {
		ts.Fatalf("terminate %v: no such signal or process", args)
	}
	ts.Check(s.cmd.Process.Signal(signal))
	stuck := time.AfterFunc(30*time.Second, func() { _ = s.cmd.Process.Kill() })
	defer stuck.Stop()
	rest, err := io.ReadAll(s.stdout)
	ts.Check(err)
	err = s.cmd.Wait()
	delete(running, args[0])
	if signal != syscall.SIGKILL && (err != nil || len(rest) > 0) {
		ts.Fatalf("%s: %v, further stdout %q, stderr:\n%s", args[1], err, rest, s.stderr.Bytes())
	}
	ts.Logf("stderr of %s:\n%s", args[0], s.stderr.Bytes())
}

// logLine is a line of klog's.
var logLine = regexp.MustCompile(`(?m)^[IWE]\d{4} .*\n`)

// code N ARGS... runs erofs-csi and expects the exit code N and, beside the log,
// nothing on stderr on success and else one line that begins with the command's
// name. Further checks go by stdout.txt and stderr.txt.
func code(ts *testscript.TestScript, neg bool, args []string) { runFor(ts, neg, "erofs-csi", args) }

// kubectl N ARGS... is the same for kubectl-erofs; kubectl is looked for in the
// script's PATH.
func kubectlErofs(ts *testscript.TestScript, neg bool, args []string) {
	runFor(ts, neg, kubectlName, args)
}

func runFor(ts *testscript.TestScript, neg bool, name string, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: code N ARGS...")
	}
	cmd := exec.Command(name, args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = append(os.Environ(), "HOME="+ts.Getenv("WORK"), "REGISTRY_AUTH_FILE="+ts.Getenv("REGISTRY_AUTH_FILE"), "DOCKER_CONFIG=")
	if name == kubectlName {
		program, err := exec.LookPath("erofs-csi")
		ts.Check(err)
		cmd.Env = append(cmd.Env, "PATH="+ts.Getenv("PATH"), "WORK="+ts.Getenv("WORK"), "STATE="+ts.Getenv("STATE"), "EROFS="+program)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	_ = cmd.Run() // its exit code is looked at
	ts.Check(os.WriteFile(ts.MkAbs("stdout.txt"), stdout.Bytes(), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("stderr.txt"), stderr.Bytes(), 0o600))
	ts.Logf("%v\nstdout: %s\nstderr: %s", args[1:], stdout.Bytes(), stderr.Bytes())
	if got := fmt.Sprint(cmd.ProcessState.ExitCode()); got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
	text := logLine.ReplaceAllString(stderr.String(), "")
	if args[0] == "0" {
		if text != "" {
			ts.Fatalf("stderr of a success: %s", text)
		}
		return
	}
	if !strings.HasPrefix(text, name+": ") || strings.Count(text, "\n") != 1 || !strings.HasSuffix(text, "\n") {
		ts.Fatalf("stderr is not one line that begins with %s: %q", name, text)
	}
}

// mounted DIR expects a mount at or below DIR.
func mountedCommand(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: [!] mounted DIR")
	}
	if found := mountsBelow(ts.MkAbs(args[0])); (len(found) > 0) == neg {
		ts.Fatalf("mounts at or below %s: %q", args[0], found)
	}
}

// mountsBelow lists the mount points at and below dir, the last mounted first.
func mountsBelow(dir string) []string {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var found []string
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 4 && (f[4] == dir || strings.HasPrefix(f[4], dir+"/")) {
			found = append([]string{f[4]}, found...)
		}
	}
	return found
}

// flip FILE OFFSET inverts one byte.
func flip(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: flip FILE OFFSET")
	}
	var off int64
	_, err := fmt.Sscan(args[1], &off)
	ts.Check(err)
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR, 0)
	ts.Check(err)
	defer func() { ts.Check(f.Close()) }()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, off)
	ts.Check(err)
	b[0] ^= 0xff
	_, err = f.WriteAt(b, off)
	ts.Check(err)
}
