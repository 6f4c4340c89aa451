package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/metaimage"
	"github.com/erofs-csi/erofs-csi/erofs/share"
)

// maxScans bounds how many images are looked through at a time to write their
// metadata for the overlay: it takes about 140 bytes a file, and a CPU.
const maxScans = 4

// metaKey names a META: it is the same in every domain.
type metaKey struct {
	image string   // imageKey
	index [32]byte // fingerprint.Index.ID, 0 without one
}

// meta is an image's metadata, mounted, for all overlay fronts of the image.
type meta struct{ dir string }

// acquireMeta mounts the metadata of a front's image, unless it is. It is let go of by
// e.metas.release.
func (e *Engine) acquireMeta(ctx context.Context, f *front) (*item[metaKey, *meta], error) {
	key := metaKey{image: f.key.image}
	ix := f.fingerprints()
	if ix != nil {
		key.index = ix.ID()
	}
	return e.metas.acquire(ctx, key, func() (*meta, error) {
		dir, err := e.instance.mountpoint(fmt.Sprintf("meta-%d", e.serial.Add(1)))
		if err != nil {
			return nil, err
		}
		if err := e.writeAndMountMeta(ctx, f, ix != nil, dir); err != nil {
			return nil, errors.Join(fmt.Errorf("metadata image: %w", err), os.Remove(dir))
		}
		return &meta{dir: dir}, nil
	})
}

func unmakeMeta(m *meta) error { return errors.Join(unmount(m.dir), os.Remove(m.dir)) }

// writeAndMountMeta mounts the image's metadata at dir.
// The file that is mounted has no name: it is gone with the mount, whatever happens to
// us. shares: files are named by their content where it is known; else by themselves,
// also if it becomes known while this is written, for other domains have this META too.
func (e *Engine) writeAndMountMeta(ctx context.Context, f *front, shares bool, dir string) error {
	select {
	case e.scans <- struct{}{}:
		defer func() { <-e.scans }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	file, err := unnamedFile(filepath.Dir(f.image.SidecarPath("meta")))
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	content := func(in *erofs.Inode) string {
		k, ok := f.member.Key(in.NID, in.Size)
		if !ok || !shares {
			return share.PrivatePath(f.member.Tag(), in.NID)
		}
		return share.ContentPath(k)
	}
	if _, err := metaimage.Write(ctx, file, f.erofs, content); err != nil {
		return err
	}
	return mountEROFS(file, dir)
}

// unnamedFile makes a file that nobody else can open, on the file system of dir.
func unnamedFile(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), filepath.Join(dir, "(unnamed)")), nil
	}
	file, err := os.CreateTemp(dir, "meta-*")
	if err != nil {
		return nil, err
	}
	return file, os.Remove(file.Name())
}
