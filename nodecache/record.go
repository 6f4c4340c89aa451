package nodecache

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
)

// maxRecord bounds a record in bytes: a reference, three digests and two short
// strings.
const maxRecord = 16 << 10

// record is what a registry reference was resolved to, one JSON file in refs/.
// It is written after its blob is complete and durable.
type record struct {
	Reference string        `json:"reference"` // canonical
	Resolved  digest.Digest `json:"resolved"`  // what the tag meant: index or manifest
	Manifest  digest.Digest `json:"manifest"`  // the manifest that names the blob
	Blob      digest.Digest `json:"blob"`
	Size      int64         `json:"size"` // of the blob, in bytes
	MediaType string        `json:"mediaType"`
	// Converter is set if the blob was made of the manifest's layers, and by which
	// version. What another version made is as if it were not there.
	Converter string `json:"converter,omitempty"`
}

// conversion is the record that a conversion leaves of itself, for all references to
// its manifest. It is no record of a reference.
func (r record) conversion() record {
	r.Reference, r.Resolved = "", r.Manifest
	return r
}

// isConversion tells whether r is a record of a conversion of manifest that counts.
func (r record) isConversion(manifest digest.Digest) bool {
	return r.Reference == "" && r.Manifest == manifest && r.Converter == converterVersion
}

func (r record) validate() error {
	for _, d := range []digest.Digest{r.Resolved, r.Manifest, r.Blob} {
		if err := validDigest(d); err != nil {
			return err
		}
	}
	if r.Size <= 0 {
		return fmt.Errorf("size %d", r.Size)
	}
	return nil
}

// validDigest refuses all but SHA-256: the name of a blob is a path as well.
func validDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("%.80q is no SHA-256 digest", string(d))
	}
	return nil
}

func readRecord(path string) (record, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|noFollow, 0)
	if err != nil {
		return record{}, err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil {
		return record{}, err
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil {
		return record{}, fmt.Errorf("%s: %w", path, err)
	}
	if err := r.validate(); err != nil {
		return record{}, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// lookup returns what the store knows about ref, if the blob is there as well.
func (s *Store) lookup(ref reference) (record, bool) {
	rec, err := readRecord(s.dir.ref(ref))
	if err != nil || rec.Reference != ref.canonical() || rec.Converter != "" && rec.Converter != converterVersion {
		return record{}, false
	}
	return rec, s.blobPresent(rec.Blob, rec.Size)
}

// blobPresent tells whether the blob d of size bytes is in the store. What has
// the name but another length was damaged by somebody: not present.
func (s *Store) blobPresent(d digest.Digest, size int64) bool {
	st, err := os.Lstat(s.dir.blob(d))
	return err == nil && st.Mode().IsRegular() && st.Size() == size
}

// remember writes down what ref was resolved to: the digests of the index and
// the manifest first and the tag last, so that a tag that is known is known by
// its digests as well.
func (s *Store) remember(ref reference, rec record) error {
	names := []reference{ref.withDigest(rec.Manifest), ref.withDigest(rec.Resolved), ref}
	if ref.isWeb() {
		names = names[2:] // it has no manifest
	}
	for _, r := range names {
		rec := rec
		rec.Reference = r.canonical()
		if r.digest == rec.Manifest {
			rec.Resolved = rec.Manifest
		}
		if old, ok := s.lookup(r); ok && old == rec {
			continue
		}
		if err := s.writeRecord(s.dir.ref(r), rec); err != nil {
			return s.diskError("remember "+r.canonical(), err)
		}
	}
	return nil
}

func (s *Store) writeRecord(path string, rec record) error {
	text, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	if len(text) > maxRecord {
		return errors.New("the record is too long")
	}
	return s.writeFile(path, text)
}
