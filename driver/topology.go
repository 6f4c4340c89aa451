package driver

import (
	"maps"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/erofs-csi/erofs-csi/driver/engine"
)

// Topology keys: what a node can mount, each with the value "true" or not there at all.
// Kubelet makes them labels of the node, and from then on refuses the plugin if one has
// another value; so none has, and a kernel update only adds keys. It removes none.
const (
	topologyPrefix = "topology." + Name + "/"

	topologyFUSE           = topologyPrefix + "fuse"
	topologyKernel         = topologyPrefix + "kernel"
	topologyUserNamespaces = topologyPrefix + "user-namespaces"

	topologyYes = "true"
)

// nodeTopology is what a node can do; nil is nothing.
func nodeTopology(can engine.Abilities) *csi.Topology {
	if !can.FUSE {
		return nil
	}
	segments := map[string]string{topologyFUSE: topologyYes}
	if can.Kernel {
		segments[topologyKernel] = topologyYes
	}
	if can.IDMapped {
		segments[topologyUserNamespaces] = topologyYes
	}
	return &csi.Topology{Segments: segments}
}

// needs are the segments of the nodes that can mount a volume.
func (a *attributes) needs() map[string]string {
	segments := map[string]string{topologyFUSE: topologyYes}
	switch {
	case a.Engine == engineKernel:
		segments[topologyKernel] = topologyYes
	case a.UserNamespaces:
		segments[topologyUserNamespaces] = topologyYes
	}
	return segments
}

// accessible are the nodes that can mount a volume with these needs, within what the
// caller wants: nodes, by their segments, or what a StorageClass' allowedTopologies say.
// It may be used from many, so from more nodes than the one that the caller has chosen
// for its first pod.
//
// Errors: errTopology if the nodes that are wanted can't mount it.
func accessible(needs map[string]string, want *csi.TopologyRequirement) ([]*csi.Topology, error) {
	requisite := want.GetRequisite()
	if len(requisite) == 0 {
		requisite = want.GetPreferred()
	}
	if len(requisite) == 0 {
		return []*csi.Topology{{Segments: needs}}, nil
	}
	var found []*csi.Topology
	for _, t := range requisite {
		segments, ok := within(needs, t.GetSegments())
		if ok && !slices.ContainsFunc(found, func(f *csi.Topology) bool { return maps.Equal(f.GetSegments(), segments) }) {
			found = append(found, &csi.Topology{Segments: segments})
		}
	}
	if found == nil {
		return nil, refuse(errTopology, "no node that may be used can mount the volume: it needs nodes with the labels %s",
			strings.Join(slices.Sorted(maps.Keys(needs)), ", "))
	}
	return found, nil
}

// within are the nodes that have needs, of those with segments.
func within(needs, segments map[string]string) (map[string]string, bool) {
	if ofNode(segments) {
		for key, value := range needs {
			if segments[key] != value {
				return nil, false
			}
		}
		return needs, true
	}
	both := maps.Clone(segments)
	for key, value := range needs {
		if has, ok := both[key]; ok && has != value {
			return nil, false
		}
		both[key] = value
	}
	return both, true
}

// ofNode tells whether segments are all that a node has: nodeTopology's. Others are an
// administrator's, who leaves out what does not matter.
func ofNode(segments map[string]string) bool {
	for key := range segments {
		if !strings.HasPrefix(key, topologyPrefix) {
			return false
		}
	}
	return segments[topologyFUSE] == topologyYes
}
