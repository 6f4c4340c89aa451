package nodecache

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
)

// Image is an image in use: one blob of the store, or one or more files used
// in place. It keeps them open, so that their bytes can be read until Release
// even if their names are removed. All methods may be called concurrently.
type Image struct {
	store     *Store
	id        string
	reference string
	digest    string
	sidecars  string // path of a sidecar without .<name>
	take      uint64 // see Take
	files     *opened

	resting  bool // see Rest; GUARDED_BY(store.mu)
	released bool // GUARDED_BY(store.mu)
}

// ID is the identity of the bytes, at most 80 bytes and safe as a file name:
// "sha256-" and the 64 hexadecimal digits of the blob's digest; or "file-" and
// 64 digits, for files used in place, which stay the same as long as device,
// inode, size, mtime and ctime of all of them do.
func (i *Image) ID() string { return i.id }

// Reference is the full reference: of a registry image with the digest of the
// manifest or index that the tag meant.
func (i *Image) Reference() string { return i.reference }

// Digest is "sha256:..." of the blob, "" for files used in place.
func (i *Image) Digest() string { return i.digest }

// Blob is the primary device.
func (i *Image) Blob() *Blob { return i.files.blobs[0] }

// Devices are the extra devices in the order of the reference. Do not modify.
func (i *Image) Devices() []*Blob { return i.files.blobs[1:] }

// SidecarPath is where the sidecar called name is or would be: something
// derived from the bytes of the image and kept as long as they are. name is one
// that WriteSidecar accepts.
func (i *Image) SidecarPath(name string) string { return i.sidecars + "." + name }

// sidecarName keeps sidecars apart from blobs (no dot in a blob's name) and
// from everything a path could mean.
var sidecarName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,31}$`)

// WriteSidecar makes the sidecar called name ([a-z0-9_-], at most 32 bytes)
// from what write puts into a new file, replacing an older one at once: after a
// crash there is the old one, the new one or, if there was none, none. If write
// fails, nothing changes. The error wraps [ErrNoSpace] for a full disk and
// [ErrInterrupted] after the store was closed.
func (i *Image) WriteSidecar(name string, write func(*os.File) error) error {
	if !sidecarName.MatchString(name) {
		return fmt.Errorf("sidecar name %q: want at most 32 of a-z, 0-9, _ and -", name)
	}
	s := i.store
	if err := s.begin(); err != nil {
		return err
	}
	f, err := s.createTemp()
	s.end()
	if err != nil {
		return s.diskError("write sidecar "+name, err)
	}
	if err := write(f); err != nil {
		s.discard(f)
		return s.diskError("write sidecar "+name, err)
	}
	// Only now: Close need not wait for write, which may take minutes.
	if err := s.begin(); err != nil {
		s.discard(f)
		return err
	}
	defer s.end()
	if err := s.publish(f, i.SidecarPath(name)); err != nil {
		s.discard(f)
		return s.diskError("write sidecar "+name, err)
	}
	return nil
}

// Unlinked tells whether a file of the image has no name any more: whoever removed
// it waits for its space.
func (i *Image) Unlinked() bool { return slices.ContainsFunc(i.files.blobs, (*Blob).unlinked) }

// Release ends the use of the image; that of its clones goes on. Once all have
// ended, reads that run finish and later ones fail. Calls after the first do
// nothing.
func (i *Image) Release() {
	i.store.mu.Lock()
	released, resting := i.released, i.resting
	i.released = true
	i.store.mu.Unlock()
	if released {
		return
	}
	i.files.drop()
	i.store.drop(i.id, resting)
}

// openStored opens the blob of rec, which [Store.lookup] or a pull has found and
// the caller holds.
func (s *Store) openStored(ref reference, rec record) (*Image, error) {
	path := s.dir.blob(rec.Blob)
	fd, direct, err := openDirect(path, noFollow)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%w: the blob of %s was removed from the store", ErrNotFound, ref)
		}
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	b, err := newBlob(fd, path, direct, false)
	if err != nil {
		return nil, err
	}
	full := ref
	full.digest = rec.Resolved
	s.add(imageID(rec.Blob))
	return &Image{
		store:     s,
		id:        imageID(rec.Blob),
		reference: full.String(),
		digest:    rec.Blob.String(),
		sidecars:  filepath.Join(s.dir.blobs, rec.Blob.Encoded()),
		take:      s.takeOf(rec.Blob),
		files:     newOpened([]*Blob{b}),
	}, nil
}
