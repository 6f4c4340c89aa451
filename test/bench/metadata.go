package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs"
)

const (
	manyInodes   = 100_000
	inodesInADir = 200
	xattrEvery   = 4 // files
)

// makeInodes makes the image of a tree of many small files, some with attributes.
func (b *bench) makeInodes(ctx context.Context) (err error) {
	root := filepath.Join(b.work, "trees", "inodes")
	progress("making %d files", manyInodes)
	for i := range manyInodes {
		dir := filepath.Join(root, fmt.Sprintf("d%02d/%03d", i/inodesInADir/50, i/inodesInADir))
		if i%inodesInADir == 0 {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		file := filepath.Join(dir, fmt.Sprintf("file-%x", uint32(i)*2654435761))
		if err := os.WriteFile(file, []byte(file[:i%50]), 0o600); err != nil {
			return err
		}
		if i%xattrEvery == 0 {
			if err := unix.Setxattr(file, "user.number", []byte(file), 0); err != nil {
				return &os.PathError{Op: "setxattr", Path: file, Err: err}
			}
		}
	}
	b.inodes, err = b.makeImage(ctx, "many inodes", root)
	return err
}

const (
	ours = iota
	kernels
)

// measureMetadata lists all directories of an image that is in the page cache, and
// looks up and stats each name and reads the names and values of its attributes:
// through package erofs, and through a new mount by the kernel of the file.
func (b *bench) measureMetadata(ctx context.Context, t *table) error {
	var took [2]sample // µs a name
	var found [2]metadata
	side := func(who int, walk func() (metadata, time.Duration, error)) func() error {
		return func() error {
			if err := warm(b.inodes.path); err != nil {
				return err
			}
			m, d, err := walk()
			found[who] = m
			took[who].add(micros(d, max(m.names, 1)))
			return err
		}
	}
	err := turns(ctx, b.rounds,
		side(ours, func() (metadata, time.Duration, error) { return b.inodes.walkPackage() }),
		side(kernels, func() (metadata, time.Duration, error) { return b.walkNewMount(b.inodes) }),
	)
	if err != nil {
		return err
	}
	if found[ours] != found[kernels] {
		return fmt.Errorf("we find %+v, the kernel %+v", found[ours], found[kernels])
	}
	t.compare(fmt.Sprintf("readdir, lookup, stat and xattrs of %d names", found[ours].names), "µs/name", "kernel", took[ours], took[kernels], atMost(2))
	return nil
}

// metadata sums up a walk, so that two can be compared.
type metadata struct {
	names, attrs int
	bytes, mtime int64
	values       int
}

// walkPackage walks the image by package erofs.
func (im *image) walkPackage() (m metadata, _ time.Duration, err error) {
	start := time.Now()
	img, f, err := im.open()
	if err != nil {
		return m, 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	root, err := img.Root()
	if err == nil {
		err = m.dir(img, root)
	}
	return m, time.Since(start), err
}

func (m *metadata) dir(img *erofs.Image, dir *erofs.Inode) error {
	var dirs []*erofs.Inode
	var failed error
	err := dir.ReadDir(0, func(d erofs.Dirent) bool {
		if d.Name == "." || d.Name == ".." {
			return true
		}
		var sub *erofs.Inode
		if sub, failed = m.entry(img, dir, d.Name); sub != nil {
			dirs = append(dirs, sub)
		}
		return failed == nil
	})
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	for _, d := range dirs {
		if err := m.dir(img, d); err != nil {
			return err
		}
	}
	return nil
}

// entry looks up a name, and returns its inode if that is a directory.
func (m *metadata) entry(img *erofs.Image, dir *erofs.Inode, name string) (*erofs.Inode, error) {
	d, err := dir.Lookup(name)
	if err != nil {
		return nil, err
	}
	in, err := img.Inode(d.NID)
	if err != nil {
		return nil, err
	}
	m.names++
	m.mtime += in.MtimeSec
	list, err := in.Xattrs()
	if err != nil {
		return nil, err
	}
	for _, x := range list {
		m.attrs++
		m.values += len(x.Value)
	}
	if in.IsDir() {
		return in, nil
	}
	m.bytes += in.Size
	return nil, nil
}

// walkNewMount does the same through a new mount by the kernel.
func (b *bench) walkNewMount(im *image) (m metadata, took time.Duration, err error) {
	dir, err := b.mountpoint()
	if err != nil {
		return m, 0, err
	}
	start := time.Now()
	if err := unix.Mount(im.path, dir, "erofs", unix.MS_RDONLY|unix.MS_NODEV, ""); err != nil {
		return m, 0, fmt.Errorf("mount %s by the kernel's EROFS: %w", im.name, err)
	}
	defer func() { err = errors.Join(err, unmountSoon(dir)) }()
	here, err := os.Getwd()
	if err != nil {
		return m, 0, err
	}
	w := &walker{meta: &m}
	name := append([]byte(dir), 0)
	_, err = timed(func() error { return w.dir(unix.AT_FDCWD, name) })
	took = time.Since(start)
	return m, took, errors.Join(err, os.Chdir(here))
}
