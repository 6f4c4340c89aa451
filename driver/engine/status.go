package engine

import (
	"cmp"
	"maps"
	"os"
	"slices"
	"strings"

	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/driver/supervise"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

// Status is what an engine holds.
type Status struct {
	PID int `json:"pid"`
	// Deaths is how often the process was killed or crashed before, since its supervisor
	// was started; 0 without one.
	Deaths  int            `json:"deaths,omitempty"`
	Domains []DomainStatus `json:"domains"`
	// Images is how full the store of images is, of an engine that has one.
	Images *ImageStore `json:"imageStore,omitempty"`
	// Forgotten is how many idle images were let go of, where that was asked for.
	Forgotten int `json:"forgotten,omitempty"`
}

// ImageStore is a store of images.
type ImageStore struct {
	Dir string `json:"dir"`
	nodecache.Usage
}

// DomainStatus is a domain and its images.
type DomainStatus struct {
	Name string `json:"name"` // empty: the domain of one volume that shares with nobody
	// Engine is EngineFUSE or EngineKernel: the fronts of one share with those of the
	// other as little as those of two domains do.
	Engine string `json:"engine"`
	// Trusted: the images' own fingerprints were taken as they are.
	Trusted      bool   `json:"trusted,omitempty"`
	ContentMount string `json:"contentMount,omitempty"` // of EngineFUSE
	// SharedInodes are the different contents of all files, KnownInodes those that
	// the kernel has looked up by content and not forgotten.
	SharedInodes int           `json:"sharedInodes"`
	KnownInodes  int           `json:"knownInodes"`
	Fronts       []FrontStatus `json:"fronts"`
	// Idle are the images that no volume shows any more, but whose pages are kept for
	// the next one.
	Idle []string `json:"idle,omitempty"`
	// Images are those of Fronts and Idle.
	Images []ImageStatus `json:"images"`
	// StoredFiles and StoredBytes are of the files that are kept as plain ones.
	StoredFiles int   `json:"storedFiles,omitempty"`
	StoredBytes int64 `json:"storedBytes,omitempty"`
	// CacheLimit bounds BytesResident; 0: no bound.
	CacheLimit int64 `json:"cacheLimit,omitempty"`

	// BytesResident is the page cache of the domain's files, by cachestat(2), and by
	// mincore(2) those of the kernel engine, of which it does not count fragments and
	// metadata.
	BytesResident int64 `json:"bytesResident"`
	// BytesSaved is what the same pages would take more if each file of each image
	// that a volume shows had its own. Copies within an image are files of their own,
	// hard links are one.
	BytesSaved int64 `json:"bytesSaved"`
	// Sampled says that not all files were looked at, so that what is resident and
	// saved is an estimate.
	Sampled bool `json:"sampled,omitempty"`
}

// ImageStatus is what an image holds of its domain's memory.
type ImageStatus struct {
	Image string `json:"image"`
	Idle  bool   `json:"idle,omitempty"`

	// Files and Bytes are of the regular files that hold data, hard links counted
	// once; in a domain, those that may be shared.
	Files int   `json:"files"`
	Bytes int64 `json:"bytes"`
	// SharedFiles and SharedBytes are of those whose content another image of the
	// domain has as well.
	SharedFiles int   `json:"sharedFiles"`
	SharedBytes int64 `json:"sharedBytes"`

	// PulledBytes are those of the image's ImageBytes that are on the node; of a lazy
	// image until it is complete, else both are 0.
	PulledBytes int64 `json:"pulledBytes,omitempty"`
	ImageBytes  int64 `json:"imageBytes,omitempty"`

	// BytesResident is the page cache of the image's files. What several images share
	// is counted for each of them, copies within the image once.
	BytesResident int64 `json:"bytesResident"`
	// BytesAlone is the part of it that no other image of the domain has a file of.
	BytesAlone int64 `json:"bytesAlone"`
}

// FrontStatus is an image shown.
type FrontStatus struct {
	Image  string `json:"image"`
	Digest string `json:"digest,omitempty"`
	Front  string `json:"front"`            // one of Fronts, or FrontKernel
	Reason string `json:"reason,omitempty"` // why it is not the best, or shares less than it could
	// Trouble is why reads of it fail, or may wait for a registry; empty: they do not.
	// Of the kernel's fronts nobody knows.
	Trouble string `json:"trouble,omitempty"`
	Target  string `json:"target"`
	// Volumes are the ids of the volumes that show it, or the directories of the
	// mount command.
	Volumes []string `json:"volumes"`
}

// Status returns what the engine holds, without the bytes, which it does not know:
// to ask the kernel, it would have to open files of its own mounts. See ReadStatus.
func (e *Engine) Status() Status { return e.answer(query{}) }

// imageStore is how full the store of images is; nil: nobody knows.
func (e *Engine) imageStore() *ImageStore {
	if e.cfg.Images == nil {
		return nil
	}
	u, err := e.cfg.Images.Usage()
	if err != nil {
		klog.FromContext(e.ctx).Error(err, "Cannot tell how full the store of images is")
		return nil
	}
	return &ImageStore{Dir: e.cfg.Images.Dir(), Usage: u}
}

// answer is the status of what a query names.
func (e *Engine) answer(q query) Status {
	s, _ := e.account(q)
	return s
}

// account returns the status of what a query names, and for each domain in it what
// there is to know of its files.
func (e *Engine) account(q query) (Status, []filesOf) {
	byDomain := make(map[*domain]*domainFiles)
	add := func(j *joined, idle bool) *domainFiles {
		d := byDomain[j.domain]
		if d == nil {
			d = newDomainFiles(j.domain)
			byDomain[j.domain] = d
		}
		d.add(j, idle)
		return d
	}
	for _, f := range e.fronts.snapshot() {
		if volumes := f.volumes(); q.picks(f.joined, volumes) {
			d := add(f.joined, false)
			d.status.Fronts = append(d.status.Fronts, FrontStatus{
				Image: f.reference, Digest: f.image.Digest(),
				Front: f.kind, Reason: f.why(), Trouble: troubleOf(f), Target: f.dir, Volumes: volumes,
			})
			if q.Volume != nil {
				d.only = append(d.only, f.member)
			}
		}
	}
	for _, j := range e.idle.list() {
		if q.picks(j, nil) {
			d := add(j, true)
			d.status.Idle = append(d.status.Idle, j.reference)
		}
	}
	list := slices.SortedFunc(maps.Values(byDomain), func(a, b *domainFiles) int {
		return cmp.Or(strings.Compare(a.status.Name, b.status.Name), strings.Compare(a.status.ContentMount, b.status.ContentMount))
	})
	s := Status{PID: os.Getpid(), Deaths: supervise.Deaths(), Domains: []DomainStatus{}}
	files := make([]filesOf, 0, len(list))
	for _, d := range list {
		d.finish()
		s.Domains = append(s.Domains, d.status)
		files = append(files, d)
	}
	for _, d := range e.kernelDomainsOf(q) {
		s.Domains = append(s.Domains, d.status)
		files = append(files, d)
	}
	return s, files
}

// troubleOf is FrontStatus.Trouble.
func troubleOf(f *front) string {
	for _, err := range []error{f.alive(), f.image.Trouble()} {
		if err != nil {
			return err.Error()
		}
	}
	return ""
}

// filesOf lists the files of a domain.
type filesOf interface {
	// each calls f with a number for each file that may have pages, and no fewer bytes
	// than those have, until it answers false.
	each(f func(id uint64, held int64) bool)
	// node returns what a number of each stands for, if it is still there.
	node(id uint64) (node, bool)
}
