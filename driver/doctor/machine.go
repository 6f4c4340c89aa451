package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

const (
	// lowMemory is a limit that a plugin with some thousands of files, pulls and
	// conversions under way can reach.
	lowMemory = 256 << 20
	// lowFiles is a number of open files that some hundreds of volumes can reach: an
	// image takes about four, a domain some more.
	lowFiles = 4096
)

// mountOf returns the mount that path is on, of which the last made is meant.
func mountOf(path string) (*mountinfo.Info, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	infos, err := mountinfo.GetMounts(mountinfo.ParentsFilter(path))
	if err != nil {
		return nil, err
	}
	var found *mountinfo.Info
	for _, i := range infos {
		if found == nil || len(i.Mountpoint) >= len(found.Mountpoint) {
			found = i
		}
	}
	if found == nil {
		return nil, errors.New(path + " is on no mount")
	}
	return found, nil
}

// propagation: what the plugin mounts below kubelet's directory must appear to the
// node and its containers.
func (n *node) propagation(context.Context) Finding {
	m, err := mountOf(n.KubeletDir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return warn("name kubelet's directory by --kubelet-dir; erofs-csi mount does without", "%s is not there", n.KubeletDir)
	case err != nil:
		return fail("", "%v", err)
	}
	for _, field := range strings.Fields(m.Optional) {
		if strings.HasPrefix(field, "shared:") {
			return ok("%s is shared (on the mount %s)", n.KubeletDir, m.Mountpoint)
		}
	}
	if strings.Contains(m.Optional, "master:") {
		return fail("set mountPropagation: Bidirectional on the pod's mount of it", "%s: mounts of the node appear here, but those made here not on the node", n.KubeletDir)
	}
	return fail("on the node: mount --make-rshared /; in the pod: mountPropagation: Bidirectional", "%s: what is mounted below it appears nowhere else (on the private mount %s)", n.KubeletDir, m.Mountpoint)
}

// cgroupRoot is where cgroup v2 is mounted.
const cgroupRoot = "/sys/fs/cgroup"

func (n *node) memory(context.Context) Finding {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return warn("", "%v", err)
	}
	for line := range strings.Lines(string(text)) {
		if path, found := strings.CutPrefix(strings.TrimSpace(line), "0::"); found {
			if limit, found := memoryLimit(cgroupRoot, path); found {
				return judgeMemory(limit)
			}
		}
	}
	return ok("none on this process")
}

// memoryLimit is the lowest memory.max from the group at path upwards; false: there is
// none.
func memoryLimit(root, path string) (limit uint64, found bool) {
	for path = filepath.Clean("/" + path); ; path = filepath.Dir(path) {
		text, err := os.ReadFile(filepath.Join(root, path, "memory.max"))
		if err == nil {
			if v, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err == nil && (!found || v < limit) {
				limit, found = v, true
			}
		}
		if path == "/" {
			return limit, found
		}
	}
}

func judgeMemory(limit uint64) Finding {
	if limit < lowMemory {
		return warn("raise it or take it away: the mounts of the node end when the plugin reaches it", "%s", sizeText(limit))
	}
	return ok("%s", sizeText(limit))
}

func (n *node) openFiles(context.Context) Finding {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return warn("", "%v", err)
	}
	if limit.Max < lowFiles {
		return warn("raise LimitNOFILE of the container runtime; each image takes some", "at most %d", limit.Max)
	}
	return ok("at most %d", limit.Max)
}

// clock: certificates and tokens are refused by a clock that is wrong.
func (n *node) clock(context.Context) Finding {
	now := time.Now()
	if now.Before(n.Built) {
		return fail("set the clock: certificates of registries seem not valid yet", "%s, before this program was built (%s)", now.UTC().Format(time.RFC3339), n.Built.UTC().Format(time.RFC3339))
	}
	var t unix.Timex // asks only
	if _, err := unix.Adjtimex(&t); err == nil && t.Status&unix.STA_UNSYNC != 0 {
		return warn("run a time service (chrony, systemd-timesyncd): a wrong clock makes certificates and tokens invalid", "%s, and the kernel knows of nobody who keeps it right", now.UTC().Format(time.RFC3339))
	}
	return ok("%s", now.UTC().Format(time.RFC3339))
}
