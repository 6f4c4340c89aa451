package driver

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// recordVersion is the version of the record format. A record of another
// version is reported and left alone.
const recordVersion = 1

// maxRecord bounds a record file: an image's reference is at most 4 KiB, a
// target 4 KiB, and a node runs some hundred pods.
const maxRecord = 16 << 20

// record is what a volume's rebuild needs. It holds no secret.
//
// Invariant: a path is in the saved record before it is mounted and until
// after it is unmounted, so that a crash between two steps leaves no mount
// that the next start does not know.
type record struct {
	Version    int        `json:"version"`
	VolumeID   string     `json:"volumeID"`
	Ephemeral  bool       `json:"ephemeral"`
	Attributes attributes `json:"attributes"`
	// Domain is the engine's name of the domain; "" shares with nobody.
	Domain string `json:"domain,omitempty"`
	// Reference and ImageID are of the image that is mounted.
	Reference string `json:"reference"`
	Digest    string `json:"digest,omitempty"`
	ImageID   string `json:"imageID"`
	// Bytes and Inodes are the size of the image.
	Bytes  uint64 `json:"bytes"`
	Inodes uint64 `json:"inodes"`
	// Staging is nil for an ephemeral volume.
	Staging *recordPath  `json:"staging,omitempty"`
	Targets []recordPath `json:"targets,omitempty"`
}

// recordPath is a place of a volume.
type recordPath struct {
	Path  string     `json:"path"`
	Flags mountFlags `json:"flags"`
	// Created: the directory was made by this driver.
	Created bool `json:"created,omitempty"`
}

// target returns the index of a target path, or -1.
func (r record) target(path string) int {
	return slices.IndexFunc(r.Targets, func(t recordPath) bool { return t.Path == path })
}

// paths returns all places of the volume, the staging path first.
func (r record) paths() []recordPath {
	var paths []recordPath
	if r.Staging != nil {
		paths = append(paths, *r.Staging)
	}
	return append(paths, r.Targets...)
}

// withTarget returns a copy with the target added or replaced.
func (r record) withTarget(t recordPath) record {
	targets := slices.DeleteFunc(slices.Clone(r.Targets), func(o recordPath) bool { return o.Path == t.Path })
	r.Targets = append(targets, t)
	return r
}

// withoutTarget returns a copy without the target.
func (r record) withoutTarget(path string) record {
	r.Targets = slices.DeleteFunc(slices.Clone(r.Targets), func(o recordPath) bool { return o.Path == path })
	return r
}

// volumesDir is the directory of the records below the state directory.
const volumesDir = "volumes"

// recordDir keeps records as <dir>/<SHA-256 of the volume id>.json.
type recordDir string

func (d recordDir) file(volumeID string) string {
	sum := sha256.Sum256([]byte(volumeID))
	return filepath.Join(string(d), hex.EncodeToString(sum[:])+".json")
}

// save writes a record: temp, fsync, rename, fsync of the directory.
func (d recordDir) save(r record) (err error) {
	r.Version = recordVersion
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("saving the state of volume %q: %w", r.VolumeID, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("saving the state of volume %q: %w", r.VolumeID, err)
		}
	}()
	temp, err := os.CreateTemp(string(d), "tmp-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(temp.Name()))
		}
	}()
	_, err = temp.Write(append(b, '\n'))
	if err == nil {
		err = temp.Sync()
	}
	if err = errors.Join(err, temp.Close()); err != nil {
		return err
	}
	if err = os.Rename(temp.Name(), d.file(r.VolumeID)); err != nil {
		return err
	}
	return d.sync()
}

// remove forgets a volume. Nothing there: success.
func (d recordDir) remove(volumeID string) error {
	if err := os.Remove(d.file(volumeID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the state of volume %q: %w", volumeID, err)
	}
	return d.sync()
}

func (d recordDir) sync() error {
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// load reads all records and removes unfinished ones. A file that cannot be
// read is an error in damaged, not of the others; it is renamed to
// *.json.damaged, for people to look at.
func (d recordDir) load() (records []record, damaged []error, err error) {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, nil, err
	}
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, nil, err
	}
	for _, entry := range entries {
		path := filepath.Join(string(d), entry.Name())
		switch {
		case strings.HasPrefix(entry.Name(), "tmp-"):
			if err := os.Remove(path); err != nil {
				damaged = append(damaged, err)
			}
		case strings.HasSuffix(entry.Name(), ".json"):
			r, err := d.read(path)
			if err != nil {
				damaged = append(damaged, fmt.Errorf("%s: %w", path, err))
				if err := os.Rename(path, path+".damaged"); err != nil {
					damaged = append(damaged, err)
				}
				continue
			}
			records = append(records, r)
		}
	}
	return records, damaged, nil
}

// read reads and checks one record.
func (d recordDir) read(path string) (record, error) {
	f, err := os.Open(path) // #nosec G304 -- in a directory of ours
	if err != nil {
		return record{}, err
	}
	defer func() { _ = f.Close() }() // read only
	b, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return record{}, err
	}
	if len(b) > maxRecord {
		return record{}, fmt.Errorf("more than %d bytes", maxRecord)
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return record{}, err
	}
	switch {
	case r.Version != recordVersion:
		return record{}, fmt.Errorf("version %d, this release knows %d", r.Version, recordVersion)
	case r.VolumeID == "" || d.file(r.VolumeID) != path:
		return record{}, errors.New("the file's name is not that of its volume")
	case r.Reference == "" || r.ImageID == "":
		return record{}, errors.New("names no image")
	case r.Ephemeral != (r.Staging == nil):
		return record{}, errors.New("staging path does not fit the kind of volume")
	}
	for _, p := range r.paths() {
		if clean, err := checkPath("path", p.Path); err != nil {
			return record{}, err
		} else if clean != p.Path {
			return record{}, fmt.Errorf("path %q is not clean", p.Path)
		}
	}
	return r, nil
}
