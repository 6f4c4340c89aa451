package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/erofs-csi/erofs-csi/driver/podmount"
)

// podMounts is the command that "node --repair-pods" runs.
const podMounts = "pod-mounts"

// podMountsCommand is not for people: it does what its stdin says.
func podMountsCommand() *cobra.Command {
	return &cobra.Command{
		Use:     podMounts,
		Short:   "Find or replace dead mounts in the mount namespaces of pods, for a node plugin",
		Example: "  # run by erofs-csi node --repair-pods",
		Hidden:  true,
		Args:    exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return podmount.Main(cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}

// podsByChild runs the program that runs, even if another has its name by now.
func podsByChild(ctx context.Context, task podmount.Task) (podmount.Answer, error) {
	return podmount.Run(ctx, task, "/proc/self/exe", podMounts)
}
