package images

import (
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Dir is the tree below a directory, as the system calls show it.
func Dir(path string) Tree { return dirTree(path) }

type dirTree string

func (d dirTree) at(path string) string { return filepath.Join(string(d), path) }

func (d dirTree) Names(dir string) ([]string, error) {
	f, err := os.Open(d.at(dir))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return f.Readdirnames(-1)
}

func (d dirTree) Stat(path string) (Stat, error) {
	var st unix.Stat_t
	if err := unix.Lstat(d.at(path), &st); err != nil {
		return Stat{}, err
	}
	return Stat{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid, Size: st.Size, Nlink: st.Nlink, Rdev: st.Rdev, Ino: st.Ino, Blocks: st.Blocks,
		Mtime: [2]int64{st.Mtim.Sec, st.Mtim.Nsec},
		Ctime: [2]int64{st.Ctim.Sec, st.Ctim.Nsec},
		Atime: [2]int64{st.Atim.Sec, st.Atim.Nsec},
	}, nil
}

func (d dirTree) Readlink(path string) (string, error) { return os.Readlink(d.at(path)) }

// Xattrs lists as llistxattr(2) does.
func (d dirTree) Xattrs(path string) (map[string]string, error) {
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(d.at(path), list)
	if err != nil {
		return nil, err
	}
	all := make(map[string]string)
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(d.at(path), name, value)
		if err != nil {
			return nil, &os.PathError{Op: "getxattr " + name, Path: path, Err: err}
		}
		all[name] = string(value[:n])
	}
	return all, nil
}

func (d dirTree) Open(path string) (File, error) { return os.Open(d.at(path)) }
