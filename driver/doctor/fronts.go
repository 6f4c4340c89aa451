package doctor

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/erofs-csi/erofs-csi/driver/engine"
)

// frontCheck is a front to try, by the mount command.
type frontCheck struct {
	name string
	args []string // of the mount command
	what string   // can be had, when it works
	// without says what it means that it does not work, and how bad that is.
	without func(n *node) (result Result, fix string)
}

func always(result Result, fix string) func(*node) (Result, string) {
	return func(*node) (Result, string) { return result, fix }
}

const overlayCheck = "front " + engine.FrontOverlay

// fronts are all that engine.Mount may choose from, and what volumes may ask for.
var fronts = []frontCheck{
	{
		name: overlayCheck, args: []string{"--domain=doctor", "--front=" + engine.FrontOverlay},
		what:    "files share whatever their metadata, opens and warm reads are the kernel's",
		without: always(Warn, "Linux 6.5 or later with EROFS and overlayfs; volumes get the next front"),
	},
	{
		name: "front " + engine.FrontPassthrough, args: []string{"--domain=doctor", "--front=" + engine.FrontPassthrough},
		what: "files share whatever their metadata, warm reads are the kernel's",
		without: func(n *node) (Result, string) {
			if n.overlay.Load() {
				return Warn, "Linux 6.9 or later with FUSE passthrough; images with attributes of overlayfs of their own, and pods in user namespaces, get the front tree"
			}
			return Warn, "Linux 6.9 or later with FUSE passthrough; volumes get the front tree, where files share only if their metadata agree"
		},
	},
	{
		name: "front " + engine.FrontTree, args: []string{"--domain=doctor", "--front=" + engine.FrontTree},
		what:    "the last resort works",
		without: always(Fail, "see the check of /dev/fuse; without FUSE there are no volumes but those of engine: kernel"),
	},
	{
		name: "user namespaces", args: []string{"--domain=doctor", "--user-namespaces"},
		what:    "volumes with userNamespaces: \"true\" can be id-mapped",
		without: always(Warn, "Linux 6.12 or later, for volumes of pods with hostUsers: false"),
	},
	{
		name: "engine kernel", args: []string{"--engine=" + engine.EngineKernel},
		what:    "engine: kernel can be had without a domain",
		without: always(OK, ""),
	},
	{
		name: "engine kernel, sharing", args: []string{"--domain=doctor", "--engine=" + engine.EngineKernel},
		what:    "engine: kernel can be had with a domain",
		without: always(OK, ""),
	},
}

// front mounts the image by a process of its own, and reads it.
func (n *node) front(ctx context.Context, f frontCheck) Finding {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	err := n.tryMount(ctx, f.args)
	if err == nil {
		if f.name == overlayCheck {
			n.overlay.Store(true)
		}
		return ok("%s", f.what)
	}
	var wrong *wrongError
	if errors.As(err, &wrong) {
		return fail("do not use this front: set another by --front, and tell the project", "%v", err)
	}
	result, fix := f.without(n)
	if result == OK {
		return ok("only volumes that ask for engine: kernel miss it: %s", err)
	}
	return Finding{Result: result, Found: err.Error(), Fix: fix}
}

// wrongError is of a mount that was made and does not show what it should.
type wrongError struct{ err error }

func (e *wrongError) Error() string { return "mounted, but: " + e.err.Error() }
func (e *wrongError) Unwrap() error { return e.err }

// tryMount runs the mount command in a mount namespace of its own, reads the file of
// the image by way of that process' root, and ends it.
//
// Errors: *wrongError when it was mounted; what the command says when it was not.
func (n *node) tryMount(ctx context.Context, args []string) error {
	dir := filepath.Join(n.Scratch, "front")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// The kernel ends the process with the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, n.Program) // #nosec G204 -- ourselves
	cmd.Args = slices.Concat(n.Mount, args, []string{n.Image, dir})
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if ready, _ := bufio.NewReader(stdout).ReadString('\n'); ready != "ready\n" {
		err := cmd.Wait()
		if ctx.Err() != nil {
			return fmt.Errorf("not mounted in time: %w", ctx.Err())
		}
		// Whose image it is goes without saying.
		said := lastLine(stderr.String(), err)
		return errors.New(strings.NewReplacer("mount "+n.Image+": ", "", n.Image+": ", "").Replace(said))
	}
	read := make(chan error, 1)
	go func() { read <- n.compare(fmt.Sprintf("/proc/%d/root%s", cmd.Process.Pid, dir)) }()
	select {
	case err = <-read:
	case <-ctx.Done():
		err = fmt.Errorf("a read hangs: %w", ctx.Err())
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return &wrongError{err}
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		return &wrongError{fmt.Errorf("its end: %s", lastLine(stderr.String(), err))}
	}
	return nil
}

// maxSaid bounds what is told of another process' words, in bytes.
const maxSaid = 1 << 10

// lastLine is the last line that a process wrote, without the name of the program, or
// how it ended when it wrote nothing.
func lastLine(stderr string, err error) string {
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	last := lines[len(lines)-1]
	if last == "" {
		return fmt.Sprint(err)
	}
	last = strings.TrimPrefix(last, "erofs-csi: ")
	return last[:min(len(last), maxSaid)]
}
