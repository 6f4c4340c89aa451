package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// image is an EROFS image and what must be read from it.
type image struct {
	name string
	path string
	size int64
	want contents // its regular files, by their paths
}

// makeImages builds what the wanted workloads need.
func (b *bench) makeImages(ctx context.Context) error {
	trees, err := b.chooseTrees(ctx)
	if err != nil {
		return err
	}
	if b.wants("plain") || b.wants("lz4") {
		if err := b.makeBig(ctx, trees[0]); err != nil {
			return err
		}
	}
	if b.wants("small") {
		if err := b.makeSmall(ctx, trees[0]); err != nil {
			return err
		}
	}
	if b.wants("cache") || b.wants("walk") || b.wants("ready") {
		for i, tree := range trees {
			if b.pair[i], err = b.makeImage(ctx, []string{"pair A", "pair B"}[i], tree); err != nil {
				return err
			}
		}
		b.ideal = newIdeal(b.pair[0].want, b.pair[1].want)
	}
	if b.wants("codecs") {
		if err := b.makeCoded(ctx, trees[0]); err != nil {
			return err
		}
	}
	if b.wants("metadata") {
		if err := b.makeInodes(ctx); err != nil {
			return err
		}
	}
	return os.RemoveAll(filepath.Join(b.work, "trees"))
}

// makeBig makes the plain and the LZ4 image of the same large files.
func (b *bench) makeBig(ctx context.Context, tree string) error {
	dir := filepath.Join(b.work, "trees", "big")
	if err := writeBig(ctx, tree, dir, int64(b.bigMiB)<<20); err != nil {
		return err
	}
	var err error
	if b.wants("plain") {
		if b.plain, err = b.makeImage(ctx, "large files, plain", dir); err != nil {
			return err
		}
	}
	if b.wants("lz4") {
		b.lz4, err = b.makeImage(ctx, "large files, LZ4HC", dir, "-zlz4hc")
	}
	return err
}

func (b *bench) makeSmall(ctx context.Context, tree string) (err error) {
	dir := filepath.Join(b.work, "trees", "small")
	if err := writeSmall(ctx, tree, dir, b.small); err != nil {
		return err
	}
	b.small10k, err = b.makeImage(ctx, "small files, plain", dir)
	return err
}

// makeImage builds an image of a directory, and remembers what is in it.
func (b *bench) makeImage(ctx context.Context, name, dir string, opts ...string) (*image, error) {
	progress("building the image of %s", name)
	im := &image{name: name, path: filepath.Join(b.work, strings.ReplaceAll(name, " ", "-")+".erofs")}
	args := append([]string{"--quiet", "-U", "c1b9d5a2-f162-11cf-9ece-0020afc76f16"}, opts...)
	if err := command(ctx, mkfsPath(), append(args, im.path, dir)...); err != nil {
		return nil, err
	}
	// On the disk, and so in no round's way.
	if err := syncFile(im.path); err != nil {
		return nil, err
	}
	info, err := os.Stat(im.path)
	if err != nil {
		return nil, err
	}
	im.size = info.Size()
	im.want, err = scan(ctx, dir)
	return im, err
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// imageInfos describes the images that were made.
func (b *bench) imageInfos() []imageInfo {
	var infos []imageInfo
	for _, im := range append([]*image{b.plain, b.lz4, b.small10k, b.pair[0], b.pair[1], b.inodes}, b.coded...) {
		if im == nil {
			continue
		}
		i := imageInfo{Name: im.name, Files: len(im.want), ImageSize: im.size}
		for _, c := range im.want {
			i.Bytes += c.size
		}
		infos = append(infos, i)
	}
	return infos
}

// command runs a program and puts what it printed into the error.
func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
