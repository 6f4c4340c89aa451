package nodecache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// A pin is a file in pins/, named like the record of what it names. It outlives
// the image: a pin of a tag is of whatever the tag leads to.
type pin struct {
	// Reference is the canonical form of a reference, or the digest of a blob.
	Reference string    `json:"reference"`
	Since     time.Time `json:"since"`
}

// imageName is how a person calls an image of the store: by a reference of a
// registry or the digest of its blob.
type imageName struct {
	text string        // for messages
	key  string        // canonical reference or digest
	ref  reference     // if digest is ""
	blob digest.Digest // else
}

func parseName(text string) (imageName, error) {
	if strings.HasPrefix(text, "sha256:") {
		d := digest.Digest(text)
		if err := validDigest(d); err != nil {
			return imageName{}, fmt.Errorf("%w: %w", ErrInvalidReference, err)
		}
		return imageName{text: text, key: text, blob: d}, nil
	}
	ref, err := parseReference(text)
	if err != nil {
		return imageName{}, err
	}
	if ref.isPath() {
		return imageName{}, fmt.Errorf("%w: %s is used in place, nothing of it is kept in the store but what was computed about it", ErrInvalidReference, text)
	}
	return imageName{text: ref.String(), key: ref.canonical(), ref: ref}, nil
}

// find returns the blob that a name leads to. The error wraps ErrNotFound.
func (s *Store) find(n imageName) (digest.Digest, error) {
	if n.blob != "" {
		if info, err := os.Lstat(s.dir.blob(n.blob)); err == nil && info.Mode().IsRegular() {
			return n.blob, nil
		}
		if info, err := os.Lstat(s.dir.partial(n.blob)); err == nil && info.Mode().IsRegular() {
			return n.blob, nil
		}
	} else if rec, ok := s.lookup(n.ref); ok || rec.Blob != "" && s.partialPresent(rec.Blob, rec.Size) {
		return rec.Blob, nil
	}
	return "", fmt.Errorf("%w: %s is not on this node; see erofs-csi cache ls", ErrNotFound, n.text)
}

// Pin keeps the image that a reference, or a digest of a blob, leads to from
// being evicted or removed, until Unpin of the same. It holds for good: after a
// restart, and when a tag moves of what it leads to then. What is not on the
// node is ErrNotFound. Pinned already is no error.
func (s *Store) Pin(ctx context.Context, text string) error {
	n, err := parseName(text)
	if err != nil {
		return err
	}
	if err := s.begin(); err != nil {
		return err
	}
	defer s.end()
	d, err := s.find(n)
	if err != nil {
		return err
	}
	release, err := s.hold(ctx, imageID(d))
	if err != nil {
		return err
	}
	defer release()
	if _, err = s.find(n); err != nil { // evicted while we waited
		return err
	}
	if _, err := readPin(s.dir.pin(n.key)); err == nil {
		return nil
	}
	content, err := json.Marshal(pin{Reference: n.key, Since: time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return err
	}
	if err := s.writeFile(s.dir.pin(n.key), content); err != nil {
		return s.diskError("pin "+n.text, err)
	}
	return nil
}

// Unpin takes back Pin. What is not pinned is ErrNotFound.
func (s *Store) Unpin(text string) error {
	n, err := parseName(text)
	if err != nil {
		return err
	}
	if err := s.begin(); err != nil {
		return err
	}
	defer s.end()
	err = s.disk.remove(s.dir.pin(n.key))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s is not pinned; see erofs-csi cache ls", ErrNotFound, n.text)
	}
	if err == nil {
		err = s.disk.syncDir(s.dir.pins)
	}
	if err != nil {
		return s.diskError("unpin "+n.text, err)
	}
	s.wakeTending()
	return nil
}

// pinned tells whether one of the names of an entry is pinned. A pin that can't
// be read counts.
func (s *Store) pinned(e *entry) bool {
	if e.digest != "" && exists(s.dir.pin(e.digest.String())) {
		return true
	}
	for _, record := range e.records {
		if exists(filepath.Join(s.dir.pins, filepath.Base(record))) {
			return true
		}
	}
	return false
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func readPin(path string) (pin, error) {
	var p pin
	f, err := os.OpenFile(path, os.O_RDONLY|noFollow, 0)
	if err != nil {
		return p, err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(text, &p); err != nil {
		return p, fmt.Errorf("%s: %w", path, err)
	}
	if fileNameOf(p.Reference) != filepath.Base(path) {
		return p, fmt.Errorf("%s: is not the pin of %q", path, p.Reference)
	}
	return p, nil
}
