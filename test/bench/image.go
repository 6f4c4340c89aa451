package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// image is an EROFS image and what must be read from it.
type image struct {
	name    string
	path    string
	size    int64
	want    contents          // its regular files, by their paths
	foreign map[string]string // file systems of other formats with the same files, by format
}

// makeImages builds what the wanted workloads need.
func (b *bench) makeImages(ctx context.Context) (err error) {
	if b.wants("cache") || b.wants("workloads") || b.makeOnly {
		err = b.makePairs(ctx, plain, lz4hc, zstd)
	} else if b.wants("walk") || b.wants("ready") {
		err = b.makePairs(ctx, plain)
	}
	if err != nil || b.makeOnly {
		return err
	}
	if b.wants("walk") {
		if first := b.corpus[0]; first.tree != "" {
			if err := b.makeForeign(ctx, first.versions[0][plain], first.tree, plain); err != nil {
				return err
			}
		}
	}
	var tree string
	for _, name := range []string{"plain", "lz4", "zstd", "small", "codecs", "pull", "lazy"} {
		if b.wants(name) && tree == "" {
			if tree, err = b.contentTree(ctx); err != nil {
				return err
			}
		}
	}
	if err := b.makeBig(ctx, tree); err != nil {
		return err
	}
	if b.wants("small") {
		if err := b.makeSmall(ctx, tree); err != nil {
			return err
		}
	}
	if b.wants("codecs") {
		if err := b.makeCoded(ctx, tree); err != nil {
			return err
		}
	}
	if b.wants("pull") {
		if b.pulled, err = b.makePulled(ctx, tree, "image to pull", b.pullMiB); err != nil {
			return err
		}
	}
	if b.wants("lazy") {
		if b.far, err = b.makePulled(ctx, tree, "image far away", lazyMiB); err != nil {
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

// makeBig makes images of the same large files, as many as are wanted.
func (b *bench) makeBig(ctx context.Context, tree string) error {
	var which []int
	for i, name := range bigWorkloads {
		if b.wants(name) {
			which = append(which, i)
		}
	}
	if len(which) == 0 {
		return nil
	}
	dir := filepath.Join(b.work, "trees", "big")
	if err := writeBig(ctx, tree, dir, int64(b.bigMiB)<<20); err != nil {
		return err
	}
	want, err := scan(ctx, dir)
	if err != nil {
		return err
	}
	if b.big, err = b.makeKindred(ctx, b.work, "large files", dir, want, which...); err != nil {
		return err
	}
	for i, im := range b.big {
		if im != nil {
			if err := b.makeForeign(ctx, im, dir, i); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) makeSmall(ctx context.Context, tree string) (err error) {
	dir := filepath.Join(b.work, "trees", "small")
	if err := writeSmall(ctx, tree, dir, b.small); err != nil {
		return err
	}
	if b.small10k, err = b.makeImage(ctx, "small files, plain", dir); err != nil {
		return err
	}
	return b.makeForeign(ctx, b.small10k, dir, plain)
}

// makeImage builds an image of a directory, and remembers what is in it.
func (b *bench) makeImage(ctx context.Context, name, dir string, opts ...string) (*image, error) {
	progress("building the image of %s", name)
	path := filepath.Join(b.work, strings.ReplaceAll(name, " ", "-")+".erofs")
	if err := mkfs(ctx, path, dir, opts...); err != nil {
		return nil, err
	}
	want, err := scan(ctx, dir)
	if err != nil {
		return nil, err
	}
	return existingImage(name, path, want)
}

// mkfs builds an image of a directory: all of it or none.
func mkfs(ctx context.Context, path, dir string, opts ...string) error {
	half := path + ".half"
	args := append([]string{"--quiet", "-U", "c1b9d5a2-f162-11cf-9ece-0020afc76f16"}, opts...)
	if err := command(ctx, mkfsPath(), append(args, half, dir)...); err != nil {
		return errors.Join(err, removeIfThere(half))
	}
	// On the disk, and so in no round's way.
	if err := syncFile(half); err != nil {
		return err
	}
	return os.Rename(half, path)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func existingImage(name, path string, want contents) (*image, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	return &image{name: name, path: path, size: info.Size(), want: want}, nil
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// imageInfos describes the images that were made, those of one tree in one.
func (b *bench) imageInfos() []imageInfo {
	var infos []imageInfo
	for _, p := range b.corpus {
		for _, k := range p.versions {
			infos = append(infos, k.info())
		}
	}
	infos = append(infos, b.big.info())
	for _, im := range append([]*image{b.small10k, b.inodes, b.pulled, b.far}, b.coded...) {
		infos = append(infos, kindred{im}.info())
	}
	return slices.DeleteFunc(infos, func(i imageInfo) bool { return i.Name == "" })
}

// info describes the images of one tree.
func (k kindred) info() (info imageInfo) {
	for i, im := range k {
		if im == nil {
			continue
		}
		if info.Name == "" {
			info.Name, info.Files = im.name, len(im.want)
			for _, c := range im.want {
				info.Bytes += c.size
			}
		}
		info.Sizes[i] = im.size
	}
	if len(slices.DeleteFunc(slices.Clone(k[:]), func(im *image) bool { return im == nil })) > 1 {
		info.Name, _, _ = strings.Cut(info.Name, ", ")
	}
	return info
}

// command runs a program and puts what it printed into the error.
func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
