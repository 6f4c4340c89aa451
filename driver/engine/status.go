package engine

import (
	"cmp"
	"os"
	"slices"
	"strings"

	"github.com/erofs-csi/erofs-csi/erofs/fusefs"
)

// Status is what an engine holds.
type Status struct {
	PID     int            `json:"pid"`
	Domains []DomainStatus `json:"domains"`
}

// DomainStatus is a domain and its images.
type DomainStatus struct {
	Name         string        `json:"name"` // empty: the domain of one volume that shares with nobody
	ContentMount string        `json:"contentMount"`
	SharedInodes int           `json:"sharedInodes"`
	Fronts       []FrontStatus `json:"fronts"`

	// BytesResident is the page cache of the domain's files, by cachestat(2).
	BytesResident int64 `json:"bytesResident"`
	// BytesSaved is what the same pages would take more if each file of each image
	// had its own.
	BytesSaved int64 `json:"bytesSaved"`

	// Nodes are the files that may have pages; ReadStatus replaces them by the sums
	// above.
	Nodes []fusefs.NodeUse `json:"nodes,omitempty"`
}

// FrontStatus is an image shown.
type FrontStatus struct {
	Image  string `json:"image"`
	Digest string `json:"digest,omitempty"`
	Front  string `json:"front"`            // FrontOverlay or FrontTree
	Reason string `json:"reason,omitempty"` // why it is no overlay
	Target string `json:"target"`
	// Volumes are the ids of the volumes that show it, or the directories of the
	// mount command.
	Volumes []string `json:"volumes"`
}

// Status returns what the engine holds, without the bytes, which it does not know:
// to ask the kernel, it would have to open files of its own mounts. See ReadStatus.
func (e *Engine) Status() Status {
	s := Status{PID: os.Getpid(), Domains: []DomainStatus{}}
	byDomain := make(map[*domain][]FrontStatus)
	for _, f := range e.fronts.snapshot() {
		byDomain[f.domain] = append(byDomain[f.domain], FrontStatus{
			Image: f.reference, Digest: f.image.Digest(),
			Front: f.kind, Reason: f.reason, Target: f.dir, Volumes: f.volumes(),
		})
	}
	for d, fronts := range byDomain {
		slices.SortFunc(fronts, func(a, b FrontStatus) int { return cmp.Compare(a.Image, b.Image) })
		inodes, _ := d.share.Len()
		s.Domains = append(s.Domains, DomainStatus{
			Name: d.name, ContentMount: d.mount.Dir(), SharedInodes: inodes,
			Fronts: fronts, Nodes: d.fs.ReadNodes(),
		})
	}
	slices.SortFunc(s.Domains, func(a, b DomainStatus) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ContentMount, b.ContentMount))
	})
	return s
}
