package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/driver/holder"
)

// holderProgram is the small program beside this one that is a holder and nothing else.
const holderProgram = "erofs-csi-holder"

func holderCommand() *cobra.Command {
	var socket string
	var list, asJSON bool
	var abandonAfter time.Duration
	cmd := &cobra.Command{
		Use:   "holder --socket SOCK",
		Short: "Keep mounts alive while their process restarts",
		Long: `Keeps the descriptors of mounts for "node --holder SOCK" and "mount --holder SOCK",
so that the mounts go on when those are killed, and the same command started again
takes them over. Prints "ready" when it listens on the unix socket SOCK, and runs until
SIGTERM or SIGINT, which let go of all it keeps.

It becomes ` + holderProgram + `, a program of some MB, where that is beside this one.`,
		Example: `  erofs-csi holder --socket /run/erofs-csi/holder/holder.sock

  # what a running one keeps
  erofs-csi holder --socket /run/erofs-csi/holder/holder.sock --list`,
		Args: exactly(0, "no arguments"),
	}
	flags := cmd.Flags()
	flags.StringVar(&socket, "socket", "", "unix socket `SOCK` of the holder (required)")
	flags.DurationVar(&abandonAfter, "abandon-after", holder.DefaultAbandonAfter, "let go of what no process has served for this `TIME`, so that readers get errors and wait no longer; 0: of nothing")
	flags.BoolVar(&list, "list", false, "show what the running holder keeps, and for whom")
	flags.BoolVar(&asJSON, "json", false, "with --list: print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case socket == "":
			return usagef("holder: pass --socket SOCK")
		case abandonAfter < 0:
			return usagef("holder: --abandon-after %s: want a time, or 0 for never", abandonAfter)
		case asJSON && !list:
			return usagef("holder: --json is for --list")
		case list:
			return listHolder(cmd.Context(), cmd.OutOrStdout(), socket, asJSON)
		}
		if err := becomeHolder(socket, abandonAfter); err != nil {
			return err
		}
		return holder.Run(cmd.Context(), socket, abandonAfter, cmd.OutOrStdout(), cmd.ErrOrStderr())
	}
	return cmd
}

// becomeHolder replaces this program by the small one beside it. It returns if there
// is none.
func becomeHolder(socket string, abandonAfter time.Duration) error {
	self, err := os.Executable()
	if err != nil {
		return nil //nolint:nilerr // then the one beside it can't be found either
	}
	program := filepath.Join(filepath.Dir(self), holderProgram)
	err = syscall.Exec(program, []string{holderProgram, "--socket", socket, "--abandon-after", abandonAfter.String()}, os.Environ()) //nolint:gosec // ours
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("%s: %w", program, err)
}

// holderTimeout bounds what a running holder may take to tell what it keeps.
const holderTimeout = 10 * time.Second

func listHolder(ctx context.Context, out io.Writer, socket string, asJSON bool) error {
	ctx, cancel := context.WithTimeout(ctx, holderTimeout)
	defer cancel()
	names, err := holder.List(ctx, socket)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: no holder runs there", err)
	}
	if err != nil {
		return err
	}
	if asJSON {
		if names == nil {
			names = []holder.Listing{} // [] in JSON
		}
		return printJSON(out, names)
	}
	if len(names) == 0 {
		_, err := fmt.Fprintln(out, "nothing is kept")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tCLIENT\tKEY\tDESCRIPTORS\tBYTES")
	for _, n := range names {
		if len(n.Items) == 0 {
			fmt.Fprintf(w, "%s\t%s\t-\t0\t0\n", printable(n.Name), holderClient(n))
		}
		for _, it := range n.Items {
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\n", printable(n.Name), holderClient(n), printable(it.Key), it.Descriptors, it.MetaBytes)
		}
	}
	return w.Flush()
}

// holderClient names who has a name of a holder.
func holderClient(n holder.Listing) string {
	switch {
	case !n.Claimed:
		return "-"
	case n.PID == 0:
		return "of another pod"
	default:
		return fmt.Sprint(n.PID)
	}
}
