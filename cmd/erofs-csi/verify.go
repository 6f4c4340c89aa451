package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/erofs-csi/erofs-csi/erofs"
)

func verifyCommand() *cobra.Command {
	var cacheDir string
	cmd := &cobra.Command{
		Use:   "verify IMAGE",
		Short: "Read and check everything in an image",
		Long: `Reads every inode, directory, attribute and byte of data of an EROFS image and
checks them against each other. Each finding is a line on stdout; with any, the
exit code is 1. IMAGE is as for inspect.`,
		Example: `  erofs-csi verify app.erofs`,
		Args:    exactly(1, "one IMAGE"),
	}
	addCacheDir(cmd.Flags(), &cacheDir)
	p := addPull(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		out := cmd.OutOrStdout()
		im, err := openImage(cmd.Context(), args[0], cacheDir, p)
		if err != nil {
			return err
		}
		defer im.close()
		fix := "it needs what this release does not read"
		stats, err := erofs.Verify(cmd.Context(), im.Image, func(path string, finding error) {
			if !errors.Is(finding, erofs.ErrUnsupported) {
				fix = "the image is damaged, fetch or build it again"
			}
			fmt.Fprintf(out, "%s: %s\n", printable(path), printable(oneLine(finding.Error())))
		})
		if err != nil {
			return imageError(args[0], err)
		}
		if stats.Findings > 0 {
			return failf("%s: findings: %d: %s", args[0], stats.Findings, fix)
		}
		_, err = fmt.Fprintf(out, "ok: %d inodes, %d directory entries, %d extended attributes, %d bytes of data\n",
			stats.Inodes, stats.Dirents, stats.Xattrs, stats.Bytes)
		return err
	}
	return cmd
}
