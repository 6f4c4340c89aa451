package driver

import (
	"fmt"
	"path"
	"strings"

	mount "k8s.io/mount-utils"
)

// mountTable is a snapshot of /proc/self/mountinfo in the order of the kernel:
// of two mounts at one place the later is on top. Reading it asks no file
// system anything, so dead and hung mounts cannot block it.
type mountTable []mount.MountInfo

// readMountTable reads the mounts of this process' mount namespace.
func readMountTable() (mountTable, error) {
	infos, err := mount.ParseMountInfo("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("reading the mount table: %w", err)
	}
	for i := range infos {
		// The parser leaves the kernel's escapes (fs/seq_file.c mangle_path).
		infos[i].MountPoint = unescapeOctal(infos[i].MountPoint)
		infos[i].Root = unescapeOctal(infos[i].Root)
	}
	return infos, nil
}

// at returns the topmost mount whose mount point is p, which has no symbolic
// links and is clean.
func (t mountTable) at(p string) (mount.MountInfo, bool) {
	for i := len(t) - 1; i >= 0; i-- {
		if t[i].MountPoint == p {
			return t[i], true
		}
	}
	return mount.MountInfo{}, false
}

// directory identifies a directory without asking its file system: the
// superblock's device and the path below the superblock's root.
type directory struct {
	major, minor int
	root         string
}

// identify returns the directory that p names, which has no symbolic links.
func (t mountTable) identify(p string) (directory, bool) {
	var best mount.MountInfo
	for _, m := range t {
		mp := m.MountPoint
		if (mp == p || mp == "/" || strings.HasPrefix(p, mp+"/")) && len(mp) >= len(best.MountPoint) {
			best = m
		}
	}
	if best.MountPoint == "" {
		return directory{}, false
	}
	below := strings.TrimPrefix(p, best.MountPoint)
	return directory{best.Major, best.Minor, path.Join(best.Root, below)}, true
}

// mountedBy reports whether m is a mount of exactly the directory d.
func (d directory) mountedBy(m mount.MountInfo) bool {
	return m.Major == d.major && m.Minor == d.minor && path.Clean(m.Root) == d.root
}

// unescapeOctal undoes the kernel's \ooo escapes.
func unescapeOctal(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && octal(s[i+1]) && octal(s[i+2]) && octal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func octal(c byte) bool { return c >= '0' && c <= '7' }
