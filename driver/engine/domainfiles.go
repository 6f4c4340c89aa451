package engine

import (
	"cmp"
	"slices"

	"github.com/erofs-csi/erofs-csi/erofs/share"
)

// domainFiles is a domain of an answer, with what is needed to list its files.
type domainFiles struct {
	domain *domain
	status DomainStatus
	images map[*share.Member]int // numbers in status.Images
	only   []*share.Member       // the files of which are asked for; nil: of all
	names  []string              // of files in the domain's layer
	stored []storedName          // the same, each once; from finish on
}

type storedName struct {
	name string
	size int64
}

func newDomainFiles(d *domain) *domainFiles {
	known, _ := d.share.Len()
	return &domainFiles{
		domain: d,
		status: DomainStatus{
			Name: d.name, Engine: EngineFUSE, Trusted: d.trusted, ContentMount: d.mount.Dir(), KnownInodes: known,
			Fronts: []FrontStatus{}, Images: []ImageStatus{}, CacheLimit: d.fs.CacheLimit(),
		},
		images: make(map[*share.Member]int),
	}
}

// add adds an image of the domain.
func (d *domainFiles) add(j *joined, idle bool) {
	d.images[j.member] = len(d.status.Images)
	im := ImageStatus{Image: j.reference, Idle: idle, Files: j.files, Bytes: j.bytes}
	if !j.image.Complete() {
		im.PulledBytes, im.ImageBytes = j.image.Progress()
	}
	if j.fingerprints() != nil {
		a := d.domain.share.Account().Images[j.member]
		im.Bytes, im.SharedFiles, im.SharedBytes = a.Bytes, a.SharedFiles, a.SharedBytes
	} else {
		d.status.SharedInodes += j.files
	}
	d.status.Images = append(d.status.Images, im)
	d.names = append(d.names, j.storedNames()...)
}

// finish is called when all images were added.
func (d *domainFiles) finish() {
	d.status.SharedInodes += d.domain.share.Account().Contents
	slices.SortFunc(d.status.Fronts, func(a, b FrontStatus) int { return cmp.Compare(a.Image, b.Image) })
	slices.Sort(d.names)
	for _, name := range slices.Compact(d.names) {
		if _, size := d.domain.share.Files(name); size > 0 {
			d.stored = append(d.stored, storedName{name, size})
			d.status.StoredFiles++
			d.status.StoredBytes += size
		}
	}
}

// node is a file that may have pages, as the status socket sends it.
type node struct {
	Domain int    `json:"d"` // number in Status.Domains
	Path   string `json:"p"` // opens the kernel inode; may be gone
	// Weight is for how many files like this it stands; 0: for itself.
	Weight float64 `json:"w,omitempty"`
	// Files are the images that it is in, by their numbers in DomainStatus.Images,
	// and how many of each one's files it is.
	Files [][2]int `json:"f,omitempty"`
	// Behind: the pages are those of another inode, to which cachestat(2) does not
	// lead, but mmap(2) does.
	Behind bool `json:"b,omitempty"`
}

// each calls f with a number for each file that may have pages, and no fewer bytes
// than those have, until it answers false. Numbers with storedBit are of the layer.
func (d *domainFiles) each(f func(id uint64, held int64) bool) {
	more := true
	fn := func(id uint64, held int64) bool {
		more = f(id, held)
		return more
	}
	if d.only == nil {
		d.domain.fs.InUse(nil, fn)
	}
	for _, m := range d.only {
		if more {
			d.domain.fs.InUse(m, fn)
		}
	}
	for i, s := range d.stored {
		if more {
			fn(storedBit|uint64(i), s.size)
		}
	}
}

// storedBit is in no node id of a file that each lists: they have one of the two
// highest bits, or a tree's slot, which is less than 2^18.
const storedBit = 3 << 62

// node returns what a number of each stands for, if it is still there.
func (d *domainFiles) node(id uint64) (n node, ok bool) {
	var files []share.MemberFiles
	if id&storedBit == storedBit {
		name := d.stored[id&^storedBit].name
		files, _ = d.domain.share.Files(name)
		n.Path = d.domain.layer.Dir() + name
	} else {
		use, ok := d.domain.fs.Node(id)
		if !ok {
			return n, false
		}
		files = use.Files
		n.Path = d.status.ContentMount + use.Path
	}
	for _, f := range files {
		if image, ok := d.images[f.Member]; ok {
			n.Files = append(n.Files, [2]int{image, f.Files})
		}
	}
	return n, true
}
