package driver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/driver/holder"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

const (
	// holderPatience is how long the plugin waits for its holder when it starts, and
	// for the end of the plugin before it. The holder's pod may start at the same time.
	holderPatience = 30 * time.Second
	// endPatience is how long the plugin before this one may take to close its files.
	endPatience = 10 * time.Second
)

// connectHolder claims what the plugin before this one has left at a holder; nil
// without one. Where no holder answers, the plugin starts without what may be there,
// rather than not at all, and keeps its mounts when one does.
func connectHolder(ctx context.Context, socket, stateDir string) (*holder.Client, error) {
	if socket == "" {
		return nil, nil
	}
	log := klog.FromContext(ctx).WithValues("socket", socket)
	name := "node " + stateDir
	dialCtx, cancel := context.WithTimeout(ctx, holderPatience)
	defer cancel()
	c, err := holder.Dial(dialCtx, socket, name)
	if err != nil && ctx.Err() == nil {
		log.Error(err, "No holder: mounts of the plugin before this one are rebuilt, and those of this one do not outlive it until there is one")
		c, err = holder.Attach(socket, name) //nolint:contextcheck // it outlives the call
	}
	if err != nil {
		return nil, fmt.Errorf("holder %s: %w", socket, err)
	}
	engine.LogHolder(ctx, c, socket)
	return c, nil
}

// openStore opens the store of images, and waits a little for the plugin before this one
// to be gone.
func openStore(ctx context.Context, cfg nodecache.Config) (*nodecache.Store, error) {
	for start, wait := time.Now(), time.Millisecond; ; wait *= 2 {
		store, err := nodecache.Open(cfg)
		if !errors.Is(err, nodecache.ErrLocked) || time.Since(start) > endPatience {
			return store, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, err
		}
	}
}
