package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

// openedImage is an image open for reading by a command, with what to close.
type openedImage struct {
	*erofs.Image
	size  int64 // bytes of the primary device
	close func()
}

// openImage opens IMAGE: files in place, a reference by way of the node's store
// in cacheDir.
func openImage(ctx context.Context, arg, cacheDir string, p *pull) (*openedImage, error) {
	image, err := parseImage(arg)
	if err != nil {
		return nil, err
	}
	var closers []func()
	closeAll := func() {
		for i := len(closers) - 1; i >= 0; i-- {
			closers[i]()
		}
	}
	var devices []erofs.Device
	if image.path {
		devices, err = openFiles(image.files(), &closers)
	} else {
		devices, err = openPulled(ctx, image.ref, cacheDir, p, &closers)
	}
	if err == nil {
		var im *erofs.Image
		if im, err = erofs.Open(devices[0].R, devices[0].Size, erofs.WithDevices(devices[1:]...)); err == nil {
			return &openedImage{Image: im, size: devices[0].Size, close: closeAll}, nil
		}
	}
	closeAll()
	return nil, imageError(arg, err)
}

func openFiles(names []string, closers *[]func()) ([]erofs.Device, error) {
	devices := make([]erofs.Device, 0, len(names))
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		*closers = append(*closers, func() { _ = f.Close() })
		size, err := f.Seek(0, io.SeekEnd) // Stat says 0 of a block device
		if err != nil {
			return nil, err
		}
		devices = append(devices, erofs.Device{R: f, Size: size})
	}
	return devices, nil
}

func openPulled(ctx context.Context, ref, cacheDir string, p *pull, closers *[]func()) ([]erofs.Device, error) {
	options, err := p.options()
	if err != nil {
		return nil, err
	}
	store, err := openStore(cacheDir, p, engine.ImageSpace{})
	if err != nil {
		return nil, err
	}
	*closers = append(*closers, func() { _ = store.Close() })
	image, err := store.Acquire(ctx, ref, options)
	if err != nil {
		return nil, err
	}
	*closers = append(*closers, image.Release)
	devices := []erofs.Device{{R: image.Blob(), Size: image.Blob().Size()}}
	for _, blob := range image.Devices() {
		devices = append(devices, erofs.Device{R: blob, Size: blob.Size()})
	}
	return devices, nil
}

// imageError names the image and adds what to do about it.
func imageError(arg string, err error) error {
	fix := ""
	switch {
	case errors.Is(err, erofs.ErrFormat):
		fix = ": give an image made by mkfs.erofs"
	case errors.Is(err, erofs.ErrUnsupported):
		fix = ": make the image without that feature"
	case errors.Is(err, erofs.ErrCorrupt):
		fix = ": the image is damaged or cut off, fetch or build it again"
	case errors.Is(err, nodecache.ErrUnauthorized):
		fix = ": log in to the registry, or point REGISTRY_AUTH_FILE at the credentials"
	}
	return fmt.Errorf("%s: %w%s", arg, err, fix)
}
