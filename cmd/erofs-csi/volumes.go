package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/erofs-csi/erofs-csi/driver"
)

// volumesTimeout bounds what the plugin is asked: it looks at several mounts at a time,
// and waits for each that does not respond.
const volumesTimeout = time.Minute

func volumesCommand() *cobra.Command {
	var endpoint, stateDir string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "volumes [--json]",
		Short: "Show the volumes of the node plugin, and what is wrong with them",
		Long: `Lists the volumes of the node plugin and asks it for the health of each: whether its
image can be read, and what is at the paths where pods have it. What they are made of
and what sharing saves is told by status.`,
		Example: `  erofs-csi volumes
  erofs-csi volumes --json | jq '.[] | select(.reason)'`,
		Args: exactly(0, "no arguments"),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&endpoint, "endpoint", "", "CSI socket of the plugin, `unix:///absolute/path` (default: that of the plugin of the state directory, in its container)")
	addStateDir(cmd.Flags(), &stateDir)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if endpoint == "" {
			plugin := pluginCommand(stateDir)
			if plugin == nil {
				return failf("no node plugin is seen to run with the state directory %s: pass --endpoint, or --state-dir", stateDir)
			}
			endpoint = plugin.Flag("endpoint").Value.String()
		}
		if err := checkEndpoint(endpoint); err != nil {
			return err
		}
		if err := checkStateDir(stateDir, "volumes"); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), volumesTimeout)
		defer cancel()
		list, err := driver.AskVolumes(ctx, endpoint, stateDir)
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), list)
		}
		return printVolumeHealth(cmd.OutOrStdout(), list)
	}
	return cmd
}

func printVolumeHealth(out io.Writer, list []driver.VolumeHealth) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "VOLUME\tIMAGE\tDOMAIN\tPLACES\tHEALTH")
	for _, v := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", printable(v.Volume), printable(v.Image), domainName(v.Domain), len(v.Targets), healthText(v))
	}
	return w.Flush()
}

// healthText is what is wrong with a volume, or "ok".
func healthText(v driver.VolumeHealth) string {
	text := v.Reason
	if v.Message != "" {
		text += ": " + printable(oneLine(v.Message))
	}
	return cmp.Or(text, "ok")
}
