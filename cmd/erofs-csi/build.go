package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/erofs/build"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

func buildCommand() *cobra.Command {
	var timestamp, ref string
	p := &pull{}
	cmd := &cobra.Command{
		Use:   "build SOURCE OUT",
		Short: "Make an EROFS image of a directory, an archive or a container image",
		Long: `Writes an EROFS image to the file OUT. SOURCE is a directory, a tar archive (plain,
or compressed by gzip or zstd; - for stdin), or a reference HOST/NAME:TAG of a container
image, whose layers are merged. Files carry their fingerprints, so that 'fingerprints:
trusted' and 'engine: kernel' share them. The same source gives the same bytes.

OUT appears when it is complete. Its size and digest are printed; with --push, also the
reference by digest of the artifact that it was pushed as.`,
		Example: `  erofs-csi build ./rootfs app.erofs
  zstd -dc app.tar.zst | erofs-csi build - app.erofs
  erofs-csi build registry.example/app:v1 app.erofs --push registry.example/app:v1-erofs`,
		Args: exactly(2, "a SOURCE and an OUT"),
	}
	cmd.Flags().StringVar(&timestamp, "timestamp", "", "build time in `SECONDS` since 1970; what is newer gets it as its mtime (default $SOURCE_DATE_EPOCH). Not for references")
	cmd.Flags().StringVar(&ref, "push", "", "push the image as an artifact to `REFERENCE` HOST/NAME[:TAG]")
	addPlainHTTP(cmd.Flags(), &p.plainHTTP)
	addRegistries(cmd.Flags(), &p.registries)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		opts, err := buildOptions(timestamp)
		if err != nil {
			return err
		}
		source, out := args[0], args[1]
		if err := checkRegistries(&p.registries); err != nil {
			return err
		}
		var target *pushTarget
		if ref != "" {
			if target, err = newPushTarget(ref, p); err != nil {
				return err
			}
		}
		var d digest.Digest
		var size int64
		err = replaceFile(out, func(f, scratch *os.File) (err error) {
			if err := buildFrom(cmd.Context(), source, f, scratch, opts, timestamp != "", p); err != nil {
				return err
			}
			d, size, err = digestOf(f) // while it is in memory
			return err
		})
		if err != nil {
			return fmt.Errorf("build %s: %w", source, err)
		}
		if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %d bytes, %s\n", out, size, d); err != nil {
			return err
		}
		if target == nil {
			return nil
		}
		pushed, err := target.push(cmd.Context(), out, d, size, opts.Time)
		if err == nil {
			_, err = fmt.Fprintln(cmd.OutOrStdout(), pushed)
		}
		return err
	}
	return cmd
}

// buildOptions reads --timestamp, or SOURCE_DATE_EPOCH in its place
// (reproducible-builds.org/specs/source-date-epoch).
func buildOptions(timestamp string) (build.Options, error) {
	name := "--timestamp"
	if timestamp == "" {
		timestamp, name = os.Getenv("SOURCE_DATE_EPOCH"), "SOURCE_DATE_EPOCH"
	}
	if timestamp == "" {
		return build.Options{}, nil
	}
	sec, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil || sec < 0 {
		return build.Options{}, usagef("build: %s is %q: want seconds since 1970", name, timestamp)
	}
	return build.Options{Time: time.Unix(sec, 0), ClampMtime: true}, nil
}

// buildFrom writes the image of SOURCE into f.
func buildFrom(ctx context.Context, source string, f, scratch *os.File, opts build.Options, timed bool, p *pull) error {
	info, err := os.Stat(source)
	switch {
	case source == "-":
		return buildTar(ctx, "stdin", os.Stdin, f, scratch, opts)
	case err == nil && info.IsDir():
		b := build.New(ctx, f, scratch, opts)
		b.Layer(source)
		if err := addDirectory(b, source); err != nil {
			return err
		}
		_, err := b.Finish()
		return err
	case err == nil:
		archive, err := os.Open(source)
		if err != nil {
			return err
		}
		defer func() { _ = archive.Close() }()
		return buildTar(ctx, source, archive, f, scratch, opts)
	case !looksLikeReference(source):
		return fmt.Errorf("%w: give a directory, a tar archive, or a reference HOST/NAME:TAG", err)
	case timed:
		return usagef("--timestamp is not for references: a container image always gives the same bytes")
	}
	return buildReference(ctx, source, f, p)
}

// buildTar writes the image of an archive, which may be compressed.
func buildTar(ctx context.Context, name string, r io.Reader, f, scratch *os.File, opts build.Options) error {
	plain, err := build.Decompress(r)
	if err != nil {
		return err
	}
	defer func() { _ = plain.Close() }()
	ahead := build.Ahead(plain)
	head := bufio.NewReaderSize(ahead, 64<<10)
	if start, err := head.Peek(build.HeadSize); err == nil && build.IsImage(start) {
		return errors.New("it is an EROFS image already")
	}
	b := build.New(ctx, f, scratch, opts)
	b.Layer(name)
	if err := b.AddTar(head, build.TarOptions{}); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, head); err != nil { // who writes to a pipe expects it to be read
		return err
	}
	_, err = b.Finish()
	return err
}

// buildReference pulls and converts an image by way of a store of its own, so that
// it needs no node and leaves none behind.
func buildReference(ctx context.Context, ref string, f *os.File, p *pull) error {
	if err := nodecache.ValidateReference(ref); err != nil {
		return err
	}
	credentials, err := registryCredentials()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(f.Name()), ".erofs-csi-build-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	store, err := openStore(dir, p, engine.ImageSpace{})
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	image, err := store.Acquire(ctx, ref, nodecache.AcquireOptions{DockerConfig: credentials})
	if err != nil {
		return imageError(ref, err)
	}
	defer image.Release()
	blob, err := os.Open(image.Blob().Path())
	if err != nil {
		return err
	}
	defer func() { _ = blob.Close() }()
	_, err = io.Copy(f, blob) // a reflink where the file system has them
	return err
}

// replaceFile makes the file name from what write puts into f, at once; scratch is
// for write alone. After an error there is what was there before.
func replaceFile(name string, write func(f, scratch *os.File) error) (err error) {
	dir := filepath.Dir(name)
	f, err := os.CreateTemp(dir, "."+filepath.Base(name)+"-")
	if err != nil {
		return err
	}
	defer func() {
		_ = f.Close()
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	scratch, err := os.CreateTemp(dir, "."+filepath.Base(name)+"-")
	if err != nil {
		return err
	}
	defer func() { _ = scratch.Close() }()
	if err := os.Remove(scratch.Name()); err != nil {
		return err
	}
	if err := write(f, scratch); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// digestOf reads all of a file.
func digestOf(f *os.File) (digest.Digest, int64, error) {
	h := sha256.New()
	buf := make([]byte, 1<<20)
	n, err := io.CopyBuffer(h, io.NewSectionReader(f, 0, math.MaxInt64), buf)
	return digest.NewDigest(digest.SHA256, h), n, err
}
