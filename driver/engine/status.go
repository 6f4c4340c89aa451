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
	// Forgotten is how many idle images were let go of, where that was asked for.
	Forgotten int `json:"forgotten,omitempty"`
}

// DomainStatus is a domain and its images.
type DomainStatus struct {
	Name         string        `json:"name"` // empty: the domain of one volume that shares with nobody
	ContentMount string        `json:"contentMount"`
	SharedInodes int           `json:"sharedInodes"`
	Fronts       []FrontStatus `json:"fronts"`
	// Idle are the images that no volume shows any more, but whose pages are kept for
	// the next one.
	Idle []string `json:"idle,omitempty"`
	// StoredFiles and StoredBytes are of the files that are kept as plain ones.
	StoredFiles int   `json:"storedFiles,omitempty"`
	StoredBytes int64 `json:"storedBytes,omitempty"`
	// CacheLimit bounds BytesResident; 0: no bound.
	CacheLimit int64 `json:"cacheLimit,omitempty"`

	// BytesResident is the page cache of the domain's files, by cachestat(2).
	BytesResident int64 `json:"bytesResident"`
	// BytesSaved is what the same pages would take more if each file of each image
	// had its own.
	BytesSaved int64 `json:"bytesSaved"`

	// Nodes are the files that may have pages; ReadStatus replaces them by the sums
	// above.
	Nodes []node `json:"nodes,omitempty"`
}

// node is a file that may have pages.
type node struct {
	Path  string `json:"path"`  // opens the kernel inode; may be gone
	Files int    `json:"files"` // files of images that it is
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
func (e *Engine) Status() Status { return e.answer(query{}) }

// answer is the status of what a query names.
func (e *Engine) answer(q query) Status {
	s := Status{PID: os.Getpid(), Domains: []DomainStatus{}}
	byDomain := make(map[*domain]*DomainStatus)
	stored := make(map[*domain][]string)
	of := func(j *joined) *DomainStatus {
		d := byDomain[j.domain]
		if d == nil {
			inodes, _ := j.domain.share.Len()
			d = &DomainStatus{
				Name: j.domain.name, ContentMount: j.domain.mount.Dir(), SharedInodes: inodes,
				Fronts: []FrontStatus{}, CacheLimit: j.domain.fs.CacheLimit(),
			}
			if q.Volume == nil {
				d.addNodes(j.domain.fs.ReadNodes(nil))
			}
			byDomain[j.domain] = d
		}
		return d
	}
	for _, f := range e.fronts.snapshot() {
		volumes := f.volumes()
		if !q.picks(f.joined, volumes) {
			continue
		}
		d := of(f.joined)
		d.Fronts = append(d.Fronts, FrontStatus{
			Image: f.reference, Digest: f.image.Digest(),
			Front: f.kind, Reason: f.reason, Target: f.dir, Volumes: volumes,
		})
		if q.Volume != nil {
			d.addNodes(f.domain.fs.ReadNodes(f.member))
		}
		stored[f.domain] = append(stored[f.domain], f.storedNames()...)
	}
	for _, j := range e.idle.list() {
		if q.picks(j, nil) {
			d := of(j)
			d.Idle = append(d.Idle, j.reference)
			stored[j.domain] = append(stored[j.domain], j.storedNames()...)
		}
	}
	for d, names := range stored {
		byDomain[d].addStored(d, names)
	}
	for _, d := range byDomain {
		slices.SortFunc(d.Fronts, func(a, b FrontStatus) int { return cmp.Compare(a.Image, b.Image) })
		s.Domains = append(s.Domains, *d)
	}
	slices.SortFunc(s.Domains, func(a, b DomainStatus) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ContentMount, b.ContentMount))
	})
	return s
}

func (d *DomainStatus) addNodes(list []fusefs.NodeUse) {
	for _, n := range list {
		d.Nodes = append(d.Nodes, node{d.ContentMount + n.Path, n.Files})
	}
}

// addStored adds files of the domain's layer, by their names, each once.
func (d *DomainStatus) addStored(of *domain, names []string) {
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if in := of.share.Get(name); in != nil {
			d.StoredFiles++
			d.StoredBytes += in.Size()
			d.Nodes = append(d.Nodes, node{of.layer.Dir() + name, in.Backings()})
		}
	}
}
