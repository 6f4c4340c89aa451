package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/erofs-csi/erofs-csi/driver"
)

func probeCommand() *cobra.Command {
	var endpoint string
	var timeout time.Duration
	var live bool
	cmd := &cobra.Command{
		Use:   "probe --endpoint unix://SOCK",
		Short: "Ask a CSI plugin whether it is ready",
		Long: `Calls Probe of the CSI plugin at a unix socket. Exit code 0: it is ready. A node
plugin is not before it has rebuilt the volumes that it had when it was stopped.
For the probes of a pod without a sidecar.`,
		Example: `  erofs-csi probe --endpoint unix:///csi/csi.sock

  # whether it serves at all, ready or not
  erofs-csi probe --endpoint unix:///csi/csi.sock --live`,
		Args: exactly(0, "no arguments"),
	}
	addEndpoint(cmd, &endpoint)
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "`TIME` to wait for the answer")
	cmd.Flags().BoolVar(&live, "live", false, "be content with an answer that it is not ready")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkEndpoint(endpoint); err != nil {
			return err
		}
		if timeout <= 0 {
			return usagef("--timeout %s: want more than nothing", timeout)
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
		defer cancel()
		ready, err := driver.AskReady(ctx, endpoint)
		if err == nil && !ready && !live {
			err = errors.New("the plugin is not ready: it is rebuilding its volumes")
		}
		return err
	}
	return cmd
}
