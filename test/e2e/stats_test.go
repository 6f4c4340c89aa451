package e2e

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestKubeletStats: kubelet's metrics tell of a claim that it is full, with the image's
// size and its inodes.
func TestKubeletStats(t *testing.T) {
	r := suite
	c := r.static(t, "stats", map[string]string{"image": r.v1.ref}, nil)
	r.running(t, r.newPod("stats", claimed(c)))
	var got map[string]float64
	err := poll(t.Context(), "kubelet's metrics of the claim", func(ctx context.Context) (bool, error) {
		raw, err := r.client.CoreV1().RESTClient().Get().Resource("nodes").Name(r.node).SubResource("proxy").Suffix("metrics").DoRaw(ctx)
		if err != nil {
			return false, err
		}
		got = volumeStats(string(raw), r.namespace, c.Name)
		return len(got) > 0, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	inodes := float64(inodesOf(t, r.v1.dir))
	if got["capacity_bytes"] < largeSize || got["used_bytes"] != got["capacity_bytes"] || got["available_bytes"] != 0 ||
		got["inodes"] != inodes || got["inodes_used"] != inodes || got["inodes_free"] != 0 {
		t.Errorf("kubelet says %v, want a full volume of more than %d bytes with %v inodes", got, largeSize, inodes)
	}
}

// volumeStats are kubelet's metrics of a claim, by what follows kubelet_volume_stats_.
func volumeStats(metrics, namespace, claim string) map[string]float64 {
	labels := fmt.Sprintf("{namespace=%q,persistentvolumeclaim=%q} ", namespace, claim)
	stats := make(map[string]float64)
	for line := range strings.Lines(metrics) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), labels)
		if !ok || !strings.HasPrefix(name, "kubelet_volume_stats_") {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err == nil {
			stats[strings.TrimPrefix(name, "kubelet_volume_stats_")] = n
		}
	}
	return stats
}

// inodesOf counts the inodes of a tree.
func inodesOf(t *testing.T, dir string) int {
	t.Helper()
	seen := make(map[uint64]bool)
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			seen[info.Sys().(*syscall.Stat_t).Ino] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return len(seen)
}
