package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// VolumeHealth is a volume of a node plugin, and how it is.
type VolumeHealth struct {
	Volume string `json:"volume"`
	Image  string `json:"image"`
	Domain string `json:"domain"` // empty: it shares with nobody
	Inline bool   `json:"inline,omitempty"`
	// Targets are the paths where pods have it.
	Targets []string `json:"targets"`
	// Reason is what is wrong, one of the reasons of docs/node-plugin.md, and Message a
	// sentence about it. Both are empty if nothing is.
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

// AskVolumes lists the volumes that are recorded in a state directory, by id, and asks
// the plugin at a unix endpoint for the health of each.
//
// A volume that goes meanwhile is not in the list.
func AskVolumes(ctx context.Context, endpoint, stateDir string) ([]VolumeHealth, error) {
	socket, err := socketPath(endpoint)
	if err != nil {
		return nil, err
	}
	list, err := recordedVolumes(filepath.Join(stateDir, volumesDir))
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", socket, err)
	}
	defer func() { _ = conn.Close() }()
	node := csi.NewNodeClient(conn)
	gone := make([]bool, len(list))
	all, asking := errgroup.WithContext(ctx)
	all.SetLimit(sampleParallel)
	for i := range list {
		all.Go(func() error {
			res, err := node.NodeGetVolumeHealth(asking, &csi.NodeGetVolumeHealthRequest{VolumeId: list[i].Volume})
			if status.Code(err) == codes.NotFound {
				gone[i] = true
				return nil
			}
			if err != nil {
				return fmt.Errorf("the plugin at %s, asked for volume %q: %s", socket, list[i].Volume, status.Convert(err).Message())
			}
			for _, h := range res.GetVolumeHealth().GetHealthStatuses() {
				list[i].Reason, list[i].Message = h.GetReason(), h.GetMessage()
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		return nil, err
	}
	kept := list[:0]
	for i, v := range list {
		if !gone[i] {
			kept = append(kept, v)
		}
	}
	return kept, nil
}

// recordedVolumes reads the records in a directory that belongs to another process, and
// changes nothing there. A record that can't be read is of a volume that is being
// changed or that the plugin knows nothing of, either.
func recordedVolumes(dir string) ([]VolumeHealth, error) {
	list := []VolumeHealth{}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		r, err := recordDir(dir).read(filepath.Join(dir, e.Name()))
		if err != nil {
			continue
		}
		v := VolumeHealth{Volume: r.VolumeID, Image: r.Reference, Domain: r.Domain, Inline: r.Ephemeral, Targets: []string{}}
		for _, t := range r.Targets {
			v.Targets = append(v.Targets, t.Path)
		}
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b VolumeHealth) int { return strings.Compare(a.Volume, b.Volume) })
	return list, nil
}
