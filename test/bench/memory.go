package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// holder is a way to have images mounted, whose memory is measured.
type holder struct {
	name string
	// mount mounts the images and returns where, and what takes them away.
	mount func(ctx context.Context, images []*image) (dirs []string, release func() error, err error)
}

// The columns of what does not share, and of the kernel's own sharing.
const (
	notShared   = "kernel"
	ownAlone    = "no domain"
	kernelShare = "kernel, " + shares
)

// kernelHolder mounts by the kernel's EROFS: mount is oldKernelMount or sharedMount.
func (b *bench) kernelHolder(name string, mount func(*image) (*mounted, error)) holder {
	return holder{name, func(_ context.Context, images []*image) (dirs []string, _ func() error, err error) {
		var mounts []*mounted
		release := func() error {
			var errs []error
			for _, m := range slices.Backward(mounts) {
				errs = append(errs, m.unmount())
			}
			for _, im := range images {
				errs = append(errs, forget(im.path))
			}
			return errors.Join(errs...)
		}
		for _, im := range images {
			m, err := mount(im)
			if err != nil {
				return nil, nil, errors.Join(err, release())
			}
			mounts, dirs = append(mounts, m), append(dirs, m.dir)
		}
		return dirs, release, nil
	}}
}

// ourHolder mounts by a new server each time, which finds what an earlier one knew
// of the images in its cache directory.
func (b *bench) ourHolder(name, front, domain string) holder {
	cache := b.freshCache()
	return holder{name, func(ctx context.Context, images []*image) ([]string, func() error, error) {
		s, err := b.serve(ctx, front, domain, cache, images...)
		if err != nil {
			return nil, nil, errors.Join(err, forget(cache))
		}
		return s.dirs, func() error { return errors.Join(s.close(), forget(cache)) }, nil
	}}
}

// known starts a server once, which hashes the images.
func (h holder) known(ctx context.Context, images []*image) error {
	_, release, err := h.mount(ctx, images)
	if err != nil {
		return err
	}
	return release()
}

// canShare tells whether the kernel shares by itself, for images such as this.
func (b *bench) canShare(im *image) (bool, error) {
	m, err := b.sharedMount(im)
	if errors.Is(err, errNoShare) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, m.unmount()
}

// forget takes a file, or the files below a directory, out of the page cache. It is
// no error when there is none.
func forget(path string) error {
	err := filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if err := f.Sync(); err != nil {
			return err
		}
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return fmt.Errorf("fadvise %s: %w", path, err)
		}
		return nil
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
