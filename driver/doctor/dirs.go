package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// remote are file systems whose bytes are elsewhere, where locks and renames do not
// promise what the store needs, and which may hang.
var remote = []string{"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "lustre", "gpfs", "afs", "virtiofs"}

// cacheDir writes a file past the page cache and reads it back.
func (n *node) cacheDir(context.Context) Finding {
	if n.Scratch == "" {
		return fail("name directories that can be written to by --cache-dir and --state-dir", "nothing was mounted: %v", n.NoScratch)
	}
	m, err := mountOf(n.Scratch)
	if err != nil {
		return fail("name a directory on a local disk by --cache-dir", "%v", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(n.Scratch, &st); err != nil {
		return fail("", "%s: %v", n.CacheDir, err)
	}
	size, free := st.Blocks*uint64(st.Bsize), st.Bavail*uint64(st.Bsize) //nolint:gosec // a block size is positive
	found := fmt.Sprintf("%s on %s: %s of %s free", n.CacheDir, m.FSType, sizeText(free), sizeText(size))
	switch fs := m.FSType; {
	case slices.Contains(remote, fs), strings.HasPrefix(fs, "fuse"):
		return fail("use a local disk: --cache-dir", "%s", found)
	case fs == "overlay":
		return warn("in a pod, mount a directory of the node: what is here goes with the container", "%s", found)
	case fs == "tmpfs" || fs == "ramfs":
		return warn("use a disk: --cache-dir; images take memory here", "%s", found)
	}
	if err := writePast(n.Scratch); err != nil {
		return warn("use another file system: --cache-dir; images are in memory twice here", "%s; %v", found, err)
	}
	if free < size/20 || free < 1<<30 {
		return warn("make room, or name another disk by --cache-dir: pulls that do not fit fail", "%s", found)
	}
	return ok("%s", found)
}

// align is what O_DIRECT wants of buffers, offsets and lengths on all disks that there
// are.
const align = 4096

// writePast writes a block to a new file in dir and reads it back, past the page cache.
func writePast(dir string) (err error) {
	name := filepath.Join(dir, "direct")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|unix.O_DIRECT, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(name)) }()
	buf := make([]byte, 3*align)
	start := align - int(uintptr(unsafe.Pointer(unsafe.SliceData(buf)))%align) // #nosec G103 -- the address alone
	out, in := buf[start:][:align:align], buf[start+align:][:align:align]
	for i := range out {
		out[i] = byte(i * 7)
	}
	if _, err := f.WriteAt(out, 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if _, err := f.ReadAt(in, 0); err != nil {
		return err
	}
	if string(in) != string(out) {
		return errors.New("a file does not hold what was written to it")
	}
	return nil
}

// stateDir must not outlive the kernel's mounts.
func (n *node) stateDir(context.Context) Finding {
	dir := n.StateDir
	for { // what will be made is on the file system of what is there
		_, err := os.Stat(dir)
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrNotExist) || dir == "/" {
			return fail("name another by --state-dir", "%v", err)
		}
		dir = filepath.Dir(dir)
	}
	m, err := mountOf(dir)
	if err != nil {
		return fail("", "%v", err)
	}
	if m.FSType != "tmpfs" {
		return warn("use a directory on a tmpfs, as /run: records of mounts must not outlive a reboot", "%s on %s", n.StateDir, m.FSType)
	}
	return ok("%s on tmpfs", n.StateDir)
}
