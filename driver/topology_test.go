package driver

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/erofs-csi/erofs-csi/driver/engine"
)

// TestNodeTopology: a node tells what it can do, and of what it can't do nothing.
func TestNodeTopology(t *testing.T) {
	for _, row := range []struct {
		can  engine.Abilities
		err  error
		want []string
	}{
		{engine.Abilities{FUSE: true}, nil, []string{"topology.erofs.csi.dev/fuse"}},
		{engine.Abilities{FUSE: true, Kernel: true, IDMapped: true}, nil, []string{
			"topology.erofs.csi.dev/fuse", "topology.erofs.csi.dev/kernel", "topology.erofs.csi.dev/user-namespaces",
		}},
		{engine.Abilities{}, errors.New("no fuse"), nil},
	} {
		s := &nodeService{nodeID: "n", maxVolumes: 7, able: func() (engine.Abilities, error) { return row.can, row.err }}
		info, err := s.NodeGetInfo(context.Background(), &csi.NodeGetInfoRequest{})
		if err != nil || info.GetMaxVolumesPerNode() != 7 {
			t.Errorf("%+v: %v, %v", row.can, info, err)
		}
		segments := info.GetAccessibleTopology().GetSegments()
		if got := slices.Sorted(maps.Keys(segments)); !slices.Equal(got, row.want) {
			t.Errorf("%+v: keys %v, want %v", row.can, got, row.want)
		}
		for key, value := range segments {
			if value != "true" { // else a later kernel could not change it
				t.Errorf("%s: %s", key, value)
			}
		}
	}
}

// TestAccessible: a provisioned volume's nodes are all that can mount it, within those that
// are wanted; if none of these can, another one may be chosen.
func TestAccessible(t *testing.T) {
	const fuse, kernel, users = "topology.erofs.csi.dev/fuse", "topology.erofs.csi.dev/kernel", "topology.erofs.csi.dev/user-namespaces"
	type segments = map[string]string
	plain, full := segments{fuse: "true"}, segments{fuse: "true", kernel: "true", users: "true"}
	for name, row := range map[string]struct {
		parameters segments
		wanted     []segments
		want       []segments // nil: errTopology
	}{
		"any":                  {nil, nil, []segments{plain}},
		"kernel":               {segments{"engine": "kernel"}, nil, []segments{{fuse: "true", kernel: "true"}}},
		"user namespaces":      {segments{"userNamespaces": "true"}, nil, []segments{{fuse: "true", users: "true"}}},
		"a node that can more": {nil, []segments{full}, []segments{plain}},
		"two nodes":            {nil, []segments{full, plain}, []segments{plain}},
		"a node that can't":    {segments{"engine": "kernel"}, []segments{plain}, nil},
		"one of two":           {segments{"engine": "kernel"}, []segments{plain, full}, []segments{{fuse: "true", kernel: "true"}}},
		"allowed zones":        {nil, []segments{{"zone": "a"}, {"zone": "b"}}, []segments{{"zone": "a", fuse: "true"}, {"zone": "b", fuse: "true"}}},
		"allowed kernels":      {nil, []segments{{kernel: "true"}}, []segments{{kernel: "true", fuse: "true"}}},
		"allowed with a zone":  {nil, []segments{{"zone": "a", fuse: "true"}}, []segments{{"zone": "a", fuse: "true"}}},
		"allowed nowhere":      {nil, []segments{{fuse: "false"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := newControllerService(fakeResolver{}, nil)
			res, err := s.CreateVolume(context.Background(), createRequest(func(r *csi.CreateVolumeRequest) {
				maps.Copy(r.Parameters, row.parameters)
				if row.wanted != nil {
					r.AccessibilityRequirements = &csi.TopologyRequirement{}
					for _, w := range row.wanted {
						r.AccessibilityRequirements.Requisite = append(r.AccessibilityRequirements.Requisite, &csi.Topology{Segments: w})
					}
				}
			}))
			if row.want == nil {
				if !errors.Is(err, errTopology) {
					t.Errorf("%v, want errTopology", err)
				}
				return
			}
			var got []segments
			for _, a := range res.GetVolume().GetAccessibleTopology() {
				got = append(got, a.GetSegments())
			}
			if err != nil || !slices.EqualFunc(got, row.want, maps.Equal) {
				t.Errorf("%v, %v, want %v", got, err, row.want)
			}
		})
	}
}
