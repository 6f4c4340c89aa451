package main

import (
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/erofs-csi/erofs-csi/driver"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

func nodeCommand() *cobra.Command {
	cfg := driver.Config{Version: releaseName()}
	cmd := &cobra.Command{
		Use:   "node --endpoint unix://SOCK --node-id ID",
		Short: "Run the CSI node plugin",
		Long: `Serves the CSI Identity and Node services on a unix socket until SIGTERM or
SIGINT. Needs root, /dev/fuse and, in a pod, bidirectional mount propagation.`,
		Example: `  erofs-csi node --endpoint unix:///csi/csi.sock --node-id "$NODE_NAME" -v=2

  # images at paths of the node, too, below one directory
  erofs-csi node --endpoint unix:///csi/csi.sock --node-id n1 --allow-path /srv/images`,
		Args: exactly(0, "no arguments"),
	}
	flags := cmd.Flags()
	addEndpoint(cmd, &cfg.Endpoint)
	flags.StringVar(&cfg.NodeID, "node-id", "", "name of this node in the cluster, `ID` (required)")
	flags.Int64Var(&cfg.MaxVolumes, "max-volumes", 0, "`N` volumes at most that the scheduler brings to this node, inline ones not counted; 0: no limit")
	addCacheDir(flags, &cfg.CacheDir)
	addStateDir(flags, &cfg.StateDir)
	addHolder(flags, &cfg.Holder)
	repairPods := flags.Bool("repair-pods", false, "when mounts had to be rebuilt, replace those of pods that run, in their mount namespaces; needs to see the node's processes")
	front := addFront(cmd)
	addStoreLimit(flags, &cfg.StoreLimit, "5%")
	addImageSpace(flags, &cfg.ImageSpace, "15%")
	flags.StringArrayVar(&cfg.AllowedPaths, "allow-path", nil, "`DIR` below which volumes may name images by absolute path (repeatable; default: none)")
	addPlainHTTP(flags, &cfg.PlainHTTPRegistries)
	addRegistries(flags, &cfg.Registries)
	flags.StringArrayVar(&cfg.InlineDomains, "allow-inline-domain", nil, "`NAMESPACE=DOMAIN` that inline volumes of pods of the namespace may ask for (repeatable)")
	flags.StringArrayVar(&cfg.TrustedInlineNamespaces, "trust-inline-namespace", nil, "`NAMESPACE` whose inline volumes may ask for engine: kernel and fingerprints: trusted (repeatable)")
	addMetricsAddress(flags, &cfg.MetricsAddress)
	flags.StringVar(&cfg.RegistrationDir, "registration-dir", "", "kubelet's plugins_registry `DIR`; empty leaves registration to the registrar sidecar")
	flags.StringVar(&cfg.KubeletRegistrationPath, "kubelet-registration-path", "", "the endpoint's `PATH` as kubelet sees it (default: the endpoint's own)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkNodeFlags(&cfg); err != nil {
			return err
		}
		cfg.Front = front.value
		cfg.ReadStatus = statusByChild(cfg.StateDir)
		if *repairPods {
			cfg.Pods = podsByChild
		}
		ctx, stop := signal.NotifyContext(logged(cmd.Context()), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		driver.LimitMemory(ctx)
		return driver.RunNode(ctx, cfg)
	}
	return cmd
}

func controllerCommand() *cobra.Command {
	cfg := driver.Config{Version: releaseName()}
	cmd := &cobra.Command{
		Use:   "controller --endpoint unix://SOCK",
		Short: "Run the CSI controller",
		Long: `Serves the CSI Identity and Controller services on a unix socket until SIGTERM or
SIGINT. Asks registries what images are, so that a volume keeps the one that its
tag meant when it was created, and the Kubernetes API for the annotations of
claims: in a pod as its service account.`,
		Example: `  erofs-csi controller --endpoint unix:///csi/csi.sock -v=2`,
		Args:    exactly(0, "no arguments"),
	}
	addEndpoint(cmd, &cfg.Endpoint)
	addPlainHTTP(cmd.Flags(), &cfg.PlainHTTPRegistries)
	addRegistries(cmd.Flags(), &cfg.Registries)
	cmd.Flags().StringVar(&cfg.Kubeconfig, "kubeconfig", "", "`FILE` that says how to reach the Kubernetes API (default: in a pod its service account, elsewhere none)")
	cmd.Flags().StringVar(&cfg.StartupTaint, "startup-taint", "", "`KEY` of a taint that nodes begin with, to be removed from those where the node plugin can serve (default: none)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkEndpoint(cfg.Endpoint); err != nil {
			return err
		}
		if err := checkRegistries(&cfg.Registries); err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(logged(cmd.Context()), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		return driver.RunController(ctx, cfg)
	}
	return cmd
}

func addEndpoint(cmd *cobra.Command, p *string) {
	cmd.Flags().StringVar(p, "endpoint", "", "CSI socket, `unix:///absolute/path` (required)")
}

func checkEndpoint(endpoint string) error {
	if endpoint == "" {
		return usagef("no --endpoint: pass --endpoint unix:///absolute/path/of/the.sock")
	}
	if path := strings.TrimPrefix(endpoint, "unix://"); !filepath.IsAbs(path) {
		return usagef("--endpoint %s: want unix:///absolute/path/of/the.sock", endpoint)
	}
	return nil
}

// checkNodeFlags refuses what no machine would accept; the driver checks the
// rest.
func checkNodeFlags(cfg *driver.Config) error {
	if err := checkEndpoint(cfg.Endpoint); err != nil {
		return err
	}
	if cfg.NodeID == "" {
		return usagef("no --node-id: pass --node-id with the name of the node")
	}
	if cfg.MaxVolumes < 0 {
		return usagef("--max-volumes %d: want 0, for no limit, or more", cfg.MaxVolumes)
	}
	for _, dir := range []struct{ flag, path string }{{"cache-dir", cfg.CacheDir}, {"state-dir", cfg.StateDir}} {
		if !filepath.IsAbs(dir.path) {
			return usagef("--%s %q: want an absolute path", dir.flag, dir.path)
		}
	}
	if cfg.Holder != "" && !filepath.IsAbs(cfg.Holder) {
		return usagef("--holder %q: want an absolute path", cfg.Holder)
	}
	if err := cfg.ImageSpace.Apply(&nodecache.Config{Dir: cfg.CacheDir}); err != nil {
		return usagef("%v", err)
	}
	if err := checkMetricsAddress(cfg.MetricsAddress); err != nil {
		return err
	}
	for _, dir := range cfg.AllowedPaths {
		if !filepath.IsAbs(dir) {
			return usagef("--allow-path %q: want an absolute path", dir)
		}
	}
	for _, pair := range cfg.InlineDomains {
		namespace, domain, ok := strings.Cut(pair, "=")
		if !ok || namespace == "" || domain == "" {
			return usagef("--allow-inline-domain %q: want NAMESPACE=DOMAIN", pair)
		}
	}
	if slices.Contains(cfg.TrustedInlineNamespaces, "") {
		return usagef("--trust-inline-namespace: want the name of a namespace")
	}
	return checkRegistries(&cfg.Registries)
}
