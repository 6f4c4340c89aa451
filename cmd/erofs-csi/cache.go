package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

// cacheFlags say which store is meant, and who may have it open.
type cacheFlags struct{ cacheDir, stateDir string }

func cacheCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cache",
		Short: "List, evict, remove and pin the node's images",
		Long: `Looks after the pulled images in the cache directory, and what was computed about
images at paths. The node plugin or mount command that has the directory open does
what is asked, found in the state directory; without one, this process does.`,
		Example: `  erofs-csi cache ls
  erofs-csi cache pin registry.example/app:v1`,
		Args: func(cmd *cobra.Command, args []string) error {
			return usagef("cache: want ls, gc, rm, pin or unpin, got %q: see 'erofs-csi cache --help'", args)
		},
		RunE: func(*cobra.Command, []string) error { return nil },
	}
	cmd.AddCommand(cacheListCommand(), cacheCollectCommand(), cacheRemoveCommand(),
		cachePinCommand("pin", engine.CachePin, "Keep an image from being evicted and removed",
			`Keeps the image that IMAGE leads to, for good, until unpin. A pinned tag keeps what it
leads to at any time. The image must be on the node.`),
		cachePinCommand("unpin", engine.CacheUnpin, "Take a pin back", `Takes back what pin did with the same IMAGE.`))
	return cmd
}

// add adds the flags of a subcommand.
func (f *cacheFlags) add(cmd *cobra.Command) {
	addCacheDir(cmd.Flags(), &f.cacheDir)
	addStateDir(cmd.Flags(), &f.stateDir)
}

// query does something with the store: by the process that has it open, or here.
func (f *cacheFlags) query(ctx context.Context, q engine.CacheQuery) (engine.CacheAnswer, error) {
	if err := checkStateDir(f.stateDir, "cache"); err != nil {
		return engine.CacheAnswer{}, err
	}
	if _, err := os.Stat(filepath.Join(f.cacheDir, "lock")); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return engine.CacheAnswer{}, failf("%s: there is no image store: pass --cache-dir", f.cacheDir)
		}
		return engine.CacheAnswer{}, err
	}
	a, err := engine.AskCache(ctx, f.stateDir, f.cacheDir, q)
	if !errors.Is(err, engine.ErrNotMounted) {
		return a, err
	}
	store, openErr := nodecache.Open(nodecache.Config{Dir: f.cacheDir})
	if errors.Is(openErr, nodecache.ErrLocked) {
		return a, fmt.Errorf("%w, and no process of the state directory %s answers for it: pass its --state-dir, or wait for its end", openErr, f.stateDir)
	}
	if openErr != nil {
		return a, openErr
	}
	a, err = engine.QueryCache(ctx, store, q)
	return a, errors.Join(err, store.Close())
}

func cacheListCommand() *cobra.Command {
	var asJSON bool
	var f cacheFlags
	cmd := &cobra.Command{
		Use:   "ls [--json]",
		Short: "List the images in the store",
		Long: `Lists the images, the one used last first, and how full the store is. ON DISK is
what an image takes with all that belongs to it, as du counts it. "idle" is an image
that no volume shows any more, whose pages are kept in memory; it may be evicted.
"partial" is one of which not all is on the node yet: a pull goes on with what is.
An image without a reference is found by its digest when it is pulled again.`,
		Example: `  erofs-csi cache ls
  erofs-csi cache ls --json | jq '.images[] | select(.inUse | not) | .digest'`,
		Args: exactly(0, "no arguments"),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, sizes in bytes")
	f.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		a, err := f.query(cmd.Context(), engine.CacheQuery{Op: engine.CacheList})
		if err != nil {
			return err
		}
		if a.Contents == nil {
			return failf("the process that has %s open told nothing of it: is it of another version?", f.cacheDir)
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), a.Contents)
		}
		return printCache(cmd.OutOrStdout(), *a.Contents)
	}
	return cmd
}

func printCache(out io.Writer, c nodecache.Contents) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(c.Images) > 0 {
		fmt.Fprintln(w, "IMAGE\tDIGEST\tSIZE\tON DISK\tLAST USE\tSTATE\tVOLUMES")
	}
	for _, im := range c.Images {
		digest, size := "-", "-"
		if im.Digest != "" {
			digest, size = shortDigest(im.Digest), bytesText(notNegative(im.Size))
		}
		line := fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s\t%s", printable(cachedName(im)), digest, size,
			bytesText(notNegative(im.Allocated)), ago(time.Since(im.LastUse)), cachedState(im), printable(strings.Join(im.Volumes, " ")))
		fmt.Fprintln(w, strings.TrimRight(line, "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, path := range c.Unknown {
		fmt.Fprintf(out, "unknown file, left alone: %s\n", printable(path))
	}
	limit := "no limit"
	if c.Limit > 0 {
		limit = "limit " + bytesText(notNegative(c.Limit))
	}
	_, err := fmt.Fprintf(out, "%s: %s (%s), %s beside images; %s free on the disk, of which %s are kept free; %d evictions\n",
		c.Dir, bytesText(notNegative(c.Bytes)), limit, bytesText(notNegative(c.Overhead)),
		bytesText(notNegative(c.Free)), bytesText(notNegative(c.Reserve)), c.Evictions)
	return err
}

// cachedName is how a list names an image: by its tags, or what else there is.
func cachedName(im nodecache.StoredImage) string {
	var tags []string
	for _, ref := range im.References {
		if !strings.Contains(ref, "@") {
			tags = append(tags, ref)
		}
	}
	switch {
	case len(tags) > 0:
		return strings.Join(tags, " ")
	case len(im.References) > 0:
		return im.References[0]
	case im.Digest == "":
		return "computed of an image at a path"
	}
	return "-"
}

func cachedState(im nodecache.StoredImage) string {
	var states []string
	switch {
	case im.InUse:
		states = append(states, "in use")
	case im.Resting:
		states = append(states, "idle")
	}
	if im.Pinned {
		states = append(states, "pinned")
	}
	if im.Converted {
		states = append(states, "converted")
	}
	if im.Partial {
		states = append(states, "partial")
	}
	if len(states) == 0 {
		return "-"
	}
	return strings.Join(states, ", ")
}

// shortDigest is enough of a digest to tell it from others by eye.
func shortDigest(digest string) string { return digest[:min(len(digest), len("sha256:")+12)] }

// ago is a time in the past as people say it.
func ago(d time.Duration) string {
	for _, unit := range []struct {
		length time.Duration
		name   string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}} {
		if n := d / unit.length; n > 0 {
			return fmt.Sprintf("%d%s ago", n, unit.name)
		}
	}
	return "now"
}

func cacheCollectCommand() *cobra.Command {
	var asJSON bool
	var size string
	var f cacheFlags
	cmd := &cobra.Command{
		Use:   "gc [--size SIZE]",
		Short: "Evict images that nobody uses",
		Long: `Evicts all images that no volume uses and that are not pinned, or with --size those
used least recently, until the store takes no more than that.`,
		Example: `  erofs-csi cache gc
  erofs-csi cache gc --size 20Gi`,
		Args: exactly(0, "no arguments"),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, sizes in bytes")
	cmd.Flags().StringVar(&size, "size", "0", "`SIZE` that the store may still take, as 20Gi or 10% of the disk")
	f.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		q := engine.CacheQuery{Op: engine.CacheEvict}
		var err error
		if q.Size, err = engine.ParseSize(size, f.cacheDir); err != nil {
			return usagef("--size: %v", err)
		}
		a, err := f.query(cmd.Context(), q)
		if err != nil {
			return err
		}
		return printEvicted(cmd.OutOrStdout(), a.Evicted, asJSON)
	}
	return cmd
}

func cacheRemoveCommand() *cobra.Command {
	var asJSON bool
	var f cacheFlags
	cmd := &cobra.Command{
		Use:   "rm IMAGE",
		Short: "Remove an image",
		Long: `Removes the image that IMAGE leads to, with all references to it. IMAGE is a reference
HOST/NAME:TAG or HOST/NAME@DIGEST, or the sha256:DIGEST of an image's bytes. What a
volume uses, or what is pinned, is not removed.`,
		Example: `  erofs-csi cache rm registry.example/app:v1`,
		Args:    exactly(1, "one IMAGE"),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, sizes in bytes")
	f.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		a, err := f.query(cmd.Context(), engine.CacheQuery{Op: engine.CacheRemove, Image: args[0]})
		if err != nil {
			return err
		}
		return printEvicted(cmd.OutOrStdout(), a.Evicted, asJSON)
	}
	return cmd
}

func printEvicted(out io.Writer, e nodecache.Evicted, asJSON bool) error {
	if asJSON {
		return printJSON(out, e)
	}
	images := "images"
	if e.Images == 1 {
		images = "image"
	}
	_, err := fmt.Fprintf(out, "removed %d %s, %s\n", e.Images, images, bytesText(notNegative(e.Bytes)))
	return err
}

func cachePinCommand(name string, op engine.CacheOp, short, long string) *cobra.Command {
	var f cacheFlags
	cmd := &cobra.Command{
		Use:     name + " IMAGE",
		Short:   short,
		Long:    long + " IMAGE is a reference\nHOST/NAME:TAG or HOST/NAME@DIGEST, or the sha256:DIGEST of an image's bytes.",
		Example: "  erofs-csi cache " + name + " registry.example/app:v1",
		Args:    exactly(1, "one IMAGE"),
	}
	f.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		_, err := f.query(cmd.Context(), engine.CacheQuery{Op: op, Image: args[0]})
		return err
	}
	return cmd
}
