package main

import (
	"fmt"
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

func addStateDir(flags *pflag.FlagSet, p *string) {
	flags.StringVar(p, "state-dir", driver.DefaultStateDir, "`DIR` on a tmpfs for internal mounts and sockets")
}

// pull is how images are fetched from registries.
type pull struct {
	policy    *choice
	plainHTTP []string
}

func addPull(cmd *cobra.Command) *pull {
	p := &pull{policy: addChoice(cmd, "pull-policy", "when to ask the registry",
		string(nodecache.IfNotPresent), string(nodecache.Always), string(nodecache.Never))}
	addPlainHTTP(cmd.Flags(), &p.plainHTTP)
	return p
}

func addPlainHTTP(flags *pflag.FlagSet, p *[]string) {
	flags.StringArrayVar(p, "plain-http", nil, "registry `HOST[:PORT]` to speak to without TLS (repeatable)")
}

// usesPlainHTTP is nodecache.Config.PlainHTTP.
func (p *pull) usesPlainHTTP(host string) bool { return slices.Contains(p.plainHTTP, host) }

// options reads the user's credentials.
func (p *pull) options() (nodecache.AcquireOptions, error) {
	policy, err := nodecache.ParsePullPolicy(p.policy.value)
	if err != nil {
		return nodecache.AcquireOptions{}, err
	}
	credentials, err := registryCredentials()
	return nodecache.AcquireOptions{Policy: policy, DockerConfig: credentials}, err
}
