package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// kind is a way to build an image, with the damages to make to it.
type kind struct {
	name    string
	opts    []string
	blob    bool // data are on an extra device
	digests bool // it has the digests of its files, and fsck.erofs compares them
	crc     bool // it has the superblock's checksum
	damages []func(*maker)
}

// kinds are the images, in the order of the table's rows.
var kinds = []kind{
	{name: "inline", damages: []func(*maker){superblocks, inodes, inlineTails, directories, inlineXattrs, sharedXattrs, truncations}},
	{name: "checksum", crc: true, damages: []func(*maker){checksums}},
	{name: "compact", opts: []string{"-Eforce-inode-compact", "--ignore-mtime"}, damages: []func(*maker){compactInodes}},
	{name: "prefixes", opts: []string{"--xattr-prefix=user.project.", "-x1"}, damages: []func(*maker){prefixes, sharedXattrs}},
	{name: "digests", digests: true, opts: []string{"--xattr-inode-digest"}, damages: []func(*maker){digests, plainData}},
	{name: "chunk-indexes", opts: []string{"--chunksize=4096", "-Eforce-chunk-indexes"}, damages: []func(*maker){chunks}},
	{name: "block-map", opts: []string{"--chunksize=4096", "-Eforce-inode-blockmap"}, damages: []func(*maker){chunks}},
	{name: "device", blob: true, opts: []string{"--chunksize=16384"}, damages: []func(*maker){devices}},
	{name: "lz4", opts: []string{"-zlz4"}, damages: []func(*maker){headers, compactIndexes}},
	{name: "lz4-full", opts: []string{"-zlz4", "-Elegacy-compress"}, damages: []func(*maker){fullIndexes}},
	{name: "lz4-big", opts: []string{"-zlz4hc", "-C65536"}, damages: []func(*maker){configs, compactIndexes, compressedData}},
	{name: "lzma", opts: []string{"-zlzma", "-C16384"}, damages: []func(*maker){configs, compressedData}},
	{name: "deflate", opts: []string{"-zdeflate", "-C16384"}, damages: []func(*maker){configs, compressedData}},
	{name: "zstd", opts: []string{"-zzstd", "-C16384"}, damages: []func(*maker){configs, compressedData}},
	{name: "ztailpacking", opts: []string{"-zlz4", "-Eztailpacking"}, damages: []func(*maker){inlineClusters}},
	{name: "fragments", opts: []string{"-zlz4", "-Efragments"}, damages: []func(*maker){packed, packedData}},
	{name: "all-fragments", opts: []string{"-zzstd", "-Eall-fragments"}, damages: []func(*maker){packedData}},
	{name: "dedupe", opts: []string{"-zlz4", "-Ededupe", "-C16384"}, damages: []func(*maker){fullIndexes}},
	{name: "extents", opts: []string{"-zlz4", "-C16384", "-E48bit"}, damages: []func(*maker){records}},
	{name: "extents-shared", opts: []string{"-zzstd", "-C16384", "-E48bit,dedupe,fragments"}, damages: []func(*maker){records}},
	{name: "metabox", opts: []string{"-m4096"}, damages: []func(*maker){inMetabox}},
	{name: "metabox-lz4", opts: []string{"-zlz4", "-m4096"}, damages: []func(*maker){metaboxes}},
	{name: "compressed-directories", opts: []string{"-zzstd", "--zD"}, damages: []func(*maker){packedDirectories}},
	{name: "digests-lzma", digests: true, opts: []string{"-zlzma", "--xattr-inode-digest"}, damages: []func(*maker){compressedData}},
}

// tools are the programs of erofs-utils in one directory; "" is $PATH.
type tools string

func (t tools) path(name string) string {
	if t == "" {
		return name
	}
	return filepath.Join(string(t), name)
}

// run returns what a program printed, and puts that into the error.
func (t tools) run(ctx context.Context, name string, args ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, t.path(name), args...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return out, nil
}

// build makes the good image of a kind from the tree, in the directory dir.
func (k *kind) build(ctx context.Context, t tools, dir, tree string) (*image, error) {
	im := &image{kind: k, tools: t, path: filepath.Join(dir, k.name+".erofs")}
	args := []string{"--quiet", "-U", "c1b9d5a2-f162-11cf-9ece-0020afc76f16", "-T1700000000", "--mkfs-time", "--all-root"}
	if !k.crc {
		args = append(args, "-Enosbcrc")
	}
	if k.blob {
		im.blob = filepath.Join(dir, k.name+".blob")
		args = append(args, "--blobdev="+im.blob)
	}
	args = append(append(args, k.opts...), im.path, tree)
	if _, err := t.run(ctx, "mkfs.erofs", args...); err != nil {
		return nil, err
	}
	var err error
	if im.b, err = os.ReadFile(im.path); err != nil {
		return nil, err
	}
	if err := im.parse(ctx); err != nil {
		return nil, fmt.Errorf("image %s: %w", k.name, err)
	}
	return im, nil
}
