package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/erofs-csi/erofs-csi/driver"
	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

// choice is a flag that takes one of a few words.
type choice struct {
	value string
	words []string
}

func (c *choice) String() string { return c.value }
func (c *choice) Type() string   { return strings.Join(c.words, "|") }
func (c *choice) Set(s string) error {
	if !slices.Contains(c.words, s) {
		return fmt.Errorf("want %s", strings.Join(c.words, ", "))
	}
	c.value = s
	return nil
}

// addChoice adds a flag whose first word is the default.
func addChoice(cmd *cobra.Command, name, usage string, words ...string) *choice {
	c := &choice{value: words[0], words: words}
	cmd.Flags().Var(c, name, usage)
	// It fails only for a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func addFront(cmd *cobra.Command) *choice {
	return addChoice(cmd, "front", "what a mount is made of; auto takes the first of the others that the kernel allows", engine.Fronts...)
}

func addCacheDir(flags *pflag.FlagSet, p *string) {
	flags.StringVar(p, "cache-dir", driver.DefaultCacheDir, "`DIR` of pulled images and of what was computed about images; one process owns it")
}

func addStoreLimit(flags *pflag.FlagSet, p *string, value string) {
	flags.StringVar(p, "store-limit", value, "`SIZE` that plain copies of large files may take in the cache directory, as 20Gi or 5% of the disk; 0: none")
}

// addImageSpace adds the flags of what pulled images may take; evictBelow is the
// default of that flag.
func addImageSpace(flags *pflag.FlagSet, x *engine.ImageSpace, evictBelow string) {
	flags.StringVar(&x.Limit, "image-limit", "0", "`SIZE` that images and what was computed about them may take in the cache directory, as 100Gi or 30% of the disk; 0: no limit")
	flags.StringVar(&x.Reserve, "disk-reserve", "", "`SIZE` of the disk that pulls leave free, as 10Gi or 5%; 0: nothing (default 1%, at most 256Mi)")
	flags.StringVar(&x.Convert, "convert-limit", "256Gi", "`SIZE` that the files of one image converted from layers may have, as 50Gi or 20% of the disk")
	flags.StringVar(&x.EvictBelow, "evict-below", evictBelow, "evict images that nobody used for some minutes while less than this `SIZE` of the disk is free; 0: never for that")
}

func addStateDir(flags *pflag.FlagSet, p *string) {
	flags.StringVar(p, "state-dir", driver.DefaultStateDir, "`DIR` on a tmpfs for internal mounts and sockets")
}

// pull is how images are fetched from registries.
type pull struct {
	policy     *choice
	plainHTTP  []string
	registries nodecache.RegistryConfig
}

func addPull(cmd *cobra.Command) *pull {
	p := &pull{policy: addChoice(cmd, "pull-policy", "when to ask the registry",
		string(nodecache.IfNotPresent), string(nodecache.Always), string(nodecache.Never))}
	addPlainHTTP(cmd.Flags(), &p.plainHTTP)
	addRegistries(cmd.Flags(), &p.registries)
	return p
}

// addRegistries adds the flags about all registries. They are named as
// kubelet's where it has the same.
func addRegistries(flags *pflag.FlagSet, c *nodecache.RegistryConfig) {
	flags.StringVar(&c.CredentialsFile, "registry-config", "", "dockerconfigjson `FILE` with credentials for all images; read again when it changes")
	flags.StringVar(&c.ProviderConfig, "image-credential-provider-config", "", "kubelet's `FILE` of image credential provider plugins, or a directory of such")
	flags.StringVar(&c.ProviderBinDir, "image-credential-provider-bin-dir", "", "`DIR` of the plugins")
	flags.StringVar(&c.HostsDir, "registry-hosts-dir", "", "`DIR` of mirrors and certificates, as containerd's certs.d with HOST/hosts.toml")
	flags.IntVar(&c.MaxRequests, "max-requests", nodecache.DefaultMaxRequests, "`N` requests for content under way at once")
	flags.IntVar(&c.MaxRequestsPerHost, "max-requests-per-registry", nodecache.DefaultMaxRequestsPerHost, "`N` of them at one registry or mirror")
}

// checkRegistries refuses what no machine would accept. Paths are made absolute.
func checkRegistries(c *nodecache.RegistryConfig) error {
	if (c.ProviderConfig == "") != (c.ProviderBinDir == "") {
		return usagef("--image-credential-provider-config and --image-credential-provider-bin-dir: pass both, or none")
	}
	for _, n := range []struct {
		flag  string
		value int
	}{{"max-requests", c.MaxRequests}, {"max-requests-per-registry", c.MaxRequestsPerHost}} {
		if n.value < 1 {
			return usagef("--%s %d: want 1 or more", n.flag, n.value)
		}
	}
	for _, p := range []*string{&c.CredentialsFile, &c.ProviderConfig, &c.ProviderBinDir, &c.HostsDir} {
		if *p == "" {
			continue
		}
		var err error
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	return nil
}

func addPlainHTTP(flags *pflag.FlagSet, p *[]string) {
	flags.StringArrayVar(p, "plain-http", nil, "registry `HOST[:PORT]` to speak to without TLS (repeatable)")
}

// usesPlainHTTP is nodecache.Config.PlainHTTP.
func (p *pull) usesPlainHTTP(host string) bool { return slices.Contains(p.plainHTTP, host) }

// options reads the user's credentials.
func (p *pull) options() (nodecache.AcquireOptions, error) {
	if err := checkRegistries(&p.registries); err != nil {
		return nodecache.AcquireOptions{}, err
	}
	policy, err := nodecache.ParsePullPolicy(p.policy.value)
	if err != nil {
		return nodecache.AcquireOptions{}, err
	}
	credentials, err := registryCredentials()
	return nodecache.AcquireOptions{Policy: policy, DockerConfig: credentials}, err
}
