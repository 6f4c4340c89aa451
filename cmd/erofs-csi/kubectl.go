package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"
)

// kubectlName is the name under which this program is a plugin of kubectl's.
const kubectlName = "kubectl-erofs"

// newKubectlRoot is the command line of kubectl-erofs.
func newKubectlRoot() *root {
	r := &root{}
	var c cluster
	r.command = &cobra.Command{
		Use:   "kubectl-erofs",
		Short: "Show the EROFS volumes of a cluster's nodes",
		Long: `Asks the node plugins of erofs-csi for their volumes, and what sharing saves: kubectl
finds their pods and runs erofs-csi in them. You need the right to list pods and to
create pods/exec in the namespace of the driver.`,
		Example: `  kubectl erofs status

  # why a node does not do what it should
  kubectl erofs doctor node-1`,
		Annotations:           map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl erofs"},
		Version:               versionLine(),
		SilenceErrors:         true,
		SilenceUsage:          true,
		DisableFlagsInUseLine: true,
		CompletionOptions:     cobra.CompletionOptions{DisableDefaultCmd: true},
		Args:                  needsCommand,
		RunE:                  func(*cobra.Command, []string) error { return nil },
		PersistentPreRun:      func(*cobra.Command, []string) { r.began = true },
	}
	flags := r.command.PersistentFlags()
	flags.StringVar(&c.kubeconfig, "kubeconfig", "", "kubectl's configuration `FILE` (default: as kubectl's)")
	flags.StringVar(&c.context, "context", "", "`NAME` of the context of it")
	flags.StringVarP(&c.namespace, "namespace", "n", "erofs-csi", "`NAMESPACE` of the driver")
	flags.StringVarP(&c.selector, "selector", "l", "app.kubernetes.io/name=erofs-csi,app.kubernetes.io/component=node", "`LABELS` of the node plugins' pods")
	flags.StringVar(&c.container, "container", "erofs-csi", "`NAME` of their container")
	flags.DurationVar(&c.timeout, "timeout", time.Minute, "`TIME` that each node may take")
	r.setUp()
	r.command.AddCommand(kubectlStatusCommand(&c), kubectlVolumesCommand(&c), kubectlDoctorCommand(&c), versionCommand())
	return r
}

func kubectlStatusCommand(c *cluster) *cobra.Command {
	return kubectlTableCommand(c, &cobra.Command{
		Use:   "status [--node NODE] [-o json]",
		Short: "Show what each node has mounted, and what sharing saves",
		Long: `Shows a line for each node: volumes, domains, fronts, page cache of all volumes and
what it would be more without sharing, the store of images, and what is wrong.`,
		Example: `  kubectl erofs status
  kubectl erofs status -o json | jq '[.[].engines[].domains[].bytesSaved] | add'`,
	}, printNodes)
}

func kubectlVolumesCommand(c *cluster) *cobra.Command {
	return kubectlTableCommand(c, &cobra.Command{
		Use:   "volumes [--node NODE] [-o json]",
		Short: "Show the volumes of each node",
		Long: `Shows a line for each volume: its image, domain, engine and front, the page cache of the
image's files, of that what no other image of the domain has (ALONE), and what is
wrong with it, or why its front is not the best.`,
		Example: `  kubectl erofs volumes --node node-1`,
	}, printVolumes)
}

// kubectlTableCommand makes cmd one that asks all nodes and prints a table or JSON.
func kubectlTableCommand(c *cluster, cmd *cobra.Command, table func(io.Writer, []nodeStatus) error) *cobra.Command {
	cmd.Args = exactly(0, "no arguments")
	output := &choice{value: "table", words: []string{"table", "json"}}
	var node string
	cmd.Flags().VarP(output, "output", "o", "print a table, or JSON with sizes in bytes")
	cmd.Flags().StringVar(&node, "node", "", "`NAME` of the one node to ask (default: all)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := c.check(); err != nil {
			return err
		}
		list, err := c.statuses(cmd.Context(), node)
		if err != nil {
			return err
		}
		if output.value == "json" {
			err = printJSON(cmd.OutOrStdout(), list)
		} else {
			err = table(cmd.OutOrStdout(), list)
		}
		if err != nil {
			return err
		}
		failed := 0
		for _, n := range list {
			if n.Error != "" {
				failed++
			}
		}
		if failed > 0 {
			return failf("%d of %d nodes did not answer: see the column HEALTH", failed, len(list))
		}
		return nil
	}
	return cmd
}

func kubectlDoctorCommand(c *cluster) *cobra.Command {
	output := &choice{value: "table", words: []string{"table", "json"}}
	var registry string
	cmd := &cobra.Command{
		Use:   "doctor NODE [--registry HOST/REPO[:TAG]] [-o json]",
		Short: "Check what a node can do, and say what to do",
		Long: `Runs erofs-csi doctor in the node plugin of NODE, with the flags of the plugin. Exit
code 1 if a check fails.`,
		Example: `  kubectl erofs doctor node-1
  kubectl erofs doctor node-1 --registry registry.example/app:v1`,
		Args: exactly(1, "one NODE"),
	}
	cmd.Flags().VarP(output, "output", "o", "print a line for each check, or JSON")
	cmd.Flags().StringVar(&registry, "registry", "", "`HOST/REPO[:TAG]` of an image to ask its registry for")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := c.check(); err != nil {
			return err
		}
		line := []string{"doctor"}
		if registry != "" {
			line = append(line, "--registry="+registry)
		}
		if output.value == "json" {
			line = append(line, "--json")
		}
		return c.runOn(cmd.Context(), args[0], cmd.OutOrStdout(), line)
	}
	return cmd
}

// runOn runs erofs-csi in the plugin of a node.
func (c *cluster) runOn(ctx context.Context, node string, out io.Writer, args []string) error {
	pods, err := c.pods(ctx, node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, max(c.timeout, doctorTimeout))
	defer cancel()
	pod := pods[0]
	if i := slices.IndexFunc(pods, func(p pluginPod) bool { return p.ready() }); i >= 0 {
		pod = pods[i] // not the one that it replaces
	}
	if err := c.exec(ctx, pod, out, args); err != nil {
		return fmt.Errorf("%s: %w", node, err)
	}
	return nil
}

// doctorTimeout is enough for all of doctor's checks, some of which may hang.
const doctorTimeout = 5 * time.Minute
