package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/erofs-csi/erofs-csi/driver/engine"
)

func dropCommand() *cobra.Command {
	var asJSON bool
	var stateDir string
	var filter engine.DropFilter
	cmd := &cobra.Command{
		Use:   "drop [--domain ID] [--volume ID]",
		Short: "Drop page cache, and what is kept for volumes to come",
		Long: `Has the kernel drop the pages of all domains, of one, or of the files that one
volume shows, whoever else shares them; they come back when they are read. Pages
that a process has mapped stay. Images that no volume shows any more, which are
kept so that the next one starts with their pages in memory, are let go of.`,
		Example: `  erofs-csi drop
  erofs-csi drop --domain apps`,
		Args: exactly(0, "no arguments"),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, sizes in bytes")
	cmd.Flags().StringVar(&filter.Domain, "domain", "", "`ID` of the one domain to drop")
	cmd.Flags().StringVar(&filter.Volume, "volume", "", "`ID` of the one volume to drop, or the directory of a mount command")
	addStateDir(cmd.Flags(), &stateDir)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkStateDir(stateDir, "drop"); err != nil {
			return err
		}
		d, err := engine.DropCaches(cmd.Context(), stateDir, filter)
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), d)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "dropped %s of %d files; %s are mapped or being read; let go of %d idle images\n",
			bytesText(notNegative(d.Before-d.After)), d.Files, bytesText(notNegative(d.After)), d.Images)
		return err
	}
	return cmd
}
