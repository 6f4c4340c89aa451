package main

import (
	"context"
	"flag"
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
)

// root is the command line with what its exit code depends on.
type root struct {
	command *cobra.Command
	began   bool // a command's own code ran, so the usage was right so far
}

func newRoot() *root {
	r := &root{}
	r.command = &cobra.Command{
		Use:   "erofs-csi",
		Short: "Mount EROFS images with a shared page cache",
		Long: `erofs-csi mounts EROFS images read-only. Files of equal content share one page
cache in all images of a domain, whatever their names, owners, times and images.`,
		Example: `  # two versions of one image, one page cache
  erofs-csi mount --domain web v1.erofs /mnt/v1 v2.erofs /mnt/v2

  # what is mounted, and how much memory sharing saves
  erofs-csi status`,
		Version:               versionLine(),
		SilenceErrors:         true,
		SilenceUsage:          true,
		DisableFlagsInUseLine: true,
		Args:                  needsCommand,
		RunE:                  func(*cobra.Command, []string) error { return nil },
		PersistentPreRun:      func(*cobra.Command, []string) { r.began = true },
	}
	r.setUp()
	addLogFlags(r.command)
	r.command.AddCommand(
		mountCommand(), buildCommand(), inspectCommand(), verifyCommand(), statusCommand(), dropCommand(), cacheCommand(),
		nodeCommand(), controllerCommand(), holderCommand(), probeCommand(), podMountsCommand(), volumesCommand(), doctorCommand(), versionCommand(),
	)
	refuseUnknownShell(r.command)
	return r
}

// setUp is what the command lines of all names of the program have in common.
func (r *root) setUp() {
	r.command.SetVersionTemplate("{{.Version}}\n")
	r.command.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%s: %v: see '%s --help'", cmd.Name(), err, cmd.CommandPath())
	})
	r.command.SetHelpCommand(helpCommand(r.command.DisplayName()))
}

// needsCommand refuses what is no command.
func needsCommand(cmd *cobra.Command, args []string) error {
	help := cmd.DisplayName() + " --help"
	if len(args) == 0 {
		return usagef("no command given: see '%s'", help)
	}
	msg := fmt.Sprintf("unknown command %q: see '%s'", args[0], help)
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		msg += fmt.Sprintf(", or did you mean %q?", near[0])
	}
	return usagef("%s", msg)
}

// refuseUnknownShell makes cobra's completion command fail without the name of
// a shell it knows; it would print its help and exit 0.
func refuseUnknownShell(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() != "completion" {
			continue
		}
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(*cobra.Command, []string) error {
			return usagef("completion: want bash, zsh, fish or powershell: see 'erofs-csi completion --help'")
		}
	}
}

// addLogFlags adds -v to every command. Of klog's flags it is the one that a
// service that logs to stderr needs.
func addLogFlags(cmd *cobra.Command) {
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	v := flags.Lookup("v")
	v.Usage = "log verbosity: 2 state changes, 4 calls, 5 their bodies, 6 FUSE requests"
	cmd.PersistentFlags().AddGoFlag(v)
}

// logged is ctx with the logger that every command passes down.
func logged(ctx context.Context) context.Context {
	return klog.NewContext(ctx, klog.Background())
}

// helpCommand replaces cobra's, which exits 0 on a topic that does not exist.
func helpCommand(program string) *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND]",
		Short:   "Help about any command",
		Example: "  " + program + " help status",
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return usagef("help: no such command %q: see '%s --help'", args, program)
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

// arguments checks the number of positional arguments and says what was
// expected.
func arguments(ok func(n int) bool, want string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if ok(len(args)) {
			return nil
		}
		return usagef("%s: want %s, got %d arguments: see '%s --help'", cmd.Name(), want, len(args), cmd.CommandPath())
	}
}

func exactly(n int, want string) cobra.PositionalArgs {
	return arguments(func(got int) bool { return got == n }, want)
}
