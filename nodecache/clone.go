package nodecache

import "sync/atomic"

// opened are the files of an image, open while anyone holds them.
type opened struct {
	blobs []*Blob
	lazy  *lazyBlob    // nil: all bytes were there when it was opened
	holds atomic.Int64 // images that share them, > 0 while open
}

func newOpened(blobs []*Blob) *opened {
	o := &opened{blobs: blobs}
	o.holds.Store(1)
	return o
}

// Clone returns another hold on the same image, to be released on its own. The
// image must not have been released.
func (i *Image) Clone() *Image {
	i.files.holds.Add(1)
	i.store.add(i.id)
	return &Image{
		store: i.store, id: i.id, reference: i.reference, digest: i.digest,
		sidecars: i.sidecars, take: i.take, files: i.files,
	}
}

// drop ends one hold; the last one closes the files.
func (o *opened) drop() {
	if o.holds.Add(-1) == 0 {
		for _, b := range o.blobs {
			b.close()
		}
		if o.lazy != nil {
			o.lazy.drop()
		}
	}
}
