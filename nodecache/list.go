package nodecache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// Contents is what a store holds. Sizes on the disk are in bytes as du(1) counts
// them: Images, Overhead and Others together are what it says of the directory.
type Contents struct {
	Dir string `json:"dir"`
	Usage
	Images []StoredImage `json:"images"` // the one used last first
	// Pins are what is pinned, whether it is on the node or not.
	Pins []string `json:"pins"`
	// Unknown are files in the store's directories that are none of its own. They
	// are left alone.
	Unknown []string `json:"unknown,omitempty"`
	// PrefetchLists say what was read first of images, also of some that are not on the
	// node; at most 256, of 16 KiB and less.
	PrefetchLists int `json:"prefetchLists"`
	// Overhead is what directories, pins, prefetch lists, temporary and unknown files
	// take.
	Overhead int64 `json:"overhead"`
	// Others is what is in the directory beside the store.
	Others int64 `json:"others"`
}

// Usage is how full a store is.
type Usage struct {
	Blobs int   `json:"blobs"`
	Bytes int64 `json:"bytes"` // on the disk, of all of the store's files
	// Limit bounds Bytes; 0: no bound.
	Limit int64 `json:"limit,omitempty"`
	// Promised is what running pulls will take beyond Bytes.
	Promised int64 `json:"promised,omitempty"`
	// Free is how much the disk has left, and Reserve what pulls leave of it.
	Free    int64 `json:"free"`
	Reserve int64 `json:"reserve"`
	// EvictBelow is how much of the disk is to be free before unused images may stay.
	EvictBelow int64 `json:"evictBelow,omitempty"`
	// Evictions since the store was opened.
	Evictions int64 `json:"evictions"`
}

// StoredImage is a blob with what belongs to it, or what was computed about an
// image that is used in place.
type StoredImage struct {
	ID         string   `json:"id"` // Image.ID
	Digest     string   `json:"digest,omitempty"`
	References []string `json:"references,omitempty"`
	Size       int64    `json:"size"` // of the blob
	// Partial: not all of the blob is there. A pull goes on with it.
	Partial   bool      `json:"partial,omitempty"`
	Allocated int64     `json:"allocated"` // on the disk, with sidecars and records
	LastUse   time.Time `json:"lastUse"`
	InUse     bool      `json:"inUse"`
	// Resting: nobody uses it, but its pages are kept in memory.
	Resting bool `json:"resting,omitempty"`
	Pinned  bool `json:"pinned"`
	// Converted: it was made of the layers of a container image.
	Converted bool `json:"converted,omitempty"`
	// Volumes show it. The store does not know them: who mounts fills them in.
	Volumes []string `json:"volumes,omitempty"`
}

// Usage tells how full the store is.
func (s *Store) Usage() (Usage, error) {
	now, promised, err := s.used()
	if err != nil {
		return Usage{}, err
	}
	free, keep, err := s.free()
	if err != nil {
		return Usage{}, err
	}
	u := Usage{
		Bytes: now, Limit: s.limit, Promised: promised - now, Free: free, Reserve: keep,
		EvictBelow: s.evictBelow, Evictions: s.evictions.Load(),
	}
	err = s.eachInfo(s.dir.blobs, func(_ string, info os.FileInfo) {
		if hexName.MatchString(info.Name()) && info.Mode().IsRegular() {
			u.Blobs++
		}
	})
	return u, err
}

// List tells what is in the store.
func (s *Store) List() (Contents, error) {
	if err := s.begin(); err != nil {
		return Contents{}, err
	}
	defer s.end()
	s.space.Lock() // nothing is evicted meanwhile
	defer s.space.Unlock()
	entries, unknown, err := s.entries()
	if err != nil {
		return Contents{}, err
	}
	c := Contents{Dir: s.dir.root, Images: []StoredImage{}, Pins: []string{}, Unknown: unknown}
	if c.Usage, err = s.Usage(); err != nil {
		return Contents{}, err
	}
	if c.Others, err = s.others(); err != nil {
		return Contents{}, err
	}
	c.Overhead = c.Bytes
	for _, e := range slices.Backward(entries) {
		c.Overhead -= e.allocated
		c.Images = append(c.Images, s.storedImage(e))
	}
	err = s.eachInfo(s.dir.pins, func(path string, _ os.FileInfo) {
		if p, err := readPin(path); err == nil {
			c.Pins = append(c.Pins, p.Reference)
		} else {
			c.Unknown = append(c.Unknown, path)
		}
	})
	slices.Sort(c.Pins)
	if err != nil {
		return Contents{}, err
	}
	err = s.eachOrder(
		func(string, digest.Digest, os.FileInfo) { c.PrefetchLists++ },
		func(path string) { c.Unknown = append(c.Unknown, path) },
	)
	return c, err
}

func (s *Store) storedImage(e *entry) StoredImage {
	inUse := s.inUse(e.id)
	return StoredImage{
		ID: e.id, Digest: e.digest.String(), References: e.refs, Size: e.size, Partial: !e.blob && len(e.parts) > 0, Allocated: e.allocated, LastUse: e.used,
		InUse: inUse, Resting: !inUse && s.held(e.id), Pinned: e.pinned, Converted: e.converted,
	}
}

// Remove takes an image, named by a reference or the digest of its blob, out of
// the store, with all references that lead to it. The error wraps [ErrNotFound],
// or [ErrInUse] if somebody uses or pinned it: nothing is removed then.
func (s *Store) Remove(text string) (Evicted, error) {
	n, err := parseName(text)
	if err != nil {
		return Evicted{}, err
	}
	if err := s.begin(); err != nil {
		return Evicted{}, err
	}
	defer s.end()
	s.space.Lock()
	defer s.space.Unlock()
	d, err := s.find(n)
	if err != nil {
		return Evicted{}, err
	}
	entries, _, err := s.entries()
	if err != nil {
		return Evicted{}, err
	}
	for _, e := range entries {
		if e.digest != d {
			continue
		}
		if e.pinned {
			return Evicted{}, fmt.Errorf("%w: %s is pinned; unpin it first", ErrInUse, n.text)
		}
		freed, err := s.evict(e)
		if err != nil {
			return Evicted{}, s.diskError("remove "+n.text, err)
		}
		if freed == 0 {
			return Evicted{}, fmt.Errorf("%w: %s is used by a volume, or being mounted; unmount it first", ErrInUse, n.text)
		}
		if err := s.disk.remove(s.dir.order(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Evicted{}, s.diskError("remove the prefetch list of "+n.text, err)
		}
		// What a person removed must not come back after a power cut.
		if err := errors.Join(s.disk.syncDir(s.dir.blobs), s.disk.syncDir(s.dir.refs)); err != nil {
			return Evicted{}, s.diskError("remove "+n.text, err)
		}
		return Evicted{Images: 1, Bytes: freed}, nil
	}
	return Evicted{}, fmt.Errorf("%w: %s was removed meanwhile", ErrNotFound, n.text)
}
