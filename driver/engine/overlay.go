package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs/apart"
	"github.com/erofs-csi/erofs-csi/erofs/fusefs"
)

// mountOverlay shows the image by overlayfs over its metadata and the content
// mount. What it did is undone when it fails, so that another front can be tried.
func (e *Engine) mountOverlay(ctx context.Context, f *front) (err error) {
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
	layer := e.layer(f)
	meta, err := e.acquireMeta(ctx, f)
	if err != nil {
		return err
	}
	f.undo = append(f.undo, func() error { return e.metas.release(meta) })

	lower := escapeLayer(meta.val.dir)
	if layer != nil {
		f.unstore()
		storeFiles(ctx, layer, f.joined, f.large())
		f.layered = true
		lower += "::" + escapeLayer(layer.Dir())
	}
	opts := "lowerdir=" + lower + "::" + escapeLayer(f.domain.mount.Dir()) + ",metacopy=on,redirect_dir=follow"
	// It asks the content mount: for STATFS.
	err = apart.Run(func() error { return unix.Mount(fusefs.Source, f.dir, "overlay", unix.MS_RDONLY, opts) })
	if err != nil {
		return fmt.Errorf("mount overlayfs with a data-only layer (Linux 6.5 or newer): %w", err)
	}
	f.undo = append(f.undo, func() error { return unmount(f.dir) })
	return nil
}

// escapeLayer writes a path as overlayfs' lowerdir option wants it, which takes ":"
// between layers, "," between options and "\" before either.
func escapeLayer(path string) string {
	return strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`).Replace(path)
}
