package engine

import (
	"cmp"
	"maps"
	"slices"

	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/erofs"
)

// kernelFiles is a domain of the kernel engine in an answer.
type kernelFiles struct {
	status DomainStatus
	nodes  []node  // one for each content
	sizes  []int64 // of nodes
}

func (d *kernelFiles) each(f func(id uint64, held int64) bool) {
	for i, size := range d.sizes {
		if !f(uint64(i), size) {
			return
		}
	}
}

func (d *kernelFiles) node(id uint64) (node, bool) { return d.nodes[id], true }

// kernelDomainsOf returns the domains of the kernel engine that a query asks for.
func (e *Engine) kernelDomainsOf(q query) []*kernelFiles {
	byKey := make(map[string][]*kernelFront)
	for _, f := range e.kernels.snapshot() {
		if q.asksFor(f.domain, f.volumes()) {
			byKey[f.key] = append(byKey[f.key], f)
		}
	}
	list := make([]*kernelFiles, 0, len(byKey))
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		fronts := byKey[key]
		slices.SortFunc(fronts, func(a, b *kernelFront) int { return cmp.Compare(a.reference, b.reference) })
		d := &kernelFiles{status: DomainStatus{
			Name: fronts[0].domain, Engine: EngineKernel, Trusted: fronts[0].trusted, Fronts: []FrontStatus{}, Images: []ImageStatus{},
		}}
		contents := make(map[kernelContent]int) // index in d.nodes
		for _, f := range fronts {
			if err := d.add(f, contents); err != nil {
				klog.FromContext(e.ctx).Error(err, "Cannot tell the page cache of an image", "image", f.reference)
			}
		}
		d.finish()
		list = append(list, d)
	}
	return list
}

// add adds a front and its files.
func (d *kernelFiles) add(f *kernelFront, contents map[kernelContent]int) error {
	number := len(d.status.Images)
	d.status.Fronts = append(d.status.Fronts, FrontStatus{
		Image: f.reference, Digest: f.image.Digest(),
		Front: FrontKernel, Reason: f.reason, Target: f.dir, Volumes: f.volumes(),
	})
	d.status.Images = append(d.status.Images, ImageStatus{Image: f.reference})
	return f.eachFile(number, func(path string, size int64, c kernelContent) {
		im := &d.status.Images[number]
		im.Files++
		im.Bytes += size
		k, known := contents[c]
		if !known {
			k = len(d.nodes)
			contents[c] = k
			d.nodes = append(d.nodes, node{Path: f.dir + "/" + path, Behind: true})
			d.sizes = append(d.sizes, size)
		}
		files := &d.nodes[k].Files
		if n := len(*files); n == 0 || (*files)[n-1][0] != number {
			*files = append(*files, [2]int{number, 0})
		}
		(*files)[len(*files)-1][1]++
	})
}

// finish is called when all fronts were added.
func (d *kernelFiles) finish() {
	d.status.SharedInodes = len(d.nodes)
	for i, n := range d.nodes {
		if len(n.Files) < 2 {
			continue
		}
		for _, f := range n.Files {
			im := &d.status.Images[f[0]]
			im.SharedFiles += f[1]
			im.SharedBytes += int64(f[1]) * d.sizes[i]
		}
	}
}

// kernelContent is by what the kernel tells files of a domain apart: by fingerprint,
// size and whether they are compressed; those without a fingerprint by mount and nid.
type kernelContent struct {
	fingerprint string
	size        int64
	compressed  bool
	front       int
	nid         uint64
}

// eachFile calls fn with each file of the front that holds data, a hard link but
// once. It reads the image, not the mount.
func (f *kernelFront) eachFile(front int, fn func(path string, size int64, c kernelContent)) error {
	im, _, err := openImage(f.image, erofs.NewMetadataCache(1<<20)) // a walk wants no more
	if err != nil {
		return err
	}
	linked := make(map[uint64]struct{})
	return im.Walk(func(path string, in *erofs.Inode) error {
		if !in.IsRegular() || in.Size == 0 {
			return nil
		}
		if in.Nlink > 1 {
			if _, seen := linked[in.NID]; seen {
				return nil
			}
			linked[in.NID] = struct{}{}
		}
		c := kernelContent{front: front, nid: in.NID}
		if f.shared {
			value, ok, err := in.FingerprintValue()
			if err != nil {
				return err
			}
			if ok {
				c = kernelContent{fingerprint: string(value), size: in.Size, compressed: in.Layout.Compressed()}
			}
		}
		fn(path, in.Size, c)
		return nil
	})
}
