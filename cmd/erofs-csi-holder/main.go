// Command erofs-csi-holder is what `erofs-csi holder` runs: a process that keeps
// descriptors of FUSE connections while the processes that serve them restart. It is a
// program of its own because it is to be small, and the packages of erofs-csi alone
// take seven times its memory.
//
// It prints "ready" when it listens, and its log on stderr. Exit codes: 0 told to stop
// by SIGTERM or SIGINT, 1 failed, 2 wrong usage.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/erofs-csi/erofs-csi/driver/holder"
)

func main() {
	socket := flag.String("socket", "", "`PATH` of the unix socket to serve")
	abandonAfter := flag.Duration("abandon-after", holder.DefaultAbandonAfter, "let go of what nobody has served for this `TIME`; 0: of nothing")
	flag.Parse()
	if *socket == "" || *abandonAfter < 0 || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "erofs-csi: want --socket PATH, perhaps --abandon-after TIME, and nothing else")
		os.Exit(2)
	}
	if err := holder.Run(context.Background(), *socket, *abandonAfter, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "erofs-csi:", err)
		os.Exit(1)
	}
}
