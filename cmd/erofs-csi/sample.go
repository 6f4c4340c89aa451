package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/erofs-csi/erofs-csi/driver/engine"
)

// statusErrors bounds what is told of the other process' words, in bytes.
const statusErrors = 4 << 10

// statusByChild returns a function that runs erofs-csi status: a process that serves
// mounts must not look into them, since nothing could end a thread that waits for its
// own process.
func statusByChild(stateDir string) func(context.Context) ([]engine.Status, error) {
	return func(ctx context.Context) ([]engine.Status, error) {
		// The program that runs, even if another has its name by now.
		cmd := exec.CommandContext(ctx, "/proc/self/exe", "status", "--json", "--state-dir", stateDir) // #nosec G204 -- an argument of our own
		cmd.Args[0] = os.Args[0]
		cmd.WaitDelay = time.Second
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("%w: %s", err, oneLine(string(stderr.Bytes()[:min(stderr.Len(), statusErrors)])))
		}
		var list []engine.Status
		err := json.Unmarshal(stdout.Bytes(), &list)
		return list, err
	}
}

// checkMetricsAddress refuses what no machine could listen on.
func checkMetricsAddress(address string) error {
	if address == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return usagef("--metrics-address %q: want HOST:PORT or :PORT", address)
	}
	return nil
}
