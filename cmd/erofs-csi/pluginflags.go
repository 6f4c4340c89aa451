package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/erofs-csi/erofs-csi/driver"
	"github.com/erofs-csi/erofs-csi/driver/engine"
)

// takePluginFlags gives flags of cmd that were not given the values that they have in
// the command line of the node plugin of the state directory. Where there is none, or it
// runs in another container, they stay as they are.
func takePluginFlags(cmd *cobra.Command, f *doctorFlags) {
	plugin := pluginCommand(f.stateDir)
	if plugin == nil {
		return
	}
	plugin.Flags().VisitAll(func(theirs *pflag.Flag) {
		ours := cmd.Flags().Lookup(theirs.Name)
		if !theirs.Changed || ours == nil || ours.Changed {
			return
		}
		// Values of a type of pflag's own print as they are set, but for lists.
		if list, ok := theirs.Value.(pflag.SliceValue); ok {
			_ = ours.Value.(pflag.SliceValue).Replace(list.GetSlice())
			return
		}
		_ = ours.Value.Set(theirs.Value.String()) // of the same type: it was parsed before
	})
	path := plugin.Flags().Lookup("kubelet-registration-path").Value.String()
	if dir, found := strings.CutSuffix(path, "/plugins/"+driver.Name+"/csi.sock"); found && !cmd.Flags().Changed("kubelet-dir") {
		f.kubeletDir = dir
	}
}

// pluginCommand is the command line of the node plugin that has the state directory,
// nil if there is none that can be seen from here.
func pluginCommand(stateDir string) *cobra.Command {
	pids, _ := engine.PIDs(stateDir)
	for _, pid := range pids {
		line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		if err != nil {
			continue
		}
		if cmd := parsedCommand(line); cmd != nil && cmd.Name() == "node" {
			return cmd
		}
	}
	return nil
}

// parsedCommand is the command of one of ours with its flags set; nil: it is none.
func parsedCommand(cmdline []byte) *cobra.Command {
	var args []string
	for arg := range bytes.SplitSeq(bytes.TrimSuffix(cmdline, []byte{0}), []byte{0}) {
		args = append(args, string(arg))
	}
	if filepath.Base(args[0]) != "erofs-csi" {
		return nil
	}
	cmd, rest, err := newRoot().command.Find(args[1:])
	if err != nil {
		return nil
	}
	cmd.FParseErrWhitelist.UnknownFlags = true // of another release
	if cmd.ParseFlags(rest) != nil {
		return nil
	}
	return cmd
}
