package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/driver/engine"
)

func statusCommand() *cobra.Command {
	var asJSON bool
	var stateDir string
	cmd := &cobra.Command{
		Use:   "status [--json]",
		Short: "Show what is mounted and what sharing saves",
		Long: `Asks every node plugin and mount command of the state directory for its domains
and volumes, and the kernel for their page cache. SAVED is what the resident
pages would take more if each file of each image that a volume shows had its own,
ALONE the part of an image's resident pages that no other image of the domain has.
In a domain of more than some thousands of files these are estimates ("sampled").`,
		Example: `  erofs-csi status
  erofs-csi status --json | jq '[.[].domains[].bytesSaved] | add'`,
		Args: exactly(0, "no arguments"),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, sizes in bytes")
	addStateDir(cmd.Flags(), &stateDir)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		list, err := readStatus(cmd.Context(), stateDir)
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), list)
		}
		return printStatus(cmd.OutOrStdout(), stateDir, list)
	}
	return cmd
}

func readStatus(ctx context.Context, stateDir string) ([]engine.Status, error) {
	if err := checkStateDir(stateDir, "status"); err != nil {
		return nil, err
	}
	list, err := engine.ReadStatus(ctx, stateDir)
	if list == nil {
		list = []engine.Status{} // [] in JSON
	}
	return list, err
}

// checkStateDir tells who may not look into the engines' directories, which are
// root's: to them nothing would seem to be mounted.
func checkStateDir(stateDir, command string) error {
	if err := unix.Access(filepath.Join(stateDir, "engines"), unix.R_OK|unix.X_OK); errors.Is(err, unix.EACCES) {
		return failf("%s: %w: run %s as root", stateDir, err, command)
	}
	return nil
}

func printStatus(out io.Writer, stateDir string, list []engine.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	domains := 0
	fmt.Fprintln(w, "DOMAIN\tPID\tIMAGES\tSHARED INODES\tRESIDENT\tSAVED")
	for _, s := range list {
		for _, d := range s.Domains {
			domains++
			fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\n", domainName(d.Name), s.PID, len(d.Fronts), d.SharedInodes,
				bytesText(notNegative(d.BytesResident)), bytesText(notNegative(d.BytesSaved)))
		}
	}
	if domains == 0 {
		if _, err := fmt.Fprintf(out, "nothing is mounted (state directory %s)\n", stateDir); err != nil {
			return err
		}
		return printStores(out, list)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "\nIMAGE\tDOMAIN\tFILES\tSHARED FILES\tRESIDENT\tALONE")
	for _, s := range list {
		for _, d := range s.Domains {
			for _, im := range d.Images {
				fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%s\n", printable(im.Image), domainName(d.Name), im.Files, im.SharedFiles,
					bytesText(notNegative(im.BytesResident)), bytesText(notNegative(im.BytesAlone)))
			}
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "\nVOLUME\tIMAGE\tDOMAIN\tFRONT\tREASON")
	for _, s := range list {
		for _, d := range s.Domains {
			for _, f := range d.Fronts {
				for _, volume := range f.Volumes {
					line := fmt.Sprintf("%s\t%s\t%s\t%s\t%s", printable(volume), printable(f.Image), domainName(d.Name), f.Front, printable(oneLine(f.Reason)))
					fmt.Fprintln(w, strings.TrimRight(line, "\t"))
				}
			}
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return printStores(out, list)
}

// printStores tells how full the stores of images are.
func printStores(out io.Writer, list []engine.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	head := "\nIMAGE STORE\tPID\tBLOBS\tON DISK\tLIMIT\tDISK FREE\tEVICTIONS"
	for _, s := range list {
		if s.Images == nil {
			continue
		}
		if head != "" {
			fmt.Fprintln(w, head)
			head = ""
		}
		limit := "-"
		if s.Images.Limit > 0 {
			limit = bytesText(notNegative(s.Images.Limit))
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%s\t%d\n", printable(s.Images.Dir), s.PID, s.Images.Blobs,
			bytesText(notNegative(s.Images.Bytes)), limit, bytesText(notNegative(s.Images.Free)), s.Images.Evictions)
	}
	return w.Flush()
}

// domainName shows the domain of a volume that shares with nobody as "-".
func domainName(name string) string { return cmp.Or(printable(name), "-") }
