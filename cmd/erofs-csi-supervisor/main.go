// Command erofs-csi-supervisor runs a program, and runs it again when it is killed or
// crashes: see package supervise. It is a program of its own because it is to be small.
//
//	erofs-csi-supervisor /erofs-csi node --endpoint=unix:///csi/csi.sock ...
//
// It logs on stderr, which the program has as well. Exit codes: the program's; 128 and
// the signal if that killed it; 127 if there is no such program; 2 wrong usage.
package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/erofs-csi/erofs-csi/driver/supervise"
)

const (
	exitUsage   = 2
	exitNoStart = 127
)

func main() {
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(20)
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "erofs-csi-supervisor: want a program and its arguments")
		os.Exit(exitUsage)
	}
	code, err := supervise.Run(os.Args[1:], func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "erofs-csi-supervisor: "+format+"\n", args...)
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "erofs-csi-supervisor:", err)
		os.Exit(exitNoStart)
	}
	os.Exit(code)
}
