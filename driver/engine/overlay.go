package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/fusefs"
	"github.com/erofs-csi/erofs-csi/erofs/metaimage"
	"github.com/erofs-csi/erofs-csi/erofs/share"
)

// mountOverlay shows the image by overlayfs over its metadata and the content
// mount. What it did is undone when it fails, so that another front can be tried.
func (e *Engine) mountOverlay(ctx context.Context, f *front, im *erofs.Image) (err error) {
	if f.idMapped {
		return fmt.Errorf("%w: use --front auto", ErrNotIDMapped)
	}
	done := len(f.undo)
	defer func() {
		if err == nil {
			return
		}
		for i := len(f.undo) - 1; i >= done; i-- {
			err = errors.Join(err, f.undo[i]())
		}
		f.undo = f.undo[:done]
	}()
	meta, err := e.instance.mountpoint(fmt.Sprintf("meta-%d", e.serial.Add(1)))
	if err != nil {
		return err
	}
	f.undo = append(f.undo, func() error { return os.Remove(meta) })
	layer := e.layer(f)
	large, err := writeAndMountMeta(ctx, f, im, meta)
	if err != nil {
		return fmt.Errorf("metadata image: %w", err)
	}
	f.undo = append(f.undo, func() error { return unmount(meta) })

	lower := escapeLayer(meta)
	if layer != nil {
		f.unstore()
		storeFiles(ctx, layer, f.joined, large)
		lower += "::" + escapeLayer(layer.Dir())
	}
	opts := "lowerdir=" + lower + "::" + escapeLayer(f.domain.mount.Dir()) + ",metacopy=on,redirect_dir=follow"
	if err := unix.Mount(fusefs.Source, f.dir, "overlay", unix.MS_RDONLY, opts); err != nil {
		return fmt.Errorf("mount overlayfs with a data-only layer (Linux 6.5 or newer): %w", err)
	}
	f.undo = append(f.undo, func() error { return unmount(f.dir) })
	return nil
}

// writeAndMountMeta mounts the image's metadata at dir. Its file has no name by
// then: it is gone with the mount, whatever happens to us. It returns the contents
// of large files.
func writeAndMountMeta(ctx context.Context, f *front, im *erofs.Image, dir string) (large []share.Content, err error) {
	file, err := unnamedFile(filepath.Dir(f.image.SidecarPath("meta")))
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	found := make(map[share.Key]struct{})
	content := func(in *erofs.Inode) string {
		k, ok := f.member.Key(in.NID, in.Size)
		if !ok {
			return share.PrivatePath(f.member.Tag(), in.NID)
		}
		if in.Size >= minStored {
			found[k] = struct{}{}
		}
		return share.ContentPath(k)
	}
	if _, err := metaimage.Write(ctx, file, im, content); err != nil {
		return nil, err
	}
	for k := range found {
		large = append(large, f.domain.share.Content(k))
	}
	return large, mountEROFS(file, dir)
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

// escapeLayer writes a path as overlayfs' lowerdir option wants it, which takes ":"
// between layers, "," between options and "\" before either.
func escapeLayer(path string) string {
	return strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`).Replace(path)
}
