package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// group is a memory cgroup that this process is in while it measures page cache,
// with the servers it starts: the kernel charges a page of a file to the group of
// whoever brought it into memory, so that what else runs on the machine does not
// count, as it does in /proc/meminfo.
type group struct {
	dir  string
	back string // where this process came from
	v1   bool
	base int64 // what cache last was with nothing mounted
}

// errNoGroup says that the machine has no memory cgroups for us.
var errNoGroup = errors.New("no memory cgroup")

// enterGroup makes a group and moves this process into it. Version 1: below the
// group that the process is in. Version 2: below the root, because a group with
// processes cannot have children that count.
func enterGroup() (*group, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, errNoGroup
	}
	g := &group{}
	var own string
	for line := range strings.Lines(string(text)) {
		id, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, path, _ := strings.Cut(rest, ":")
		switch {
		case slices.Contains(strings.Split(controllers, ","), "memory"):
			g.v1, own = true, path
		case id == "0" && !g.v1:
			own = path
		}
	}
	root := "/sys/fs/cgroup"
	parent := root
	if g.v1 {
		root = "/sys/fs/cgroup/memory"
		parent = filepath.Join(root, own)
	} else if enabled, err := os.ReadFile(filepath.Join(root, "cgroup.subtree_control")); err != nil || !slices.Contains(strings.Fields(string(enabled)), "memory") {
		return nil, errNoGroup
	}
	g.back = filepath.Join(root, own)
	if g.dir, err = os.MkdirTemp(parent, "erofs-csi-bench-"); err != nil {
		return nil, errors.Join(errNoGroup, err)
	}
	if err := moveSelf(g.dir); err != nil {
		return nil, errors.Join(errNoGroup, err, os.Remove(g.dir))
	}
	return g, nil
}

func moveSelf(dir string) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
}

// leave moves this process back and removes the group, once the servers are gone.
func (g *group) leave() error {
	err := moveSelf(g.back)
	for range 100 {
		if err2 := os.Remove(g.dir); !errors.Is(err2, unix.EBUSY) {
			return errors.Join(err, err2)
		}
		time.Sleep(20 * time.Millisecond) // a process that has just ended
	}
	return errors.Join(err, fmt.Errorf("%s cannot be removed", g.dir))
}

// cache is the page cache charged to the group, less that of tmpfs, in bytes.
func (g *group) cache() (int64, error) {
	text, err := os.ReadFile(filepath.Join(g.dir, "memory.stat"))
	if err != nil {
		return 0, err
	}
	name := "file"
	if g.v1 {
		name = "cache"
	}
	var sum int64
	for field, sign := range map[string]int64{name: 1, "shmem": -1} {
		n, err := statField(text, field)
		if err != nil {
			return 0, err
		}
		sum += sign * n
	}
	return sum, nil
}

const (
	// settling bounds the wait for the pages of mounts that are gone.
	settling = 20 * time.Second
	// settled is how far from base the page cache may be, in bytes: a program that
	// was run, a directory that was read.
	settled = 1 << 20
)

// before is cache with nothing mounted. The kernel may free the pages of a file
// system a little after it was unmounted.
func (g *group) before() (n int64, err error) {
	for end := time.Now().Add(settling); ; time.Sleep(20 * time.Millisecond) {
		if n, err = g.cache(); err != nil {
			return 0, err
		}
		late := time.Now().After(end)
		if late {
			progress("%.0f MB of page cache stay after what held them was unmounted: the next count may be too low", mb(n-g.base))
		}
		if late || n <= g.base+settled {
			g.base = n
			return n, nil
		}
	}
}

func statField(text []byte, name string) (int64, error) {
	for line := range bytes.Lines(text) {
		if f := bytes.Fields(line); len(f) == 2 && string(f[0]) == name {
			return strconv.ParseInt(string(f[1]), 10, 64)
		}
	}
	return 0, fmt.Errorf("memory.stat has no field %q", name)
}
