package nodecache

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
)

// repair brings the directory into a state in which every name means something
// complete, after whatever happened to the last owner:
//
//   - what is below tmp is removed;
//   - a part of a blob is kept if its state can be read and says what it is a part
//     of, else removed; one of a blob that is complete is removed;
//   - a record that can't be read is removed;
//   - a blob whose length is not that of a record is removed, then the records
//     of blobs of which nothing is there;
//   - a sidecar without its blob is removed.
//
// A blob without a record stays: the next pull of it finds it, and it is evicted
// like any other. So do pins of what is not there, and files whose names are none
// of the store's: [Store.List] tells of them. It is idempotent and may itself be
// cut off anywhere.
func (s *Store) repair() error {
	if err := s.eachName(s.dir.tmp, func(name string) error {
		return s.disk.removeAll(filepath.Join(s.dir.tmp, name))
	}); err != nil {
		return err
	}
	if err := s.repairPartials(); err != nil {
		return err
	}
	if err := s.repairRefs(); err != nil {
		return err
	}
	return s.eachName(s.dir.blobs, func(name string) error {
		blob, sidecar, ok := blobName(name)
		if !ok || sidecar == "" {
			return nil
		}
		if _, err := os.Lstat(filepath.Join(s.dir.blobs, blob)); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return s.disk.remove(filepath.Join(s.dir.blobs, name))
	})
}

func (s *Store) repairRefs() error {
	return s.eachName(s.dir.refs, func(name string) error {
		if !hexName.MatchString(name) {
			return nil
		}
		path := filepath.Join(s.dir.refs, name)
		rec, err := readRecord(path)
		if err == nil && (s.blobPresent(rec.Blob, rec.Size) || s.partialPresent(rec.Blob, rec.Size)) {
			return nil
		}
		if err == nil {
			if err := s.removeBlob(rec.Blob); err != nil {
				return err
			}
		}
		return s.disk.remove(path)
	})
}

// removeBlob removes a damaged blob and all that was derived from its bytes. It
// is no error if there is none.
func (s *Store) removeBlob(d digest.Digest) error {
	return s.eachName(s.dir.blobs, func(name string) error {
		if name != d.Encoded() && !strings.HasPrefix(name, d.Encoded()+".") {
			return nil
		}
		return s.disk.removeAll(filepath.Join(s.dir.blobs, name))
	})
}

// eachName calls fn for each name in dir. A name that is gone when fn comes to
// it is no error.
func (s *Store) eachName(dir string, fn func(name string) error) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := fn(e.Name()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
