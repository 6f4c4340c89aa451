package driver

import (
	"context"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"

	"k8s.io/klog/v2"
)

// besideGo is what the process takes that Go does not count: the buffers of replies, of
// 32 MiB at most (fusefs). A tenth of the limit is for what else is charged to the group:
// pages of the program and of files that it reads, and the kernel's own.
const besideGo = 32 << 20

// leastMemory is the least limit that Go is given. With less it would collect garbage all
// the time, where being killed for memory is at least seen.
const leastMemory = 32 << 20

// LimitMemory has the process keep below the memory limit of its control group (v2 or v1),
// if it has one, by collecting garbage more often near it: GOMEMLIMIT, which goes before
// this one if it is set in the environment. A limit that is changed later is not seen.
func LimitMemory(ctx context.Context) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	limit, file := memoryLimit("/proc/self/cgroup", "/sys/fs/cgroup")
	if limit == 0 {
		return
	}
	goes := max(limit-limit/10-besideGo, leastMemory)
	debug.SetMemoryLimit(goes)
	klog.FromContext(ctx).Info("Memory is limited", "file", file, "bytes", limit, "goMemoryLimit", goes)
}

// memoryLimit is the smallest limit of the process' control group and of those above it
// that can be seen; 0: there is none. file says where it is from.
func memoryLimit(cgroup, root string) (limit int64, file string) {
	text, err := os.ReadFile(cgroup) // #nosec G304 -- of /proc
	if err != nil {
		return 0, ""
	}
	for line := range strings.Lines(string(text)) {
		// hierarchy:controllers:path, see cgroups(7)
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		dir, name := root, "memory.max"
		switch {
		case fields[0] == "0" && fields[1] == "":
		case strings.Contains(","+fields[1]+",", ",memory,"):
			dir, name = filepath.Join(root, "memory"), "memory.limit_in_bytes"
		default:
			continue
		}
		// In a container the path may be that of the host, and only the root be there.
		for at := filepath.Clean("/" + fields[2]); ; at = filepath.Dir(at) {
			path := filepath.Join(dir, at, name)
			if n := limitIn(path); n != 0 && (limit == 0 || n < limit) {
				limit, file = n, path
			}
			if at == "/" {
				break
			}
		}
	}
	return limit, file
}

// limitIn reads a limit; 0: there is none. Version 1 says so by a number that no machine
// has of memory.
func limitIn(path string) int64 {
	text, err := os.ReadFile(path) // #nosec G304 -- of the cgroup file system
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || n <= 0 || n >= 1<<60 { // "max"
		return 0
	}
	return n
}
