package nodecache

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// noFollow: a symbolic link in the store is none of ours.
const noFollow = unix.O_NOFOLLOW

// layout holds the paths of a store directory; see the package comment.
type layout struct {
	root, lock, blobs, partials, prefetch, refs, tmp, paths, pins string
}

func newLayout(root string) layout {
	return layout{
		root:     root,
		lock:     filepath.Join(root, "lock"),
		blobs:    filepath.Join(root, "blobs", "sha256"),
		refs:     filepath.Join(root, "refs"),
		tmp:      filepath.Join(root, "tmp"),
		paths:    filepath.Join(root, "paths"),
		pins:     filepath.Join(root, "pins"),
		partials: filepath.Join(root, "partial"),
		prefetch: filepath.Join(root, "prefetch"),
	}
}

// directories are all below root, parents first.
func (l layout) directories() []string {
	return []string{filepath.Dir(l.blobs), l.blobs, l.partials, l.prefetch, l.refs, l.tmp, l.paths, l.pins}
}

// top are the names in root that are the store's.
func (l layout) top() []string {
	names := []string{filepath.Base(l.lock)}
	for _, dir := range l.directories() {
		if filepath.Dir(dir) == l.root {
			names = append(names, filepath.Base(dir))
		}
	}
	return names
}

// blob is the path of the blob d, a valid SHA-256 digest.
func (l layout) blob(d digest.Digest) string { return filepath.Join(l.blobs, d.Encoded()) }

// partial is the path of what there is of the blob d, without that of its state.
func (l layout) partial(d digest.Digest) string { return filepath.Join(l.partials, d.Encoded()) }

// order is the path of the prefetch list of the blob d.
func (l layout) order(d digest.Digest) string { return filepath.Join(l.prefetch, d.Encoded()) }

// ref is the path of the record of a registry reference.
func (l layout) ref(ref reference) string { return filepath.Join(l.refs, fileNameOf(ref.canonical())) }

// conversion is the path of the record that the conversion of a manifest leaves. No
// reference's canonical form has a space.
func (l layout) conversion(manifest digest.Digest) string {
	return filepath.Join(l.refs, fileNameOf("conversion "+converterVersion+" "+manifest.String()))
}

// pin is the path of the pin of a reference, in its canonical form, or digest.
func (l layout) pin(what string) string { return filepath.Join(l.pins, fileNameOf(what)) }

// fileNameOf is a file name for a text that is no file name.
func fileNameOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

var hexName = regexp.MustCompile(`^[0-9a-f]{64}$`)

// blobName takes apart a name in blobs: the encoded digest, and the name of a
// sidecar or "" for the blob itself. ok is false for a name that is none of the
// store's.
func blobName(name string) (encoded, sidecar string, ok bool) {
	encoded, sidecar, isSidecar := strings.Cut(name, ".")
	return encoded, sidecar, hexName.MatchString(encoded) && (!isSidecar || sidecarName.MatchString(sidecar))
}

// pathName takes apart a name in paths: the ID of an image used in place, and
// the name of its sidecar.
func pathName(name string) (id, sidecar string, ok bool) {
	id, sidecar, _ = strings.Cut(name, ".")
	hexes, prefixed := strings.CutPrefix(id, pathIDPrefix)
	return id, sidecar, prefixed && hexName.MatchString(hexes) && sidecarName.MatchString(sidecar)
}
