package erofs_test

import (
	"os"
	"path"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// imageTree shows an image as a tree to compare. Every path is looked up from
// the root, name by name.
type imageTree struct{ im *erofs.Image }

func (t imageTree) inode(name string) (*erofs.Inode, error) {
	if name == "." {
		return t.im.Root()
	}
	dir, err := t.inode(path.Dir(name))
	if err != nil {
		return nil, err
	}
	d, err := dir.Lookup(path.Base(name))
	if err != nil {
		return nil, err
	}
	return t.im.Inode(d.NID)
}

func (t imageTree) Names(dir string) ([]string, error) {
	in, err := t.inode(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	err = in.ReadDir(0, func(d erofs.Dirent) bool {
		if d.Name != "." && d.Name != ".." {
			names = append(names, d.Name)
		}
		return true
	})
	return names, err
}

func (t imageTree) Stat(name string) (images.Stat, error) {
	in, err := t.inode(name)
	if err != nil {
		return images.Stat{}, err
	}
	when := [2]int64{in.MtimeSec, int64(in.MtimeNsec)}
	// new_decode_dev of the kernel.
	major := in.Rdev >> 8 & 0xfff
	minor := in.Rdev&0xff | in.Rdev>>12&0xfff00
	return images.Stat{
		Mode: in.Mode, UID: in.UID, GID: in.GID, Size: in.Size, Nlink: uint64(in.Nlink), Ino: t.im.Ino(in.NID), Blocks: int64(in.Sectors()),
		Rdev: unix.Mkdev(major, minor), Mtime: when, Ctime: when, Atime: when,
	}, nil
}

func (t imageTree) Readlink(name string) (string, error) {
	in, err := t.inode(name)
	if err != nil {
		return "", err
	}
	return in.Readlink()
}

func (t imageTree) Xattrs(name string) (map[string]string, error) {
	in, err := t.inode(name)
	if err != nil {
		return nil, err
	}
	list, err := in.Xattrs()
	if err != nil {
		return nil, err
	}
	all := make(map[string]string)
	for _, x := range list {
		value, err := in.Xattr(x.Name)
		if err != nil {
			return nil, err
		}
		all[x.Name] = string(value)
	}
	return all, nil
}

func (t imageTree) Open(name string) (images.File, error) {
	in, err := t.inode(name)
	if err != nil {
		return nil, err
	}
	return imageFile{in}, nil
}

type imageFile struct{ *erofs.Inode }

func (imageFile) Close() error { return nil }

// openFile opens the image in a file, with files for its extra devices.
func openFile(t testing.TB, name string, devices ...string) *erofs.Image {
	t.Helper()
	f, size := open(t, name)
	var list []erofs.Device
	for _, d := range devices {
		r, n := open(t, d)
		list = append(list, erofs.Device{R: r, Size: n})
	}
	im, err := erofs.Open(f, size, erofs.WithDevices(list...))
	if err != nil {
		t.Fatalf("open %s: %v", name, err)
	}
	return im
}

func open(t testing.TB, name string) (*os.File, int64) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return f, st.Size()
}
