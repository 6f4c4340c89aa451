package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroup is a memory cgroup, of version 1 or 2.
type cgroup struct {
	dir string
	v2  bool
}

// newCgroup makes a memory cgroup; nil where there is no such thing.
func newCgroup(name string) (*cgroup, error) {
	name = fmt.Sprintf("erofs-csi-chaos-%d-%s", os.Getpid(), name)
	g := &cgroup{dir: filepath.Join("/sys/fs/cgroup/memory", name)}
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err != nil {
		text, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
		if !strings.Contains(string(text), "memory") {
			return nil, nil
		}
		g = &cgroup{dir: filepath.Join("/sys/fs/cgroup", name), v2: true}
		_ = os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+memory"), 0) // it may be on already
	}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		return nil, err
	}
	return g, nil
}

func (g *cgroup) file(v1, v2 string) string {
	if g.v2 {
		return filepath.Join(g.dir, v2)
	}
	return filepath.Join(g.dir, v1)
}

// procs is the file that processes join the group by.
func (g *cgroup) procs() string { return filepath.Join(g.dir, "cgroup.procs") }

func (g *cgroup) add(pid int) error {
	return os.WriteFile(g.procs(), []byte(strconv.Itoa(pid)), 0)
}

// limit sets how much memory the group may take, in bytes; 0: any.
func (g *cgroup) limit(n int64) error {
	text := strconv.FormatInt(n, 10)
	if n == 0 {
		text = map[bool]string{false: "-1", true: "max"}[g.v2]
	}
	return os.WriteFile(g.file("memory.limit_in_bytes", "memory.max"), []byte(text), 0)
}

func (g *cgroup) read(path string) int64 {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return n
}

// oomKills is how many processes of the group were killed for want of memory.
func (g *cgroup) oomKills() int64 {
	text, err := os.ReadFile(g.file("memory.oom_control", "memory.events"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			return n
		}
	}
	return 0
}

// reclaim has the kernel take back what it can: page cache, and inodes that nobody uses.
func (g *cgroup) reclaim() {
	if g.v2 {
		// EAGAIN says that less was there; an os.File would wait for the file to be writable.
		if fd, err := unix.Open(filepath.Join(g.dir, "memory.reclaim"), unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
			_, _ = unix.Write(fd, []byte("1G"))
			_ = unix.Close(fd)
		}
		return
	}
	_ = os.WriteFile(filepath.Join(g.dir, "memory.force_empty"), []byte("0"), 0)
}

// kernelKiB is the kernel's memory for the group after a reclaim.
func (g *cgroup) kernelKiB() int64 {
	g.reclaim()
	if !g.v2 {
		return g.read(filepath.Join(g.dir, "memory.kmem.usage_in_bytes")) >> 10
	}
	text, _ := os.ReadFile(filepath.Join(g.dir, "memory.stat"))
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "kernel "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			return n >> 10
		}
	}
	return 0
}

// remove removes the group, whose processes have ended.
func (g *cgroup) remove() (err error) {
	for range 50 {
		if err = os.Remove(g.dir); err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}
