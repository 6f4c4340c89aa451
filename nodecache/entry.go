package nodecache

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// entry is what is evicted as one: a blob, or what there is of it, with its sidecars
// and records, or the sidecars of an image in place.
type entry struct {
	id        string        // Image.ID
	digest    digest.Digest // of the blob; "": an image in place
	blob      bool          // the blob is there
	parts     []string      // paths, of a blob that is not complete
	sidecars  []string      // paths
	records   []string      // paths
	refs      []string      // of the records, canonical
	size      int64         // of the blob
	allocated int64         // on the disk, of all
	blobBytes int64         // on the disk, of the blob
	used      time.Time     // last
	pinned    bool
	converted bool // made of a container image's layers
}

// entries lists what is in the store, and the paths of files that are none of
// its own.
func (s *Store) entries() (list []*entry, unknown []string, err error) {
	byID := make(map[string]*entry)
	get := func(id string) *entry {
		e := byID[id]
		if e == nil {
			e = &entry{id: id}
			byID[id] = e
			list = append(list, e)
		}
		return e
	}
	note := func(e *entry, info os.FileInfo) {
		e.allocated += onDisk(info)
		if info.ModTime().After(e.used) {
			e.used = info.ModTime()
		}
	}
	err = s.eachInfo(s.dir.blobs, func(path string, info os.FileInfo) {
		encoded, sidecar, ok := blobName(info.Name())
		if !ok || !info.Mode().IsRegular() {
			unknown = append(unknown, path)
			return
		}
		d := digest.NewDigestFromEncoded(digest.SHA256, encoded)
		e := get(imageID(d))
		e.digest = d
		if sidecar != "" {
			e.sidecars = append(e.sidecars, path)
			e.allocated += onDisk(info)
			return
		}
		e.blob, e.size, e.blobBytes = true, info.Size(), onDisk(info)
		note(e, info)
	})
	if err != nil {
		return nil, nil, err
	}
	err = s.eachInfo(s.dir.partials, func(path string, info os.FileInfo) {
		encoded, isState := strings.CutSuffix(info.Name(), stateSuffix)
		if !hexName.MatchString(encoded) || !info.Mode().IsRegular() {
			unknown = append(unknown, path)
			return
		}
		d := digest.NewDigestFromEncoded(digest.SHA256, encoded)
		e := get(imageID(d))
		e.digest = d
		e.parts = append(e.parts, path)
		note(e, info)
		if !isState && !e.blob {
			e.size = info.Size()
		}
	})
	if err != nil {
		return nil, nil, err
	}
	err = s.eachInfo(s.dir.paths, func(path string, info os.FileInfo) {
		id, _, ok := pathName(info.Name())
		if !ok || !info.Mode().IsRegular() {
			unknown = append(unknown, path)
			return
		}
		e := get(id)
		e.sidecars = append(e.sidecars, path)
		note(e, info)
	})
	if err != nil {
		return nil, nil, err
	}
	err = s.eachInfo(s.dir.refs, func(path string, info os.FileInfo) {
		if !hexName.MatchString(info.Name()) {
			unknown = append(unknown, path)
			return
		}
		rec, err := readRecord(path)
		if err != nil {
			return // damaged: repair takes it
		}
		if e := byID[imageID(rec.Blob)]; e != nil {
			e.records = append(e.records, path)
			e.converted = e.converted || rec.Converter != ""
			if rec.Reference != "" {
				e.refs = append(e.refs, rec.Reference)
			}
			e.allocated += onDisk(info)
		}
	})
	if err != nil {
		return nil, nil, err
	}
	for _, e := range list {
		slices.Sort(e.refs)
		e.pinned = s.pinned(e)
	}
	slices.SortStableFunc(list, func(a, b *entry) int { return a.used.Compare(b.used) })
	return list, unknown, nil
}

// eachInfo calls fn with each file in a directory of the store.
func (s *Store) eachInfo(dir string, fn func(path string, info os.FileInfo)) error {
	return s.eachName(dir, func(name string) error {
		path := filepath.Join(dir, name)
		info, err := os.Lstat(path)
		if err == nil {
			fn(path, info)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}
