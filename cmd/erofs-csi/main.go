// Command erofs-csi mounts EROFS images read-only through FUSE with a page
// cache that equal files of all images of a domain share: from the command line
// (mount), and for Kubernetes as the CSI driver erofs.csi.dev (node,
// controller). Under the name kubectl-erofs it is a plugin of kubectl's, which asks
// the plugins of a cluster's nodes.
//
// What it prints: results on stdout; errors on stderr, one line each with the
// fix; logs (klog, -v) on stderr. Exit codes: 0 done, 1 failed, 2 wrong usage.
package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/driver/supervise"
)

// minProcs is the least GOMAXPROCS. Our threads wait for disks more than they
// compute, and a goroutine that is ready has to wait until the scheduler finds out
// that a thread is blocked: with 2 instead of 8, cold sequential reads of 400 MiB
// took 294 ms instead of 263 from an LZ4 image, 249 instead of 239 from a plain one.
const minProcs = 8

func main() {
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), minProcs))
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(engine.GCPercent)
	}
	// What is inherited, such as supervise.Alive, is not for the programs that this one starts.
	_ = unix.CloseRange(supervise.Alive, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // Linux 5.11
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot() //nolint:contextcheck // commands take it from cobra
	if filepath.Base(os.Args[0]) == kubectlName {
		root = newKubectlRoot() //nolint:contextcheck // likewise
	}
	root.command.SetArgs(args)
	root.command.SetOut(stdout)
	root.command.SetErr(stderr)
	err := root.command.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	fmt.Fprintln(stderr, root.command.Name()+": "+oneLine(err.Error()))
	return root.exitCode(err)
}
