package doctor

import (
	"context"
	"errors"
	"strings"

	"github.com/erofs-csi/erofs-csi/driver/holder"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

// plugin asks who serves mounts with the state directory.
func (n *node) plugin(ctx context.Context) Finding {
	list, err := n.ReadStatus(ctx)
	if err != nil {
		return fail("look at the log of the plugin", "%v", err)
	}
	if len(list) == 0 {
		return warn("install the driver, or name the state directory of the plugin by --state-dir", "none runs with the state directory %s", n.StateDir)
	}
	volumes, domains := 0, 0
	for _, s := range list {
		domains += len(s.Domains)
		for _, d := range s.Domains {
			for _, f := range d.Fronts {
				volumes += len(f.Volumes)
			}
		}
	}
	who := "process"
	if len(list) > 1 {
		who = "processes"
	}
	return ok("%d %s, %d volumes in %d domains", len(list), who, volumes, domains)
}

// holder asks the plugin's holder what it keeps.
func (n *node) holder(ctx context.Context) Finding {
	const risk = "a restart of the plugin would end the mounts"
	names, err := holder.List(ctx, n.Holder)
	if err != nil {
		return warn("look at the holder's pod on this node, and do not restart the plugin before it is well", "%s: %v: %s", n.Holder, err, risk)
	}
	clients, descriptors := 0, 0
	for _, name := range names {
		if !name.Claimed {
			continue
		}
		clients++
		for _, it := range name.Items {
			descriptors += it.Descriptors
		}
	}
	if clients == 0 {
		return warn("look at the log of the plugin, and do not restart it before it has its holder", "%s answers, and no plugin has claimed it: %s", n.Holder, risk)
	}
	return ok("keeps %d descriptors of a plugin that runs", descriptors)
}

// registry resolves a reference as a volume's.
func (n *node) registry(ctx context.Context) Finding {
	got, err := n.Resolve(ctx)
	if err == nil {
		return ok("%s", got)
	}
	fix := "see docs/troubleshooting.md"
	switch {
	case errors.Is(err, nodecache.ErrUnauthorized):
		fix = "the registry answers, but not to the node's credentials: give the volume a pull secret, or the node --registry-config"
	case errors.Is(err, nodecache.ErrNotFound):
		fix = "the registry answers, but has no such image: correct the name or the tag"
	case errors.Is(err, nodecache.ErrUnavailable):
		fix = "look at the name, DNS, proxy (HTTPS_PROXY) and firewall; without TLS: --plain-http; certificates: --registry-hosts-dir"
	case errors.Is(err, nodecache.ErrConfiguration):
		fix = "correct the node's configuration of registries"
	case errors.Is(err, nodecache.ErrInvalidReference):
		fix = "want HOST/NAME[:TAG]"
	}
	return fail(fix, "%v", strings.TrimPrefix(err.Error(), n.Registry+": "))
}
