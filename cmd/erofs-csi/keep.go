package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/driver/holder"
)

// holderPatience is how long a process waits for its holder when it starts, and for
// the end of the one before it.
const holderPatience = 30 * time.Second

func addHolder(flags *pflag.FlagSet, p *string) {
	flags.StringVar(p, "holder", "", "unix socket `SOCK` of an erofs-csi holder, with which mounts outlive this process; empty: none")
}

// dialHolder claims a name at a holder.
func dialHolder(ctx context.Context, socket, name string) (*holder.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, holderPatience)
	defer cancel()
	c, err := holder.Dial(ctx, socket, name)
	if err != nil {
		return nil, fmt.Errorf("--holder %s: %w: start erofs-csi holder --socket %s", socket, err, socket)
	}
	engine.LogHolder(ctx, c, socket)
	return c, nil
}

// mountName is what the mounts on some directories are kept under: the same for the same
// directories, which one process has at a time.
func mountName(dirs []string) string {
	sorted := slices.Sorted(slices.Values(dirs))
	sum := sha256.Sum256([]byte(strings.Join(sorted, "\x00")))
	first := sorted[0]
	if len(first) > 200 {
		first = "…" + first[len(first)-190:]
	}
	return fmt.Sprintf("mount %s %s", first, hex.EncodeToString(sum[:8]))
}

// endKept ends what a process that is gone has at its holder, so that nobody waits for
// mounts that nobody serves. Without a holder there is nothing left of it.
func endKept(ctx context.Context, socket, name string) error {
	if socket == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, holderPatience)
	defer cancel()
	c, err := holder.Dial(ctx, socket, name)
	if err != nil {
		return fmt.Errorf("end the mounts that the holder %s keeps as %q: %w", socket, name, err)
	}
	items, err := c.Items() //nolint:contextcheck // it has a limit of its own
	keys := make([]string, 0, len(items))
	for _, it := range items {
		keys = append(keys, it.Key)
		for _, f := range it.Files {
			_ = f.Close()
		}
	}
	if err == nil && len(keys) > 0 {
		err = c.Delete(keys...) //nolint:contextcheck // as above
	}
	return errors.Join(err, c.Close())
}
